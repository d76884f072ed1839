"""Text files in every wrapping: the same lines come out, and what is no text gets one line that says what it is."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pyarrow
import pytest

from agent.errors import UserError
from retrieval_service.textfile import stem, text_lines

DICE = random.Random(0)
TEXT = "".join(f'{{"id": "{n}", "text": "Čapek {DICE.getrandbits(128):x}"}}\n' for n in range(5000)).encode()
"""Compressed by any of them more than is read at once."""
BOM = b"\xef\xbb\xbf"


def zstandard(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


def skippable(data: bytes) -> bytes:
    """As a writer with several threads makes it: with the size of a frame before it."""
    return b"\x50\x2a\x4d\x18\x04\0\0\0\x07\0\0\0" + zstandard(data)


PACKERS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "Zstandard": zstandard,
}


@cache
def packed_by(kind: str, data: bytes) -> bytes:
    return PACKERS[kind](data)


def read(path: Path) -> bytes:
    lines = list(text_lines(path, "data.corpus=c"))
    assert [number for number, _ in lines] == list(range(1, len(lines) + 1))
    return b"".join(line for _, line in lines)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def make(data: bytes) -> Path:
        path = tmp_path / "anything"  # its name says nothing
        path.write_bytes(data)
        return path

    return make


@pytest.mark.parametrize("mark", [b"", BOM], ids=["bare", "marked"])
def test_plain_text(file, mark):
    path = file(mark + TEXT)
    assert read(path) == TEXT


@pytest.mark.parametrize("mark", [b"", BOM], ids=["bare", "marked"])
@pytest.mark.parametrize("kind", PACKERS)
def test_compressed_text(file, kind, mark):
    packed = packed_by(kind, mark + TEXT)
    path = file(packed)
    assert read(path) == TEXT
    assert read(file(packed + packed_by(kind, TEXT))) == TEXT + TEXT, "files that were joined"
    assert read(file(PACKERS[kind](b""))) == b""


def test_frames_that_are_to_be_skipped(file):
    assert read(file(skippable(TEXT))) == TEXT
    with pytest.raises(UserError, match=r"^data\.corpus=c: the Zstandard file is cut short or damaged"):
        read(file(skippable(TEXT)[:-1]))


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("left", [0.5, 0.999, 8])
def test_a_file_that_is_cut_short(file, kind, left):
    packed = packed_by(kind, TEXT)
    path = file(packed[: left if left > 1 else int(len(packed) * left)])
    with pytest.raises(
        UserError, match=rf"^data\.corpus=c: the {kind} file is cut short or damaged \(.+\); get it"
    ) as e:
        read(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("rest", [b"garbage", b"\x1f\x8b", b"BZ", b"\xfd7zX", bytes(8) + b"x"])
def test_what_follows_in_a_compressed_file_is_read_or_refused(file, kind, rest):
    packed = PACKERS[kind](TEXT[:1000])
    for damaged in (packed + rest, packed + packed[:-1], packed + b"\1" + packed[1:]):
        with pytest.raises(UserError, match=rf"the {kind} file is cut short or damaged"):
            read(file(damaged))


def test_the_streams_of_an_xz_file_may_have_zero_bytes_between_them(file):
    assert read(file(lzma.compress(TEXT) + bytes(8) + lzma.compress(TEXT) + bytes(4))) == TEXT + TEXT


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_a_file_that_is_damaged(file, kind):
    packed = bytearray(packed_by(kind, TEXT))
    packed[len(packed) // 2] ^= 0x55
    with pytest.raises(UserError, match=rf"the {kind} file is cut short or damaged"):
        read(file(bytes(packed)))


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "packed"])
@pytest.mark.parametrize(
    ("data", "what"),
    [
        ('{"id": 1}'.encode("utf-16"), "encoded in UTF-16; save it as UTF-8"),
        ('{"id": 1}'.encode("utf-16-le"), "encoded in UTF-16 or UTF-32; save it as UTF-8"),
        (b"\xfe\xff" + '{"id": 1}'.encode("utf-16-be"), "encoded in UTF-16; save it as UTF-8"),
        ('{"id": 1}'.encode("utf-32-be"), "encoded in UTF-16 or UTF-32; save it as UTF-8"),
        (b"PK\x03\x04rest", "a zip archive, or a workbook; unpack it, or save its table as a text"),
        (b"PAR1rest", "a Parquet file that is compressed as a whole; unpack it"),
        (b"name" + bytes(253) + b"ustar  \0", "a tar archive; unpack it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_text_is_named(file, pack, data, what):
    with pytest.raises(UserError, match=f"^data.corpus=c: is {what}$"):
        read(file(pack(data)))


def test_an_empty_file_has_no_lines(file):
    assert read(file(b"")) == b""


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz", "q.json.zst", "q.parquet", "q"])
def test_the_stem_of_a_name(name):
    assert stem(Path("folder.x") / name) == "q"
