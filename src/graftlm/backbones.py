"""Names to frozen parts: bundled packages, the toys, a local path or a hub id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graftlm.encoders.base import Encoder
    from graftlm.lm.base import LanguageModel
    from graftlm.systems.base import Parts, SystemConfig


def home() -> Path:
    """Where converted models and features live: $GRAFTLM_HOME, else ~/.cache/graftlm."""
    given = os.environ.get("GRAFTLM_HOME")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "graftlm"


def load_lm(name: str, precision: str = "bfloat16") -> LanguageModel:
    """A language model by bundled name, local path or hub id."""
    from graftlm.lm.toy import ToyLM

    if name == "toy":
        return ToyLM()
    raise NotImplementedError(name)


def load_encoder(name: str) -> Encoder:
    """An encoder by bundled name, local path or hub id."""
    from graftlm.encoders.toy import ToyEncoder

    if name == "toy":
        return ToyEncoder()
    raise NotImplementedError(name)


def load_parts(config: SystemConfig) -> Parts:
    """The frozen parts a config names."""
    from graftlm.systems.base import Parts

    encoder = load_encoder(config.encoder)
    return Parts(load_lm(config.lm, config.precision), {encoder.modality: encoder})
