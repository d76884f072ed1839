"""What a run continues from, besides the model: the step, the pool, and where checkpoints lie."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import UserError
from learner.checkpoint import latest, verify
from tracking.metrics import read, replace

TRAINING = "training"
"""Beside the model's files in a checkpoint: everything that only training needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """The supervisor's part of a checkpoint."""

    step: int
    pool: dict[str, Any]
    """``QueryPool.state()``."""
    rollouts: int
    """Trajectories played so far."""
    generated_tokens: int
    """Action tokens in them."""
    first_eval: dict[str, Any] | None
    last_eval: dict[str, Any] | None


def save(checkpoint: Path, state: RunState) -> None:
    """Writes ``training/pool.npz`` (arrays) and ``training/run.json`` (the rest)."""
    folder = checkpoint / TRAINING
    folder.mkdir(exist_ok=True)
    arrays = {k: v for k, v in state.pool.items() if isinstance(v, np.ndarray)}
    rest = {k: v for k, v in state.pool.items() if k not in arrays}
    np.savez(folder / "pool.npz", allow_pickle=False, **arrays)
    run = {f.name: getattr(state, f.name) for f in fields(state)} | {"pool": rest}
    (folder / "run.json").write_text(json.dumps(run))


def load(checkpoint: Path) -> RunState:
    """Reads what ``save`` wrote. Raises ``UserError`` naming a missing or damaged file."""
    verify(checkpoint)
    folder = checkpoint / TRAINING
    try:
        run = json.loads((folder / "run.json").read_text())
        with np.load(folder / "pool.npz") as arrays:
            pool = {**run["pool"], **{name: arrays[name] for name in arrays.files}}
        return RunState(**{**run, "pool": pool})
    except (OSError, ValueError, KeyError, TypeError) as error:
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
    if old_dir.resolve() == run_dir.resolve() and (played := run_dir / "trajectories.jsonl").is_file():
        released = state.pool.get("released", step)  # not the steps: a batch without a sound trajectory is none
        replace(played, [r for r in read(played) if r["batch"] < released])


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
