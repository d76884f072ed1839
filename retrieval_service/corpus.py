"""A corpus on disk: one JSON object per line, ``{"id": "d1", "contents": "\\"Title\\"\\ntext"}``, or one list of them,
plain or compressed, or a Parquet file of such rows.

| field | taken from |
| --- | --- |
| id | ``id``, else ``_id`` (BEIR): a text, or a whole number, which becomes one |
| contents | ``contents``, else ``text``: the title, if there is one, in quotes on the first line, then the text |
| title | ``title``; without it, or beside ``contents`` that begin with it, the first line of the contents |

A ``title`` that isn't the contents' first line becomes it: ``{"id", "title", "text"}`` is read like the line above. A
``text`` beside ``contents`` must be a part of them; beside a title alone it may be blank or null, since a page that is
only a title is a passage, too. Further keys of a line are allowed and ignored.

Everything is checked here, with the line number, before any of it reaches Lucene, which would skip a bad record and
say nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from agent.answers import normalise_title
from agent.errors import UserError, shortened
from agent.readable import each_once, named, plain
from agent.records import Passage, document_name
from retrieval_service.listed import listed
from retrieval_service.stamps import Stamp, stamp_of
from retrieval_service.textfile import (
    PARQUET,
    first_ink,
    open_text,
    parquet_rows,
    starts_with,
    text_lines,
    text_of,
    twice,
)
from retrieval_service.whole import written

EXAMPLE = r'{"id": "d1", "contents": "\"Title\"\ntext"}'
MAX_ID_BYTES = 32_766
"""Lucene's longest term; the id is indexed as one term."""
MAX_CONTENTS = 20_000_000
"""Characters of the longest string that Anserini's JSON reader takes."""
_INK = re.compile(r"[^\s\x00-\x20]")
"""What makes a text: neither a space nor a control character, which Java leaves out at both ends of one."""
ROWS = 4096
"""Of a Parquet file that are in memory at once."""


def split_contents(contents: str) -> tuple[str, str]:
    """Title and text: the first line less one pair of surrounding quotes, and the rest as it is.

    Contents without a newline are all text.

    >>> split_contents('"Heroes" is a song.')
    ('', '"Heroes" is a song.')
    >>> split_contents('""Heroes" (album)"\\nReleased in 1977.')
    ('"Heroes" (album)', 'Released in 1977.')
    """
    first, newline, rest = contents.partition("\n")
    if not newline:
        return "", contents
    title = first.strip()
    if len(title) >= 2 and title[0] == title[-1] == '"':
        title = title[1:-1]
    return title, rest


def contents_of(title: str, text: str) -> str:
    """The contents of a passage: its title, if it has one, in quotes on the first line, then the text."""
    return f'"{title}"\n{text}' if title or "\n" in text else text


def join_contents(title: str, text: str) -> str:
    """``contents_of``, as the inverse of ``split_contents``.

    Raises ``ValueError`` for a title that no first line can hold (it has a newline in it).
    """
    contents = contents_of(title, text)
    if split_contents(contents) != (title, text):
        raise ValueError(f"the title {title!r} does not fit on one line")
    return contents


