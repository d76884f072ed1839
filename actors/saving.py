"""When a run is saved: by steps, by minutes, after its best evaluation, at its end; and what a failed save means."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.calls import Died
from agent.errors import Fault, refused
from conf.schema import CheckpointConfig
from learner.checkpoint import set_best, write_checkpoint
from learner.manifest import Files
from tracking.dispensable import Dispensable

FAILED_SAVES = 3
"""Saves in a row that fail, and the run ends: one may be a disk that somebody is about to make room on."""


class Saving:
    """The checkpoints of one run, in ``root``.

    ``resume`` is the one that it goes on from; it stays, since workers that start later read it. A save that fails is
    told to ``say``, and is tried again after the next step.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        root: Path,
        resume: Path | None,
        say: Callable[[str, str], None],
        extras: Dispensable,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.checkpoint = resume
        """The newest checkpoint of this run, or the one that it was resumed from."""
        self.best: dict[str, Any] | None = None
        """Step and ``em`` of the best evaluation after a step."""
        self._config, self._root, self._resume = config, root, resume
        self._say, self._extras, self._clock = say, extras, clock
        self._saved = clock()
        self._failed = 0

    def evaluated(self, step: int, em: float | None) -> None:
        """Takes in the evaluation after ``step``. The first of the best ones counts."""
        if self._config.best and step and em is not None and (self.best is None or em > self.best["em"]):
            self.best = {"step": step, "em": em}

    def due(self, step: int) -> bool:
        """Whether the run is to be saved with the release of ``step``."""
        every, minutes = self._config.every, self._config.every_minutes
        return (
            self._failed > 0
            or bool(every and step % every == 0)
            or bool(minutes and self._clock() - self._saved >= 60 * minutes)
            or self._is_best(step)
        )

    def write(self, step: int, write: Callable[[Path], Files], *, last: bool) -> bool:
        """Whether the checkpoint of ``step`` was written, by ``write`` (``write_checkpoint``).

        Raises ``Fault`` if it was not and is the ``last`` one of the run, or ``FAILED_SAVES`` in a row weren't.
        """
        spare = (self._resume,) if self._resume is not None else ()
        try:
            self.checkpoint = write_checkpoint(self._root, step, write, keep=self._config.keep, spare=spare)
        except Died:
            raise
        except (Fault, OSError) as error:
            self._failed += 1
            what = f"the checkpoint of step {step} can't be written: {refused(error)}"
            if last or self._failed >= FAILED_SAVES:
                raise Fault(what + (f" ({self._failed} in a row)" if self._failed > 1 else "")) from error
            self._say(f"{what}; the run goes on and tries again after the next step", "yellow")
            return False
        self._failed, self._saved = 0, self._clock()
        if self._is_best(step):
            written = self.checkpoint
            self._extras.attempt("the link checkpoints/best", lambda: set_best(written))
        return True

    def _is_best(self, step: int) -> bool:
        return self.best is not None and self.best["step"] == step
