"""The language models that encode prompts; the protocol is `pleinair.model.text_encoder`."""
