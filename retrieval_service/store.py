"""The passages of an index that has no Lucene, on disk: found by number and by id, read through the system's page
cache.

| file | what |
| --- | --- |
| ``passages.jsonl`` | the corpus's lines, in order |
| ``ends.npy`` | where each line ends, in bytes (uint64) |
| ``ids.npy``, ``numbers.npy`` | the digests of all ids, sorted, and the passages' numbers in that order |
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from agent.records import Passage
from retrieval_service.arrays import mapped
from retrieval_service.corpus import Record, document_of, parse_record
from retrieval_service.names import name_digest

PASSAGES, ENDS, IDS, NUMBERS = "passages.jsonl", "ends.npy", "ids.npy", "numbers.npy"


def write_part(folder: Path, part: Sequence[Record]) -> None:
    """The lines of one part, with their lengths and the digests of their ids."""
    lines = [record.line.encode() for record in part]
    with open(folder / PASSAGES, "wb") as file:
        file.writelines(lines)
    np.save(folder / ENDS, np.array([len(line) for line in lines], np.uint64))
    np.save(folder / IDS, np.array([name_digest(record.id) for record in part], np.uint64))


def join_parts(parts: Sequence[Path], out: Path) -> None:
    """Writes the store ``out`` of the parts that ``write_part`` wrote."""
    with open(out / PASSAGES, "wb") as file:
        for part in parts:
            with open(part / PASSAGES, "rb") as lines:
                while block := lines.read(1 << 24):
                    file.write(block)
    np.save(out / ENDS, np.cumsum(np.concatenate([np.load(part / ENDS) for part in parts]), dtype=np.uint64))
    ids = np.concatenate([np.load(part / IDS) for part in parts])
    order = np.argsort(ids, kind="stable")
    np.save(out / IDS, ids[order])
    np.save(out / NUMBERS, order.astype(np.uint32))


class PassageStore:
    """The passages of the store in ``folder``. Raises ``OSError`` or ``ValueError`` if it is damaged."""

    def __init__(self, folder: Path) -> None:
        self._ends = mapped(folder / ENDS, np.uint64)
        self._ids = mapped(folder / IDS, np.uint64)
        self._numbers = mapped(folder / NUMBERS, np.uint32)
        if not 0 < len(self._ends) == len(self._ids) == len(self._numbers):
            raise ValueError(f"{ENDS}, {IDS} and {NUMBERS} are of different numbers of passages, or of none")
        self._file = open(folder / PASSAGES, "rb")  # noqa: SIM115 - closed by close
        self._lines = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._lines) != int(self._ends[-1]):
            raise ValueError(f"{PASSAGES} has {len(self._lines)} bytes, not {int(self._ends[-1])}")

    def __len__(self) -> int:
        return len(self._ends)

    def passage(self, number: int) -> Passage:
        """Passage ``number``, in the corpus's order from 0; score 0."""
        start = int(self._ends[number - 1]) if number else 0
        return parse_record(self._lines[start : int(self._ends[number])].decode())

    def number(self, document_id: str) -> int | None:
        """The number of the passage with this id, or None."""
        digest = np.uint64(name_digest(document_id))
        for at in range(int(np.searchsorted(self._ids, digest)), len(self)):
            if self._ids[at] != digest:
                break
            if self.passage(number := int(self._numbers[at])).id == document_id:
                return number
        return None

    def following(self, number: int) -> Iterator[Passage]:
        """The passages after ``number`` in the same document."""
        document = document_of(self.passage(number))
        for after in range(number + 1, len(self)):
            passage = self.passage(after)
            if document_of(passage) != document:
                return
            yield passage

    def close(self) -> None:
        self._lines.close()
        self._file.close()
