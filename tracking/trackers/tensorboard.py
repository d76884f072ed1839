"""TensorBoard: event files in ``tensorboard/`` of the run's folder. ``tensorboard --logdir outputs`` shows all runs."""

from __future__ import annotations

from collections.abc import Mapping

from tracking.trackers import base
from tracking.trackers.episodes import COLUMNS, Episodes

FOLDER = "tensorboard"
MOST = 50
"""Episodes of an evaluation in its text view, which shows all of them on one page."""


class Tracker(base.Tracker):
    """A writer of event files."""

    def __init__(self, asked: base.Asked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = asked.first_step or None  # of the same folder: TensorBoard hides what the process before told of it
        self._writer = SummaryWriter(str(asked.folder / FOLDER), purge_step=purge)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def episodes(self, episodes: Episodes, step: int) -> None:
        self._writer.add_text(episodes.name, _markdown(episodes), step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _markdown(episodes: Episodes) -> str:
    """Each episode as a block of code, in which nothing is markup."""
    parts = []
    for row in episodes.rows[:MOST]:
        *facts, episode = zip(COLUMNS, row, strict=True)
        told = [f"{name}: {value}" for name, value in facts if value is not None]
        parts.append("\n".join(f"    {line}" for text in (*told, str(episode[1])) for line in text.splitlines()))
    return "\n\n---\n\n".join(parts)
