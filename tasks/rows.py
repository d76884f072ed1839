"""The rows of a user's file, whatever holds them: JSONL, one JSON list of objects, CSV, TSV or Parquet.

Its first bytes say which. Text may be compressed and have a byte order mark (``retrieval_service/textfile.py``). Where
a row has ``Question`` and no ``question``, its names are compared in lower case, as a table's are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from agent.errors import UserError, shortened
from agent.readable import json_of, named
from retrieval_service.listed import listed
from retrieval_service.textfile import lines_of, open_text, parquet_rows, twice
from tasks.notices import Notice
from tasks.tables import QUESTION, delimiter_of, table_rows

Row = Mapping[str, Any]
_INSTEAD = "write its list of rows, or one object per line (for TriviaQA: data=triviaqa)"
_OPENED = re.compile(rb"(\xef\xbb\xbf)?\s*\{(.*[\[{,])?\s*$")
"""A first line that begins an object and leaves it open, as in an indented file."""


def rows(
    path: Path, key: str, wanted: Callable[[str], bool] = lambda name: True, notices: list[Notice] | None = None
) -> Iterator[tuple[str, int, Row]]:
    """``(where, number, object)`` of every row of a file: its file and line in words, and its number from 1.

    ``key`` is the setting that names the file. Of a Parquet file only the columns that are ``wanted`` are read; of the
    others a row has the names, for messages. Blank lines are counted and not read. What was read otherwise than it
    should have been is added to ``notices``. Raises ``UserError`` that names file, line and reason.
    """
    name = f"{key}={path}"
    try:
        if _is_parquet(path):
            yield from ((f"{name}, row {number}", number, row) for number, row in _parquet_rows(path, name, wanted))
            return
        with open_text(path, name) as file:
            head = file.peek(4096)  # type: ignore[attr-defined]  # all that it opens can be peeked
            if head.lstrip()[:1] == b"[":
                yield from _list_rows(file, name)
            elif head.lstrip()[:1] != b"{" and (delimiter := delimiter_of(head)):
                yield from table_rows(file, delimiter, name, wanted, notices)
            else:
                yield from _line_rows(file, name)
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from error


def _is_parquet(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1" or path.suffix == ".parquet"


def _line_rows(file: BinaryIO, name: str) -> Iterator[tuple[str, int, Row]]:
    for number, line in lines_of(file, name):
        if line.strip():
            where = f"{name}, line {number}"
            try:
                value = json_of(line.decode("utf-8-sig"))  # files that were joined have marks in the middle
            except ValueError as error:  # not UTF-8, or not JSON
                if number == 1 and _OPENED.match(line) and getattr(error, "msg", "") != "Extra data":
                    raise UserError(f"{where}: one JSON object over several lines; {_INSTEAD}") from error
                raise UserError(
                    f"{where}: not JSON in UTF-8 ({error}); each line must be one object, or the file one list "
                    "of them, or a table (CSV, TSV) with a column 'question'"
                ) from error
            row = _object(value, where, "line")
            if "question" not in row and (within := next((n for n in ("Data", "data") if _is_rows(row.get(n))), None)):
                raise UserError(f"{where}: one JSON object with its rows in '{within}'; {_INSTEAD}")
            yield where, number, row


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _list_rows(file: BinaryIO, name: str) -> Iterator[tuple[str, int, Row]]:
    """The objects of one list, read one by one: HotpotQA's training file is a single line of 566 MB."""
    number = 0
    try:
        for number, value in enumerate(listed(file), start=1):
            where = f"{name}, row {number}"
            yield where, number, _object(value, where, "row")
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"{name}, after row {number}: not JSON in UTF-8 ({error}); the file must be one list of objects, or one "
            "object per line"
        ) from error


def _object(value: Any, where: str, what: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {named(value)}; each {what} must be one JSON object")
    return _plain(value)


def _plain(row: Row) -> Row:
    """``row``, with its names in lower case where its question is only then found and no two become one."""
    if QUESTION in row:
        return row
    small = {name.lower(): value for name, value in row.items()}
    return small if QUESTION in small and len(small) == len(row) else row


def _parquet_rows(path: Path, name: str, wanted: Callable[[str], bool]) -> Iterator[tuple[int, Row]]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        columns = [column for column in file.schema_arrow.names if wanted(column) or wanted(column.lower())]
        if (column := twice(columns)) is not None:
            raise UserError(f"{name}: the column '{column}' is there twice; take one out")
        others = dict.fromkeys((column for column in file.schema_arrow.names if column not in columns), "")
        for number, row in parquet_rows(file.iter_batches(batch_size=1024, columns=columns), name):
            yield number, {**others, **_plain(row)}
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{name}: cannot be read as Parquet ({shortened(error)})") from error
