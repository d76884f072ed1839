"""The query pool: one place per query, leases, a hard staleness bound, balancing books.

    available ──claim──► claimed ──submit──► submitted ──take──► accepted ──release──► consumed or resting
        ▲                   │                    │                   │                    │
        └── returned(lease_expired, worker_lost, too_few_viable, with_tool_failure, too_stale, zero_variance, …) ── wake

Work comes in batches, one per learner step. Batch b may be drawn from once batch
``b - max_staleness - 1`` has been released, that is, once every worker has the weights made from it.
So a token's policy is at most ``max_staleness`` versions old when its batch is taken; ``take`` checks
it all the same. Weights, rests and selection are the rule's (``rules/``), which decides from the facts in
``history``. Everything here is pure and reads no clock: the caller passes ``now``.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, Generic

import numpy as np

from agent.errors import Fault, UserError
from agent.pool.batches import Accepted, P, Played, TakenBatch
from agent.pool.books import Books
from agent.pool.claims import Claims, Lost
from agent.pool.history import STATES, QueryHistory
from agent.pool.ids import check_ids, digest
from agent.pool.open_batch import OpenBatch
from agent.pool.places import Place, Places
from agent.pool.rules.base import ACCEPTED, AT_ONCE, FOREVER, UNSELECTED, PoolRule
from agent.pool.search_limits import SearchLimits
from agent.seeds import derive_seed
from agent.tickets import Outcome, QueryState, Ticket


class QueryPool(Generic[P]):
    """The pool over the questions of these ``ids`` by ``rule``; ``limits`` gives each draw its search limit.

    A query is its index in ``ids``. Each batch draws from its own generator, seeded with ``seed`` and its index.
    Raises ``UserError`` for an empty list of ids or one that occurs twice, ``Fault`` for a rule that has no candidates.
    """

    def __init__(self, ids: Sequence[str], rule: PoolRule, *, seed: int, limits: SearchLimits | None = None) -> None:
        check_ids(ids)
        self.ids, self._digest = ids, digest(ids)  # once: each take asks for a state
        self.rule = rule
        self.books = Books()
        self.history = QueryHistory(len(ids), rule.keeps)
        self._seed = seed
        self._most_redrawn = rule.bound()
        self._limits = limits
        self._places = Places(len(ids), rule, self.history)
        self._claims = Claims(rule.lease_s, rule.quarantine_after)
        self._next_claim = 0
        self._batches: deque[OpenBatch[P]] = deque()
        self._next_batch = 0
        self._released = 0  # batches released
        self._taken: dict[int, list[tuple[int, int]]] = {}  # batch -> (accepted query, its rest), until release
        self._kept: list[Played[P]] = []  # surplus, until the next batch opens
        self.empty_batches = 0
        """Batches in a row that had no signal-bearing group."""

    # --- claim -----------------------------------------------------------------------------------

    def claim(self, worker: str, *, now: float, limit: int = 1) -> list[Ticket]:
        """Up to ``limit`` tickets for ``worker``; none while all open batches are drawn, or all queries in flight."""
        tickets: list[Ticket] = []
        while len(tickets) < limit:
            if (batch := self._drawable_batch()) is None:
                break
            if batch.reissue:
                order, query, max_searches = batch.reissue.popleft()
            else:
                if (drawn := self._places.draw(batch.random)) is None:
                    break
                order, query = batch.orders, drawn
                max_searches = self._limits.limit(self.history, query, batch.index) if self._limits else None
                batch.drawn += 1
                batch.orders += 1
            tickets.append(self._ticket(batch, order, query, max_searches, worker, now))
        return tickets

    def _ticket(
        self, batch: OpenBatch[P], order: int, query: int, max_searches: int | None, worker: str, now: float
    ) -> Ticket:
        cut_hard, cut_easy = self.rule.leaves(self.history, query, batch.index)
        ticket = Ticket(
            claim_id=self._next_claim,
            query=query,
            batch=batch.index,
            order=order,
            seed=derive_seed(self._seed, "rollout", batch.index, order, self.ids[query]),
            pilot=self.rule.pilot if cut_hard or cut_easy else 0,
            cut_hard=cut_hard,
            cut_easy=cut_easy,
            min_viable=self.rule.min_viable,
            max_searches=max_searches,
        )
        self._next_claim += 1
        batch.claims[ticket.claim_id] = ticket
        self._claims.add(ticket, worker, now=now)
        self.books.groups.receive()
        return ticket

    def _drawable_batch(self) -> OpenBatch[P] | None:
        """The oldest batch that wants another draw, opening a new one if the staleness bound allows."""
        last = self._released + self.rule.max_staleness  # under a larger bound, before a resume, others were opened
        for batch in self._batches:
            if batch.index <= last and (batch.reissue or self._wants(batch) > 0):
                return batch
        while self._next_batch <= last:
            if self._wants(batch := self._open_batch()) > 0:  # a surplus may have filled it already
                return batch
        return None

    def _open_batch(self) -> OpenBatch[P]:
        random = np.random.default_rng(derive_seed(self._seed, "pool", self._next_batch))
        batch: OpenBatch[P] = OpenBatch(self._next_batch, random, kept=self._kept)
        self._kept = []
        self._batches.append(batch)
        self._next_batch += 1
        self._places.wake(batch.index)  # what it weighs anew is weighed for this batch
        self._places.next_batch = self._next_batch
        return batch

    def _wants(self, batch: OpenBatch[P]) -> int:
        return self.rule.wants(room=self.rule.batch_questions - len(batch.kept), drawn=batch.drawn, zero=batch.zero)

    def progress(self) -> tuple[int, int]:
        """Groups of the oldest open batch that are here, and as many as it has drawn or wants so far."""
        if not self._batches:
            return 0, 0
        batch = self._batches[0]
        here = len(batch.groups) + len(batch.spoiled) + len(batch.kept)
        return here, here + len(batch.claims) + len(batch.reissue) + max(0, self._wants(batch))

    # --- what becomes of a claim -----------------------------------------------------------------

    def submit(self, outcome: Outcome, payload: P) -> bool:
        """Takes a played group in; False (and the payload is dropped) if its claim is no longer held.

        Raises ``ValueError`` for an outcome of another ticket than the claim's.
        """
        ticket = self._claims.ticket(outcome.ticket.claim_id)
        if ticket is None:
            self.books.drop(outcome)
            return False
        if ticket != outcome.ticket:
            raise ValueError(f"an outcome of {outcome.ticket} doesn't answer the claim {ticket}")
        self._claims.played(ticket)
        batch = self._batch(ticket.batch)
        batch.claims.pop(ticket.claim_id)
        self.books.receive(outcome)
        self._places.move(ticket.query, Place.SUBMITTED)
        group = Played(outcome=outcome, payload=payload)
        if outcome.selective_faults or outcome.size < self.rule.min_viable:
            batch.spoiled.append(group)
            self._return_group(batch, outcome, "with_tool_failure" if outcome.selective_faults else "too_few_viable")
            self._redraw(batch)
        else:
            batch.groups[ticket.order] = group
            batch.zero += outcome.state is not QueryState.SIGNAL
        return True

    def renew(self, worker: str, held: Sequence[int], moved: Sequence[int], *, now: float) -> list[int]:
        """The groups of ``moved`` go on: their leases begin anew. Which of ``held`` are no longer its claims."""
        return self._claims.renew(worker, held, moved, now=now)

    def worker_lost(self, worker: str, *, suspect: bool = True) -> Lost:
        """Returns all claims of a dead worker. The question that it may have died of (``suspect``) is quarantined."""
        tickets = self._claims.ends(lambda claim: claim.worker == worker)
        quarantined = self._claims.died(ticket.query for ticket in tickets) if suspect else ()
        for ticket in tickets:
            if ticket.query in quarantined:
                self._return_claim(ticket, "quarantined", Place.QUARANTINED)
            else:
                self._return_claim(ticket, "worker_lost")
        return Lost(len(tickets), quarantined)

    def expire(self, *, now: float) -> int:
        """Returns the claims whose lease has run out; the number of them."""
        tickets = self._claims.ends(lambda claim: claim.deadline <= now)
        for ticket in tickets:
            self._return_claim(ticket, "lease_expired")
        return len(tickets)

    @property
    def next_deadline(self) -> float | None:
        """When the next lease runs out, or None without claims."""
        return self._claims.next_deadline

    def _return_claim(self, ticket: Ticket, reason: str, place: Place = Place.AVAILABLE) -> None:
        batch = self._batch(ticket.batch)
        del batch.claims[ticket.claim_id]
        batch.returned[reason] += 1
        self.books.groups.give_back(reason)
        self._places.move(ticket.query, place)
        self._redraw(batch)

    def _redraw(self, batch: OpenBatch[P]) -> None:
        """A draw lost to a fault is drawn again, up to as many as the batch has candidates."""
        if batch.redrawn < self._most_redrawn:
            batch.redrawn += 1
            batch.drawn -= 1

    def _return_group(self, batch: OpenBatch[P], outcome: Outcome, reason: str, rest: int = AT_ONCE) -> None:
        batch.returned[reason] += 1
        self.books.give_back(outcome, reason)
        self._places.rest(outcome.ticket.query, rest)

    def _batch(self, index: int) -> OpenBatch[P]:
        return self._batches[index - self._batches[0].index]

    # --- take and release ------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether ``take`` would return a batch: the oldest open one is played, and drawn as far as can be.

        A pool that has run dry yields empty batches, which no claim need have opened.
        """
        if not self._batches:
            return self._dry
        if self._batches[0].claims or self._batches[0].reissue:
            return False
        return self._wants(self._batches[0]) <= 0 or self._dry

    @property
    def _dry(self) -> bool:
        """Nothing is left to draw, and no release is due that could bring a query back."""
        places = self._places
        return not (places.available or self._taken or places.any_rests or places.can_bring_back())

    def take(self, *, version: int) -> TakenBatch[P]:
        """The oldest batch, for a learner at policy ``version``. Call it only when ``ready``.

        Raises ``Fault`` after ``max_empty_batches`` batches in a row without a signal-bearing group,
        with a picture of the pool, and when the books don't balance.
        """
        if not self.ready:
            raise ValueError("take() before the batch is complete")
        if not self._batches:
            self._open_batch()
        batch = self._batches.popleft()
        taken = self._taken.setdefault(batch.index, [])  # from now on, whatever the rule raises below
        played = [batch.groups[order] for order in sorted(batch.groups)]
        failing = batch.selective_fault_share > self.rule.max_tool_failures
        fresh = self._fresh(batch, [*batch.kept, *played], version, failing)
        surplus: list[Played[P]] = []
        accepted: list[Accepted[P]] = []
        states: Counter[QueryState] = Counter()
        for group, verdict in zip(fresh, self.rule.verdicts([g.outcome.state for g in fresh]), strict=True):
            outcome, query = group.outcome, group.outcome.ticket.query
            stays_fresh = not outcome.too_stale(version + 1, self.rule.max_staleness)
            if verdict == UNSELECTED and self.rule.keep_surplus and stays_fresh:
                surplus.append(group)  # undecided: it has its verdict in the next batch
                continue
            states[outcome.state] += 1
            before = self.history.state_of(query)
            rest = self._decide(outcome, batch.index, verdict)
            if verdict != ACCEPTED:
                self._return_group(batch, outcome, verdict, rest)
                continue
            self._places.move(query, Place.ACCEPTED)
            self.books.accept(outcome)
            taken.append((query, rest))
            accepted.append(Accepted(played=group, before=before))
        self.history.population.forget()
        of_the_next = self._batches[0].kept if self._batches else self._kept
        of_the_next.extend(surplus)
        self.books.check()
        self._count_empty(states, batch.returned)
        return TakenBatch(
            index=batch.index,
            accepted=tuple(accepted),
            states=states,
            returned=batch.returned,
            played=tuple(sorted((*played, *batch.spoiled), key=lambda g: g.outcome.ticket.order)),
            kept=frozenset(group.outcome.ticket.claim_id for group in surplus),
            too_many_tool_failures=failing,
        )

    def _fresh(self, batch: OpenBatch[P], groups: Sequence[Played[P]], version: int, failing: bool) -> list[Played[P]]:
        """Those of ``groups`` that may be trained on at ``version``: none of a batch that is ``failing``. The others
        are returned."""
        fresh = []
        for group in groups:
            if failing:
                self._return_group(batch, group.outcome, "with_tool_failure")
            elif group.outcome.too_stale(version, self.rule.max_staleness):
                self._return_group(batch, group.outcome, "too_stale")
            else:
                fresh.append(group)
        return fresh

    def _decide(self, outcome: Outcome, batch: int, verdict: str) -> int:
        """Enters the draw into the history; the query's rest."""
        query, found = outcome.ticket.query, outcome.state
        self.history.observe(outcome, batch)
        self.history.observe_searches(query, outcome.solved_searches, outcome.size)
        rest = self.rule.rests(verdict, self.history, query)
        self.history.settle(
            query,
            batch=outcome.ticket.batch,  # that it was drawn for: a surplus group has its verdict in a later one
            order=outcome.ticket.order,
            version=outcome.oldest_version,
            size=outcome.size,
            successes=outcome.successes,
            rolled_out=outcome.rolled_out,
            found=found,
            after=QueryState.CONSUMED if rest == FOREVER else found,
            accepted=verdict == ACCEPTED,
        )
        return rest

    def _count_empty(self, states: Counter[QueryState], returned: Counter[str]) -> None:
        self.empty_batches = 0 if states[QueryState.SIGNAL] else self.empty_batches + 1
        if self.empty_batches >= self.rule.max_empty_batches:
            last = ", ".join(f"{count} {reason}" for reason, count in returned.items()) or "nothing"
            raise Fault(
                f"{self.empty_batches} batches in a row had no signal-bearing group (the last one returned {last}); "
                f"{self.describe()}"
            )

    def release(self, batch: int) -> None:
        """The workers hold the weights made from ``batch`` (or it made none): the next may open."""
        if batch != self._released or batch not in self._taken:
            raise ValueError(f"release of batch {batch}, but {self._released} is the next to be released")
        for query, rest in self._taken[batch]:
            self._places.rest(query, rest)
        del self._taken[batch]  # only now: the rule, which is asked for weights, may raise
        self._released += 1

    # --- reading ---------------------------------------------------------------------------------

    @property
    def taken(self) -> int | None:
        """The batch that is taken and has to be released next, if there is one."""
        return min(self._taken, default=None)

    def places(self) -> dict[str, int]:
        """Number of queries in each place; they add up to the size of the pool."""
        return self._places.counts()

    def seen(self) -> dict[str, int]:
        """Number of queries by the state that their last draw left them in."""
        counts = np.bincount(self.history.last, minlength=len(STATES))
        return {str(state): int(counts[i]) for i, state in enumerate(STATES)}

    def describe(self) -> str:
        """The pool in one line, for a message."""
        seen, places = self.seen(), self.places()
        quarantined = f", {places['quarantined']} quarantined" if places["quarantined"] else ""
        return (
            f"the pool of {len(self.ids)} questions has {seen['too_hard']} too hard, {seen['too_easy']} too easy, "
            f"{seen['signal']} with signal, {seen['unseen']} unseen; {places['available']} are available, "
            f"{places['resting']} resting, {places['consumed']} consumed{quarantined}"
        )

    # --- checkpoints -----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as arrays and JSON values.

        The draws of open batches are saved, and claimed again after a resume with the same seeds; the
        groups that were played for them are not. Raises ``ValueError`` between take and release.
        """
        if self._taken:
            raise ValueError("the pool's state is only defined when every taken batch has been released")
        return {
            "ids": self._digest,
            **self._places.state(),
            "released": self._released,
            "next_batch": self._next_batch,
            "next_claim": self._next_claim,
            "empty_batches": self.empty_batches,
            "open": [b.state() for b in self._batches],
            "deaths": self._claims.state(),
            "books": self.books.state(),
            **self.history.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from ``state()``, in a pool that has not been used yet.

        Raises ``UserError`` if the state was made from other questions.
        """
        if self._next_claim or self._next_batch:
            raise ValueError("load_state() on a pool in use: make a new one")
        if state["ids"] != self._digest:
            raise UserError("it has other questions; resume with the same data, or begin with model.path=CHECKPOINT")
        self.history.load_state(state)
        for name in ("released", "next_batch", "next_claim"):
            setattr(self, f"_{name}", int(state[name]))
        self._places.next_batch = self._next_batch
        self._places.load_state(state, [query for saved in state["open"] for _, query, _ in saved["in_flight"]])
        self.empty_batches = int(state["empty_batches"])
        self._batches.extend(OpenBatch.of(saved) for saved in state["open"])
        self._claims.load_state(state.get("deaths", {}))
        self.books.load_state(state["books"])
