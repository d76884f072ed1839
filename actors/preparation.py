"""What comes before the first step of a run: its parts start, the warm start by imitation, and the expert seeding."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from actors.learning import Learning
from actors.prepare import warm_started
from actors.totals import Totals
from actors.watch import Watch
from agent.config import GroupConfig


def start(learning: Learning, watch: Watch, totals: Totals, checkpoint: Path | None) -> None:
    """Brings up what isn't, as it was saved into ``checkpoint``, until the workers hold its version."""
    parts, record = learning.parts, learning.record
    config, engines = parts.config, parts.config.cluster.rollout_workers
    built = parts.begin(checkpoint)
    learner = parts.learner
    with watch.phase("the actors start", learner=learner):
        parts.pool_is_there()
        parameters = parts.wait(built, "learner")
    record.say(f"policy {config.model.name}: {parameters:,} parameters")
    if checkpoint is None and config.algorithm.warm_start.steps:
        _warm_start(learning, watch)
    if checkpoint is None and config.algorithm.seeding.steps:
        parts.index_is_open()
        _seed(learning, watch, totals)
    # An engine that starts counts what comes to its card meanwhile as its own: a checkpoint's states wait for it.
    with parts.learners_turn(), watch.phase("the learner prepares the first version"):
        published = parts.wait(learner.begin.remote(checkpoint), "learner")
    with watch.phase("the retrieval index opens"):
        parts.index_is_open()
    with watch.phase(f"{engines} engine(s) start and take the weights"):
        parts.workers.deliver(published)
    index = parts.index()
    record.event("serving", {"version": published.version, "index": asdict(index)})
    record.say(f"{engines} rollout worker(s) serve version {published.version}")


def _warm_start(learning: Learning, watch: Watch) -> None:
    """The supervised steps, or what they came to in an earlier run."""
    parts, record, learner = learning.parts, learning.record, learning.parts.learner
    prepared = parts.prepared
    cached = warm_started(parts.config.cache, prepared.warm_start_key)
    with parts.learners_turn(), watch.phase("warm start", learner=learner):
        report = parts.wait(learner.warm_start.remote(cached, prepared.imitated), "learner")
    record.event("warm_start", report)
    how = "from the cache" if report["cached"] else f"{report['steps']} steps, loss {report['loss']:.3f}"
    record.say(f"warm start by imitation: {how}, {report['seconds']:.1f} s")


def _seed(learning: Learning, watch: Watch, totals: Totals) -> None:
    """Steps like those of the run, over the experts' questions alone and in plain groups; ``totals`` count them.

    It is part of the preparation: nothing is evaluated or saved before its end.
    """
    parts, record = learning.parts, learning.record
    steps, experts = parts.config.algorithm.seeding.steps, parts.prepared.experts
    started = time.perf_counter()
    pool, learner = parts.seeding_pool(tuple(e.question for e in experts)), parts.learner
    with parts.learners_turn():
        published = parts.wait(learner.begin_seeding.remote(experts), "learner")
    parts.workers.deliver(published)
    parts.workers.serve(pool, GroupConfig())
    injected = 0
    for step in range(1, steps + 1):
        with watch.phase("expert seeding", learner=learner, pool=pool):
            report = learning.next(pool, learner.seed, "seeding-pool", totals, 0)
        if report.published:
            parts.workers.deliver(report.published)
        if step == steps:
            parts.wait(pool.close.remote(), "seeding-pool")
        learning.release(pool, "seeding-pool")
        totals.count(report)
        injected += report.metrics["learner/expert_sequences"]
        record.event("seeding", {"step": step, "version": report.version, **report.metrics})
    parts.workers.until_idle()
    parts.seeded()
    record.say(
        f"expert seeding: {steps} steps on {len(experts)} questions, {injected} expert sequences trained on, "
        f"{time.perf_counter() - started:.1f} s"
    )
