"""TensorBoard: event files in ``tensorboard/`` of the run's folder. ``tensorboard --logdir outputs`` shows all runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from tracking.trackers import base
from tracking.trackers.episodes import COLUMNS, Episodes

FOLDER = "tensorboard"
MOST = 50
"""Episodes of an evaluation in its text view, which shows all of them on one page."""


class Tracker(base.Tracker):
    """A writer of event files."""

    def __init__(self, asked: base.Asked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = partial(SummaryWriter, str(asked.folder / FOLDER))
        self._writer = self._open(purge_step=asked.first_step or None)  # what the process before told is hidden
        self._newest: dict[str, int] = {}

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._hide_what_is_repeated(numbers, step)
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def episodes(self, episodes: Episodes, step: int) -> None:
        self._hide_what_is_repeated([episodes.name], step)
        self._writer.add_text(episodes.name, _markdown(episodes), step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _hide_what_is_repeated(self, names: Iterable[str], step: int) -> None:
        """A run that went back to a checkpoint tells its steps again: TensorBoard would draw both."""
        names = list(names)
        if any(self._newest.get(name, step - 1) >= step for name in names):
            self._writer.close()
            self._writer = self._open(purge_step=step)
            self._newest = {name: newest for name, newest in self._newest.items() if newest < step}
        self._newest |= dict.fromkeys(names, step)


def _markdown(episodes: Episodes) -> str:
    """Each episode as a block of code, in which nothing is markup."""
    parts = []
    for row in episodes.rows[:MOST]:
        *facts, episode = zip(COLUMNS, row, strict=True)
        told = [f"{name}: {value}" for name, value in facts if value is not None]
        parts.append("\n".join(f"    {line}" for text in (*told, str(episode[1])) for line in text.splitlines()))
    return "\n\n---\n\n".join(parts)
