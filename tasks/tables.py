"""Tables of questions, as Bamboogle, BamTwoogle (CSV) and PopQA (TSV) are published: a header, then a row each.

Names of columns are compared in lower case. An empty cell is one that the row doesn't have, and ``["a", "b"]`` is a
list, except in the question. Lines that are not UTF-8, as Bamboogle has some, are read as Windows-1252 and said.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from agent.errors import UserError
from agent.readable import json_of
from retrieval_service.textfile import lines_of
from tasks.notices import Notice

csv.field_size_limit(2**31 - 1)  # a cell may hold a question's paragraphs; by itself Python stops at 128 KiB
QUESTION = "question"
_LIST = re.compile(r"""\s*\[(?:.*\]\s*\Z|\s*["'])""", re.DOTALL)
"""A text in brackets, or one that begins a list."""
_KINDS = {"\t": "TSV", ",": "CSV", ";": "CSV"}
"""What separates columns, and what a file that it does is called."""


def delimiter_of(head: bytes) -> str | None:
    """What separates the columns of a file that begins with ``head``; None if that is no table's header.

    >>> delimiter_of(b"Question,Answer")
    ','
    """
    line = (head.lstrip().splitlines() or [b""])[0].decode("utf-8", "replace")
    return next((sign for sign in _KINDS if sign in line and QUESTION in _names(line.split(sign))), None)


def _names(cells: list[str]) -> list[str]:
    return [cell.strip().strip('"').strip().lower() for cell in cells]


def table_rows(
    file: BinaryIO, delimiter: str, name: str, wanted: Callable[[str], bool], notices: list[Notice] | None
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """``(where, line, row)`` of each row. What was not UTF-8 is added to ``notices``.

    Raises ``UserError`` that names the line at which a row begins that is none.
    """
    strange: list[int] = []
    records = _records(file, delimiter, name, strange)
    _, header = next(records)
    columns = _names(header)
    if twice := sorted({column for column in columns if column and columns.count(column) > 1}):
        raise UserError(f"{name}, line 1: the column '{twice[0]}' is there twice")
    for line, cells in records:
        where = f"{name}, line {line}"
        if _names(cells) == columns:
            raise UserError(f"{where}: is the header again, as in files that were joined; delete the line")
        if len(cells) != len(columns):
            raise UserError(
                f"{where}: has {len(cells)} cells, and the header {len(columns)}; a cell with a "
                f"{_KINDS[delimiter]} delimiter, a quote or a line break in it has to stand in double quotes"
            )
        there = {column: cell for column, cell in zip(columns, cells, strict=True) if column and cell.strip()}
        yield where, line, {c: _value(c, cell, where) if wanted(c) else cell for c, cell in there.items()}
    if strange and notices is not None:
        lines = ", ".join(map(str, strange[:3])) + (", …" if len(strange) > 3 else "")
        text = f"{name}: {len(strange)} lines are not UTF-8 and were read as Windows-1252 (line {lines})"
        notices.append(Notice(kind="unread", text=text))


def _value(column: str, cell: str, where: str) -> Any:
    return cell if column == QUESTION else list_in((column, cell), where)


def list_in(named_value: tuple[str, Any], where: str) -> Any:
    """The list that a text in brackets holds in JSON; any other value as it is. A bracket with a quote behind it begins
    a list whatever follows: one that was cut off is no text."""
    _, value = named_value
    return json_list(named_value, where) if isinstance(value, str) and _LIST.match(value) else value


def json_list(named_value: tuple[str, Any], where: str) -> Any:
    """The list that a text holds in JSON, as PopQA's ``possible_answers`` does; what is no text as it is."""
    name, value = named_value
    if not isinstance(value, str):
        return value
    try:
        found = json_of(value)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise UserError(
            f"""{where}: '{name}' must be a list in JSON, ["a", "b"], which {short(value)} is not; a text with """
            'brackets of its own is written ["[a]"]'
        )
    return found


def short(value: str) -> str:
    """A text's beginning, for a message of one line."""
    line = " ".join(value.split())
    return line if len(line) <= 40 else line[:40] + "…"


def _records(file: BinaryIO, delimiter: str, name: str, strange: list[int]) -> Iterator[tuple[int, list[str]]]:
    """The line that each record begins at, and its cells; blank lines are none."""
    reader = csv.reader(_lines(file, name, strange), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{name}, line {line}: is no row of a {_KINDS[delimiter]} table ({error}); a cell that begins with a "
                "double quote ends with one, quotes within it are doubled, and lines end with \\n"
            ) from error
        if cells is None:
            return
        if delimiter == "\t" and any("\t" in cell and "\n" in cell for cell in cells):
            raise UserError(
                f"{name}, line {line}: a cell with tabs goes on to line {reader.line_num}: its double quote isn't "
                'meant to open a cell; write a text that begins with one as """So"" it goes"'
            )
        if cells and any(cell.strip() for cell in cells):
            yield line, cells


def _lines(file: BinaryIO, name: str, strange: list[int]) -> Iterator[str]:
    for number, line in lines_of(file, name):
        try:
            yield line.decode("utf-8-sig")  # files that were joined have marks in the middle
        except UnicodeDecodeError:
            try:
                yield line.decode("cp1252")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{name}, line {number}: is neither UTF-8 nor Windows-1252; save the file as UTF-8"
                ) from error
            strange.append(number)
