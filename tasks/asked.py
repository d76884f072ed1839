"""The question of a row that has it only within its prompt, as David-GRPO's Parquet does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.errors import UserError
from tasks.fields import first, get, text
from tasks.rows import Row

PROMPT = "prompt"
FIELDS = ("question", "extra_info.question")
MARKS = ("question below:", "Question:")
"""After the last of these the question follows, up to the end: David-GRPO's, Search-R1's."""


def question_in(row: Row, where: str) -> str:
    """The row's question: its own field's, else what the last message of the user in ``prompt`` ends with.

    Raises ``UserError`` where neither has one.
    """
    said = _asked(row)
    if said is None or any(get(row, name) is not None for name in FIELDS):
        return text(first(row, FIELDS, where), where)
    at, mark = max((said.rfind(mark), mark) for mark in MARKS)
    if at < 0:
        raise UserError(
            f"{where}: has no 'question', and its '{PROMPT}' doesn't say where one begins ("
            + " or ".join(f"'{mark}'" for mark in MARKS)
            + ")"
        )
    return text((f"{PROMPT}'s question", said[at + len(mark) :].strip()), where)


def _asked(row: Row) -> str | None:
    """What the user says last in the row's prompt; None for a prompt that is no list of messages."""
    messages: Any = row.get(PROMPT)
    if not isinstance(messages, list):
        return None
    said = [m.get("content") for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
    return said[-1] if said and isinstance(said[-1], str) else None
