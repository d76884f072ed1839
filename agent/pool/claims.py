"""The tickets that workers hold: each with a lease, which progress renews, and what their deaths say of a question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from agent.tickets import Ticket


@dataclass
class Claim:
    """A ticket that a worker holds until ``deadline``, in the caller's seconds."""

    ticket: Ticket
    worker: str
    deadline: float


class Lost(NamedTuple):
    """What a dead worker held."""

    returned: int
    """Claims that went back, the quarantined ones included."""
    quarantined: tuple[int, ...]
    """Queries that are never drawn again; one at most."""


class Claims:
    """All claims of a pool. A lease of ``lease_s`` seconds begins with the claim and anew with each renewal.

    A query that was claimed when ``quarantine_after`` workers died, with no group of it played to its end in between,
    may be what kills them; 0 suspects none. So may every query that was claimed with it: one is quarantined only once
    it was there at more deaths than each of the others. Deaths from another cause strike different queries.
    """

    def __init__(self, lease_s: float, quarantine_after: int) -> None:
        self._lease_s = lease_s
        self._quarantine_after = quarantine_after
        self._held: dict[int, Claim] = {}
        self.deaths: Counter[int] = Counter()
        """Workers that died with a query claimed, by query, since its last group that was played to its end."""

    def add(self, ticket: Ticket, worker: str, *, now: float) -> None:
        """``worker`` holds ``ticket`` from now on."""
        self._held[ticket.claim_id] = Claim(ticket, worker, now + self._lease_s)

    def ticket(self, claim_id: int) -> Ticket | None:
        """The ticket of a claim that is held."""
        claim = self._held.get(claim_id)
        return None if claim is None else claim.ticket

    def played(self, ticket: Ticket) -> None:
        """Ends the claim of a ticket whose group is here: its question has killed nobody."""
        del self._held[ticket.claim_id]
        self.deaths.pop(ticket.query, None)

    def renew(self, worker: str, held: Iterable[int], moved: Iterable[int], *, now: float) -> list[int]:
        """The groups of ``moved`` go on: their leases begin anew. Claims that ``worker`` no longer holds don't.

        Returns which of ``held`` these are.
        """
        own = {claim_id: claim for claim_id, claim in self._held.items() if claim.worker == worker}
        for claim_id in own.keys() & {*moved}:
            own[claim_id].deadline = now + self._lease_s
        return [claim_id for claim_id in held if claim_id not in own]

    def ends(self, which: Callable[[Claim], bool]) -> list[Ticket]:
        """Ends the claims that ``which`` picks; their tickets."""
        tickets = [claim.ticket for claim in self._held.values() if which(claim)]
        for ticket in tickets:
            del self._held[ticket.claim_id]
        return tickets

    def died(self, held: Iterable[int]) -> tuple[int, ...]:
        """A worker died while it held these queries: the one that has killed it, or none if that can't be told."""
        queries = [*held]
        self.deaths.update(queries)
        most = max((self.deaths[query] for query in queries), default=0)
        those = tuple(query for query in queries if self.deaths[query] == most)
        return those if len(those) == 1 and 0 < self._quarantine_after <= most else ()

    @property
    def next_deadline(self) -> float | None:
        """When the next lease runs out, or None without claims."""
        return min((c.deadline for c in self._held.values()), default=None)

    def state(self) -> dict[str, int]:
        """``deaths`` as JSON has it; the claims themselves are the open batches' draws."""
        return {str(query): count for query, count in sorted(self.deaths.items())}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Continues from ``state()``."""
        self.deaths = Counter({int(query): count for query, count in state.items()})
