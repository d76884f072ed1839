"""Indexes: built whole or not at all, kept by the corpus's checksum.

An index is a folder of its backend's files with two more in it: ``names-v….npz``, the corpus's titles and ids
(``names.py``), and the manifest, written last. It comes into being in a folder beside its place and is renamed into it.
What a builder that was interrupted had finished stays there, and the next one goes on with it, on whatever machine. A
finished part has the checksums of its files; one that has others now is made again.

Of several builders a lock lets one work. Where locks don't reach other machines, these share the folder: each works
under names of its own, a part is the same whoever made it, and who is last takes the index of the first.

The corpus is read in parts: each passage is checked, looked for among the ids so far, and handed on to the builder.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from agent.errors import UserError
from agent.readable import json_of
from retrieval_service.corpus import Record, Unreadable, corpus_stamp, passages_in
from retrieval_service.download import check_disk
from retrieval_service.names import FILE, Register, cut, parts
from retrieval_service.stamps import Stamp
from retrieval_service.textfile import text_of
from retrieval_service.turns import in_turn
from retrieval_service.watch import SILENT, Watch
from retrieval_service.whole import settle

MANIFEST = "manifest.json"
FORMAT = 3
"""Raise it when an index built by older code must not be used any more."""
ROOM = 2
"""Free disk that building takes, in sizes of its parts: these, and what is made of them. A part is guessed to be as
large as its text until the first one is there."""
SUMS = "part.sums"
"""The file with the checksums of the others of a part."""
SMALL = 100_000_000
"""Bytes of a corpus for which nobody asks how much room there is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What an index was made of and by. ``documents`` is the number of passages in it."""

    format: int
    backend: str
    documents: int
    corpus: str
    corpus_checksum: str
    made_with: dict[str, Any] = field(default_factory=dict)
    """What the index depends on besides the corpus, such as ``analyser`` and ``anserini``."""


_KINDS = {"backend": str, "documents": int, "corpus": str, "corpus_checksum": str, "made_with": dict}
"""What a manifest holds."""


class Builder(Protocol):
    """Makes one index of the parts of a corpus. Called and closed by one thread."""

    def take(self, number: int, part: Sequence[Record], told: Callable[[int], None]) -> None:
        """Takes part ``number``, counted from 0, in order; may go on working on it ``aside``. When it is finished
        ``keep_part`` makes it ``part_of`` the builder's folder; one that is there already isn't worked on again. A long
        work tells ``told`` how many passages are done."""
        ...

    def finish(self, out: Path) -> None:
        """Makes the folder ``out`` of all parts. Raises ``Fault`` unless it holds every passage."""
        ...

    def close(self) -> None:
        """Lets go of what is under way; called once, last."""
        ...


class Recipe(Protocol):
    """How the indexes of a backend are made. ``slow = True`` says that a part takes so long that the corpus is first
    read to its end, for what may be wrong there."""

    backend: str
    key: str
    """What an index depends on besides the corpus, as a part of a folder's name."""
    made_with: dict[str, Any]
    """The same for its manifest."""

    def builder(self, work: Path) -> Builder:
        """One that works in the folder ``work``, where an earlier one may have left parts."""
        ...


def part_of(work: Path, number: int) -> Path:
    """Where a builder keeps part ``number`` from when it is finished."""
    return work / f"part-{number:05}"


def aside(work: Path, name: str) -> Path:
    """Where this machine makes the folder ``name``: another one may be at the same."""
    return work / f"{name}.busy-{platform.node()}"


def keep_part(made: Path, done: Path) -> None:
    """Renames the folder ``made`` to the finished part ``done``, on the disk and with its checksums. If another machine
    was first, its part stays."""
    (made / SUMS).write_text(json.dumps(_sums(made)))
    settle(made)
    try:
        os.rename(made, done)
    except OSError:
        if not done.exists():
            raise
        shutil.rmtree(made)


