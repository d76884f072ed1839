"""What the query pool gives a learner: a step's worth of groups, each as its outcome and an opaque payload."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from agent.tickets import Outcome, QueryState

P = TypeVar("P")
"""What a player sends along with an outcome, which the pool only keeps."""
Q = TypeVar("Q")


@dataclass(frozen=True, kw_only=True, slots=True)
class Played(Generic[P]):
    """One submitted group."""

    outcome: Outcome
    payload: P


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted(Generic[P]):
    """A group to train on, with the state that its query was in before this draw."""

    played: Played[P]
    before: QueryState

    @property
    def payload(self) -> P:
        return self.played.payload

    @property
    def outcome(self) -> Outcome:
        return self.played.outcome

    @property
    def recycled(self) -> bool:
        """The query had been drawn before and was not consumed by it."""
        return self.before not in (QueryState.UNSEEN, QueryState.CONSUMED)


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenBatch(Generic[P]):
    """One learner step's worth of groups, in draw order, and how the rest of the batch fared."""

    index: int
    accepted: tuple[Accepted[P], ...]
    states: Counter[QueryState]
    """Groups by what they say of their query, the returned ones included; a kept one counts when it is decided."""
    returned: Counter[str]
    """Groups of this batch that went back, by reason."""
    played: tuple[Played[P], ...]
    """Every group that was played for the batch, accepted or not, in draw order."""
    kept: frozenset[int]
    """Claims of the signal-bearing groups that were left over and wait for the next batch, undecided."""
    too_many_tool_failures: bool = False
    """So many searches, tools or rewards failed that nothing of it was accepted (``max_tool_failures``)."""

    @property
    def rollouts(self) -> int:
        """Trajectories played for the batch, whatever became of them."""
        return sum(p.outcome.all_trajectories for p in self.played)

    @property
    def generated_tokens(self) -> int:
        """Tokens generated for them."""
        return sum(p.outcome.all_tokens for p in self.played)

    @property
    def payloads(self) -> tuple[P, ...]:
        """Of every group that was played for the batch, in draw order."""
        return tuple(p.payload for p in self.played)

    def unpacked(self, unpack: Callable[[P], Q]) -> TakenBatch[Q]:
        """The same batch with ``unpack(payload)`` in the place of each payload, called once for each group.

        A group that waited since an earlier batch is accepted here and was played there.
        """
        groups = {p.outcome.ticket.claim_id: p for p in (*self.played, *(a.played for a in self.accepted))}
        found = {claim: Played(outcome=p.outcome, payload=unpack(p.payload)) for claim, p in groups.items()}
        return TakenBatch(
            index=self.index,
            accepted=tuple(Accepted(played=found[a.outcome.ticket.claim_id], before=a.before) for a in self.accepted),
            states=self.states,
            returned=self.returned,
            played=tuple(found[p.outcome.ticket.claim_id] for p in self.played),
            kept=self.kept,
            too_many_tool_failures=self.too_many_tool_failures,
        )
