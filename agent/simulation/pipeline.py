"""The training loop in simulated time: what it is worth that rollouts go on while the learner learns.

The pool in it is the real one (``agent.pool.query_pool``), so which batch may be drawn from, when the learner gets one
and what a release opens are the system's own rules. Everything else is a latency:

    claim ─► K episodes of turns: engine ─► search ─► engine … ─► submit          rollout workers
                                                                     │
             claims ◄─ release ◄─ driver ◄─ publish, deliver ◄─ update ◄─ take    learner, supervisor

An engine is shared by the sequences in it. Its tokens per second rise with their number n and saturate,
``n / (token * (half + n))``: a step of continuous batching costs a fixed part and a part per sequence. It makes no
token while the new weights are delivered; every episode in flight then has its prefix to recompute.

A batch is a fixed number of groups, as with ``pool=epoch`` and with ``pool=recycle`` at ``oversample=1``. Learner
and engines have a device each and don't slow each other down.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from agent.errors import UserError
from agent.pool.query_pool import QueryPool
from agent.pool.rules.epoch import Rule
from agent.seeds import derive_seed
from agent.simulation.policies import outcome
from agent.tickets import Ticket


@dataclass(frozen=True, kw_only=True, slots=True)
class Latencies:
    """What the parts of the loop take, in seconds. Of several values, each use draws one at random."""

    episodes: tuple[tuple[float, ...], ...]
    """Sampled tokens of each turn, per episode; a search follows every turn but an episode's last."""
    searches: tuple[float, ...]
    learner: tuple[float, ...]
    """From a taken batch to the updated weights."""
    publish: float
    """From there until every worker holds them."""
    driver: float
    """From there until the learner asks for the next batch: the supervisor's bookkeeping and the release."""
    token: float
    """Engine seconds per sampled token when very many sequences share the engine, prefill included."""
    half: float
    """Sequences with which an engine makes half as many tokens per second as it does with very many."""
    recompute: float = 0.0
    """Delay of an episode in flight when weights change, in sampled tokens."""

    def __post_init__(self) -> None:
        if not self.episodes or not all(self.episodes) or not self.searches or not self.learner:
            raise UserError("latencies: episodes (each with a turn), searches and learner need at least one value")
        if min(min(turns) for turns in self.episodes) <= 0 or self.token <= 0:
            raise UserError("latencies: the tokens of a turn and token must be above 0")
        if min(*self.searches, *self.learner, self.publish, self.driver, self.half, self.recompute) < 0:
            raise UserError("latencies: none may be negative")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How many of what; named as in ``pool`` and ``cluster``."""

    rollout_workers: int = 1
    max_staleness: int = 0
    batch_questions: int = 24
    group_size: int = 8
    max_num_seqs: int = 256
    groups_per_worker: int = 0

    @property
    def groups_in_flight(self) -> int:
        """Most groups that a worker plays at once, by default as ``actors.topology`` divides a batch."""
        return self.groups_per_worker or math.ceil(self.batch_questions / self.rollout_workers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """Means over the steps of a simulation, its start left out."""

    step_s: float
    """From one release to the next."""
    rollout_s: float
    """From a batch's first claim to its last submit. Batches that are played together both count all of it."""
    learner_idle: float
    """Share of the time in which the learner doesn't update: it waits for a batch, or for a delivery."""
    engine_idle: float
    """Share of the time in which an engine has no sequence, averaged over the workers."""
    staleness: float
    """Policy versions between a group's start and its take."""

    @property
    def steps_per_hour(self) -> float:
        return 3600 / self.step_s


def simulate(latencies: Latencies, layout: Layout, *, steps: int, seed: int) -> Overlap:
    """Plays ``steps`` steps after those in which the loop fills.

    The same seed gives the same numbers, and the same episodes and updates to every layout of the same batch.
    """
    warm_up = 2 * (layout.max_staleness + 2)
    loop = _Loop(latencies, layout, seed)
    loop.run(warm_up)
    before = loop.clock()
    loop.run(steps)
    after = loop.clock()
    seconds = after.now - before.now
    return Overlap(
        step_s=seconds / steps,
        rollout_s=float(np.mean(loop.rollouts[warm_up : warm_up + steps])),
        learner_idle=1 - (after.learning - before.learning) / seconds,
        engine_idle=(after.engines_idle - before.engines_idle) / seconds / layout.rollout_workers,
        staleness=float(np.mean(loop.staleness[warm_up : warm_up + steps])),
    )


