"""The episodes of an evaluation as a table, for trackers that can show one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking.trajectories import EVALUATIONS
from tracking.view.lines import parsed, short, shortened

COLUMNS = ("question_id", "kind", "question", "golden_answers", "answer", "em", "f1", "evidence", "searches",
           "stop_reason", "episode")  # fmt: skip
MOST = 1_000
"""Rows of a table; an evaluation in training plays 500 questions unless it is told otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Episodes:
    """The first ``MOST`` episodes that ``eval_trajectories.jsonl`` has of an evaluation."""

    rows: tuple[tuple[Any, ...], ...]
    """In the order of ``COLUMNS``."""
    name: str = "eval/episodes"
    """What trackers call the table."""


class EpisodesLog:
    """Reads what each evaluation adds to a run's log, once; with ``whole`` also what is in it already."""

    def __init__(self, folder: Path, *, whole: bool = False) -> None:
        self._path = folder / EVALUATIONS
        self._inode = self._read = 0
        if self._path.is_file() and not whole:
            self._inode, self._read = self._path.stat().st_ino, self._path.stat().st_size

    def of(self, step: int) -> Episodes:
        """Those of ``step`` that were added since the last call. Where nodes share no folder, those of this one."""
        found: dict[tuple[Any, Any], tuple[Any, ...]] = {}  # a question that a fault ended is played again
        if self._path.is_file():
            with self._path.open("rb") as file:
                now = os.fstat(file.fileno())
                if now.st_ino != self._inode or now.st_size < self._read:  # rewound: another file, which has less
                    self._inode, self._read = now.st_ino, 0
                file.seek(self._read)
                for raw in file:
                    row = parsed(raw)
                    if row is None or row.get("step") != step:
                        continue
                    key = (row.get("question_id"), row.get("sample"))
                    if key in found or len(found) < MOST:
                        found[key] = tuple(_cell(row, name) for name in COLUMNS)
                self._read = file.tell()
        return Episodes(rows=tuple(found.values()))


def _cell(row: dict[str, Any], name: str) -> Any:
    if name == "episode":
        return _text("\n".join(f"{t.get('text', '')}{t.get('observation') or ''}" for t in row.get("turns") or ()))
    value = row.get(name)
    if isinstance(value, list):
        value = " | ".join(map(str, value))
    return _text(value) if isinstance(value, str) else short(value)


def _text(text: str) -> str:
    """Half a surrogate pair, which UTF-8 can't hold, becomes a question mark."""
    return shortened(text).encode("utf-8", "replace").decode()
