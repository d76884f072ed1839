"""A drifting policy without a model: success probabilities per query that move as groups are trained.

The pool in it is the real one (``agent.pool.query_pool``); only the rollouts are drawn from a distribution.
For choosing rules and settings in seconds, at 10,000 to 1,000,000 queries. Where its numbers come from:

    logit p(q, t) = slope * (skill of q's kind - difficulty of q) + practice(q, t) + drift of q's kind

- *skill* rises with every optimizer update, in proportion to the share of its signal-bearing groups of
  that kind (and a part of it with those of the other kinds), the slower the nearer to its ceiling, and
  perhaps less with a query that was trained on before;
- *practice* is what training on the query itself has added; it fades with a half-life;
- *drift* is a random walk with a pull to 0: the policy changes in ways that no reward asks for, which
  is what makes too-easy queries bear signal again.

Some queries can't be solved at any skill (a wrong golden answer, a passage that isn't there).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.errors import UserError
from agent.pool.batches import TakenBatch
from agent.pool.query_pool import QueryPool
from agent.pool.rules.base import PoolRule
from agent.seeds import derive_seed
from agent.settings import bounded, check_bounds
from agent.tickets import Outcome, QueryState, Ticket

HELD_OUT = 2000
"""Most queries over which the simulated policy is evaluated."""


@dataclass
class SimulationConfig:
    """One scenario. Difficulties and skills are in logits times ``slope``."""

    name: str = "mixed"
    queries: int = bounded(10_000, "at least 1")
    rollouts_per_query: float = bounded(8.45, "above 0")
    """Budget: trajectories over queries. 84.5k over 10k in arXiv 2606.10709."""
    difficulties: list[list[float]] = bounded(
        [[0.34, -2.0, 1.0], [0.33, 0.0, 1.0], [0.33, 2.0, 1.0]], "in [-1000, 1000]"
    )
    """Kinds of queries: share, mean and standard deviation of the difficulty. The policy starts at skill 0."""
    unsolvable: float = bounded(0.02, "in [0, 1)")
    """Share of queries that no policy solves."""
    slope: float = bounded(1.5, "above 0")
    learning: float = bounded(0.05, "at least 0")
    """Rise of a kind's skill per update whose batch is full of signal-bearing groups of that kind."""
    transfer: float = bounded(0.3, "in [0, 1]")
    """Part of the rise that goes to the other kinds."""
    ceiling: float = bounded(4.0, "in (0, 1000]")
    novelty: float = bounded(1.0, "in [0, 1]")
    """What each training on a query leaves of its contribution to skill: 1 keeps it, 0 makes it teach once."""
    practice: float = bounded(0.4, "at least 0")
    """Logits that training on a query adds to it."""
    practice_half_life: float = bounded(20.0, "above 0")
    """In updates."""
    drift: float = bounded(0.05, "at least 0")
    """Standard deviation of the drift's step per update, in logits."""
    drift_pull: float = bounded(0.02, "in [0, 1]")

    def __post_init__(self) -> None:
        check_bounds(self, "simulation")
        if not self.difficulties or any(len(kind) != 3 for kind in self.difficulties):
            raise UserError("simulation.difficulties needs a list of [share, mean, standard deviation]")
        if min(min(share, deviation) for share, _, deviation in self.difficulties) < 0:
            raise UserError("simulation.difficulties: shares and standard deviations must be at least 0")
        if sum(share for share, _, _ in self.difficulties) <= 0:
            raise UserError("simulation.difficulties: the shares are all 0")


def outcome(
    ticket: Ticket, size: int, successes: int, version: int, *, pilot: tuple[int, int] | None = None
) -> Outcome:
    """What the pool is told of ``size`` rollouts of a token each, ``successes`` of which are right."""
    agreed = QueryState.TOO_EASY if successes else QueryState.TOO_HARD
    state = QueryState.SIGNAL if 0 < successes < size else agreed
    return Outcome(
        ticket=ticket,
        state=state,
        rolled_out=state,
        size=size,
        successes=successes,
        tokens=size,
        solved_searches=(0,) * successes,
        oldest_version=version,
        pilot=pilot,
    )


