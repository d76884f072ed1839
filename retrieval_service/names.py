"""Which titles and ids a corpus has, without reading it anew: sorted 64-bit digests, cached by its checksum.

21 million passages take a pass of minutes once, 16 bytes each on disk, and a look-up of milliseconds afterwards.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from array import array
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.answers import normalise_title
from retrieval_service.corpus import corpus_checksum, passages

FORMAT = 1
"""Raise it when a table made by older code must not be used any more: when titles are normalised otherwise."""
EXAMPLES = 3
LARGE = 200_000_000
"""Bytes of a corpus that takes more than some seconds to read."""


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def digests(texts: Iterable[str]) -> npt.NDArray[np.uint64]:
    """A 64-bit digest of each text, sorted, each once. Two of a billion texts share one with a chance of 3 %."""
    return np.unique(np.array(array("Q", map(_digest, texts)), np.uint64))


def among(texts: Collection[str], table: npt.NDArray[np.uint64]) -> set[str]:
    """Those of ``texts`` whose digest is in the sorted ``table``."""
    if not len(table):
        return set()
    found = set()
    for text in texts:
        digest = np.uint64(_digest(text))
        at = int(np.searchsorted(table, digest))
        if at < len(table) and table[at] == digest:
            found.add(text)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """The titles and the ids of one corpus."""

    titles: npt.NDArray[np.uint64]
    """Digests of the normalised titles."""
    ids: npt.NDArray[np.uint64]
    examples: tuple[str, ...]
    """The first few titles as they stand, for messages; none in a corpus without titles."""

    def known(self, names: Collection[str], match: str) -> set[str]:
        """Those of ``names`` that a passage has as its ``title`` (both normalised) or as its ``id``."""
        if match == "id":
            return among(names, self.ids)
        normal = {name: normalise_title(name) for name in names}
        there = among(set(normal.values()), self.titles)
        return {name for name, title in normal.items() if title in there}


def corpus_names(corpus: Path, cache: Path, say: Callable[[str], None] = lambda text: None) -> Names:
    """The names of ``corpus``, from the folder ``cache`` if they are there, else read and kept there.

    ``say`` is told of a reading that takes long. Raises ``UserError`` for a corpus that is wrong.
    """
    file = cache / f"{corpus_checksum(corpus)}-names-v{FORMAT}.npz"
    if not file.is_file():
        if corpus.stat().st_size > LARGE:
            say(f"reading the titles of {corpus}, once: they are kept in {cache}")
        cache.mkdir(parents=True, exist_ok=True)
        _write(corpus, file)
    with np.load(file) as kept:
        return Names(titles=kept["titles"], ids=kept["ids"], examples=tuple(kept["examples"].tolist()))


def _write(corpus: Path, file: Path) -> None:
    """The file appears by rename, whole or not at all."""
    ids = array("Q")
    examples: list[str] = []

    def titles() -> Iterable[str]:
        for passage in passages(corpus):
            ids.append(_digest(passage.id))
            if title := normalise_title(passage.title):
                if len(examples) < EXAMPLES:
                    examples.append(passage.title)
                yield title

    table = digests(titles())
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with open(handle, "wb") as out:
            np.savez(out, titles=table, ids=np.unique(np.array(ids)), examples=np.array(examples, str))
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise
