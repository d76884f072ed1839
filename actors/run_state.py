"""What a run continues from: the supervisor's part of a checkpoint, and what else has to be in one."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import UserError
from agent.pool import saved
from agent.readable import content_of, json_of
from learner.checkpoint import verify
from learner.manifest import Files, one
from retrieval_service.names import Digests
from tasks.trained import FILE as TRAINED_ON
from tasks.trained import write_trained

TRAINING = "training"
"""Beside the model's files in a checkpoint: everything that only training needs."""
LEARNER = "learner.pt"
"""The learner's file there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """The supervisor's part of a checkpoint."""

    step: int
    rollouts: int
    """Trajectories played so far."""
    generated_tokens: int
    """Tokens that the engines sampled for them."""
    first_eval: dict[str, Any] | None
    last_eval: dict[str, Any] | None
    best: dict[str, Any] | None = None
    """Step and ``em`` of the evaluation that ``checkpoints/best`` stands for."""
    time_s: float = 0.0
    """Seconds that the run has taken, over all its starts."""
    restarts: int = 0
    """Workers that were replaced, over all its starts."""
    trackers: dict[str, str] = field(default_factory=dict)
    """What each tracker calls the run, so that it goes on there too."""


def save(checkpoint: Path, state: RunState, trained_on: Digests) -> Files:
    """Writes ``training/run.json`` and what the run has ``trained_on`` (``tasks/trained.py``), and lists them.

    The pool and the learner write their own files beside them.
    """
    (checkpoint / TRAINING).mkdir(exist_ok=True)
    (checkpoint / TRAINING / "run.json").write_text(json.dumps(asdict(state)))
    write_trained(checkpoint, trained_on)
    return one(checkpoint, f"{TRAINING}/run.json") | one(checkpoint, TRAINED_ON)


def check(checkpoint: Path) -> None:
    """Raises ``UserError`` naming what is missing or damaged in a checkpoint that a run is to go on from."""
    verify(checkpoint)
    for name in ("run.json", saved.VALUES, saved.ARRAYS, LEARNER):
        if not (checkpoint / TRAINING / name).is_file():
            raise UserError(
                f"checkpoint {checkpoint}: {TRAINING}/{name} is missing, so no run can go on from it; it may be an "
                "earlier version's, or only a model: model.path=… starts a new run from one"
            )
    load(checkpoint)


def load(checkpoint: Path) -> RunState:
    """Reads what ``save`` wrote. Raises ``UserError`` where it can't be read."""
    with content_of(f"checkpoint {checkpoint}: {TRAINING}/run.json"):
        told = json_of((checkpoint / TRAINING / "run.json").read_text())
        if wandb := told.pop("tracker", None):  # as it was written while there was one tracker
            told["trackers"] = {"wandb": wandb}
        state = RunState(**told)
        counts = state.step, state.rollouts, state.generated_tokens, state.restarts
        rows = state.first_eval, state.last_eval, state.best
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"step, rollouts, generated_tokens and restarts are {counts}")
        if not all(row is None or (isinstance(row, dict) and {"step", "em"} <= row.keys()) for row in rows):
            raise ValueError("an evaluation has no step or em")
        if not isinstance(state.time_s, int | float) or not math.isfinite(state.time_s) or state.time_s < 0:
            raise ValueError(f"time_s is {state.time_s}")
        if not isinstance(state.trackers, dict):
            raise ValueError("trackers are no JSON object")
        return state
