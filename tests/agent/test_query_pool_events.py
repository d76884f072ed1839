"""100,000 random events on query pools, after each of which a book kept beside it must agree with the pool."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from pool_cases import asked, enter, pool_of

from agent.groups import Group
from agent.pool.claims import Lost
from agent.pool.query_pool import Place, QueryPool
from agent.pool.rules.base import AT_ONCE, FOREVER, PoolRule, rule_class
from agent.records import StopReason
from agent.tickets import Ticket

EPOCH, DYNAMIC, RECYCLE, ADAPTIVE = map(rule_class, ("epoch", "dynamic", "recycle", "adaptive"))
K = 3
LEASE_S = 20.0
CASES = [  # questions, rule, share of groups with a token of older weights, events; the first for every day
    (30, RECYCLE(batch_questions=3, oversample=2.0, max_staleness=2, keep_surplus=True), 0.02, 7_500),
    (30, EPOCH(batch_questions=4, max_staleness=0), 0.0, 7_500),
    (23, EPOCH(batch_questions=4, max_staleness=1), 0.0, 7_500),
    (9, EPOCH(batch_questions=4, max_staleness=3), 0.02, 7_500),
    (40, RECYCLE(batch_questions=3, max_staleness=0), 0.0, 7_500),
    (40, RECYCLE(batch_questions=3, oversample=2.0, max_staleness=1), 0.0, 7_500),
    (25, RECYCLE(batch_questions=4, oversample=1.5, max_staleness=2), 0.0, 7_500),
    (7, RECYCLE(batch_questions=3, oversample=1.5, max_staleness=3), 0.0, 7_500),
    (30, RECYCLE(batch_questions=3, oversample=2.0, max_staleness=2), 0.05, 7_500),
    (40, RECYCLE(batch_questions=3, oversample=3.0, stop_early=True, pilot=2), 0.0, 7_500),
    (30, DYNAMIC(batch_questions=4, max_staleness=1), 0.0, 7_500),
    (40, ADAPTIVE(batch_questions=3, cooldown=2, retire_after=1, longest_rest=5), 0.0, 9_000),
    (90, ADAPTIVE(batch_questions=4, explore=0.3, max_staleness=2, pilot=2), 0.02, 7_500),
    (14, ADAPTIVE(batch_questions=5, cooldown=6, max_staleness=1), 0.02, 7_500),
    (50, ADAPTIVE(batch_questions=4, cooldown=2, longest_rest=5, max_staleness=1), 0.0, 7_500),
]
SUSPECTING = 50
"""Questions of the case in which two deaths of workers quarantine one; smaller pools would run dry of it."""


@dataclass
class Claim:
    ticket: Ticket
    worker: str
    deadline: float
    served: int
    """Policy version that the workers held when it was drawn."""
    resets: int
    """How often consumed queries had come back by then."""


@dataclass
class World:
    """A pool, workers and a learner that behave at random, and the books that a careful clerk would keep."""

    pool: QueryPool
    rule: PoolRule
    rng: random.Random
    make_group: object
    stale_share: float

    now: float = 0.0
    version: int = 0
    """The learner's."""
    served: int = 0
    """Of the newest weights that all workers hold."""
    resets: int = 0
    released: int = 0
    place: bytearray = field(default_factory=bytearray)
    wakes: dict[int, int] = field(default_factory=dict)
    """The batch that ends a resting query's rest."""
    again: dict[tuple[int, int], Claim] = field(default_factory=dict)
    """By batch and order: what was in flight at a restart, and is drawn again."""
    spoiled: dict[int, list[Group]] = field(default_factory=dict)
    decided: int = 0
    """Draws that the pool has a record of."""
    kept: list[tuple[Group, Claim]] = field(default_factory=list)
    """Surplus of the batch taken last."""
    held: dict[int, Claim] = field(default_factory=dict)
    deaths: Counter[int] = field(default_factory=Counter)
    """Workers that died with a query since its last group was played."""
    killer: int | None = None
    """The query that the newest death is laid to."""
    gone: list[Claim] = field(default_factory=list)
    """Claims that ran out or died; their groups may still arrive."""
    submitted: dict[int, dict[int, tuple[Group, Claim]]] = field(default_factory=dict)
    taken: list[tuple[int, list[Claim], bool]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    returned: dict[str, Counter[str]] = field(default_factory=lambda: {u: Counter() for u in UNITS})
    events: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.place = bytearray(len(self.pool.ids))

    # --- events ----------------------------------------------------------------------------------

    def claim(self) -> bool:
        worker = f"w{self.rng.randrange(4)}"
        before = bytes(self.pool._places._place)
        available = before.count(Place.AVAILABLE)
        tickets = self.pool.claim(worker, now=self.now)
        after = bytes(self.pool._places._place)
        self.wake(before, after, available)
        back = [q for q in range(len(after)) if before[q] == Place.CONSUMED != after[q]]
        if back:
            assert all(after[q] != Place.CONSUMED for q in range(len(after))), "all come back, or none"
            assert self.rule.resets(available=available)
            self.resets += 1
            for query in back:
                self.place[query] = Place.AVAILABLE
        for ticket in tickets:
            old = self.again.pop((ticket.batch, ticket.order), None)
            if old is None:
                assert self.place[ticket.query] == Place.AVAILABLE, "drawn while it was elsewhere"
            else:
                assert (ticket.query, ticket.seed) == (old.ticket.query, old.ticket.seed), "drawn again as it was"
            assert ticket.batch <= self.released + self.rule.max_staleness, "beyond the staleness bound"
            assert ticket.claim_id not in self.held
            orders = [c.ticket.order for c in (*self.held.values(), *self.gone) if c.ticket.batch == ticket.batch]
            assert ticket.order not in {*orders, *self.submitted.get(ticket.batch, ())}
            self.place[ticket.query] = Place.CLAIMED
            resets = self.resets if old is None else old.resets
            self.held[ticket.claim_id] = Claim(ticket, worker, self.now + LEASE_S, self.served, resets)
            self.counts["groups"] += 1
        return bool(tickets)

    def wake(self, before: bytes, after: bytes, available: int) -> None:
        """Resting queries wake when their batch opens, or in order of their batches when nothing else is left."""
        newest = self.pool._next_batch - 1
        woken = [q for q in range(len(after)) if before[q] == Place.RESTING != after[q]]
        for query in woken:
            early = self.wakes.pop(query) > newest
            assert not early or available == 0, "rested too little"
            self.events["woken early" if early else "woken"] += 1
            self.place[query] = Place.AVAILABLE
        still = [self.wakes[q] for q in range(len(after)) if after[q] == Place.RESTING]
        assert not still or min(still) > newest, "rested too long"

    def group(self, claim: Claim) -> Group:
        faults = self.rng.choice([0, 0, 0, 0, 1, 2, 3])
        fault = self.rng.choices([StopReason.GENERATION_FAILED, StopReason.RETRIEVAL_FAILED], [9, 1])[0]
        versions = [self.rng.randint(claim.served, self.served) for _ in range(K - faults)]
        if versions and self.rng.random() < self.stale_share:
            versions[0] = max(0, claim.served - self.rng.randint(1, 3))
            self.events["old weights"] += 1
        pattern = self.rng.random()
        rewards = [0.0] * K if pattern < 0.3 else [1.0] * K if pattern < 0.5 else self.rng.choices([0.0, 0.5, 1.0], k=K)
        ticket, question = claim.ticket, asked(self.pool, claim.ticket)
        cut = ticket.cut_easy if rewards[0] >= 0.5 else ticket.cut_hard
        if ticket.pilot and not faults and len(set(rewards[: ticket.pilot])) == 1 and cut:
            self.events["cut short"] += 1
            rewards, versions = rewards[: ticket.pilot], versions[: ticket.pilot]
        return self.make_group(question, ticket, rewards[faults:], versions=versions, faults=faults, fault=fault)

    def submit(self) -> bool:
        if not self.held:
            return False
        claim = self.held.pop(self.rng.choice(list(self.held)))
        group, query = self.group(claim), claim.ticket.query
        self.deaths.pop(query, None)
        assert enter(self.pool, group)
        self.counts["trajectories"] += len(group.members) + len(group.excluded)
        self.counts["tokens"] += group.outcome().all_tokens
        for excluded in group.excluded:
            self.give_back_members(str(excluded.stop_reason), 1, excluded.action_tokens)
        failing = any(e.stop_reason is StopReason.RETRIEVAL_FAILED for e in group.excluded)
        if failing or len(group.members) < self.rule.min_viable:
            self.events["with_tool_failure" if failing else "too few viable"] += 1
            self.give_back("with_tool_failure" if failing else "too_few_viable", group)
            self.spoiled.setdefault(claim.ticket.batch, []).append(group)
        else:
            self.place[query] = Place.SUBMITTED
            self.submitted.setdefault(claim.ticket.batch, {})[claim.ticket.order] = (group, claim)
        return True

    def submit_late(self) -> bool:
        if not self.gone:
            return False
        claim = self.gone.pop(self.rng.randrange(len(self.gone)))
        group = self.group(claim)
        assert not enter(self.pool, group)
        self.counts["late_groups"] += 1
        self.counts["late_tokens"] += group.outcome().all_tokens
        return True

    def lose(self, claims: list[Claim], reason: str) -> int:
        for claim in claims:
            query = claim.ticket.query
            del self.held[claim.ticket.claim_id]
            self.gone.append(claim)
            guilty = reason == "worker_lost" and query == self.killer
            self.place[query] = Place.QUARANTINED if guilty else Place.AVAILABLE
            self.returned["groups"]["quarantined" if guilty else reason] += 1
            self.events["quarantined"] += guilty
        return len(claims)

    def crash(self) -> bool:
        worker = f"w{self.rng.randrange(4)}"
        held = [c for c in self.held.values() if c.worker == worker]
        self.deaths.update(c.ticket.query for c in held)
        ranked = sorted(((self.deaths[c.ticket.query], c.ticket.query) for c in held), reverse=True)
        (most, first), (next_most, _) = *ranked[:2], *[(0, -1)] * (2 - len(ranked[:2]))
        self.killer = first if most > next_most and 0 < self.rule.quarantine_after <= most else None
        lost = self.lose(held, "worker_lost")
        guilty = tuple(c.ticket.query for c in held if self.place[c.ticket.query] == Place.QUARANTINED)
        assert self.pool.worker_lost(worker) == Lost(lost, guilty)
        return lost > 0

    def renew(self) -> bool:
        """A worker's groups go on; it also names what isn't its own, or is no longer held."""
        worker = f"w{self.rng.randrange(4)}"
        own = [c for c in self.held.values() if c.worker == worker and self.rng.random() < 0.7]
        others = [c.ticket.claim_id for c in (*self.held.values(), *self.gone[-3:]) if c.worker != worker]
        moved = [*(c.ticket.claim_id for c in own), *others]
        held = [c.ticket.claim_id for c in self.held.values() if c.worker == worker]
        assert self.pool.renew(worker, [*held, *others], moved, now=self.now) == others
        for claim in own:
            claim.deadline = self.now + LEASE_S
        return bool(own)

    def expire(self) -> bool:
        self.now += self.rng.expovariate(1 / 8)
        lost = self.lose([c for c in self.held.values() if c.deadline <= self.now], "lease_expired")
        assert self.pool.expire(now=self.now) == lost
        deadlines = [c.deadline for c in self.held.values()]
        assert self.pool.next_deadline == min(deadlines, default=None)
        return lost > 0

    def take(self) -> bool:
        if not self.pool.ready:
            with pytest.raises(ValueError, match="before the batch is complete"):
                self.pool.take(version=self.version)
            return False
        index = self.released + len(self.taken)
        assert not any(c.ticket.batch == index for c in self.held.values()), "claims of the batch are still out"
        groups = [group for _, group in sorted(self.submitted.pop(index, {}).items())]
        batch = self.pool.take(version=self.version)
        assert batch.index == index
        played = [*(g for g, _ in groups), *self.spoiled.pop(index, [])]
        assert batch.payloads == tuple(sorted(played, key=lambda g: g.ticket.order))
        lost = sum(e.stop_reason is StopReason.RETRIEVAL_FAILED for g in played for e in g.excluded)
        failing = lost > self.rule.max_tool_failures * sum(len(g.members) + len(g.excluded) for g in played)
        assert batch.too_many_tool_failures == failing
        self.events["too many tool failures"] += failing
        fresh = []
        for group, claim in (*self.kept, *groups):
            if failing:
                self.give_back("with_tool_failure", group)
            elif self.age(group, self.version) > self.rule.max_staleness:
                self.give_back("too_stale", group)
            else:
                fresh.append((group, claim))
        self.kept, accepted, decided = [], [], []
        for group, claim in fresh:
            signal = len(set(group.rewards)) > 1
            room = len(accepted) < self.rule.batch_questions
            if isinstance(self.rule, EPOCH) or (signal and room):
                accepted.append((group, claim))
                self.place[claim.ticket.query] = Place.ACCEPTED
                self.counts["accepted groups"] += 1
                self.counts["accepted trajectories"] += len(group.members)
                self.counts["accepted tokens"] += sum(m.trajectory.action_tokens for m in group.members)
            elif signal and self.rule.keep_surplus and self.age(group, self.version + 1) <= self.rule.max_staleness:
                self.kept.append((group, claim))
                self.events["kept"] += 1
                continue
            else:
                verdict = "unselected" if signal else "zero_variance"
                self.give_back(verdict, group)
                self.rest(claim, verdict)
            decided.append(group)
        assert [a.payload for a in batch.accepted] == [g for g, _ in accepted]
        assert batch.kept == {claim.ticket.claim_id for _, claim in self.kept}
        for group, _ in accepted:
            assert self.version - group.oldest_version <= self.rule.max_staleness
        assert batch.states == Counter(g.state for g in decided)
        assert len(self.pool.history.log) == self.decided + len(decided)
        self.decided += len(decided)
        self.events["empty batch"] += not groups
        self.taken.append((index, [c for _, c in accepted], bool(accepted)))
        self.version += 1 if accepted else 0  # the learner publishes what it made of the batch
        return True

    def release(self) -> bool:
        wrong = self.released + self.rng.choice([-1, 1])
        with pytest.raises(ValueError, match="is the next to be released"):
            self.pool.release(wrong)
        if not self.taken:
            return False
        index, claims, made_weights = self.taken.pop(0)
        self.pool.release(index)
        self.served += made_weights
        self.released += 1
        for claim in claims:
            self.rest(claim, "accepted")
        return True

    def rest(self, claim: Claim, verdict: str) -> None:
        """Where the query goes after its verdict."""
        query, rest = claim.ticket.query, self.rule.rest(verdict, self.pool.history, claim.ticket.query)
        came_back = rest == FOREVER and claim.resets < self.resets
        self.events["came back in flight"] += came_back
        if came_back or rest == AT_ONCE:
            self.place[query] = Place.AVAILABLE
        elif rest == FOREVER:
            self.place[query] = Place.CONSUMED
        else:
            self.place[query] = Place.RESTING
            self.wakes[query] = self.pool._next_batch + rest

    @staticmethod
    def age(group: Group, version: int) -> int:
        return version - min(m.trajectory.versions.min() for m in group.members)

    def restart(self) -> bool:
        """The pool dies and comes back from its state; what was in flight is drawn again."""
        if self.taken:
            return False
        state = self.pool.state()
        self.pool = QueryPool(self.pool.ids, self.rule, seed=self.pool._seed)
        self.pool.load_state(state)
        lost = [*self.held.values(), *(c for groups in self.submitted.values() for _, c in groups.values())]
        self.again |= {(c.ticket.batch, c.ticket.order): c for c in lost}
        for claim in self.again.values():
            self.place[claim.ticket.query] = Place.CLAIMED
        for _, claim in self.kept:
            self.place[claim.ticket.query] = Place.AVAILABLE
        for forgotten in (self.held, self.gone, self.submitted, self.kept, self.spoiled):
            forgotten.clear()
        for unit in UNITS:
            self.counts[unit] = self.counts[f"accepted {unit}"] + self.returned[unit].total()
        return True

    # --- books -----------------------------------------------------------------------------------

    def give_back(self, reason: str, group: Group) -> None:
        self.place[group.ticket.query] = Place.AVAILABLE
        self.returned["groups"][reason] += 1
        self.give_back_members(reason, len(group.members), sum(m.trajectory.action_tokens for m in group.members))

    def give_back_members(self, reason: str, members: int, tokens: int) -> None:
        self.returned["trajectories"][reason] += members
        self.returned["tokens"][reason] += tokens

    def check(self) -> None:
        """After every event: each query is where the clerk says, and the counts add up."""
        pool, books = self.pool, self.pool.books
        assert bytes(pool._places._place) == self.place
        assert books.groups.balanced
        assert books.trajectories.balanced
        assert books.tokens.balanced
        waiting = sum(map(len, self.submitted.values())) + len(self.kept)
        assert books.groups.in_flight == len(self.held) + waiting
        assert books.groups.received == self.counts["groups"]
        assert books.groups.accepted == self.counts["accepted groups"]

    def check_all(self) -> None:
        pool, books = self.pool, self.pool.books
        books.check()
        for unit in UNITS:
            account = getattr(books, unit)
            assert account.received == self.counts[unit]
            assert account.accepted == self.counts[f"accepted {unit}"]
            assert account.returned == self.returned[unit]
        assert (books.late_groups, books.late_tokens) == (self.counts["late_groups"], self.counts["late_tokens"])
        places = pool.places()
        assert places == {p.name.lower(): self.place.count(p) for p in Place}
        assert sum(places.values()) == sum(pool.seen().values()) == len(pool.ids)
        assert 0 <= pool.history.flipped_share <= 1
        drawable = np.frombuffer(bytes(self.place), np.uint8) == Place.AVAILABLE
        assert ((pool._places._tree.weights > 0) == drawable).all()
        assert pool._places._open.total == drawable.sum() == pool._places.available
        assert pool._places._tree.total == pytest.approx(pool._places._tree.weights.sum(), rel=1e-9)
        assert len(pool._batches) + len(pool._taken) <= self.rule.max_staleness + 1

    def finish(self, batches: int) -> None:
        """Without further mishaps the pool always gets on: whatever happened, nothing is stuck or lost."""
        for _ in range(batches):
            while not self.pool.ready:
                progress = self.claim() or self.submit() or self.release()
                assert progress, "nobody can do anything"
                self.check()
            assert self.take()
            while self.taken:
                assert self.release()
            self.check()
        while self.submit():
            self.check()


UNITS = ("groups", "trajectories", "tokens")
EVENTS = {"claim": 30, "submit": 30, "take": 14, "release": 14, "expire": 7, "crash": 2, "submit_late": 3}
EVENTS |= {"restart": 1, "renew": 2}


@pytest.mark.one_in(15)
@pytest.mark.parametrize(
    ("n", "rule", "stale_share", "events"), CASES, ids=[f"{r.name}-{r.max_staleness}-of-{n}" for n, r, _, _ in CASES]
)
def test_random_events(make_questions, make_group, n, rule, stale_share, events):
    """Counts only what happened: a claim that gave nothing or a take that had to wait is checked, and tried again."""
    rule = dataclasses.replace(rule, group_size=K, lease_s=LEASE_S, max_empty_batches=10**9)
    rule.quarantine_after = 2 if n == SUSPECTING else 0
    seed = n + 100 * rule.max_staleness
    pool = pool_of(make_questions(n), rule, seed=seed)
    world = World(pool, rule, random.Random(seed), make_group, stale_share)
    names, weights = list(EVENTS), list(EVENTS.values())
    happened = 0
    while happened < events:
        (name,) = world.rng.choices(names, weights=weights)
        if getattr(world, name)():
            world.events[name] += 1
            happened += 1
            if happened % 100 == 0:
                world.check_all()
        world.check()
    world.finish(5)
    world.check_all()
    assert min(world.events[name] for name in EVENTS) >= 50, world.events
    if isinstance(rule, ADAPTIVE):
        assert world.events["woken"] + world.events["woken early"] > 500
        assert world.resets == 0
    else:
        assert world.resets > 10
    assert (world.events["kept"] > 30) == rule.keep_surplus
    assert (world.events["cut short"] >= 5) == (rule.pilot > 0)
    assert world.events["too few viable"] > 400
    assert world.events["with_tool_failure"] > 50
    assert world.events["too many tool failures"] > 5
    assert world.events["empty batch"] <= 0.02 * world.events["take"], "only where the redraws failed as well"
    assert (world.events["quarantined"] > 1) == (n == SUSPECTING)
    if stale_share:
        assert world.returned["groups"]["too_stale"] > 0
    else:
        assert world.returned["groups"]["too_stale"] == 0, "the bound on open batches makes stale groups impossible"


def test_a_hundred_thousand_events():
    assert sum(events for *_, events in CASES) >= 100_000
