"""One real small model per test process."""

from __future__ import annotations

import pytest

from pleinair.cli.places import text_encoder_dir
from pleinair.model.text_encoders.smollm2 import fetch_smollm2
from tests.endpoints.servers import ServedLanguageModel, ServedVisionModel


@pytest.fixture(scope="session")
def language_model() -> ServedLanguageModel:
    return ServedLanguageModel(fetch_smollm2(text_encoder_dir()), most_tokens=10)


@pytest.fixture(scope="session")
def vision_model() -> ServedVisionModel:
    return ServedVisionModel(fetch_smollm2(text_encoder_dir()))
