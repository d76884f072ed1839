"""JSONL that a run may still be writing, or was killed in: read a line at a time, with a notice for what can't be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.readable import json_of
from tracking.shapes import Shape, is_number, shaped

MAX_TEXT = 20_000
"""Characters of one text that a report shows."""
MAX_CELL = 300
"""Characters of one text in a table of thousands of rows."""
MAX_DEPTH = 20
"""Lists in lists of a row: a log has four."""


@dataclass
class Notices:
    """What a reader of the report should know of its files."""

    texts: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        if text not in self.texts:
            self.texts.append(text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One row and where it stands in its file."""

    start: int
    row: dict[str, Any]


def lines(path: Path, notices: Notices, shape: Shape | None = None) -> Iterator[Line]:
    """The rows of ``path`` in their ``shape``; none where it is missing. What isn't a JSON object, or was never
    finished, is left out."""
    if not path.is_file():
        notices.add(f"{path.name} is missing")
        return
    torn = broken = start = 0
    with path.open("rb") as file:
        for raw in file:
            row = parsed(raw)
            if not raw.endswith(b"\n"):
                torn += 1
            elif row is None:
                broken += 1
            else:
                yield Line(start=start, row=shaped(row, shape or {}))
            start += len(raw)
    if torn:
        notices.add(f"{path.name}: its last line was never finished and is left out")
    if broken:
        notices.add(f"{path.name}: {broken} lines are no JSON objects and are left out")


def parsed(raw: bytes) -> dict[str, Any] | None:
    """The object of a line; None if it is none."""
    try:
        row = json_of(raw)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def clean(value: Any, longest: int = MAX_TEXT, depth: int = 0) -> Any:
    """``value`` as a report may hold it: finite numbers, texts of at most ``longest`` characters."""
    if isinstance(value, str):
        return shortened(value, longest)
    if isinstance(value, float):
        return short(value) if is_number(value) else None
    if isinstance(value, dict) and depth < MAX_DEPTH:
        return {shortened(str(k), longest): clean(v, longest, depth + 1) for k, v in value.items()}
    if isinstance(value, list) and depth < MAX_DEPTH:
        return [clean(v, longest, depth + 1) for v in value]
    return value if isinstance(value, bool) or is_number(value) else None


def shortened(text: str, longest: int = MAX_TEXT) -> str:
    """``text``, or its beginning and how much is left out."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… [{len(text) - longest:,} more characters are left out of this report]"


def short(value: Any, digits: int = 5) -> Any:
    """A number with ``digits`` significant digits, None if it is not finite; anything else as it is."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
