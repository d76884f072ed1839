"""The driver of a training run. It supervises and carries no data: questions in, metrics out.

    start ─► [warm start] ─► [expert seeding] ─► deliver ─► [evaluate] ─► serve
    then per step:  learner.step (take, update, publish) ─► deliver ─► [evaluate] ─► release ─► [copy for a checkpoint]

Where learner or pool is lost, both go on from the last checkpoint, and so does the loop (``train``).

``release`` comes after the evaluation, so that in the synchronous mode the workers are idle during it, and the
pool's state that goes into a checkpoint is taken at the release, before the next draw.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from actors import run_state
from actors.advice import no_searches
from actors.calls import LAST_LINES, get
from actors.eval_series import EvalSeries
from actors.learning import Learning
from actors.parts import Parts
from actors.preparation import start
from actors.prepare import Prepared
from actors.provenance import Provenance
from actors.record import Record
from actors.replay import play
from actors.reports import StepReport
from actors.resume import rewind
from actors.saving import Saving
from actors.searching import UNKNOWN
from actors.stopping import LeftEvaluation, Stopping
from actors.totals import Totals
from actors.watch import Watch
from actors.worker_pool import WorkerPool
from agent.errors import Fault, UserError, refused
from conf.schema import RunConfig
from learner.manifest import Files
from tracking.alarms import Alarms
from tracking.console import Console
from tracking.dispensable import Dispensable
from tracking.metrics import pool_metrics, read
from tracking.spans import SPANS, Spans
from tracking.trackers.several import Trackers


class Supervisor:
    """Runs one training run in ``run_dir`` from ``prepared`` inputs, continuing ``resume`` if it is given."""

    def __init__(
        self,
        config: RunConfig,
        prepared: Prepared,
        run_dir: Path,
        console: Console,
        *,
        resume: Path | None,
        trackers: Trackers,
        made_with: Provenance,
        extras: Dispensable,
    ) -> None:
        self.config = config
        self.prepared = prepared
        self.run_dir = run_dir
        self.console = console
        self.watch = Watch(console)
        self.resume, self.made_with = resume, made_with
        self.record = record = Record(run_dir, console, trackers, extras)
        self._spans = Spans(path=run_dir / SPANS, actor="supervisor", extras=extras)
        self.saving = Saving(config.checkpoints, run_dir / "checkpoints", resume, record.say, extras, record.saved)
        self.stopping = Stopping(self.record.say)
        self.evals = EvalSeries(config, prepared.task, made_with.data)
        self._totals = Totals()
        self._alarms = Alarms(config.model.dtype)
        self._reached = self._trained = 0
        """The last step that was released, and that was trained."""
        self._untold: StepReport | None = None
        """Of the last trained step, until its row is written."""
        self._began = 0.0
        """When the step began, of the clock ``time.perf_counter``."""
        self.parts = Parts(config, prepared, run_dir, self.record, self.watch, lambda: self.stopping.asked)
        self.saving.idle = self.parts.health.look
        self._learning = Learning(parts=self.parts, record=record, stopping=self.stopping)

    def train(self) -> dict[str, Any]:
        """The whole run; returns its summary. Raises ``UserError`` or ``Fault``.

        Learner and pool may be lost on the way: the run goes on from its last checkpoint.
        """
        checkpoint = self.resume
        if checkpoint is not None:
            state = run_state.load(checkpoint)
            self.record.went_on(state.time_s)
            self.parts.worker_restarts.total = state.restarts
        while True:
            try:
                return self._train(checkpoint)
            except (Fault, UserError, OSError) as error:
                checkpoint = self._recovered(error)

    def _train(self, checkpoint: Path | None) -> dict[str, Any]:
        """The run from ``checkpoint``, or from its beginning, to its end."""
        state = run_state.load(checkpoint) if checkpoint is not None else None
        self._reached = self._trained = 0 if state is None else state.step
        self._totals, self._alarms = Totals(), Alarms(self.config.model.dtype)
        self._untold = self._learning.under_way = self._learning.batch = None
        self.parts.losses.reached(self._trained)
        same = self.evals.goes_on(state)
        self.saving.goes_on(state.best if state is not None and same else None)
        if state is not None:
            if not same:
                self.record.say(
                    f"other held-out questions, or played otherwise, from step {state.step} on: the first evaluation, "
                    "the best one and the alarms begin anew",
                    "yellow",
                )
            self._totals = Totals(rollouts=state.rollouts, generated_tokens=state.generated_tokens)
            self._recall()
            self.record.tracked = state.trackers | self.record.tracked
        start(self._learning, self.watch, self._totals, checkpoint)
        if state is None or (not same and self.evals.last is None) or self._owes(self._reached):
            self._evaluate(self._reached)
        if checkpoint is not None:
            self.saving.made_up(self._reached, checkpoint)
        # Of a finished run that was resumed, nobody would take what the workers play.
        last = self._totals.end(self._reached, self.config.algorithm)
        if last and checkpoint is None:
            raise Fault(
                f"the expert seeding has used up the budget ({self._totals.rollouts:,} trajectories, "
                f"{self._totals.generated_tokens:,} tokens), and nothing is left to train with: raise "
                "algorithm.rollout_budget or algorithm.token_budget, or lower algorithm.seeding.steps"
            )
        if not last:
            self.workers.serve(self.parts.pool, self.config.group)
            self.watch.reached(self._reached)
        with self.stopping.after_the_step():
            while not last:
                last = self._step(self._reached + 1)
        if not self.stopping.leaving:
            self.workers.dismiss()
        return self._summary(self._reached)

    def _recall(self) -> None:
        """What the rows up to the checkpoint say: the alarms that have fired, and an evaluation that came after it."""
        path = self.record.metrics.path
        for row in read(path) if path.is_file() else ():
            of_eval = row.get("kind") == "eval" and self.evals.has(row)
            if row.get("kind") == "step" or of_eval:
                self._alarms.add(row)
            if of_eval and row.get("step") == self._reached and "em" in row:
                self.evals.add({name: value for name, value in row.items() if name != "kind"})
                self.saving.evaluated(self._reached, row["em"])

    def _recovered(self, error: Fault | UserError | OSError) -> Path | None:
        """The sound checkpoint to go on from after a fault that ended learner or pool. Else saves, raises ``error``."""
        began = self.record.time_s
        gone = self.parts.lost(error)
        if not gone:
            self._rescue()
            if isinstance(error, UserError) and (saved := self.saving.checkpoint) not in (None, self.resume):
                raise UserError(f"{error}; resume with resume={saved}") from error
        if self.stopping.asked or not gone or not isinstance(error, Fault):
            raise error
        self.parts.losses.count(str(next(iter(gone.values()))))
        who, (cause, *_) = " and ".join(gone), map(str, gone.values())
        if "learner" not in gone:  # it may be writing a checkpoint, which is as good as if nobody had been lost
            with self.watch.phase("a checkpoint is written"):
                self.saving.newest()
        self.parts.end()
        with self.watch.phase("the checkpoint is checked"):
            checkpoint = self.saving.sound(run_state.check)
        step = 0 if checkpoint is None else run_state.load(checkpoint).step
        rewind(self.run_dir, checkpoint)
        lost = {"lost": who, "cause": cause, "step": step, "steps_lost": max(0, self._trained - step)}
        self.record.event("recovered", {**lost, "path": checkpoint and str(checkpoint), "began_s": began})
        where = "the beginning: there is no checkpoint yet" if checkpoint is None else str(checkpoint)
        self.record.say(
            f"{who} lost: learner and pool go on from {where}; {lost['steps_lost']} steps after it are played again: "
            f"{cause.partition(LAST_LINES)[0]}",
            "yellow",
        )
        return checkpoint

    def _rescue(self) -> None:
        """Saves what is trained since the last checkpoint, before what learner and pool live through ends the run.

        A step that the learner is in is waited for, if it has its batch. What can't be saved is told.
        """
        saved = self.saving.newest()
        known = 0 if saved is None else run_state.load(saved).step
        if self.parts.playing_for is not self.parts.pool or not (self._trained > known or self._learning.under_way):
            return
        try:
            self.parts.alone()
            self._wait(self.parts.pool.close.remote(), "pool")
            if (report := self._learning.last()) is not None:
                self._trained, self._untold = self._trained + 1, report
            if self._untold is not None:
                self._tell(self._trained, self._untold, 0.0, UNKNOWN)
            if self._trained > known:
                self._save(self._trained, last=True)
        except (Fault, UserError, OSError) as error:
            steps = f"steps {known + 1} to {self._trained} are" if self._trained > known + 1 else f"step {known + 1} is"
            after = f"after step {known}" if known else "from the beginning"
            self.record.say(f"{steps} lost, and a resumed run goes on {after}: {refused(error)}", "yellow")

    @property
    def workers(self) -> WorkerPool:
        """The rollout workers."""
        return self.parts.workers

    # --- one step --------------------------------------------------------------------------------

    def _step(self, step: int) -> bool:
        """One step; returns whether it was the last, with its checkpoint written and the pool closed.

        A Ctrl-C that comes too late for this step's release makes the next one the last; one that comes while nothing
        can be trained on, the one before.
        """
        self._began = time.perf_counter()
        self.saving.look()
        learner, pool = self.parts.learner, self.parts.pool
        with self.watch.phase(f"step {step}", learner=learner, pool=pool):
            report = self._learning.next(pool, learner.step, "pool", self._totals, step)
        if report.untrainable is not None:  # the run is stopped where there is no step to end
            self._wait(pool.close.remote(), "pool")
            self.record.say(f"step {self._reached} is saved as it is, without an evaluation", "yellow")
            self._save(self._reached, last=True)
            return True
        self._trained, self._untold = step, report
        self.parts.losses.reached(step)
        delivered = 0.0
        if report.published:
            with self._spans.span("deliver"):
                delivered = self.workers.deliver(report.published)
        row = self._tell(step, report, delivered, self.parts.searching.stats())
        last = self._totals.end(step, self.config.algorithm)
        self.watch.reached(step)
        if step == 1 and row["tools/mean"] == 0:
            self.record.say(no_searches(self.config), "yellow")
        if self._due(step) or self.stopping.asked:
            self._evaluate(step)
        last = last or self.stopping.asked
        if last:  # before the release, so that no worker starts on a batch that nobody will take
            self._wait(pool.close.remote(), "pool")
        if last or self.saving.due(step):
            self._save(step, last=last)
        else:
            self._learning.release(pool, "pool")
        self._reached = step
        return last

    def _tell(self, step: int, report: StepReport, delivered: float, search: dict[str, float]) -> dict[str, Any]:
        """Writes the row of a trained step, whose weights were ``delivered`` in so many seconds, and returns it."""
        places = self._wait(self.parts.pool.report.remote(), "pool")
        row = {
            "step": step,
            "version": report.version,
            "time_s": self.record.time_s,
            "time/step_s": time.perf_counter() - self._began,
            **report.metrics,
            "weights/publish_s": report.metrics["weights/put_s"] + delivered,
            **pool_metrics(places),
            **search,
            "workers/restarts": self.workers.restarts,
        }
        alarms = self._alarms.add(row)
        row |= {f"alarms/{alarm.name}": 1 for alarm in self._alarms.active}
        totals = replace(self._totals)
        totals.count(report)
        self.record.step(row, totals.so_far(step, self.config.algorithm))
        self._totals, self._untold = totals, None  # now: a row that can't be written is tried once more
        self.record.alarms(alarms, in_row=True)
        return row

    def _evaluate(self, step: int) -> None:
        """Plays the held-out questions; no row if the run is to leave, or is stopped and none of them can be scored.

        Raises ``Fault`` if none can be before anything is trained. Later that ends no run: its row has no score.
        """
        started = time.perf_counter()
        try:
            with self.watch.phase("evaluation") as phase, self._spans.span("evaluate"):
                self._go_on_evaluating()
                searchable = self.parts.searching.until_they_answer
                counts = phase.counting("questions")
                rows = play(self.workers, self.evals.questions, counts, step=step, searchable=searchable)
            scores = self.evals.scores(rows, needed=not self._trained or self.stopping.asked)
        except LeftEvaluation:
            return
        except Fault as fault:
            if not self.stopping.asked:
                raise
            # The step is trained: it can be saved, unless learner or pool are lost, which its checkpoint would tell.
            self.record.say(f"step {step} has no evaluation: {fault}", "yellow")
            return
        finally:
            self.workers.idle = self.watch.look
        row: dict[str, Any] = {"step": step, **scores, "seconds": time.perf_counter() - started}
        row |= {"time_s": self.record.time_s, **asdict(self._totals)}
        self.evals.add(row)
        self.record.evaluation(row)
        self.record.alarms(self._alarms.add({"kind": "eval", **row}), in_row=False)
        self.saving.evaluated(step, row["em"])

    def _due(self, step: int) -> bool:
        """Whether the policy is evaluated after ``step``: the run's last one, or one of each ``evaluation.every``."""
        every = self.config.evaluation.every
        return self._totals.end(step, self.config.algorithm) or bool(every and step % every == 0)

    def _owes(self, step: int) -> bool:
        """Whether it should have been, and the run was left instead."""
        return self._due(step) and not self.evals.reaches(step)

    def _go_on_evaluating(self) -> None:
        """Called about once a second while the workers evaluate."""
        if self.stopping.leaving:
            raise LeftEvaluation
        self.workers.idle = self._go_on_evaluating
        self.watch.look()

    def _save(self, step: int, *, last: bool) -> None:
        """Begins the checkpoint of ``step``; its batch is released in it, or without it if that can't be begun."""
        pool = self.parts.pool

        def cut(folder: Path) -> Callable[[], Files]:
            done = self._learning.release(pool, "pool", checkpoint=folder, draws=self.run_dir / "draws.parquet")
            self.record.given_up(done.notes)
            if done.failed:
                raise Fault(done.failed)
            self._wait(self.parts.learner.copy_for_saving.remote(folder), "learner")
            state = run_state.RunState(
                step=step,
                first_eval=self.evals.first,
                last_eval=self.evals.last,
                best=self.saving.best,
                time_s=self.record.time_s,
                restarts=self.workers.restarts,
                trackers=self.record.tracked,
                **asdict(self._totals),
            )

            def write() -> Files:
                files = get(self.parts.learner.save.remote(folder), "learner", self.parts.topology.log_dir)
                ours = run_state.save(folder, state, self.prepared.trained_on)
                return done.files | files | ours | self.made_with.save(folder)

            return write

        with self.watch.phase(f"the checkpoint of step {step} is copied"), self._spans.span("copy for saving"):
            self.saving.begin(step, cut, last=last)
        if self._learning.batch is not None:
            self._learning.release(pool, "pool")

    def _summary(self, step: int) -> dict[str, Any]:
        summary = {
            "step": step,
            "stopped_early": self._owes(step) or not self._totals.end(step, self.config.algorithm),
            "interrupted": self.stopping.asked,
            "first_eval": self.evals.first,
            "last_eval": self.evals.last,
            **asdict(self._totals),
            "restarts": self.workers.restarts,
            "checkpoint": str(self.saving.checkpoint),
            "time_s": self.record.time_s,
        }
        self.record.metrics.write("summary", summary)
        return summary

    def _wait(self, ref: Any, actor: str) -> Any:
        return self.parts.wait(ref, actor)
