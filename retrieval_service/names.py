"""Which titles and ids a corpus has, without reading it anew: sorted 64-bit digests, kept with its index.

21 million passages take 16 bytes each, on disk and in memory, and a look-up of milliseconds.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.answers import normalise_title
from agent.errors import UserError
from agent.paths import at_home
from agent.readable import content_of
from retrieval_service.config import RetrievalConfig
from retrieval_service.corpus import Record, corpus_stamp, records, unit_of
from retrieval_service.whole import written
from retrieval_service.wikipedia import index_of

FORMAT = 2
"""Raised when a table made by older code must not be used any more: when titles are normalised otherwise. The reward
compares them as they are now (``tests/retrieval_service/test_names.py`` holds it to that)."""
FILE = f"names-v{FORMAT}.npz"
"""In an index's folder."""
EXAMPLES = 3
LARGE = 200_000_000
"""Bytes of a corpus that takes more than some seconds to read."""
PART, PART_SIZE = 100_000, 64_000_000
"""Most passages of a part, and its characters."""

Digests = npt.NDArray[np.uint64]


def name_digest(text: str) -> int:
    """A number below 2^64 that stands for a title or an id."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def digests(texts: Iterable[str]) -> Digests:
    """A 64-bit digest of each text, sorted, each once. Two of a billion texts share one with a chance of 3 %."""
    return np.unique(np.array(array("Q", map(name_digest, texts)), np.uint64))


def among(texts: Collection[str], table: Digests) -> set[str]:
    """Those of ``texts`` whose digest is in the sorted ``table``."""
    listed = list(texts)
    there = _holds(table, np.array([name_digest(text) for text in listed], np.uint64))
    return {text for text, found in zip(listed, there, strict=True) if found}


def _holds(table: Digests, wanted: Digests) -> npt.NDArray[np.bool_]:
    """For each of ``wanted`` whether it is in the sorted ``table``."""
    if not len(table):
        return np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return np.asarray(table[at] == wanted)


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """The titles and the ids of one corpus."""

    titles: Digests
    """Digests of the normalised titles."""
    ids: Digests
    examples: tuple[str, ...]
    """The first few titles as they stand, for messages; none in a corpus without titles."""

    def known(self, names: Collection[str], match: str) -> set[str]:
        """Those of ``names`` that a passage has as its ``title`` (both normalised) or as its ``id``."""
        if match == "id":
            return among(names, self.ids)
        normal = {name: normalise_title(name) for name in names}
        there = among(set(normal.values()), self.titles)
        return {name for name, title in normal.items() if title in there}

    def save(self, file: Path) -> None:
        """The file appears by rename, whole or not at all."""
        with written(file) as out:
            np.savez(out, titles=self.titles, ids=self.ids, examples=np.array(self.examples, str))

    @classmethod
    def load(cls, file: Path) -> Names:
        """What ``save`` wrote. Raises ``UserError`` for a file that is damaged."""
        with content_of(f"the titles and ids in {file}, which may be deleted"), np.load(file) as kept:
            return cls(titles=kept["titles"], ids=kept["ids"], examples=tuple(kept["examples"].tolist()))


class Register:
    """Takes in the passages of a corpus, and finds an id that is there twice. Memory: 16 bytes for each passage."""

    def __init__(self, corpus: Path) -> None:
        self._corpus = corpus
        self._ids: Digests = np.zeros(0, np.uint64)
        self._titles: list[Digests] = []
        self._examples: list[str] = []

    def add(self, part: Sequence[Record]) -> None:
        """Raises ``UserError`` with both lines for an id that this part, or an earlier one, has already."""
        ids = np.array([name_digest(record.id) for record in part], np.uint64)
        ids.sort()
        twice = {*ids[1:][ids[1:] == ids[:-1]].tolist(), *ids[_holds(self._ids, ids)].tolist()}
        if twice:
            self._look(twice)
        # Two sorted runs, which a merge sort joins in one pass.
        self._ids = np.concatenate((self._ids, ids))
        self._ids.sort(kind="stable")
        titles = [title for record in part if (title := record.passage.title)]
        self._examples += islice((t for t in titles if normalise_title(t)), EXAMPLES - len(self._examples))
        self._titles.append(digests(normal for title in titles if (normal := normalise_title(title))))

    def _look(self, twice: set[int]) -> None:
        """Reads the corpus again for the ids with one of these digests, which may be different ones after all."""
        lines: dict[str, int] = {}
        unit = unit_of(self._corpus)
        for number, record in records(self._corpus):
            if name_digest(record.id) in twice and lines.setdefault(record.id, number) != number:
                raise UserError(
                    f"{self._corpus}, {unit} {number}: id {record.id!r} is taken by {unit} {lines[record.id]}; every "
                    "id must be unique"
                )

    def names(self) -> Names:
        """Those of all parts."""
        titles = np.unique(np.concatenate(self._titles)) if self._titles else np.zeros(0, np.uint64)
        return Names(titles=titles, ids=self._ids, examples=tuple(self._examples))


def cut() -> str:
    """What ``parts`` goes by, as the part of a folder's name: another version's may end elsewhere."""
    return f"{PART}x{PART_SIZE}"


def parts(corpus: Path) -> Iterator[list[Record]]:
    """The passages of ``corpus`` in lists of at most ``PART`` of them, and of ``PART_SIZE`` characters and one passage.

    The same corpus is always cut in the same places. Raises what ``records`` raises.
    """
    part: list[Record] = []
    size = 0
    for _, record in records(corpus):
        part.append(record)
        size += len(record.contents)
        if len(part) == PART or size >= PART_SIZE:
            yield part
            part, size = [], 0
    if part:
        yield part


def searched_names(
    corpus: Path | None, config: RetrievalConfig, cache: Path, say: Callable[[str], None] = lambda text: None
) -> Names | None:
    """The names of what ``config`` searches: the index that it names, where one is named, else that of ``corpus``.

    None where they aren't known: of a server, or an index that the user built elsewhere. Raises as ``corpus_names``.
    """
    index = at_home(config.index) if config.index is not None else None
    if config.prebuilt is not None:
        index = index_of(config.prebuilt, cache)
    if index is not None:
        file = index / FILE
        return Names.load(file) if file.is_file() else None
    if config.url is not None or corpus is None:
        return None
    return corpus_names(corpus, cache, say)


def corpus_names(corpus: Path, cache: Path, say: Callable[[str], None] = lambda text: None) -> Names:
    """The names of ``corpus``: from an index of it in ``cache``, or as they were kept there, else read and kept.

    ``say`` is told of a reading that takes long. Raises ``UserError`` for a corpus that is wrong.
    """
    checksum = corpus_stamp(corpus, cache, say).checksum
    for file in (cache / "indexes").glob(f"{checksum}-*/{FILE}"):
        if file.is_file():  # of a hybrid index it is a link, and what it leads to may be deleted
            return Names.load(file)
    file = cache / "corpora" / f"{checksum}-{FILE}"
    if not file.is_file():
        if corpus.stat().st_size > LARGE:
            say(f"reading the titles of {corpus}, once: they are kept in {file.parent}")
        register = Register(corpus)
        for part in parts(corpus):
            register.add(part)
        file.parent.mkdir(parents=True, exist_ok=True)
        register.names().save(file)
    return Names.load(file)
