"""A pool whose payloads are the groups themselves, as the tests give and get them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.groups import Group
from agent.pool.query_pool import QueryPool
from agent.pool.rules.base import PoolRule
from agent.records import Question
from agent.tickets import Ticket


def pool_of(questions: Sequence[Question], rule: PoolRule, **settings: Any) -> QueryPool[Group]:
    return QueryPool([q.id for q in questions], rule, **settings)


def asked(pool: QueryPool[Group], ticket: Ticket) -> Question:
    """The question of a ticket."""
    return Question(id=pool.ids[ticket.query], text="a question?", golden_answers=("yes",))


def enter(pool: QueryPool[Group], group: Group) -> bool:
    return pool.submit(group.outcome(), group)
