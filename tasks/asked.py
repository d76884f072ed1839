"""The question of a row that has it only within its prompt, as David-GRPO's Parquet does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from agent.errors import UserError
from tasks.fields import first, get, text
from tasks.rows import Row
from tasks.tables import short

PROMPT = "prompt"
FIELDS = ("question", "extra_info.question")
MARKS = ("question below:", "Question:")
"""After one of these the question follows, up to the end: David-GRPO's, Search-R1's."""
_MARK = re.compile("|".join(map(re.escape, MARKS)))
_MARK_AT_EDGE = re.compile(rf"^[ \t]*(?:{_MARK.pattern})|(?:{_MARK.pattern})[ \t]*$", re.MULTILINE)
"""One that begins or ends a line; others may stand in what is said of the answer, or in the question."""


def question_in(row: Row, where: str) -> str:
    """The row's question: its own field's, else what the last message of the user in ``prompt`` ends with, after its
    first mark at the edge of a line, else after its last one.

    Raises ``UserError`` where neither has one, or where a line comes after it that may be more than the question.
    """
    said = _asked(row)
    if said is None or any(get(row, name) is not None for name in FIELDS):
        return text(first(row, FIELDS, where), where)
    found = _MARK_AT_EDGE.search(said) or next(reversed([*_MARK.finditer(said)]), None)
    if found is None:
        raise UserError(
            f"{where}: has no 'question', and its '{PROMPT}' doesn't say where one begins ("
            + " or ".join(f"'{mark}'" for mark in MARKS)
            + ")"
        )
    question = said[found.end() :].strip()
    if "\n" in question:
        raise UserError(
            f"{where}: '{PROMPT}' goes on after the first line of its question ({short(question.splitlines()[0])}); "
            "give the question alone in a field 'question'"
        )
    return text((f"{PROMPT}'s question", question), where)


def _asked(row: Row) -> str | None:
    """What the user says last in the row's prompt; None for a prompt that is no list of messages."""
    messages: Any = row.get(PROMPT)
    if not isinstance(messages, list):
        return None
    said = [m.get("content") for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
    return said[-1] if said and isinstance(said[-1], str) else None
