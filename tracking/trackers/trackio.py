"""trackio: on this machine, in its own folder. ``trackio show --project slingshot`` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import uuid4

from tracking.trackers import base
from tracking.trackers.episodes import COLUMNS, Episodes


class Tracker(base.Tracker):
    """One run of a trackio project. It goes by its name: a resumed run goes on under the one that it had."""

    def __init__(self, asked: base.Asked) -> None:
        import trackio

        # Of two runs of one name trackio goes on with the newer: two sweeps' jobs may have one.
        self.id = asked.id or f"{asked.name} {uuid4().hex[:8]}"
        self._run = trackio.init(
            project=asked.config.project,
            name=self.id,
            config=dict(asked.settings),
            resume="allow" if asked.id else "never",
            embed=False,
            auto_log_cpu=False,  # Ray's dashboard has it
            auto_log_gpu=False,
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def episodes(self, episodes: Episodes, step: int) -> None:
        import trackio

        table = trackio.Table(columns=list(COLUMNS), data=[list(row) for row in episodes.rows])
        self._run.log({episodes.name: table}, step=step)

    def close(self) -> None:
        self._run.finish()
