"""What a field of a settings' dataclass says of itself in its metadata: how its value is written, and its bounds.

Strings that the command line takes as they are typed are marked with ``PATH``, ``TEXT`` or ``SENTENCE``
(``conf/arguments.py``). Every number is made by ``bounded``, and ``check_bounds`` refuses what lies outside.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from agent.errors import UserError

KIND = "taken_as"
"""The key of the mark in a field's metadata."""
PATH: dict[str, Any] = {KIND: "path"}
"""A file or a folder: any character may be in it, ``~`` is the user's home."""
TEXT: dict[str, Any] = {KIND: "text"}
"""A name or an address: any character may be in it."""
SENTENCE: dict[str, Any] = {KIND: "sentence"}
"""The same, and ``${…}`` in it isn't filled in."""
RANGE = "range"
"""The key of the bounds in a field's metadata."""
MOST = 2**31 - 1
"""Upper bound of a setting that needs none: what every library below takes as a number."""
_BOUNDS = re.compile(
    r"(?:at least (?P<least>\S+)|above (?P<above>\S+))(?: and at most (?P<most>\S+))?|"
    r"in (?P<open>[\[(])(?P<low>\S+), (?P<high>\S+?)(?P<end>[\])])"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """The numbers that a setting may be."""

    text: str
    """As messages say it: ``at least 1``, ``above 0``, ``above 0 and at most 1``, ``in [0, 1)``."""
    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    @classmethod
    def of(cls, text: str) -> Range:
        """The range that ``text`` describes."""
        match = _BOUNDS.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r}: write 'at least 1', 'above 0' or 'in [0, 1)'")
        if match["open"] is None:
            low = match["least"] or match["above"]
            high = float(match["most"] or MOST)
            return cls(text=text, low=float(low), high=high, low_open=match["least"] is None)
        low, high = float(match["low"]), float(match["high"])
        return cls(text=text, low=low, high=high, low_open=match["open"] == "(", high_open=match["end"] == ")")

    def __contains__(self, number: float) -> bool:
        above = self.low < number if self.low_open else self.low <= number
        return above and (number < self.high if self.high_open else number <= self.high)  # NaN is nowhere

    def wrong(self, number: float) -> str:
        """What is to be said of a number outside."""
        if self.text.startswith("in "):
            return f"must lie {self.text}"
        return f"must be at most {MOST}" if number > self.high == MOST else f"must be {self.text}"


def bounded(default: Any, text: str) -> Any:
    """A field with a number (or None, or a list or dict of numbers) of the range that ``text`` describes."""
    metadata = {RANGE: Range.of(text)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_bounds(settings: Any, prefix: str) -> None:
    """Raises ``UserError`` for the first number of a dataclass that lies outside its bounds, as ``prefix.name``.

    A subclass that gives a field another default, and says nothing of its bounds, keeps those it had.
    """
    for f in fields(settings):
        bounds = _bounds_of(type(settings), f.name)
        value = getattr(settings, f.name)
        if bounds is None:
            continue
        for number in _numbers(value):
            if number not in bounds:
                raise UserError(f"{prefix}{'.' if prefix else ''}{f.name}={value} {bounds.wrong(number)}")


def check_settings(kind: type[Any], where: str) -> None:
    """Raises ``UserError``, which ``where`` begins, unless ``kind`` is itself a dataclass whose fields have defaults.

    A subclass of a dataclass that isn't declared as one has fields that are no settings.
    """
    if "__dataclass_params__" not in vars(kind):
        raise UserError(f"{where} is no dataclass; write @dataclass above it")
    if without := [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]:
        raise UserError(f"{where}: {', '.join(without)} needs a default, as each setting does")


def _bounds_of(cls: type, name: str) -> Range | None:
    declared = (vars(base).get("__dataclass_fields__", {}).get(name) for base in cls.__mro__)
    return next((f.metadata[RANGE] for f in declared if f is not None and RANGE in f.metadata), None)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list | dict):
        for element in value.values() if isinstance(value, dict) else value:
            yield from _numbers(element)
    elif value is not None:
        yield value
