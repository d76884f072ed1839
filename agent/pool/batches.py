"""What the query pool is given and what it gives: groups as it sees them, and a learner step's worth of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from agent.records import Trajectory
from agent.tickets import QueryState, Ticket


class Identified(Protocol):
    """What the pool needs of a question."""

    @property
    def id(self) -> str: ...


class Played(Protocol):
    """What the pool needs of a group: see ``agent.groups.Group``, or the simulator's."""

    @property
    def question(self) -> Identified: ...
    @property
    def ticket(self) -> Ticket: ...
    @property
    def size(self) -> int: ...
    @property
    def successes(self) -> int: ...
    @property
    def solved_searches(self) -> tuple[int, ...]: ...
    @property
    def state(self) -> QueryState: ...
    @property
    def oldest_version(self) -> int: ...
    @property
    def viable_tokens(self) -> int: ...
    @property
    def action_tokens(self) -> int: ...
    @property
    def excluded(self) -> tuple[Trajectory, ...]: ...
    @property
    def discarded(self) -> tuple[Trajectory, ...]: ...
    @property
    def before_continuation(self) -> QueryState | None: ...


G = TypeVar("G", bound=Played)


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptedGroup(Generic[G]):
    """A group to train on, with the state that its query was in before this draw."""

    group: G
    before: QueryState

    @property
    def recycled(self) -> bool:
        """The query had been drawn before and was not consumed by it."""
        return self.before not in (QueryState.UNSEEN, QueryState.CONSUMED)


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenBatch(Generic[G]):
    """One learner step's worth of groups, in draw order, and how the rest of the batch fared."""

    index: int
    accepted: tuple[AcceptedGroup[G], ...]
    states: Counter[QueryState]
    """Groups by what they say of their query, the returned ones included; a kept one counts when it is decided."""
    returned: Counter[str]
    """Groups of this batch that went back, by reason."""
    members: tuple[G, ...]
    """Every group that was played for the batch, accepted or not, in draw order."""
    kept: int
    """Signal-bearing groups that were left over and wait for the next batch."""
