"""Group strategies by name. To add one, write a ``Strategy`` in a file of its own and put it into the table."""

from __future__ import annotations

from typing import Protocol

from agent.continuation import play_with_continuation
from agent.group import Player, play_group
from agent.groups import Group
from agent.records import Question
from agent.tickets import Ticket


class Strategy(Protocol):
    """Plays one group."""

    async def __call__(self, player: Player, question: Question, ticket: Ticket, *, size: int, worker: str) -> Group:
        """A group of ``size`` trajectories at the training temperature, less those that a fault excluded. All its
        randomness comes from ``ticket.seed``."""


STRATEGIES: dict[str, Strategy] = {"plain": play_group, "continuation": play_with_continuation}
