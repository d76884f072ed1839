"""Settings of the trackers and of a sweep's report."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.errors import one_of
from agent.settings import PATH, SENTENCE, TEXT, bounded, check_bounds

TRACKERS = ("wandb", "tensorboard", "trackio")
"""A file in ``tracking/trackers/`` each, of the name of the package that it needs."""


@dataclass
class TrackerConfig:
    """What a run writes besides ``metrics.jsonl``."""

    wandb: bool = False
    tensorboard: bool = False
    trackio: bool = False
    """Those that are told: ``tracker=NAME`` sets one, ``tracker=[NAME,NAME]`` several, ``tracker=none`` none."""
    project: str = field(default="slingshot", metadata=TEXT)
    wandb_mode: str = "auto"
    """``auto`` is online for a user who has logged in and offline for others; or ``online``, ``offline``."""
    trajectories_per_step: int = bounded(8, "at least -1")
    """Trajectories written to ``trajectories.jsonl`` per step; -1 writes all."""
    timeout_s: float = bounded(300.0, "above 0")
    """How long the run waits for a tracker's library; one that takes longer is off from then on."""

    def __post_init__(self) -> None:
        check_bounds(self, "tracker")
        one_of(self.wandb_mode, ("auto", "online", "offline"), "tracker.wandb_mode")

    @property
    def names(self) -> tuple[str, ...]:
        """The trackers that are told."""
        return tuple(name for name in TRACKERS if getattr(self, name))


@dataclass
class ReportConfig:
    """The report of a sweep: made when a sweep ends, and by ``mode=report``.

    There, what is null is as the sweep was started with.
    """

    sweep: str | None = field(default=None, metadata=PATH)
    """The sweep's folder; null is a new one, named by the time."""
    title: str | None = field(default=None, metadata=SENTENCE)
    baseline: str | None = field(default=None, metadata=TEXT)
    """The condition that the others are compared with, as the table names it: ``pool=epoch``."""
    target_em: float | None = bounded(None, "in (0, 1]")
    """Held-out exact match whose cost in rollouts and tokens is measured."""

    def __post_init__(self) -> None:
        check_bounds(self, "report")