class DriftingPolicy:
    """The success probabilities of all queries, computed when asked for."""

    def __init__(self, config: SimulationConfig, seed: int) -> None:
        self.config = config
        self._random = np.random.default_rng(derive_seed(seed, "simulated policy"))
        shares = np.array([kind[0] for kind in config.difficulties])
        n, kinds = config.queries, len(shares)
        self.kind = self._random.choice(kinds, n, p=shares / shares.sum())
        means, deviations = (np.array([kind[i] for kind in config.difficulties]) for i in (1, 2))
        self._difficulty = means[self.kind] + deviations[self.kind] * self._random.standard_normal(n)
        self._difficulty[self._random.random(n) < config.unsolvable] = math.inf
        self._skill, self._drift = np.zeros(kinds), np.zeros(kinds)
        self._practice = np.zeros(n)
        self._practised_at = np.zeros(n, dtype=np.int64)
        self._trained = np.zeros(n, dtype=np.int64)
        self.version = 0

    def chances(
        self, queries: npt.NDArray[np.int64] | slice = slice(None), *, practised: bool = True
    ) -> npt.NDArray[np.float64]:
        """Success probabilities; without practice they are those of held-out queries of the same difficulty."""
        c, kind = self.config, self.kind[queries]
        logits = c.slope * (self._skill[kind] - self._difficulty[queries]) + self._drift[kind]
        if practised:
            age = self.version - self._practised_at[queries]
            logits = logits + self._practice[queries] * 0.5 ** (age / c.practice_half_life)
        chances: npt.NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
        return chances

    def update(self, trained: npt.NDArray[np.int64], batch_questions: int) -> None:
        """One optimizer update on signal-bearing groups of these queries, of at most ``batch_questions``."""
        c = self.config
        taught = c.novelty ** self._trained[trained]
        counts = np.bincount(self.kind[trained], taught, minlength=len(self._skill)) / batch_questions
        felt = (1 - c.transfer) * counts + c.transfer * counts.sum() / len(counts)
        self._skill += c.learning * felt * np.maximum(0.0, 1 - self._skill / c.ceiling)
        age = self.version - self._practised_at[trained]
        self._practice[trained] = self._practice[trained] * 0.5 ** (age / c.practice_half_life) + c.practice
        self.version += 1
        self._practised_at[trained] = self.version
        self._trained[trained] += 1
        step = c.drift * self._random.standard_normal(len(self._drift))
        self._drift += step - c.drift_pull * self._drift


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedStep:
    """One learner step of a simulation."""

    rollouts: int
    """Played for this step."""
    batch: TakenBatch[None]
    flipped_share: float
    em: float
    """Mean success probability of held-out queries of the pool's difficulty, before the update."""


def simulate(config: SimulationConfig, rule: PoolRule, seed: int) -> Iterator[SimulatedStep]:
    """Plays the pool by ``rule`` until the budget of rollouts is spent; a row per step.

    Raises ``Fault`` where the pool does: when it has no signal left to give.
    """
    policy = DriftingPolicy(config, seed)
    pool: QueryPool[None] = QueryPool([str(i) for i in range(config.queries)], rule, seed=seed)
    size = min(config.queries, HELD_OUT)
    held_out = np.random.default_rng(derive_seed(seed, "held out")).choice(config.queries, size, replace=False)
    left = config.rollouts_per_query * config.queries
    while left > 0:
        rollouts, em = 0, float(policy.chances(held_out, practised=False).mean())
        while tickets := pool.claim("simulated", now=0.0, limit=rule.bound()):
            queries = np.array([t.query for t in tickets])
            for ticket, chance in zip(tickets, policy.chances(queries), strict=True):
                played = _play(ticket, float(chance), rule.group_size, policy.version)
                rollouts += played.size
                pool.submit(played, None)
        batch = pool.take(version=policy.version)
        signal = [a.outcome.ticket.query for a in batch.accepted if a.outcome.state is QueryState.SIGNAL]
        if signal:
            policy.update(np.array(signal), rule.batch_questions)
        pool.release(batch.index)
        left -= rollouts
        yield SimulatedStep(rollouts=rollouts, batch=batch, flipped_share=pool.history.flipped_share, em=em)


def _play(ticket: Ticket, chance: float, size: int, version: int) -> Outcome:
    """K rollouts, or the pilot alone where the ticket lets it decide."""
    outcomes = np.random.default_rng(ticket.seed).random(size) < chance
    pilot = None
    if ticket.pilot:
        piloted = int(outcomes[: ticket.pilot].sum())
        pilot = (piloted, ticket.pilot)
        if (piloted == 0 and ticket.cut_hard) or (piloted == ticket.pilot and ticket.cut_easy):
            return outcome(ticket, ticket.pilot, piloted, version, pilot=pilot)
    return outcome(ticket, size, int(outcomes.sum()), version, pilot=pilot)
