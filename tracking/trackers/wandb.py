"""Weights & Biases: online for a user who has logged in, offline otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tracking.config import TrackerConfig
from tracking.trackers import base
from tracking.trackers.episodes import COLUMNS, Episodes


def mode(config: TrackerConfig) -> str:
    """``online`` or ``offline`` for ``wandb.init``; ``auto`` asks whether credentials are at hand, where W&B looks."""
    if config.wandb_mode != "auto":
        return config.wandb_mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    settings = wandb_setup.singleton().settings  # of its environment variables and files
    if settings.mode != "online":  # as `wandb offline` leaves it
        return settings.mode
    known = settings.api_key or settings.identity_token_file or wbauth.read_netrc_auth(host=settings.base_url)
    return "online" if known else "offline"


class Tracker(base.Tracker):
    """One W&B run in the folder of a Slingshot run.

    With an ``id`` it goes on with the W&B run of that id. Steps are an axis of their own: a resumed run repeats the
    steps after its checkpoint, and W&B's own count only ever rises.
    """

    def __init__(self, asked: base.Asked) -> None:
        import wandb

        where = mode(asked.config)
        self._run = wandb.init(
            project=asked.config.project,
            name=asked.name,
            id=asked.id,
            resume="allow" if asked.id and where == "online" else None,
            dir=str(asked.folder),
            mode=where,  # type: ignore[arg-type]
            config=dict(asked.settings),
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        self._run.define_metric("*", step_metric="step")
        self.id = self._run.id

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers) | {"step": step})

    def episodes(self, episodes: Episodes, step: int) -> None:
        import wandb

        table = wandb.Table(columns=list(COLUMNS), data=[list(row) for row in episodes.rows], allow_mixed_types=True)
        self._run.log({episodes.name: table, "step": step})

    def close(self) -> None:
        import wandb

        self._run.finish()
        wandb.teardown()  # finish() alone leaves the writing to W&B's own process

    @staticmethod
    def abandon() -> None:
        """Takes back W&B's hook that waits for its own process when this one ends."""
        from wandb.sdk import wandb_setup

        connection = wandb_setup.singleton()._connection
        if connection is not None and connection._cleanup is not None:
            connection._cleanup()
