"""eval_rows.jsonl: a line per episode of an evaluation or a calibration, written as they end, so that one that broke
off can go on."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args, get_type_hints

from agent.inference.early_exit import Probe
from agent.inference.evaluation import EvalRow, ScoredProbe
from agent.readable import content_of
from tracking.metrics import append, keep_lines, read
from tracking.trajectories import EVALUATIONS

ROWS = "eval_rows.jsonl"
_TYPES, _PROBE = get_type_hints(EvalRow), get_type_hints(Probe)
_NAMES = {*_TYPES}
_LATER = {"probes", "text"}
"""What rows of earlier versions lack."""


class EvalRows:
    """The rows of the evaluation in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ROWS

    def write(self, rows: Sequence[EvalRow]) -> None:
        """Adds rows: on disk before this returns."""
        append(self.path, map(asdict, rows))

    def read(self, samples: int) -> dict[str, list[EvalRow]]:
        """The episodes of each question of which all ``samples`` are there, by its id; of several attempts the last."""
        found: dict[str, dict[int, EvalRow]] = {}
        for row in self.last():
            found.setdefault(row.question_id, {})[row.sample] = row
        return {
            name: [own[k] for k in range(samples)] for name, own in found.items() if own.keys() == set(range(samples))
        }

    def last(self) -> list[EvalRow]:
        """The last attempt at each episode, however many of its question are there. Raises ``UserError`` for a row that
        ``write`` can't have written."""
        lines = read(self.path) if self.path.is_file() else []
        rows = [_row(line, self.path) for line in lines if line.keys() | _LATER == _NAMES]
        return [*{(row.question_id, row.sample): row for row in rows}.values()]

    def viable(self, samples: int) -> dict[str, list[EvalRow]]:
        """Those without a fault: what an evaluation that goes on need not play again."""
        return {name: own for name, own in self.read(samples).items() if not any(row.fault for row in own)}


def _row(line: Mapping[str, Any], path: Path) -> EvalRow:
    with content_of(f"{path}, the row of question {line['question_id']!r}"):
        told = {name: _as_written(name, value, _TYPES[name]) for name, value in line.items() if name != "probes"}
        return EvalRow(**told, probes=tuple(map(_probe, line.get("probes", ()))))


def _probe(told: Mapping[str, Any]) -> ScoredProbe:
    found = {name: _as_written(f"probes: {name}", value, _PROBE[name]) for name, value in told["probe"].items()}
    return ScoredProbe(probe=Probe(**found), em=_as_written("probes: em", told["em"], float))


def _as_written(name: str, value: Any, kind: Any) -> Any:
    """``value``. Raises ``ValueError`` unless it is of a ``kind``, and finite."""
    kinds = get_args(kind) or (kind,)
    whole = type(value) is int and float in kinds
    beyond = isinstance(value, int | float) and not math.isfinite(value)
    if beyond or not (type(value) in kinds or whole):
        raise ValueError(f"'{name}' is {value!r}; evaluate again")
    return value


def forget_others(folder: Path, kept: Collection[str]) -> None:
    """Takes the episodes of all questions but ``kept`` out of the folder's logs: they are played again."""
    for name in (ROWS, EVALUATIONS):
        keep_lines(folder / name, lambda row: row["question_id"] in kept)