def _sums(part: Path) -> dict[str, str]:
    """The checksums of a part's files."""
    sums = {}
    for path in part.rglob("*"):
        if path.name != SUMS and path.is_file():
            with open(path, "rb") as file:
                sums[path.relative_to(part).as_posix()] = hashlib.file_digest(file, "blake2b").hexdigest()
    return sums


def _drop_damaged(part: Path, watch: Watch) -> None:
    """Deletes a finished part whose files are not what they were; the builder makes it again."""
    if not part.exists():
        return
    try:
        if json_of((part / SUMS).read_bytes()) == _sums(part):
            return
    except (OSError, ValueError):
        pass
    watch.say(f"{part}: is damaged, and is made again")
    shutil.rmtree(part)


def ensure_index(corpus: Path, recipe: Recipe, cache: Path, watch: Watch = SILENT) -> Path:
    """The index of ``corpus`` below the folder ``cache``, built if it isn't there.

    The folder's name has the corpus's checksum and the recipe's key in it, so a changed corpus gets an index of its
    own. Of several builders, on this machine or on others that share the folder, one builds and the others wait. Raises
    ``UserError`` for a bad corpus or a damaged index, ``Fault`` if building fails.
    """
    stamp = corpus_stamp(corpus, cache, watch.say)
    index = cache / "indexes" / f"{stamp.checksum}-{recipe.key}-v{FORMAT}"
    building = f".{index.name}.building"
    work = index.parent / f"{building}-{cut()}"  # parts that end elsewhere are no use to this builder
    if not index.exists():
        index.parent.mkdir(parents=True, exist_ok=True)
        with in_turn(index.parent / f".{index.name}.lock", watch.say, f"builds the index of {corpus}"):
            try:
                if not index.exists():
                    _build(corpus, stamp, index, recipe, cache, work, watch)
            except Exception:
                if not index.exists():  # else a builder whom no lock kept apart was first, and has taken the work away
                    raise
    for left in index.parent.glob(f"{glob.escape(building)}*"):  # also of one who was killed, or of another version
        shutil.rmtree(left, ignore_errors=True)
    _check_ours(index, stamp.checksum)
    return index


def check_index(index: Path, backend: str) -> Manifest | None:
    """The manifest of ``index``, or None for one that was built elsewhere, without a manifest.

    Raises ``UserError`` that names the folder if it isn't there, or is none of ``backend``'s.
    """
    if not index.is_dir():
        raise UserError(f"{index}: no such folder; name an index")
    manifest = read_manifest(index)
    if manifest is not None and manifest.backend != backend:
        raise UserError(f"{index}: is an index of retrieval={manifest.backend}, not of retrieval={backend}")
    return manifest


def read_manifest(index: Path) -> Manifest | None:
    """The manifest in a folder; None without one. Raises ``UserError`` for one that can't be used."""
    file = index / MANIFEST
    if not file.exists():
        return None
    try:
        told = json_of(file.read_bytes())
        if isinstance(told, dict) and told.get("format", FORMAT) != FORMAT:
            raise UserError(
                f"{index}: its format is {told['format']!r}, this version reads {FORMAT}; delete it and build it again"
            )
        manifest = Manifest(**told)
        for name, kind in _KINDS.items():
            if not isinstance(value := getattr(manifest, name), kind) or isinstance(value, bool):
                raise TypeError(f"{name} is {value!r:.40}")
        return replace(manifest, made_with=_MadeWith(manifest.made_with, index))
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error}); delete {index} and build it again") from error


class _MadeWith(dict[str, Any]):
    """What a manifest says that an index was made with; what it lacks raises ``UserError`` where it is asked for."""

    def __init__(self, values: Any = (), index: Path | None = None) -> None:
        super().__init__(values)
        self._index = index

    def __missing__(self, name: str) -> Any:
        raise UserError(
            f"{self._index}: its {MANIFEST} is damaged (made_with has no {name}); delete the folder and build it again"
        )


