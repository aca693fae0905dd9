"""Prompts to pictures; see `sampler`. The shipped model is `load_shipped_sampler`."""

from pleinair.sampling.sampler import Sampler, SamplingConfig

__all__ = ["Sampler", "SamplingConfig"]
