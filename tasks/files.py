"""The user's questions: JSONL and Parquet files in our own layout, FlashRAG's, Search-R1's and verl's.

| field | taken from, first that is there |
| --- | --- |
| text | ``question``; ``extra_info.question`` (verl) |
| golden answers, a text or a list of texts | ``golden_answers``, ``answers``, ``answer``; ``reward_model.ground_truth`` or its ``target`` (Search-R1, verl) |
| id | ``id``, after ``data_source`` if that is named (Search-R1 mixes sets that both count from train_0); the file's name and the line |
| supporting titles | ``metadata.supporting_titles``; ``metadata.supporting_facts.title`` (FlashRAG); with ``evidence="id"``: ``metadata.supporting_ids`` |
| kind | ``metadata.type``; ``data_source`` |

Everything that is wrong with a file is a ``UserError`` that names the file, the line and the fix.
"""  # noqa: E501

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.errors import UserError
from agent.records import Question
from agent.seeds import derive_seed

_COLUMNS = (
    "id", "question", "golden_answers", "answers", "answer", "data_source", "reward_model", "extra_info", "metadata"
)  # fmt: skip
_ANSWERS = ("golden_answers", "answers", "answer", "reward_model.ground_truth.target", "reward_model.ground_truth")
_SUPPORTING = {
    "title": ("metadata.supporting_titles", "metadata.supporting_facts.title"),
    "id": ("metadata.supporting_ids",),
}

Row = Mapping[str, Any]


def read_questions(path: Path, *, key: str, evidence: str = "title") -> tuple[Question, ...]:
    """The questions of ``path`` (``.parquet``, or else JSONL) in file order. ``key`` is the setting that
    names the file; ``evidence`` is what supporting documents are matched by, ``title`` or ``id``."""
    rows = _parquet_rows(path, key) if path.suffix == ".parquet" else jsonl_rows(path, key)
    questions: dict[str, Question] = {}
    for number, row in rows:
        where = f"{key}={path}, {'row' if path.suffix == '.parquet' else 'line'} {number}"
        question = question_of(row, where, f"{path.stem}-{number}", evidence)
        if question.id in questions:
            raise UserError(f"{where}: id '{question.id}' is already taken; ids must differ (or leave them all out)")
        questions[question.id] = question
    if not questions:
        raise UserError(f"{key}={path}: the file holds no questions")
    return tuple(questions.values())


def split(questions: Sequence[Question], share: float, seed: int) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """``(train, held out)``, ``share`` of ``questions`` held out, at least one on each side, in their order.

    Which ones depends on ``seed`` and their ids alone, so adding or sorting questions moves few of them.
    """
    if len(questions) < 2:
        raise UserError("data.questions holds one question, too few to hold any out; set data.eval_questions=FILE")
    count = min(max(round(len(questions) * share), 1), len(questions) - 1)
    by_hash = sorted(questions, key=lambda q: (derive_seed("split", seed, q.id), q.id))
    held_out = {q.id for q in by_hash[:count]}
    return tuple(q for q in questions if q.id not in held_out), tuple(q for q in questions if q.id in held_out)


def jsonl_rows(path: Path, key: str) -> Iterator[tuple[int, Row]]:
    """``(line, object)`` of every line of a JSONL file that isn't blank, lines counted from 1."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _json_object(line, f"{key}={path}, line {number}")
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read ({error.strerror})") from error


def _json_object(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:  # Not UTF-8, or not JSON.
        raise UserError(f"{where}: not JSON in UTF-8 ({error}); each line must be one object") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: {_named(row)}; each line must be one JSON object")
    return row


def _parquet_rows(path: Path, key: str) -> Iterator[tuple[int, Row]]:
    """``(row, object)`` of a Parquet file, rows counted from 1; only the columns that are used are read."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        columns = [name for name in file.schema_arrow.names if name in _COLUMNS]
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (OSError, pyarrow.ArrowException) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{key}={path}: cannot be read as Parquet ({first})") from error


def question_of(row: Row, where: str, default_id: str, evidence: str) -> Question:
    """The question that ``row`` holds. ``where`` names the file and line in the ``UserError`` of a wrong one."""
    source = _optional_text(row, "data_source", where)
    return Question(
        id=_id(row, source, where) or default_id,
        text=text(first(row, ("question", "extra_info.question"), where), where),
        golden_answers=texts(first(row, _ANSWERS, where), where),
        supporting=_supporting(row, where, evidence),
        kind=_optional_text(row, "metadata.type", where) or source,
    )


def _id(row: Row, source: str, where: str) -> str:
    """The row's id, after its source; empty when it has none."""
    value = row.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    name = "" if value is None else text(("id", value), where)
    return f"{source}/{name}" if source and name else name


def _supporting(row: Row, where: str, evidence: str) -> tuple[str, ...]:
    """Titles or ids of the supporting documents, each once; none when the row names none."""
    for name in _SUPPORTING[evidence]:
        value = _get(row, name)
        if value is not None and value != []:
            return tuple(dict.fromkeys(texts((name, value), where)))
    return ()


def _get(row: Row, name: str) -> Any:
    """What stands under the dotted ``name``; None when there is nothing."""
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def first(row: Row, names: Sequence[str], where: str) -> tuple[str, Any]:
    """``(name, value)`` of the first of ``names`` that the row has."""
    for name in names:
        if (value := _get(row, name)) is not None:
            return name, value
    there = ", ".join(sorted(name for name, value in row.items() if value is not None)) or "nothing"
    raise UserError(f"{where}: has no '{names[0]}' (it has {there})")


def _optional_text(row: Row, name: str, where: str) -> str:
    value = _get(row, name)
    return "" if value is None or value == "" else text((name, value), where)


def text(named: tuple[str, Any], where: str) -> str:
    """The text of a named value."""
    name, value = named
    if not isinstance(value, str):
        raise UserError(f"{where}: '{name}' must be a text, not {_named(value)}")
    if not value.strip():
        raise UserError(f"{where}: '{name}' is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: '{name}' holds half a surrogate pair at character {error.start}") from error
    return value


def texts(named: tuple[str, Any], where: str) -> tuple[str, ...]:
    """A text as one of a kind, or a list of at least one text."""
    name, value = named
    if isinstance(value, str):
        return (text(named, where),)
    if not isinstance(value, list):
        raise UserError(f"{where}: '{name}' must be a list of texts, not {_named(value)}")
    if not value:
        raise UserError(f"{where}: '{name}' is empty; it needs at least one text")
    return tuple(text((f"{name}[{i}]", item), where) for i, item in enumerate(value))


def _named(value: Any) -> str:
    """A JSON value in words, for a message."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), f"the number {value}")
