"""Other names of 2WikiMultihopQA's answers, from the ``id_aliases.json`` that its authors publish beside the questions.

A question names its answer's entity (``answer_id``), and the file's lines are ``{Q_id, aliases, demonyms}``; those of
one entity count together. Its official evaluation takes the best score over the answer, the aliases and the demonyms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.errors import UserError
from agent.records import Question
from tasks.fields import first, get, text, texts
from tasks.notices import Notice
from tasks.rows import Row, rows

FILE = "id_aliases.json"
_ENTITY = re.compile(r"Q[1-9]\d*")
"""Wikidata's names; fields called ``answer_id`` elsewhere hold other things."""


def entity_of(row: Row) -> str | None:
    """The entity that answers the row's question, where it names one."""
    value = get(row, "answer_id") or get(row, "metadata.answer_id")
    return value if isinstance(value, str) and _ENTITY.fullmatch(value) else None


def with_aliases(
    questions: Mapping[str, Question], entities: Mapping[str, str], path: Path, key: str
) -> tuple[dict[str, Question], list[Notice]]:
    """``questions`` by id, with the other names of the entities that answer them, from the file beside ``path``.

    ``entities`` are by the question's id. Without the file a notice says so. Raises ``UserError`` with file and line
    for what is wrong with it.
    """
    file = path.parent / FILE
    if not file.is_file():
        said = (
            f"{key}={path}: {len(entities)} answers may have other names, which the official evaluation accepts, in "
            f"2WikiMultihopQA's {FILE}; put it into the same folder"
        )
        return dict(questions), [Notice(kind="unread", text=said)]
    known = _names(file, key, frozenset(entities.values()))
    found = dict(questions)
    for name, entity in entities.items():
        golden = dict.fromkeys((*found[name].golden_answers, *known.get(entity, ())))
        found[name] = replace(found[name], golden_answers=tuple(golden))
    return found, []


def _without_empty(named_value: tuple[str, Any], where: str) -> tuple[str, ...]:
    """The names that are more than white space, which no answer can be."""
    name, value = named_value
    if isinstance(value, list):
        value = [each for each in value if not isinstance(each, str) or each.strip()]
    return () if value in (None, "", []) else texts((name, value), where)


def _names(file: Path, key: str, wanted: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """Of each entity that is ``wanted``, what the file calls it."""
    known: dict[str, tuple[str, ...]] = {}
    where = None
    for where, _, row in rows(file, key):
        entity = text(first(row, ("Q_id",), where), where)
        if entity not in wanted:
            continue
        given = [(name, row.get(name)) for name in ("aliases", "demonyms")]
        known[entity] = (*known.get(entity, ()), *(each for value in given for each in _without_empty(value, where)))
    if where is None:
        raise UserError(f"{key}={file}: holds no names; get it again, or delete it")
    return known
