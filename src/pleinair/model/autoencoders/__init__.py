"""Autoencoders behind `LatentCodec`: those of diffusers, and what ours is trained and judged with."""