def document_of(passage: Passage) -> str:
    """The document that ``passage`` is a part of: its title, or where it has none the part of its id before the last
    ``#`` (``report.txt#3``). A passage with neither is a document by itself.

    >>> document_of(Passage(id="report.txt#3", title="", text="x"))
    'report.txt'
    """
    return document_name(passage.id, passage.title)


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a corpus, checked. Of millions some are in memory at once."""

    id: str
    contents: str

    @property
    def passage(self) -> Passage:
        """It as a passage; score 0."""
        title, text = split_contents(self.contents)
        return Passage(id=self.id, title=title, text=text)

    @property
    def line(self) -> str:
        """It as a line of a corpus that Lucene can read, which knows ``id`` and ``contents`` alone."""
        return json.dumps({"id": self.id, "contents": self.contents}, ensure_ascii=False) + "\n"


def parse_record(line: str) -> Passage:
    """One line of a corpus as a passage, without a score. Raises ``ValueError`` with the reason."""
    return _parse(line).passage


def _parse(line: str) -> Record:
    try:
        value = _JSON.decode(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not valid JSON (nested too deeply)") from None
    except ValueError as error:
        raise plain(error) from None
    return _of(value)


def _of(value: Any) -> Record:
    if not isinstance(value, dict):
        raise ValueError(f"{named(value)}, not an object")
    return _record(value)


def _record(record: Mapping[str, Any]) -> Record:
    id_key = "id" if "id" in record or "_id" not in record else "_id"
    if "contents" not in record and "text" not in record:
        there = ", ".join(f'"{key}"' for key in sorted(record)) or "nothing"
        raise ValueError(f'no "{"contents" if id_key in record else "id"}" (it has {there})')
    name = str(record[id_key]) if type(record.get(id_key)) is int else _text(record, id_key)  # true is an int, too
    if len(name.encode()) > MAX_ID_BYTES:
        raise ValueError(f'"{id_key}" is longer than {MAX_ID_BYTES} bytes')
    contents = _contents(record)
    if len(contents) > MAX_CONTENTS:
        raise ValueError(f'"contents" is longer than {MAX_CONTENTS} characters; split it into passages')
    return Record(name, contents)


def _contents(record: Mapping[str, Any]) -> str:
    """The contents with the title as their first line, if the record names one."""
    title = "" if _is_blank(record.get("title")) else " ".join(_text(record, "title").split())
    if "contents" not in record:
        return join_contents(title, "" if title and _is_blank(record["text"]) else _text(record, "text"))
    contents = _text(record, "contents")
    if not _is_blank(record.get("text")) and not _within(_text(record, "text"), contents):
        raise ValueError('"text" is not a part of "contents"; leave out the one that is not to be searched')
    return titled(title, contents)


def titled(title: str, contents: str) -> str:
    """``contents`` with ``title``, if there is one, as their first line, unless that is it already."""
    if not title or normalise_title(split_contents(contents)[0]) == normalise_title(title):
        return contents
    return join_contents(title, contents)


def _within(text: str, contents: str) -> bool:
    return text in contents or " ".join(text.split()) in " ".join(contents.split())


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not _INK.search(value))


def _text(record: Mapping[str, Any], key: str) -> str:
    if key not in record:
        raise ValueError(f'no "{key}"')
    value = record[key]
    if not isinstance(value, str):
        raise ValueError(f'"{key}" is {named(value)}, not a text')
    if _is_blank(value):
        raise ValueError(f'"{key}" is empty')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f'"{key}" holds half of a surrogate pair, which is no character') from None
    return value


def _no_constant(name: str) -> NoReturn:
    # Python reads NaN and Infinity; JSON, and the Java reader after us, do not.
    raise ValueError(f"not valid JSON ({name} is no JSON value)")


_JSON = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=each_once)


def records(path: Path) -> Iterator[tuple[int, Record]]:
    """``(line, record)`` in order, each checked as it is read; of a list or a Parquet file ``(row, record)``. Memory:
    one line, one object of the list, or one batch of rows.

    Raises ``UserError`` naming the file, the line and the reason: bad JSON or UTF-8, an empty line, a missing, empty or
    non-string id or contents, or no passage at all; or a file that is damaged or no text. That an id is there twice is
    found where an index is built (``names.py``).
    """
    number = 0
    try:
        for number, record in _numbered(path):
            yield number, record
    except OSError as error:
        raise _unreadable(path, error) from error
    if not number:
        raise UserError(f"{path}: the corpus is empty; it needs one line like {EXAMPLE} per passage")


def unit_of(path: Path) -> str:
    """What ``records`` counts: a ``row`` of a list or a Parquet file, else a ``line``. Raises as ``records``."""
    return "row" if starts_with(path, PARQUET) or _is_list(path) else "line"


def _is_list(path: Path) -> bool:
    return first_ink(path, str(path)) == b"["


def _numbered(path: Path) -> Iterator[tuple[int, Record]]:
    if starts_with(path, PARQUET):
        return _rows(path)
    return _listed(path) if _is_list(path) else _lines(path)


def _listed(path: Path) -> Iterator[tuple[int, Record]]:
    """The objects of one list, read one by one, as David-GRPO's ``build_hotpotqa_corpus.py`` writes them."""
    number = 0
    try:
        with open_text(path, str(path)) as file:
            for number, value in enumerate(listed(file), start=1):
                try:
                    record = _of(value)
                except ValueError as error:
                    raise UserError(f"{path}, row {number}: {error}; a row must be like {EXAMPLE}") from None
                yield number, record
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"{path}, after row {number}: not JSON in UTF-8 ({error}); write one list of objects, or one object a line"
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, Record]]:
    for number, raw in text_lines(path, str(path)):
        try:
            line = raw.decode("utf-8-sig")  # files that were joined have marks in the middle
        except UnicodeDecodeError as error:
            raise _bad_line(path, number, f"not UTF-8 (byte {error.start + 1}); save it as plain UTF-8") from None
        if not line.strip():
            raise _bad_line(path, number, "the line is empty; delete it")
        try:
            yield number, _parse(line)
        except ValueError as error:
            raise _bad_line(path, number, f"{error}; a line must be like {EXAMPLE}") from None