def fit_engine(latencies: Latencies, layout: Layout, rollout_s: float, *, steps: int, seed: int) -> Latencies:
    """The same latencies with the ``token`` that makes a synchronous batch take ``rollout_s`` seconds, to 0.1 %.

    Raises ``UserError`` if the searches alone take longer.
    """
    layout = replace(layout, max_staleness=0)

    def played(token: float) -> float:
        return simulate(replace(latencies, token=token), layout, steps=steps, seed=seed).rollout_s

    low, high = 1e-9, 1e-9
    if played(low) > rollout_s:
        raise UserError(f"the searches alone take longer than the {rollout_s:.3g} s of a batch's rollouts")
    while played(high) < rollout_s:
        low, high = high, 10 * high
    while high - low > 1e-3 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if played(middle) < rollout_s else (low, middle)
    return replace(latencies, token=(low + high) / 2)


@dataclass(frozen=True, slots=True)
class _Clock:
    now: float
    learning: float
    engines_idle: float


@dataclass(slots=True)
class _GroupInPlay:
    worker: _Worker
    ticket: Ticket
    version: int
    playing: int


@dataclass(slots=True, eq=False)
class _Episode:
    group: _GroupInPlay
    turns: Sequence[float]
    searches: Sequence[float]
    turn: int = 0
    delay: float = 0.0
    """Tokens' worth of work to add to the next turn."""


class _Engine:
    """Sequences that share an engine alike. The time that ``advance`` is given never goes back."""

    def __init__(self, token: float, half: float, most: int) -> None:
        self.paused = False
        self.idle_s = 0.0
        self._token, self._half, self._most = token, half, most
        self._now = 0.0
        self._progress = 0.0  # tokens that a sequence would have, had it been here from the start
        self._running: list[tuple[float, int, _Episode]] = []  # by the progress at which its turn ends
        self._waiting: deque[tuple[float, _Episode]] = deque()
        self._number = 0

    @property
    def _speed(self) -> float:
        """Tokens per second of each sequence."""
        return 1 / (self._token * (self._half + len(self._running)))

    @property
    def next_end(self) -> float:
        """When the next turn ends if nothing changes before."""
        if self.paused or not self._running:
            return math.inf
        return self._now + (self._running[0][0] - self._progress) / self._speed

    def advance(self, now: float) -> None:
        if not self._running:
            self.idle_s += now - self._now
        elif not self.paused:
            self._progress += (now - self._now) * self._speed
        self._now = now

    def add(self, episode: _Episode, tokens: float) -> None:
        """A turn of ``tokens``; it waits when the engine is full."""
        self._waiting.append((tokens, episode))
        self._admit()

    def end_turn(self) -> _Episode:
        """The episode whose turn ends now."""
        self._progress, _, episode = heapq.heappop(self._running)
        self._admit()
        return episode

    def delay(self, tokens: float) -> None:
        """Every sequence in it does ``tokens`` again; those that wait have computed nothing yet."""
        self._progress -= tokens

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._most:
            tokens, episode = self._waiting.popleft()
            heapq.heappush(self._running, (self._progress + tokens, self._number, episode))
            self._number += 1


@dataclass(slots=True, eq=False)
class _Worker:
    name: str
    engine: _Engine
    version: int = 0
    groups: int = 0
    """Groups that it plays."""
    searching: set[_Episode] = field(default_factory=set)


