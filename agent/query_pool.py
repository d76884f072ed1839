"""The query pool: one state per query, leases, a hard staleness bound, balancing books.

    available ──claim──► claimed ──submit──► submitted ──take──► accepted ──release──► consumed
        ▲                   │                    │                   │                    │
        └── returned(lease_expired, worker_lost, too_few_viable, too_stale, zero_variance, …) ── reset

Work comes in batches, one per learner step. Batch b may be drawn from once batch
``b - max_staleness - 1`` has been released, that is, once every worker has the weights made from it.
So a token's policy is at most ``max_staleness`` updates old when its batch is taken; ``take`` checks
it all the same. Weights and selection are the rule's (``pool_rules``); everything here is pure and
reads no clock: the caller passes ``now``.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from agent.books import Books
from agent.errors import Fault, UserError
from agent.pool_rules.base import ACCEPTED, PoolRule
from agent.records import NO_VERSION, Group, QueryState, Question, Ticket
from agent.seeds import derive_seed
from agent.sum_tree import SumTree


class Place(IntEnum):
    """Where a query is. Exactly one of these holds for each query at any time."""

    AVAILABLE = 0
    CLAIMED = 1
    SUBMITTED = 2
    ACCEPTED = 3
    CONSUMED = 4


_SEEN = tuple(QueryState)  # the order in which states are stored as small integers


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptedGroup:
    """A group to train on, with what the pool knew of its query before this draw."""

    group: Group
    recycled: bool
    """The query had been drawn before and was not consumed by it."""
    before: QueryState


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenBatch:
    """One learner step's worth of groups, in draw order, and how the rest of the batch fared."""

    index: int
    accepted: tuple[AcceptedGroup, ...]
    states: Counter[QueryState]
    """Groups by what they say of their query, the returned ones included."""
    returned: Counter[str]
    """Groups of this batch that went back, by reason."""
    members: tuple[Group, ...]
    """Every viable group that was submitted for the batch, accepted or not, in draw order."""


@dataclass
class _Claim:
    ticket: Ticket
    worker: str
    deadline: float


@dataclass
class _OpenBatch:
    index: int
    random: np.random.Generator
    drawn: int = 0
    redrawn: int = 0
    orders: int = 0
    claims: set[int] = field(default_factory=set)
    groups: dict[int, Group] = field(default_factory=dict)  # by order
    returned: Counter[str] = field(default_factory=Counter)

    @property
    def signal(self) -> int:
        return sum(g.signal_bearing for g in self.groups.values())