def _rows(path: Path) -> Iterator[tuple[int, Record]]:
    """The rows of a Parquet file: the columns of a line's keys, in batches."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            there = [name for name in columns if name in ("id", "_id", "title", "text", "contents")]
            if (column := twice(there)) is not None:
                raise UserError(f"{path}: the column '{column}' is there twice; take one out")
            for number, row in parquet_rows(file.iter_batches(ROWS, columns=there), str(path)):
                try:
                    yield number, _record(_without_nulls(row))
                except ValueError as error:
                    told = f"{path}, row {number}: {error}; its columns are {', '.join(columns)}"
                    raise UserError(told) from None
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the system's: the file may be whole
            raise
        raise UserError(
            f"{path}: the Parquet file is cut short or damaged ({shortened(error)}); get it again"
        ) from error


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in row.items() if value is not None}
    return {"text": "", **given} if "text" in row else given


def read_corpus(path: Path) -> Iterator[Passage]:
    """The passages of ``path`` in order, each checked as it is read; raises what ``records`` raises."""
    return (record.passage for _, record in records(path))


def passages_in(path: Path, stamp: Stamp) -> int:
    """How many passages a corpus has, if its lines are right; 0 where only reading it would tell: packed, or a list."""
    if starts_with(path, PARQUET):
        import pyarrow
        from pyarrow import parquet

        try:
            return int(parquet.read_metadata(path).num_rows)
        except (pyarrow.ArrowException, OSError):  # whoever reads its rows says what is wrong with it
            return 0
    try:
        if text_of(path) > 1 or _is_list(path):
            return 0
    except UserError:  # whoever reads its lines says what is wrong with it
        return 0
    with open(path, "rb") as file:
        file.seek(max(0, stamp.size - 1))
        return stamp.lines + (file.read(1) not in (b"", b"\n"))


def corpus_stamp(path: Path, cache: Path, say: Callable[[str], None] = lambda text: None) -> Stamp:
    """``stamp_of`` a corpus: its checksum, read anew only if the file has changed. Raises ``UserError`` if it can't
    be."""
    try:
        return stamp_of(path, cache, say)
    except OSError as error:
        raise _unreadable(path, error) from error


def write_corpus(path: Path, passages: Iterable[Passage]) -> int:
    """Writes ``passages`` so that ``read_corpus`` gives them back (scores aside); returns how many.

    The file appears by rename, whole or not at all. Raises ``ValueError`` for a passage that a corpus
    can't hold: an empty or repeated id, empty contents, a title with a newline in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ids: set[str] = set()
    with written(path) as file:
        for passage in passages:
            try:
                line = Record(passage.id, join_contents(passage.title, passage.text)).line
                _parse(line)
            except ValueError as error:
                raise ValueError(f"passage {passage.id!r}: {error}") from None
            if passage.id in ids:
                raise ValueError(f"passage {passage.id!r}: the id is there twice")
            ids.add(passage.id)
            file.write(line.encode())
    return len(ids)


class Unreadable(UserError):
    """The system refuses to read a corpus, perhaps for a while; nothing is wrong with what is in it."""


def _unreadable(path: Path, error: OSError) -> Unreadable:
    return Unreadable(f"{path}: cannot read the corpus ({error.strerror}); name a file of JSON or Parquet")


def _bad_line(path: Path, number: int, reason: str) -> UserError:
    return UserError(f"{path}, line {number}: {reason}")
