"""The learner's next step, as the supervisor waits for it: a batch of which nothing can be trained on is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.parts import Parts
from actors.record import Record
from actors.reports import Released, StepReport
from actors.stopping import Stopping
from actors.totals import Totals
from agent.errors import Fault, UserError
from tracking.metrics import UNTRAINABLE

BROKEN_BATCHES = 2
"""Batches in a row that engines or the reward leave nothing of, and the run ends: one is an engine that broke once."""


@dataclass(kw_only=True, slots=True)
class Learning:
    """Asks the learner of one run for its steps."""

    parts: Parts
    record: Record
    stopping: Stopping
    under_way: Any = None
    """The learner's call that was not waited for to its end."""
    batch: int | None = None
    """The batch of its newest report, until it is released."""

    def next(self, pool: Any, learn: Any, name: str, totals: Totals, step: int) -> StepReport:
        """The report of ``step`` (0: of the seeding) on a batch of ``pool``, called ``name``; ``learn`` is its method.

        A batch that nothing can be trained on of is released, and the next one is waited for. The pool ends the run
        after ``pool.max_empty_batches`` of them. A run that is stopped waits for no other: then the report is that of a
        batch that was skipped, and is to be released. Raises ``Fault`` if it is engines or the reward that fail, or
        nothing was trained before the stop.
        """
        broken = 0
        while True:
            with self.parts.learners_turn(pool):
                self.under_way = learn.remote(pool)
                report: StepReport = self.parts.wait(self.under_way, "learner")
            self.under_way, self.batch = None, report.batch
            self.record.given_up(report.notes)
            untrainable = report.untrainable
            if untrainable is None:
                return report
            totals.count(report)
            cost = {"rollout/trajectories": report.rollouts, "rollout/generated_tokens": report.generated_tokens}
            self.record.event(UNTRAINABLE, {"step": step, "batch": report.batch, "why": untrainable.why, **cost})
            broken = broken + 1 if untrainable.lasting else 0
            if broken >= BROKEN_BATCHES and not (self.stopping.asked and step > 1):
                raise Fault(f"too few episodes of {broken} batches in a row could be scored: {untrainable.why}")
            cause = "searches or tools failed" if untrainable.tools_failed else "too few episodes ended without a fault"
            self.record.say(f"batch {report.batch} is skipped, {cause}: {untrainable.why}", "yellow")
            if untrainable.tools_failed:
                self.parts.searching.until_they_answer()
            if self.stopping.asked:
                if step <= 1:  # there is nothing to save
                    raise Fault(f"stopped after batch {report.batch} was skipped, {cause}: {untrainable.why}")
                return report
            self.release(pool, name)

    def release(self, pool: Any, name: str, **saved: Path) -> Released:
        """Ends the batch of the newest report, if it hasn't ended; see ``PoolActor.release``."""
        done: Released = self.parts.wait(pool.release.remote(self.batch, **saved), name)
        self.batch = None
        return done

    def last(self) -> StepReport | None:
        """The report of the step that was under way when a fault of others ended the waiting for it, once the pool is
        closed; None if it has come to no batch, or to nothing that could be trained on."""
        try:
            report: StepReport | None = self.parts.wait(self.under_way, "learner") if self.under_way else None
        except (Fault, UserError):  # the closed pool's, or the learner's own: then it says if it can't be saved
            return None
        if report is None or report.untrainable is not None:
            return None
        self.batch = report.batch
        return report
