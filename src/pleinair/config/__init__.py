"""Configuration mechanism: frozen dataclasses, dotted overrides, JSON beside every run.

A configuration class lives beside the class it configures; here is only what they share.

    config = override(demo(), ["train.learning_rate=3e-4"])   unknown keys and wrong types are refused with a sentence
    write_config(config, run_dir / "config.json")
"""

from pleinair.config.overrides import config_digest, from_document, override, to_document, write_config

__all__ = ["config_digest", "from_document", "override", "to_document", "write_config"]
