"""Values of a row by dotted names, checked: what is wrong is a ``UserError`` with the line and the field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent.answers import fold
from agent.errors import UserError
from agent.readable import named
from tasks.rows import Row
from tasks.tables import list_in, short


def get(row: Row, name: str) -> Any:
    """What stands under the dotted ``name``; None when there is nothing."""
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


PLACES = ("metadata.", "", "metadata.metadata.")
"""Where what describes a question may stand; copies of FlashRAG's MuSiQue have their metadata twice nested."""


_NOTHING: tuple[Any, ...] = (None, "", [])
_PYTHON = re.compile(r"""\s*(?:\(\s*(["'])(?:(?!\1).)*\1\s*,|array\(\s*\[).*\)\s*\Z""", re.DOTALL)
"""A tuple that begins with a text, or an array, as Python writes them into a cell. ``(3, 4)`` may be an answer."""
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def anywhere(row: Row, field: str) -> Iterator[tuple[str, Any]]:
    """``(name, value)`` of ``field`` wherever it stands and isn't empty."""
    for place in PLACES:
        if not _holds_nothing(value := get(row, f"{place}{field}")):
            yield f"{place}{field}", value


def _holds_nothing(value: Any) -> bool:
    """Also an object without a value: in Parquet a row that lacks one may have its keys."""
    return value in _NOTHING or (isinstance(value, Mapping) and all(each in _NOTHING for each in value.values()))


def first(row: Row, names: Sequence[str], where: str) -> tuple[str, Any]:
    """``(name, value)`` of the first of ``names`` that the row has."""
    for name in names:
        if (value := get(row, name)) is not None:
            return name, value
    there = ", ".join(sorted(name for name, value in row.items() if value is not None)) or "nothing"
    raise UserError(f"{where}: has no '{names[0]}' (it has {there})")


def text(named_value: tuple[str, Any], where: str) -> str:
    """The text of a named value."""
    name, value = named_value
    if not isinstance(value, str):
        cure = f'; write it as a text: "{json.dumps(value)}"' if isinstance(value, bool | int | float) else ""
        if isinstance(value, float) and not math.isfinite(value):  # as pandas writes what is missing
            cure = "; leave the field out where there is none"
        raise UserError(f"{where}: '{name}' must be a text, not {named(value)}{cure}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: '{name}' holds half a surrogate pair at character {error.start}") from error
    if not fold(value).strip():
        raise UserError(
            f"{where}: '{name}' is empty" + (", but for characters that can't be seen" if value.strip() else "")
        )
    return value


def text_or_number(named_value: tuple[str, Any], where: str) -> str:
    """The text of a named value that may be a whole number, as ids and years are."""
    name, value = named_value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text((name, value), where)


def true_or_false(named_value: tuple[str, Any], where: str) -> bool:
    """The truth of a named value, as JSON and tables have it: ``true``, ``"True"``, ``1``."""
    name, value = named_value
    said = _TRUTH.get(str(value).strip().lower()) if isinstance(value, bool | int | str) else None
    if said is None:
        shown = f"'{value}'" if isinstance(value, str) else named(value)
        raise UserError(f"{where}: '{name}' must be true or false, not {shown}")
    return said


def texts(named_value: tuple[str, Any], where: str) -> tuple[str, ...]:
    """A text as one of a kind, or a list of at least one text; whole numbers are texts, as in a table.

    A list that is written as a text is read as in a table, in JSON; an object in a text is refused, as is a tuple or
    an array of Python's.
    """
    name, value = named_value[0], list_in(named_value, where)
    if isinstance(value, str) and value.strip().startswith("{") and value.strip().endswith("}"):
        raise UserError(
            f"{where}: '{name}' is an object within a text ({short(value)}); write the object, without the quotes. A "
            """text with braces of its own is written ["{a}"]"""
        )
    if isinstance(value, str) and _PYTHON.match(value):
        raise UserError(
            f"""{where}: '{name}' is Python's way to write several values ({short(value)}); write a list in JSON, """
            """["a", "b"]. A text with parentheses of its own is written ["(a)"]"""
        )
    if isinstance(value, str | int | float):
        return (text_or_number((name, value), where),)
    if not isinstance(value, list):
        raise UserError(f"{where}: '{name}' must be a list of texts, not {named(value)}")
    if not value:
        raise UserError(f"{where}: '{name}' is empty; it needs at least one text")
    return tuple(text_or_number((f"{name}[{i}]", item), where) for i, item in enumerate(value))