def write_manifest(index: Path, manifest: Manifest) -> None:
    """Writes ``MANIFEST``, with which a folder is an index."""
    (index / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")


def _check_ours(index: Path, checksum: str) -> None:
    manifest = read_manifest(index)
    if manifest is None or manifest.corpus_checksum != checksum:
        raise UserError(f"{index}: not the complete index that its name says; delete it and start again")


def _build(corpus: Path, stamp: Stamp, index: Path, recipe: Recipe, cache: Path, work: Path, watch: Watch) -> None:
    work.mkdir(exist_ok=True)
    out = aside(work, "index")
    shutil.rmtree(out, ignore_errors=True)
    room = _Room(corpus, stamp, work)
    builder = recipe.builder(work)  # a setting that it refuses is no reason to throw parts away
    try:
        try:
            if getattr(recipe, "slow", False) and not part_of(work, 0).exists():
                if stamp.size > SMALL:
                    watch.say(f"reading {corpus} for what may be wrong with it, before it is encoded")
                deque(_checked(corpus, Register(corpus)), maxlen=0)
            register, documents, total = Register(corpus), 0, passages_in(corpus, stamp)
            for number, part in enumerate(_checked(corpus, register)):
                _drop_damaged(part_of(work, number), watch)
                builder.take(number, part, _further(watch, documents, total))
                room.taken(part, total)
                documents += len(part)
                watch.count(documents, total)
            # Its times alone tell little: a link to it, or new rights, change them.
            if not stamp.holds(corpus.stat()) and corpus_stamp(corpus, cache, watch.say).checksum != stamp.checksum:
                raise _WrongCorpus(f"{corpus}: changed while it was being indexed; start again when it is complete")
            builder.finish(out)
        finally:
            builder.close()
    except _WrongCorpus:
        shutil.rmtree(work, ignore_errors=True)  # the parts of a corpus that is wrong are of no use to the next builder
        raise
    register.names().save(out / FILE)
    write_manifest(
        out,
        Manifest(
            format=FORMAT,
            backend=recipe.backend,
            documents=documents,
            corpus=corpus.name,
            corpus_checksum=stamp.checksum,
            made_with=recipe.made_with,
        ),
    )
    settle(out)
    os.rename(out, index)


class _WrongCorpus(UserError):
    """Nothing that was made of this corpus is ever of use."""


def _checked(corpus: Path, register: Register) -> Iterator[list[Record]]:
    """The parts of ``corpus``, whose names ``register`` takes in. Raises ``_WrongCorpus`` for what is wrong in it, and
    another ``UserError`` where it can't be read at the moment."""
    try:
        for part in parts(corpus):
            register.add(part)
            yield part
    except Unreadable:
        raise
    except UserError as error:
        raise _WrongCorpus(str(error)) from error


def _further(watch: Watch, before: int, total: int) -> Callable[[int], None]:
    """Counts the passages of one part, after ``before`` of others."""
    return lambda done: watch.count(before + done, total)


class _Room:
    """Whether the disk has room for an index: by the corpus's size at first, then by the first part that is finished.

    Both raise ``NoRoom``.
    """

    def __init__(self, corpus: Path, stamp: Stamp, work: Path) -> None:
        self._corpus, self._work = corpus, work
        self._text = stamp.size * text_of(corpus)
        self._unknown = stamp.size > SMALL
        self._share: float | None = None
        """What the first part is of the corpus."""
        self._check(ROOM * self._text)

    def taken(self, part: Sequence[Record], total: int) -> None:
        """One more ``part`` of ``total`` passages is taken; of 0 where that isn't known."""
        if self._share is None:
            self._share = len(part) / total if total else sum(len(r.contents.encode()) for r in part) / self._text
        if self._unknown and (first := part_of(self._work, 0)).exists():
            self._check(ROOM * _size(first) / min(1.0, self._share))
            self._unknown = False

    def _check(self, about: float) -> None:
        if self._unknown:
            check_disk(self._work, max(0, round(about) - _size(self._work)), f"indexing {self._corpus}")


def _size(path: Path) -> int:
    """Bytes of the files below a folder. Others may be at work there."""
    size = 0
    for folder, _, files in os.walk(path):
        for file in files:
            with suppress(FileNotFoundError):
                size += os.stat(os.path.join(folder, file)).st_size
    return size
