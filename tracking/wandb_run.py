"""Weights & Biases: online for a user who has logged in, offline otherwise, absent with ``tracker=none``."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracking.config import TrackerConfig

HOST = "api.wandb.ai"


def mode(config: TrackerConfig) -> str:
    """``online`` or ``offline`` for ``wandb.init``; ``auto`` asks whether credentials are at hand."""
    if config.wandb_mode != "auto":
        return config.wandb_mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    return "online" if os.environ.get("WANDB_API_KEY") or _in_netrc() else "offline"


def _in_netrc() -> bool:
    try:
        return netrc.netrc().authenticators(HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class WandbRun:
    """One W&B run in the folder of a Slingshot run.

    With an ``id`` it goes on with the W&B run of that id. Steps are an axis of their own: a resumed run repeats the
    steps after its checkpoint, and W&B's own count only ever rises.
    """

    def __init__(
        self, config: TrackerConfig, folder: Path, settings: Mapping[str, Any], name: str, id: str | None = None
    ) -> None:
        import wandb

        self._run = wandb.init(
            project=config.project,
            name=name,
            id=id,
            resume="allow" if id and mode(config) == "online" else None,
            dir=str(folder),
            mode=mode(config),  # type: ignore[arg-type]
            config=dict(settings),
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        self._run.define_metric("*", step_metric="step")
        self.id: str = self._run.id

    def log(self, row: Mapping[str, Any], *, prefix: str = "") -> None:
        """Numbers of one row, at its step."""
        numbers = {f"{prefix}{k}": v for k, v in row.items() if isinstance(v, int | float) and v == v}
        self._run.log(numbers | {"step": int(row["step"])})

    def close(self) -> None:
        """Ends the run; uploads what is left when online, and waits until the last row is on disk."""
        import wandb

        self._run.finish()
        wandb.teardown()  # finish() alone leaves the writing to W&B's own process
