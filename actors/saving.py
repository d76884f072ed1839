"""When a run is saved: by steps, by minutes, after its best evaluation, at its end; and what a failed save means."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from actors.calls import Died
from actors.launcher import tell
from actors.resume import carry_best
from actors.threads import in_thread
from agent.errors import ActorLost, Fault, UserError, refused
from conf.schema import CheckpointConfig
from learner.checkpoint import Writing, go_back_to, latest_sound, put_back, set_best
from learner.manifest import Files
from tracking.dispensable import Dispensable

FAILED_SAVES = 3
"""Saves in a row that fail, and the run ends: one may be a disk that somebody is about to make room on."""
BEST_LINK = "the link checkpoints/best"
"""What the run goes on without."""
LAST_S = 300.0
"""How long a run that ends with a fault waits for the checkpoint that is being written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _UnderWay:
    """A checkpoint that is being written."""

    step: int
    last: bool
    best: dict[str, Any] | None
    """The best evaluation, if it is that of ``step``."""
    cut_at: float
    stopped_s: float
    """How long the run stood still for it."""
    written: Future[Path]


class Saving:
    """The checkpoints of one run, in ``root``: one at a time is written, in a thread.

    ``resume`` is the one that it goes on from; it stays, since workers that start later read it. A save that fails is
    told to ``say``, and is tried again after the next step; ``done`` is told of one that is written.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        root: Path,
        resume: Path | None,
        say: Callable[[str, str], None],
        extras: Dispensable,
        done: Callable[[dict[str, Any]], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.checkpoint = resume
        """The newest checkpoint of this run, or the one that it was resumed from."""
        self.best: dict[str, Any] | None = None
        """Step and ``em`` of the best evaluation after a step whose checkpoint is there or can still be written."""
        self._linked: dict[str, Any] | None = None
        """The best one whose checkpoint is there."""
        self._newest: dict[str, Any] | None = None
        """The evaluation of the step that may still be saved."""
        self._config, self._root, self._resume = config, root, resume
        self._say, self._extras, self._done, self._clock = say, extras, done, clock
        self.idle: Callable[[], None] = lambda: None
        """Called about once a second while this waits for a checkpoint: its writer may hang."""
        self._under_way: _UnderWay | None = None
        self._saved = clock()
        self._failed = 0

    def goes_on(self, best: dict[str, Any] | None) -> None:
        """The run goes on from a checkpoint that knows of ``best``, or from its beginning."""
        self.best = self._linked = best
        self._newest = None

    def evaluated(self, step: int, em: float | None) -> None:
        """Takes in the evaluation after ``step``. The first of the best ones counts."""
        if self._config.best and step and em is not None:
            self._newest = {"step": step, "em": em}
            if self.best is None or em > self.best["em"]:
                self.best = self._newest

    def made_up(self, step: int, checkpoint: Path) -> None:
        """``checkpoint``, of ``step``, is the one that the run goes on from: it may have been evaluated since."""
        if self.best is not None and self._is_best(step):
            self._link_best(checkpoint, self.best)

    def due(self, step: int) -> bool:
        """Whether the run is to be saved with the release of ``step``."""
        self.look()
        every, minutes = self._config.every, self._config.every_minutes
        due = (
            self._failed > 0
            or bool(every and step % every == 0)
            or bool(minutes and self._clock() - self._saved >= 60 * minutes)
            or self._is_best(step)
        )
        if not due:
            self._newest = None
        return due

    def begin(self, step: int, cut: Callable[[Path], Callable[[], Files]], *, last: bool) -> None:
        """Begins the checkpoint of ``step``, once the one before is written.

        ``cut`` is called with its folder. It takes what the checkpoint is to hold, all of one moment, and returns what
        writes it and lists the files (``learner.checkpoint.Writing``): that runs in a thread, while the run goes on.

        ``last`` ones are waited for. Raises ``Fault`` if that one can't be written, or ``FAILED_SAVES`` in a row.
        """
        self.settle()
        began = self._clock()
        try:
            writing = Writing(self._root, step)
            try:
                write = cut(writing.folder)
            except BaseException:
                writing.discard()
                raise
        except (Died, ActorLost):
            raise
        except (Fault, OSError) as error:
            self._failure(step, error, last=last)
            return
        cut_at = self._clock()
        self._under_way = _UnderWay(
            step=step,
            last=last,
            best=self.best if self._is_best(step) else None,
            cut_at=cut_at,
            stopped_s=cut_at - began,
            written=in_thread(lambda: self._write(writing, write)),
        )
        if last:
            self.settle()

    def _write(self, writing: Writing, write: Callable[[], Files]) -> Path:
        spare = (self._resume,) if self._resume is not None else ()
        try:
            return writing.finish(write(), keep=self._config.keep, spare=spare)
        except BaseException:
            writing.discard()
            raise

    def look(self) -> None:
        """Takes in what has become of the checkpoint that was being written, if it has ended. Raises as ``begin``."""
        if self._under_way is not None and self._under_way.written.done():
            self.settle()

    def settle(self) -> None:
        """Waits until no checkpoint is being written. Raises as ``begin``."""
        save = self._under_way
        if save is None:
            return
        while not save.written.done():
            wait([save.written], timeout=1.0)
            self.idle()
        self._under_way = None
        try:
            self.checkpoint = save.written.result()
        except (Died, ActorLost):
            raise
        except (Fault, OSError) as error:
            self._failure(save.step, error, last=save.last)
            return
        tell(checkpoint=str(self.checkpoint))
        self._failed, self._saved = 0, save.cut_at
        if save.best is not None:
            self._link_best(self.checkpoint, save.best)
        seconds = {"stopped_s": save.stopped_s, "written_s": self._clock() - save.cut_at}
        self._done({"step": save.step, "path": str(self.checkpoint), **seconds})

    def newest(self) -> Path | None:
        """The checkpoint to resume from after a fault: the one that is being written, if that ends well and soon."""
        if self._under_way is not None:
            wait([self._under_way.written], timeout=LAST_S)
            if self._under_way.written.done():
                with suppress(Fault, OSError):
                    self.settle()
        return self.checkpoint

    def sound(self, check: Callable[[Path], Any]) -> Path | None:
        """The ``newest`` that ``check`` lets pass, from which the run goes on; None where none was written yet.

        ``checkpoints/best`` leads to the best one up to there. Those that ``check`` refuses are told. Raises
        ``UserError`` where there are some, and none is whole.
        """
        newest = self.newest()
        if newest is None:
            return None
        found: Path | None = None
        wrong: list[str] = []
        if newest.parent.resolve() == self._root.resolve():
            put_back(self._root)
            found, wrong = latest_sound(self._root, check)
        if found is not None:
            go_back_to(found)
        elif self._resume is not None and self._resume.parent.resolve() != self._root.resolve():
            found = self._resume  # in the folder of another run
            try:
                check(found)
            except UserError as error:
                wrong.append(str(error))
                found = None
        if found is None:
            raise UserError(f"no checkpoint of {self._root} is whole: {'; '.join(wrong)}")
        for why in wrong:
            self._say(f"{why}: using {found}", "yellow")
        self._extras.attempt(BEST_LINK, partial(carry_best, found, self._root.parent))
        self.checkpoint = found
        return found

    def _link_best(self, checkpoint: Path, best: dict[str, Any]) -> None:
        self._linked = best
        self._extras.attempt(BEST_LINK, lambda: set_best(checkpoint, self._root))

    def _failure(self, step: int, error: Fault | OSError, *, last: bool) -> None:
        self._failed += 1
        if self._is_best(step):  # there is no such checkpoint: the next that is better than the linked one counts
            self.best = self._linked
            if (newest := self._newest) is not None and newest["step"] > step:
                self.evaluated(**newest)
        what = f"the checkpoint of step {step} can't be written: {refused(error)}"
        if last or self._failed >= FAILED_SAVES:
            raise Fault(what + (f" ({self._failed} in a row)" if self._failed > 1 else "")) from error
        self._say(f"{what}; the run goes on and tries again after the next step", "yellow")

    def _is_best(self, step: int) -> bool:
        return self.best is not None and self.best["step"] == step
