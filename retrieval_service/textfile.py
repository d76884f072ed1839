"""Text files of the user's, as they come: plain or compressed, with or without a byte order mark.

What a file is, its first bytes say; its name doesn't matter. Read are gzip, bzip2, xz and Zstandard, of several
streams or frames, too. Archives, Parquet files (which are read elsewhere, as they are) and UTF-16 are refused by name,
since their first line would only be called no JSON.
"""

from __future__ import annotations

import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from agent.errors import UserError, shortened
from retrieval_service.unpacking import bzip2, xz, zstandard

_COMPRESSIONS: dict[bytes, tuple[str, Callable[[BinaryIO], Any]]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    b"BZh": ("bzip2", bzip2),
    b"\xfd7zXZ\x00": ("xz", xz),
    b"\x28\xb5\x2f\xfd": ("Zstandard", zstandard),
    # Frames to be skipped, which a writer with several threads begins with (RFC 8878, section 3.1.2).
    **{bytes((0x50 + kind, 0x2A, 0x4D, 0x18)): ("Zstandard", zstandard) for kind in range(16)},
}
"""How a compressed file starts, what that is called, and what unpacks it."""
PARQUET = b"PAR1"
"""How a Parquet file starts."""
PACKED = 3.0
"""Bytes of text in one of a compressed file: about what gzip makes of English."""
_NO_TEXT = {
    b"PK\x03\x04": "a zip archive, or a workbook; unpack it, or save its table as a text",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Rar!": "a rar archive; unpack it",
    PARQUET: "a Parquet file that is compressed as a whole; unpack it",
    b"\xff\xfe": "encoded in UTF-16; save it as UTF-8",
    b"\xfe\xff": "encoded in UTF-16; save it as UTF-8",
}
_TAR = slice(257, 262)
_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
_HEAD = 512
LONGEST_LINE = 1 << 29
"""Bytes of a line that are read: more than twice what the longest contents can take, all of it in escapes. A file that
is one line by mistake may have any size."""
_DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)
"""What reading raises for a file that is cut short or not what its first bytes say."""


def stem(path: Path) -> str:
    """The file's name without its suffix, and without that of its compression.

    >>> stem(Path("data/train.jsonl.gz"))
    'train'
    """
    return Path(path.stem).stem if path.suffix in _SUFFIXES else path.stem


def text_of(path: Path) -> float:
    """About how many bytes of text a byte of the file holds: 1, ``PACKED`` of a compressed one. Raises ``OSError``."""
    return PACKED if any(starts_with(path, sign) for sign in (*_COMPRESSIONS, PARQUET)) else 1.0


def starts_with(path: Path, sign: bytes) -> bool:
    """Whether the file's first bytes are ``sign``. Raises ``OSError``."""
    with open(path, "rb") as file:
        return file.read(len(sign)) == sign


@contextmanager
def open_text(path: Path, name: str) -> Iterator[BinaryIO]:
    """The text of ``path`` as bytes, unpacked, after its byte order mark. It can be peeked into.

    Raises ``OSError`` if it can't be opened, and ``UserError`` that begins with ``name`` if it is no text in UTF-8,
    or turns out to be damaged while it is read.
    """
    with open(path, "rb") as packed:
        start = packed.peek(_HEAD)
        compression, unpack = next(
            (known for sign, known in _COMPRESSIONS.items() if start.startswith(sign)), ("", None)
        )
        with closing(unpack(packed) if unpack else packed) as file:
            try:
                head = file.peek(_HEAD)
                if what := _not_text(head):
                    raise UserError(f"{name}: is {what}")
                if head.startswith(codecs.BOM_UTF8):
                    file.read(len(codecs.BOM_UTF8))
                yield file
            except _DAMAGE as error:
                if not compression or getattr(error, "errno", None) is not None:  # the system's: the file may be whole
                    raise
                raise UserError(
                    f"{name}: the {compression} file is cut short or damaged ({_first_line(error)}); get it again"
                ) from error


def twice(columns: Sequence[str]) -> str | None:
    """A column of a Parquet file that is there twice, of which a row has only one."""
    return next((name for name in columns if columns.count(name) > 1), None)


def _not_text(head: bytes) -> str | None:
    for sign, (compression, _) in _COMPRESSIONS.items():
        if head.startswith(sign):
            return f"compressed twice; unpack the {compression} file once"
    for start, what in _NO_TEXT.items():
        if head.startswith(start):
            return what
    if head[_TAR] == b"ustar":
        return "a tar archive; unpack it"
    # JSON starts with an ASCII character: a zero byte beside it is the other half of a wider one.
    return "encoded in UTF-16 or UTF-32; save it as UTF-8" if b"\0" in head[:4] else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def text_lines(path: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """``lines_of`` the text of ``path``. Raises also what ``open_text`` raises."""
    with open_text(path, name) as file:
        yield from lines_of(file, name)


def lines_of(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """``(number, line)`` of every line, counted from 1. Memory: one line, of at most ``LONGEST_LINE`` bytes.

    Raises ``UserError`` for a longer one.
    """
    for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), b""), start=1):
        if len(line) > LONGEST_LINE:
            raise UserError(f"{name}, line {number}: is longer than {LONGEST_LINE:,} bytes; write one object a line")
        yield number, line


def first_ink(path: Path, name: str) -> bytes:
    """The first byte of the text that is no white space; none if there is no such. Raises what ``open_text`` raises."""
    with open_text(path, name) as file:
        while block := file.read(_HEAD):
            if ink := block.lstrip():
                return ink[:1]
    return b""


def parquet_rows(batches: Iterable[Any], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """``(number, row)`` of every row of a Parquet file's batches, counted from 1.

    Raises ``UserError`` that names the row for a value that Python can't have: a text that isn't UTF-8, a time beyond
    its years or finer than its clock, an object with a key twice. What reading the file itself raises is the caller's.
    """
    number = 0
    for batch in batches:
        try:
            rows: Iterable[dict[str, Any]] = batch.to_pylist()
        except (ValueError, OverflowError):  # of which row, is found out one by one
            rows = (batch.slice(at, 1).to_pylist()[0] for at in range(batch.num_rows))
        try:
            for row in rows:
                number += 1
                yield number, row
        except UnicodeDecodeError as error:
            told = f"{name}, row {number + 1}: a text that is not UTF-8 ({shortened(error)}); save it as plain UTF-8"
            raise UserError(told) from error
        except (ValueError, OverflowError) as error:
            told = f"{name}, row {number + 1}: a value that can't be read ({shortened(error)}); write it as a text"
            raise UserError(told) from error