class QueryPool:
    """The pool over ``questions`` by ``rule``.

    Each batch draws from its own generator, seeded with ``seed`` and its index, so that a resumed run
    draws a batch that was in flight again as it was.

    Raises ``UserError`` for an empty list of questions or a duplicate id.
    """

    def __init__(self, questions: Sequence[Question], rule: PoolRule, *, seed: int) -> None:
        if not questions:
            raise UserError("the query pool is empty: the data has no training question")
        if len({q.id for q in questions}) < len(questions):
            duplicate = next(i for i, c in Counter(q.id for q in questions).items() if c > 1)
            raise UserError(f"question id {duplicate} occurs more than once in the training data")
        n = len(questions)
        self.questions = tuple(questions)
        self.rule = rule
        self.books = Books()
        self._seed = seed
        self._place = np.full(n, Place.AVAILABLE, dtype=np.uint8)
        self._weight = np.ones(n, dtype=np.float64)
        self._tree = SumTree(self._weight)  # the weight of available queries, 0 for all others
        self._available = n  # queries with a positive weight in the tree
        self._last = np.zeros(n, dtype=np.uint8)  # index into _SEEN
        self._draws = np.zeros(n, dtype=np.int32)  # resolved draws
        self._open_draws = np.zeros(n, dtype=np.int32)  # of them, since the query was last consumed
        self._round = 0  # how often the consumed queries were brought back
        self._drawn_in = np.zeros(n, dtype=np.int32)  # round of the last draw
        self._back_for = np.full(n, -1, dtype=np.int64)  # batch for which the query was last brought back
        self._ever_zero = np.zeros(n, dtype=np.bool_)
        self._flipped = np.zeros(n, dtype=np.bool_)
        self._claims: dict[int, _Claim] = {}
        self._next_claim = 0
        self._batches: deque[_OpenBatch] = deque()
        self._next_batch = 0
        self._released = 0  # batches released
        self._taken: dict[int, list[int]] = {}  # batch -> accepted queries, until release
        self.empty_batches = 0
        """Batches in a row that had no signal-bearing group."""

    # --- claim -----------------------------------------------------------------------------------

    def claim(self, worker: str, *, now: float, limit: int = 1) -> list[Ticket]:
        """Up to ``limit`` tickets for ``worker``; none when all open batches are fully drawn.

        Nor when every query is in flight: a batch waits for those that come back.
        """
        tickets: list[Ticket] = []
        while len(tickets) < limit:
            batch = self._drawable_batch()
            if batch is None:
                break
            query = self._draw(batch)
            if query is None:
                break
            ticket = Ticket(
                claim_id=self._next_claim,
                query=query,
                batch=batch.index,
                order=batch.orders,
                seed=derive_seed(self._seed, "rollout", batch.index, batch.orders, self.questions[query].id),
            )
            self._next_claim += 1
            batch.drawn += 1
            batch.orders += 1
            batch.claims.add(ticket.claim_id)
            self._drawn_in[query] = self._round
            self._claims[ticket.claim_id] = _Claim(ticket, worker, now + self.rule.lease_s)
            self._move(query, Place.CLAIMED)
            self.books.groups.receive()
            tickets.append(ticket)
        return tickets

    def _drawable_batch(self) -> _OpenBatch | None:
        """The oldest batch that wants another draw, opening a new one if the staleness bound allows."""
        for batch in self._batches:
            if self._wants(batch) > 0:
                return batch
        return self._open_batch() if self._next_batch <= self._released + self.rule.max_staleness else None

    def _open_batch(self) -> _OpenBatch:
        random = np.random.default_rng(derive_seed(self._seed, "pool", self._next_batch))
        batch = _OpenBatch(self._next_batch, random)
        self._batches.append(batch)
        self._next_batch += 1
        if self.rule.resets(available=self._available):
            self._bring_back_consumed(batch)
        return batch

    def _wants(self, batch: _OpenBatch) -> int:
        return self.rule.wanted(drawn=batch.drawn, signal=batch.signal)

    def _draw(self, batch: _OpenBatch) -> int | None:
        if self._available == 0 and self.rule.resets(available=0):
            self._bring_back_consumed(batch)
        if self._available == 0:
            return None
        return self._tree.find(batch.random.random() * self._tree.total)

    def _bring_back_consumed(self, batch: _OpenBatch) -> None:
        consumed = np.flatnonzero(self._place == Place.CONSUMED)
        if len(consumed) == 0:
            return
        self._round += 1
        self._back_for[consumed] = batch.index
        for query in consumed:
            self._weight[query] = 1.0
            self._move(int(query), Place.AVAILABLE)

    def _rest(self, query: int) -> None:
        """A query comes back from its draw: consumed if it has lost its weight, else available.

        A draw that is older than the last time the consumed queries came back consumes nothing now,
        or a query in flight at that moment would sit out a whole epoch.
        """
        if self._weight[query] == 0:
            self._open_draws[query] = 0
            if self._drawn_in[query] < self._round:
                self._weight[query] = 1.0
        self._move(query, Place.AVAILABLE if self._weight[query] > 0 else Place.CONSUMED)

    def _move(self, query: int, place: Place) -> None:
        """The only place where a query changes state; keeps the tree and the count of drawable queries."""
        self._place[query] = place
        before = self._tree.weights[query] > 0
        weight = float(self._weight[query]) if place is Place.AVAILABLE else 0.0
        self._tree.set(query, weight)
        self._available += int(weight > 0) - int(before)

    # --- what becomes of a claim -----------------------------------------------------------------

    def submit(self, group: Group) -> bool:
        """Takes a played group in; False (and the group is dropped) if its claim is no longer held."""
        claim = self._claims.pop(group.ticket.claim_id, None)
        if claim is None:
            self.books.late_groups += 1
            self.books.late_tokens += group.action_tokens
            return False
        if claim.ticket != group.ticket or self.questions[claim.ticket.query].id != group.question.id:
            self._claims[claim.ticket.claim_id] = claim
            raise ValueError(f"group of {group.question.id} doesn't answer the claim {claim.ticket}")
        batch = self._batch(claim.ticket.batch)
        batch.claims.discard(claim.ticket.claim_id)
        self.books.trajectories.receive(group.rollouts)
        self.books.tokens.receive(group.action_tokens)
        for trajectory in group.excluded:
            self.books.trajectories.give_back(str(trajectory.stop_reason))
            self.books.tokens.give_back(str(trajectory.stop_reason), trajectory.generated_tokens)
        for trajectory in group.discarded:
            self.books.trajectories.give_back("discarded")
            self.books.tokens.give_back("discarded", trajectory.generated_tokens)
        self._move(claim.ticket.query, Place.SUBMITTED)
        if len(group.members) < self.rule.min_viable:
            self._return_group(batch, group, "too_few_viable")
            self._redraw(batch)
        else:
            batch.groups[claim.ticket.order] = group
        return True

    def worker_lost(self, worker: str) -> int:
        """Returns all claims of a dead worker; the number of them."""
        return self._return_claims([c for c in self._claims.values() if c.worker == worker], "worker_lost")

    def expire(self, *, now: float) -> int:
        """Returns the claims whose lease has run out; the number of them."""
        return self._return_claims([c for c in self._claims.values() if c.deadline <= now], "lease_expired")

    @property
    def next_deadline(self) -> float | None:
        """When the next lease runs out, or None without claims."""
        return min((c.deadline for c in self._claims.values()), default=None)

    def _return_claims(self, claims: list[_Claim], reason: str) -> int:
        for claim in claims:
            del self._claims[claim.ticket.claim_id]
            batch = self._batch(claim.ticket.batch)
            batch.claims.discard(claim.ticket.claim_id)
            batch.returned[reason] += 1
            self.books.groups.give_back(reason)
            self._move(claim.ticket.query, Place.AVAILABLE)
            self._redraw(batch)
        return len(claims)

    def _redraw(self, batch: _OpenBatch) -> None:
        """A draw lost to a fault is drawn again, up to as many as the batch has candidates."""
        if batch.redrawn < self.rule.candidates:
            batch.redrawn += 1
            batch.drawn -= 1

    def _return_group(self, batch: _OpenBatch, group: Group, reason: str) -> None:
        query = group.ticket.query
        batch.returned[reason] += 1
        self.books.groups.give_back(reason)
        self.books.trajectories.give_back(reason, len(group.members))
        self.books.tokens.give_back(reason, group.member_tokens)
        self._weight[query] = self.rule.weight_after(verdict=reason, weight=float(self._weight[query]))
        self._rest(query)

    def _batch(self, index: int) -> _OpenBatch:
        return self._batches[index - self._batches[0].index]

    # --- take and release ------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether ``take`` would return a batch: the oldest open one is played, and drawn as far as can be.

        A pool that has run dry yields empty batches, which no claim need have opened.
        """
        if not self._batches:
            return self._dry
        if self._batches[0].claims:
            return False
        return self._wants(self._batches[0]) <= 0 or self._dry

    @property
    def _dry(self) -> bool:
        """Nothing is left to draw, and no release is due that could bring a query back."""
        if self._available > 0 or self._taken:
            return False
        return not (self.rule.resets(available=0) and (self._place == Place.CONSUMED).any())

    def take(self, *, version: int) -> TakenBatch:
        """The oldest batch, for a learner at policy ``version``. Call it only when ``ready``.

        Raises ``Fault`` after ``max_empty_batches`` batches in a row without a signal-bearing group,
        with a picture of the pool, and when the books don't balance.
        """
        if not self.ready:
            raise ValueError("take() before the batch is complete")
        if not self._batches:
            self._open_batch()
        batch = self._batches.popleft()
        groups = [batch.groups[order] for order in sorted(batch.groups)]
        fresh = []
        for group in groups:
            oldest = group.oldest_version
            if oldest != NO_VERSION and version - oldest > self.rule.max_staleness:
                self._return_group(batch, group, "too_stale")
            else:
                fresh.append(group)
        verdicts = self.rule.select([g.state for g in fresh])
        accepted = []
        for group, verdict in zip(fresh, verdicts, strict=True):
            query = group.ticket.query
            before, recycled = _SEEN[self._last[query]], bool(self._open_draws[query] > 0)
            self._record(query, group.state)
            if verdict != ACCEPTED:
                self._return_group(batch, group, verdict)
                continue
            self._weight[query] = self.rule.weight_after(verdict=verdict, weight=float(self._weight[query]))
            self._move(query, Place.ACCEPTED)
            self.books.groups.accept()
            self.books.trajectories.accept(len(group.members))
            self.books.tokens.accept(group.member_tokens)
            accepted.append(AcceptedGroup(group=group, recycled=recycled, before=before))
        self._taken[batch.index] = [a.group.ticket.query for a in accepted]
        self.books.check()
        states = Counter(g.state for g in fresh)
        self.empty_batches = 0 if states[QueryState.SIGNAL] else self.empty_batches + 1
        if self.empty_batches >= self.rule.max_empty_batches:
            last = ", ".join(f"{count} {reason}" for reason, count in batch.returned.items()) or "nothing"
            raise Fault(
                f"{self.empty_batches} batches in a row had no signal-bearing group (the last one returned {last}); "
                f"{self.describe()}"
            )
        return TakenBatch(
            index=batch.index,
            accepted=tuple(accepted),
            states=states,
            returned=batch.returned,
            members=tuple(groups),
        )

    def _record(self, query: int, state: QueryState) -> None:
        zero = state is not QueryState.SIGNAL
        self._flipped[query] |= self._ever_zero[query] and not zero
        self._ever_zero[query] |= zero
        self._last[query] = _SEEN.index(state)
        self._draws[query] += 1
        self._open_draws[query] += 1

    def release(self, batch: int) -> None:
        """The workers hold the weights made from ``batch`` (or it made none): its slots are free again."""
        if batch != self._released or batch not in self._taken:
            raise ValueError(f"release of batch {batch}, but {self._released} is the next to be released")
        for query in self._taken.pop(batch):
            self._rest(query)
        self._released += 1

    # --- reading ---------------------------------------------------------------------------------

    def places(self) -> dict[str, int]:
        """Number of queries in each place; they add up to the size of the pool."""
        counts = np.bincount(self._place, minlength=len(Place))
        return {place.name.lower(): int(counts[place]) for place in Place}

    def seen(self) -> dict[str, int]:
        """Number of queries by what their last draw said of them."""
        counts = np.bincount(self._last, minlength=len(_SEEN))
        return {str(state): int(counts[i]) for i, state in enumerate(_SEEN)}

    @property
    def flipped_share(self) -> float:
        """Share of the queries drawn so far that went from zero-variance to signal-bearing at some draw."""
        drawn = int((self._draws > 0).sum())
        return float(self._flipped.sum() / drawn) if drawn else 0.0

    def describe(self) -> str:
        """The pool in one line, for a message."""
        seen, places = self.seen(), self.places()
        return (
            f"the pool of {len(self.questions)} queries has {seen['too_hard']} too hard, {seen['too_easy']} too easy, "
            f"{seen['signal']} with signal, {seen['unseen']} unseen; {places['available']} are available, "
            f"{places['consumed']} consumed"
        )

    # --- checkpoints -----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as arrays and JSON values.

        Work in flight is not saved: a query that is claimed or submitted is saved as available, one
        that was brought back for a batch in flight as consumed, and the batch is drawn again after a
        resume. Raises ``ValueError`` between take and release.
        """
        if self._taken:
            raise ValueError("the pool's state is only defined when every taken batch has been released")
        not_yet_back = self._back_for >= self._released
        consumed = (self._place == Place.CONSUMED) | not_yet_back
        return {
            "ids": [q.id for q in self.questions],
            "place": np.where(consumed, Place.CONSUMED, Place.AVAILABLE).astype(np.uint8),
            "weight": np.where(not_yet_back, 0.0, self._weight),
            "last": self._last.copy(),
            "draws": self._draws.copy(),
            "open_draws": self._open_draws.copy(),
            "ever_zero": self._ever_zero.copy(),
            "flipped": self._flipped.copy(),
            "released": self._released,
            "empty_batches": self.empty_batches,
            "books": {
                name: {"accepted": a.accepted, "returned": dict(a.returned)}
                for name in ("groups", "trajectories", "tokens")
                for a in (getattr(self.books, name),)
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from ``state()``, in a pool that has not been used yet.

        Raises ``UserError`` if the state was made from other questions.
        """
        if self._next_claim or self._next_batch:
            raise ValueError("load_state() on a pool in use: make a new one")
        if state["ids"] != [q.id for q in self.questions]:
            raise UserError("the checkpoint's pool holds other questions than data=…; resume with the same data")
        for name in ("weight", "last", "draws", "open_draws", "ever_zero", "flipped"):
            getattr(self, f"_{name}")[:] = state[name]
        for query, place in enumerate(state["place"]):
            self._move(query, Place(int(place)))
        self._released = self._next_batch = int(state["released"])
        self.empty_batches = int(state["empty_batches"])
        for name, saved in state["books"].items():
            account = getattr(self.books, name)
            account.accepted = int(saved["accepted"])
            account.returned = Counter({k: int(v) for k, v in saved["returned"].items()})
            account.received = account.accepted + account.returned.total()
