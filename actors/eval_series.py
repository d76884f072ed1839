"""A training run's own evaluations: which questions they play and how, and what the first and the last of them gave."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from actors.provenance import CORPUS
from actors.run_state import RunState
from agent.inference.evaluation import EvalRow, check_any_scored, judged, subset
from agent.prompts import prompt_digest
from conf.as_trained import OF_THE_MACHINE
from conf.schema import RunConfig
from tasks.digest import digest_of
from tasks.load import Task
from tracking.metrics import SERIES


class EvalSeries:
    """Evaluations of one run that play the same held-out ``questions`` of ``task`` in the same way: others are no
    measure of its progress. ``data`` has digests of what the run reads (``Provenance``).

    ``first`` and ``last`` are rows of metrics.jsonl without their kind, None before there is one.
    """

    def __init__(self, config: RunConfig, task: Task, data: Mapping[str, str]) -> None:
        self._max_fault_share = config.evaluation.max_fault_share
        self.questions = subset(task.eval, config.evaluation.limit(config.mode))
        self._series = dict(zip(SERIES, (digest_of(self.questions), _played(config, data)), strict=True))
        self._about = {"data": task.held_out_name or task.name, **self._series}
        self.first: dict[str, Any] | None = None
        self.last: dict[str, Any] | None = None

    def goes_on(self, state: RunState | None) -> bool:
        """Takes over what a checkpoint holds; returns False if that is of another series, so that one begins."""
        self.first = self.last = None
        if state is None or not self.has(state.last_eval):
            return state is None
        self.first, self.last = state.first_eval, state.last_eval
        return True

    def has(self, row: Mapping[str, Any] | None) -> bool:
        """Whether an evaluation is of this series; one of an earlier version doesn't say all of it."""
        return row is None or all(row.get(name, mine) == mine for name, mine in self._series.items())

    def scores(self, rows: Sequence[EvalRow], *, needed: bool) -> dict[str, Any]:
        """What the played questions give; where too many of them have no score, why it is no result.

        Raises ``Fault`` if none has one though some are ``needed``.
        """
        if needed:
            check_any_scored(rows)
        return {**self._about, **judged(rows, self._max_fault_share)}

    def add(self, row: dict[str, Any]) -> None:
        """One more evaluation."""
        self.first = self.first or row
        self.last = row

    def reaches(self, step: int) -> bool:
        """Whether the last one is of ``step``."""
        return self.last is not None and self.last["step"] == step


def _played(config: RunConfig, data: Mapping[str, str]) -> str:
    """A digest of all that decides what an evaluation gives, beside its questions and the policy's weights.

    Settings that have their defaults are not in it: one that a later version adds begins no series.
    """
    how = config.evaluation_inference
    told = {
        "exit": how.ending,
        "selectivity": how.selectivity and _changed(how.selectivity),
        "agent": _changed(config.agent, but=("temperature", "prompt")),
        "prompt": prompt_digest(config.agent),
        "retrieval": _changed(config.retrieval, but=(*OF_THE_MACHINE, "index", "prebuilt")),
        "corpus": data.get(CORPUS, ""),
        "dtype": config.model.dtype,
    }
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16).hexdigest()


def _changed(settings: Any, but: Collection[str] = ()) -> dict[str, Any]:
    """The settings of a dataclass, ``but`` those, that haven't their defaults."""
    found = {}
    for field in fields(settings):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name not in but and (value := getattr(settings, field.name)) != default:
            found[field.name] = value
    return found
