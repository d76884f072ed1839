"""What a tracker is to a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking.config import TrackerConfig
from tracking.trackers.episodes import Episodes


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a tracker is told when it is opened."""

    config: TrackerConfig
    folder: Path
    """The run's."""
    settings: Mapping[str, Any]
    """The run's whole configuration."""
    id: str | None = None
    """What this tracker calls the run that this one goes on with."""
    first_step: int = 0
    """The first step that is going to be told; those after it that an earlier process has told are void."""
    whole: bool = False
    """The episodes that are in the folder already are to be told, too: they are of the evaluation that is."""

    @property
    def name(self) -> str:
        """The run's, for people."""
        return f"{self.folder.parent.name}/{self.folder.name}"


class Tracker(ABC):
    """One run in one tracker. Whatever its library raises is the caller's to bear (``trackers.several``)."""

    id: str = ""
    """What it calls the run, where a later process can go on with it."""

    @abstractmethod
    def __init__(self, asked: Asked) -> None: ...

    @abstractmethod
    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Numbers of one step; a resumed run repeats steps."""

    @abstractmethod
    def episodes(self, episodes: Episodes, step: int) -> None:
        """The episodes of an evaluation."""

    @abstractmethod
    def close(self) -> None:
        """Ends the run, and waits until everything is written."""

    @staticmethod  # noqa: B027 - most have nothing to do
    def abandon() -> None:
        """The library has failed or hangs: the end of this process isn't to wait for it."""
