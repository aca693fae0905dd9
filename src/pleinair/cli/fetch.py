"""`pleinair fetch text-encoder | image-encoder`: bring what is too large to ship."""

from __future__ import annotations

import argparse
from typing import Any


def register(verbs: Any) -> None:
    """Add the verb `fetch`."""
    parser: argparse.ArgumentParser = verbs.add_parser("fetch", help="download what is too large to ship, once")
    parser.add_argument(
        "what",
        choices=["text-encoder", "image-encoder"],
        help="text-encoder: SmolLM2-135M, 93 MB; image-encoder: EfficientNet-Lite0, 17 MB; both Apache-2.0",
    )
    parser.set_defaults(run=fetch)


def fetch(options: argparse.Namespace) -> int:
    """Fetch into the user's cache; a second call finds it there."""
    from pleinair.cli.places import cache_dir, text_encoder_dir

    if options.what == "image-encoder":
        from pleinair.model.efficientnet import fetch_efficientnet

        print(f"image encoder: {fetch_efficientnet(cache_dir() / 'efficientnet-lite0')}")
        return 0
    from pleinair.model.text_encoders.smollm2 import fetch_smollm2

    fetch_smollm2(text_encoder_dir())
    print(f"text encoder: {text_encoder_dir()}")
    return 0