class _Loop:
    """The whole loop, one event at a time."""

    def __init__(self, latencies: Latencies, layout: Layout, seed: int) -> None:
        self._latencies, self._layout = latencies, layout
        self._seed = derive_seed(seed, "pipeline")
        # Enough queries for every open batch, so that the pool never runs dry.
        queries = layout.batch_questions * (layout.max_staleness + 3)
        rule = Rule(
            batch_questions=layout.batch_questions, group_size=layout.group_size, max_staleness=layout.max_staleness
        )
        self._pool: QueryPool[None] = QueryPool([str(i) for i in range(queries)], rule, seed=seed)
        self._workers = [
            _Worker(f"rollout-{i}", _Engine(latencies.token, latencies.half, layout.max_num_seqs))
            for i in range(layout.rollout_workers)
        ]
        self._now = 0.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer = 0
        self._version = 0
        self._learner_free = True
        self._learning = 0.0
        self._released = 0
        self._claimed_at: dict[int, float] = {}
        self._submitted_at: dict[int, float] = {}
        self.rollouts: list[float] = []
        """Seconds from first claim to last submit, by batch."""
        self.staleness: list[float] = []
        """Mean age of the groups, by batch."""
        self._claim()

    def run(self, steps: int) -> None:
        """Until ``steps`` more batches have been released."""
        until = self._released + steps
        while self._released < until:
            self._next_event()

    def clock(self) -> _Clock:
        """Now, just after a release."""
        return _Clock(self._now, self._learning, sum(w.engine.idle_s for w in self._workers))

    # --- time ------------------------------------------------------------------------------------

    def _next_event(self) -> None:
        worker = min(self._workers, key=lambda w: w.engine.next_end)
        timed = self._timers[0][0] if self._timers else math.inf
        ending = worker.engine.next_end
        self._now = min(ending, timed)
        for w in self._workers:
            w.engine.advance(self._now)
        if ending <= timed:
            self._turn_ended(worker.engine.end_turn())
        else:
            heapq.heappop(self._timers)[2]()

    def _after(self, seconds: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self._now + seconds, self._timer, then))
        self._timer += 1

    def _random(self, *place: int) -> np.random.Generator:
        """By place in the run and not by time, so that every layout has the same work before it."""
        return np.random.default_rng([self._seed, *place])

    # --- rollout workers -------------------------------------------------------------------------

    def _claim(self) -> None:
        """Whoever has room, in turn, as they wait at the pool."""
        for worker in self._workers:
            room = self._layout.groups_in_flight - worker.groups
            for ticket in self._pool.claim(worker.name, now=0.0, limit=room):
                self._claimed_at.setdefault(ticket.batch, self._now)
                self._play(worker, ticket)

    def _play(self, worker: _Worker, ticket: Ticket) -> None:
        size, latencies = self._layout.group_size, self._latencies
        worker.groups += 1
        group = _GroupInPlay(worker, ticket, worker.version, size)
        random = self._random(ticket.batch, ticket.order)
        for number in random.integers(len(latencies.episodes), size=size):
            turns = latencies.episodes[number]
            searches = random.choice(latencies.searches, len(turns) - 1)
            self._act(_Episode(group, turns, searches.tolist()))

    def _act(self, episode: _Episode) -> None:
        episode.group.worker.searching.discard(episode)
        tokens = episode.turns[episode.turn] + episode.delay
        episode.delay = 0.0
        episode.group.worker.engine.add(episode, tokens)

    def _turn_ended(self, episode: _Episode) -> None:
        group = episode.group
        episode.turn += 1
        if episode.turn < len(episode.turns):
            group.worker.searching.add(episode)
            self._after(episode.searches[episode.turn - 1], lambda: self._act(episode))
            return
        group.playing -= 1
        if group.playing == 0:
            self._submit(group)

    def _submit(self, group: _GroupInPlay) -> None:
        size = self._layout.group_size
        group.worker.groups -= 1
        self._pool.submit(outcome(group.ticket, size, 1, group.version), None)
        self._submitted_at[group.ticket.batch] = self._now
        self._claim()
        self._take()

    # --- learner and supervisor ------------------------------------------------------------------

    def _take(self) -> None:
        if not self._learner_free or not self._pool.ready:
            return
        self._learner_free = False
        batch = self._pool.take(version=self._version)
        assert not batch.returned, "the bound is kept before anything is sampled: no group is ever too stale"
        self.rollouts.append(self._submitted_at.pop(batch.index) - self._claimed_at.pop(batch.index))
        self.staleness.append(float(np.mean([self._version - g.outcome.oldest_version for g in batch.played])))
        seconds = float(self._random(batch.index).choice(self._latencies.learner))
        self._after(seconds, lambda: self._publish(batch.index, seconds))

    def _publish(self, batch: int, seconds: float) -> None:
        self._learning += seconds
        self._version += 1
        for worker in self._workers:
            worker.engine.paused = True
        self._after(self._latencies.publish, lambda: self._deliver(batch))

    def _deliver(self, batch: int) -> None:
        for worker in self._workers:
            worker.version = self._version
            worker.engine.paused = False
            worker.engine.delay(self._latencies.recompute)
            for episode in worker.searching:
                episode.delay += self._latencies.recompute
        self._after(self._latencies.driver, lambda: self._release(batch))

    def _release(self, batch: int) -> None:
        self._pool.release(batch)
        self._learner_free = True
        self._released += 1
        self._claim()
        self._take()
