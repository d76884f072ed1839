"""A row's supporting documents, in each of the forms that data sets name them in.

A form is one function from the value of its field to titles or ids, and its entry in ``TITLES`` or ``IDS``. It gives
nothing for a value that names no document, and raises ``UserError`` for one that should and can't be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent.errors import UserError
from agent.readable import json_of, named
from tasks.fields import anywhere, get, text, text_or_number, texts, true_or_false
from tasks.rows import Row

Form = Callable[[str, Any, str], tuple[str, ...]]
"""From a field's dotted name, its value and the row's place in words."""


def _listed(name: str, value: Any, where: str) -> tuple[str, ...]:
    return texts((name, value), where)


def _facts(name: str, value: Any, where: str) -> tuple[str, ...]:
    """HotpotQA and 2WikiMultihopQA: ``[[title, sentence], …]``, on the hub ``{title: […], sent_id: […]}``."""
    if isinstance(value, Mapping) and value.get("title") is not None:
        return () if value["title"] == [] else texts((f"{name}.title", value["title"]), where)
    if not isinstance(value, list):
        raise UserError(
            f"{where}: '{name}' must be a list of [title, sentence] or an object with a list under 'title', "
            f"not {named(value)}"
        )
    return tuple(_title_of_fact(f"{name}[{i}]", fact, where) for i, fact in enumerate(value))


def _title_of_fact(name: str, fact: Any, where: str) -> str:
    if isinstance(fact, Mapping):
        return text((f"{name}.title", fact.get("title")), where)
    if not isinstance(fact, list) or not fact:
        raise UserError(f"{where}: '{name}' must be [title, sentence], not {named(fact)}")
    return text((f"{name}[0]", fact[0]), where)


def _paragraphs(name: str, value: Any, where: str) -> tuple[str, ...]:
    """MuSiQue: ``[{title, paragraph_text, is_supporting}, …]``."""
    return tuple(
        text((f"{name}[{i}].title", paragraph.get("title")), where)
        for i, paragraph in enumerate(objects(value))
        if _supports(f"{name}[{i}]", paragraph, where, unsaid=False)
    )


def _steps(name: str, value: Any, where: str) -> tuple[str, ...]:
    """MuSiQue as FlashRAG has it: ``[{question, answer, support_paragraph: {title, …}}, …]``."""
    return tuple(
        text((f"{name}[{i}].support_paragraph.title", get(step, "support_paragraph.title")), where)
        for i, step in enumerate(objects(value))
        if step.get("support_paragraph") is not None
        and _supports(f"{name}[{i}].support_paragraph", step["support_paragraph"], where, unsaid=True)
    )


def _supports(name: str, paragraph: Any, where: str, *, unsaid: bool) -> bool:
    """Whether a paragraph is marked as supporting; ``unsaid`` where nothing is said."""
    said = paragraph.get("is_supporting") if isinstance(paragraph, Mapping) else None
    return unsaid if said is None else true_or_false((f"{name}.is_supporting", said), where)


def _documents(field: str) -> Form:
    """David-GRPO: ``[{id, title, content}, …]``."""

    def read(name: str, value: Any, where: str) -> tuple[str, ...]:
        if not (documents := objects(value)):
            raise UserError(f"{where}: '{name}' must be a list of objects with id and title, not {named(value)}")
        return tuple(text_or_number((f"{name}[{i}].{field}", d.get(field)), where) for i, d in enumerate(documents))

    return read


def objects(value: Any) -> list[Mapping[str, Any]]:
    """A list of objects, which on the hub is an object of lists; empty for anything else of that name."""
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        if len({len(column) for column in value.values()}) > 1:
            return []
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    return value if isinstance(value, list) and all(isinstance(v, Mapping) for v in value) else []


TITLES: dict[str, Form] = {
    "supporting_titles": _listed,
    "supporting_facts": _facts,
    "paragraphs": _paragraphs,
    "question_decomposition": _steps,
    "evidence_documents": _documents("title"),
}
IDS: dict[str, Form] = {"supporting_ids": _listed, "evidence_documents": _documents("id")}
FORMS = {"title": TITLES, "id": IDS}
NAMES = frozenset({*TITLES, *IDS})
"""Fields that name supporting documents."""


def supporting(row: Row, where: str, evidence_match: str) -> tuple[str, ...]:
    """Titles or ids of the supporting documents, each once, from the first field that names any; else none."""
    for field, read in FORMS[evidence_match].items():
        for name, value in anywhere(row, field):
            if found := read(name, unquoted(value), where):
                return tuple(dict.fromkeys(found))
    return ()


def unquoted(value: Any) -> Any:
    """The list or object that a text is in JSON, as 2WikiMultihopQA's rows on the hub have them; else ``value``."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    try:
        return json_of(value)
    except ValueError:
        return value


def mute(row: Row) -> tuple[str, ...]:
    """The fields of ``row`` that could name supporting documents and aren't empty, for a row of which none does."""
    return tuple(name for field in sorted(NAMES) for name, _ in anywhere(row, field))
