"""What can be set in a dialogue: how answers are written and when they show pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from graftlm.data.dialogue import FORMATS, STOP, Format
from graftlm.errors import DataError, GraftError, UsageError, unknown
from graftlm.lm.decode import Decoding
from graftlm.lm.pictures import Pictures

_SWITCH = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}

_RANGES = {"max_tokens": (1, 32_768), "beams": (1, 64), "most": (0, 64), "threshold": (-1, 1), "temperature": (0, 100)}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a dialogue. Raises: UsageError for one out of range."""

    format: Format = field(default="plain", metadata={"help": "how turns are written down: chat, qa, plain or caption"})
    max_tokens: int = field(default=64, metadata={"help": "most tokens of an answer, or between two of its pictures"})
    temperature: float = field(default=0.0, metadata={"help": "0 takes the best token, above 0 draws"})
    beams: int = field(
        default=1, metadata={"help": "beams of beam search; 1 = none, and text is shown as it is written"}
    )
    bias: float = field(
        default=0.0, metadata={"help": "added to the logit of [RET]: above 0 more pictures, below fewer"}
    )
    threshold: float = field(default=-1.0, metadata={"help": "a picture below this score, -1 to 1, is not shown"})
    most: int = field(default=1, metadata={"help": "pictures in an answer; 0 = none"})
    feed_back: bool = field(default=True, metadata={"help": "whether the pictures it has shown are seen by the model"})

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(unknown("format", str(self.format), FORMATS))
        for name, (least, most) in _RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise UsageError(f"{name}: expected {least} to {most}, found {getattr(self, name)}")
        try:
            self.decoding(0)
            self.pictures()
        except GraftError as error:
            raise UsageError(str(error)) from None

    def decoding(self, turn: int) -> Decoding:
        """How the answer to a turn is searched for; drawn answers differ from turn to turn, and are repeatable."""
        return Decoding(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            num_beams=self.beams,
            seed=turn,
            stop=STOP[self.format],
        )

    def pictures(self) -> Pictures:
        """When an answer shows pictures."""
        return Pictures(bias=self.bias, threshold=self.threshold, most=self.most, feed_back=self.feed_back)

    def changed(self, name: str, text: str) -> Settings:
        """With one setting as the user wrote it. Raises: UsageError for an unknown name or a wrong value."""
        kinds = {one.name: type(one.default) for one in fields(self)}
        if name not in kinds:
            raise UsageError(unknown("setting", name, kinds))
        return replace(self, **{name: _read(name, text.strip(), kinds[name])})

    def lines(self) -> list[str]:
        """Every setting, its value and what it is."""
        return [f"{one.name} {_shown(getattr(self, one.name))}  ({one.metadata['help']})" for one in fields(self)]

    def to_json(self) -> dict[str, Any]:
        """Name to value."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any], where: str) -> Settings:
        """The inverse of `to_json`; what is missing has its default. Raises: DataError."""
        settings = cls()
        for name, value in row.items():
            try:
                settings = settings.changed(name, _shown(value))
            except UsageError as error:
                raise DataError(f"{where}, settings: {error}") from None
        return settings


def _read(name: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in _SWITCH:
            raise UsageError(f"{name}: expected on or off, found '{text}'")
        return _SWITCH[text.lower()]
    if kind is str:
        return text
    try:
        value = kind(text)
        is_number = math.isfinite(value)
    except (ValueError, OverflowError):
        is_number = False
    if not is_number:
        raise UsageError(f"{name}: expected {'a whole number' if kind is int else 'a number'}, found '{text}'")
    return value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return repr(value) if isinstance(value, float) else str(value)
