"""What a run continues from: the supervisor's part of a checkpoint, and where checkpoints lie."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.errors import UserError
from agent.pool import saved
from learner.checkpoint import latest, verify
from tracking.metrics import read, replace
from tracking.trajectories import EVALUATIONS, GROUPS, TRAJECTORIES, kept_up_to

TRAINING = "training"
"""Beside the model's files in a checkpoint: everything that only training needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """The supervisor's part of a checkpoint."""

    step: int
    rollouts: int
    """Trajectories played so far."""
    generated_tokens: int
    """Action tokens in them."""
    first_eval: dict[str, Any] | None
    last_eval: dict[str, Any] | None


def save(checkpoint: Path, state: RunState) -> None:
    """Writes ``training/run.json``; the pool and the learner write their own files beside it."""
    folder = checkpoint / TRAINING
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(asdict(state)))


def load(checkpoint: Path) -> RunState:
    """Reads what ``save`` wrote. Raises ``UserError`` naming a missing or damaged file."""
    verify(checkpoint)
    folder = checkpoint / TRAINING
    for name in ("run.json", saved.VALUES, saved.ARRAYS):
        if not (folder / name).is_file():
            raise UserError(
                f"checkpoint {checkpoint}: {TRAINING}/{name} is missing, so no run can go on from it; it may be an "
                "earlier version's, or only a model: model.path=… starts a new run from one"
            )
    try:
        return RunState(**json.loads((folder / "run.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"checkpoint {checkpoint}: can't be resumed ({error})") from error


def carry_metrics(checkpoint: Path, run_dir: Path) -> None:
    """Starts the resumed run's ``metrics.jsonl`` with the old run's rows up to the checkpoint's step.

    A run that is resumed in its own folder thereby forgets what came after the checkpoint, also the
    trajectories that it is going to play again.
    """
    old_dir, state = checkpoint.parent.parent, load(checkpoint)
    step = state.step
    if (old_dir / "metrics.jsonl").is_file():
        kept = [r for r in read(old_dir / "metrics.jsonl") if r["kind"] in ("step", "eval") and r["step"] <= step]
        resumed = {"kind": "event", "event": "resumed", "step": step, "path": str(checkpoint)}
        replace(run_dir / "metrics.jsonl", [*kept, resumed])
    if old_dir.resolve() != run_dir.resolve():
        return
    # Not the steps: a batch without a sound trajectory is none.
    ends = {TRAJECTORIES: "batch", GROUPS: "batch", EVALUATIONS: "step"}
    for name, key in ends.items():
        if (played := run_dir / name).is_file():
            kept_up_to(played, key, step + 1 if key == "step" else saved.load(checkpoint / TRAINING)["released"])


def find(resume: str, outputs: Path) -> Path:
    """The checkpoint that ``resume=`` means: ``auto``, a run's folder, or a checkpoint's.

    ``auto`` is the newest checkpoint of the newest run under ``outputs`` that has one. Raises
    ``UserError`` when there is none.
    """
    if resume == "auto":
        runs = {m.parent.parent.parent for m in outputs.glob("**/checkpoints/step-*/manifest.json")}
        newest = max(runs, key=lambda run: (run / "checkpoints").stat().st_mtime, default=None)
        found = latest(newest / "checkpoints") if newest else None
        if found is None:
            raise UserError(f"resume=auto: no run under {outputs} has a checkpoint")
        return found
    path = Path(resume).expanduser()
    if (path / "manifest.json").is_file():
        return path
    found = latest(path / "checkpoints") if (path / "checkpoints").is_dir() else None
    if found is None:
        raise UserError(
            f"resume={resume}: neither a checkpoint nor a run with one; name a folder such as …/step-000100"
        )
    return found
