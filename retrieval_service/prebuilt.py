"""A published index on this machine: fetched, verified, unpacked once, and kept beside those that are built here."""

from __future__ import annotations

import io
import platform
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from agent.errors import UserError, refused
from retrieval_service.download import (
    OF_THE_DISK,
    Progress,
    Show,
    Source,
    already,
    begun,
    check_disk,
    checksum_of,
    downloaded,
    hidden,
    size_text,
)
from retrieval_service.index import FORMAT, Manifest, check_index, write_manifest
from retrieval_service.lucene import ANALYSER
from retrieval_service.names import FILE
from retrieval_service.titles import keep_names
from retrieval_service.turns import in_turn
from retrieval_service.whole import settle
from retrieval_service.wikipedia import PREBUILT, Prebuilt, index_of


def archive_of(name: str, cache: Path) -> Path:
    """Where its archive is until it is unpacked; one that was put there by hand is taken."""
    return cache / "indexes" / PREBUILT[name].archive


def to_fetch(name: str, cache: Path) -> int:
    """Bytes that are still to come over the network."""
    wanted = PREBUILT[name]
    if index_of(name, cache).is_dir() or archive_of(name, cache).is_file():
        return 0
    return wanted.size - min(wanted.size, begun(archive_of(name, cache), wanted.md5))


def room_for(name: str, cache: Path) -> int:
    """Bytes of disk that it takes from now on: what is to come, and what that unpacks to."""
    return 0 if index_of(name, cache).is_dir() else to_fetch(name, cache) + PREBUILT[name].unpacked


def ensure_prebuilt(name: str, cache: Path, say: Callable[[str], None] = print, show: Show = hidden) -> Path:
    """The folder of the index ``name`` in ``cache``; what isn't there is fetched, and said before.

    Of several who want it one fetches it, reads its titles and deletes the archive; the others wait. Raises
    ``UserError`` where it can't be asked for, came damaged, or has no room, and for a folder that isn't the index.
    """
    wanted, index = PREBUILT[name], index_of(name, cache)
    given = f"retrieval.prebuilt={name}"
    if not (index / FILE).is_file():
        index.parent.mkdir(parents=True, exist_ok=True)
        with in_turn(index.parent / f".{index.name}.lock", say, f"fetches the index {name}, or reads its titles"):
            for leftover in index.parent.glob(f"{_unpacking(index)}*"):  # of one who was killed
                shutil.rmtree(leftover)
            if not index.is_dir():
                if not hasattr(tarfile, "data_filter"):
                    raise UserError(
                        f"{given}: needs Python 3.11.4 or newer, which unpacks nothing outside of its folder; this is "
                        f"{platform.python_version()}"
                    )
                archive = archive_of(name, cache)
                _fetch(wanted, archive, given, say, show)
                say(f"unpacking {archive}, which is deleted then, to {index}")
                with show(f"unpacking the index {name}") as progress:
                    _unpack(wanted, archive, index, given, progress)
            archive_of(name, cache).unlink(missing_ok=True)  # also that of one who was killed before
            check_index(index, "bm25")
            if not (index / FILE).is_file():
                say(
                    f"reading the titles of {wanted.documents:,} passages, once: by them supporting documents are "
                    "looked up"
                )
                with show(f"reading the titles of {name}") as progress:
                    keep_names(index, progress)
    check_index(index, "bm25")
    return index


def _source(wanted: Prebuilt) -> Source:
    return Source(url=wanted.url, size=wanted.size, checksum=wanted.md5)


def _fetch(wanted: Prebuilt, archive: Path, given: str, say: Callable[[str], None], show: Show) -> None:
    """Has the archive, verified."""
    if archive.is_dir():
        raise UserError(
            f"{given}: {archive} is a folder, not the archive; take it away, or, if it is the index, name it: "
            f"retrieval.index={archive}"
        )
    if archive.is_file():  # by hand, or from an attempt whose disk was full
        check_disk(archive.parent, wanted.unpacked, given)
        if checksum_of(archive, wanted.md5) != wanted.md5:
            raise UserError(f"{given}: {archive} is damaged or another file (MD5); delete it, and it is fetched")
        return
    source = _source(wanted)
    check_disk(archive.parent, wanted.size - begun(archive, wanted.md5) + wanted.unpacked, given)
    say(
        f"fetching the index {wanted.name} ({wanted.documents:,} passages: {wanted.about}): {size_text(wanted.size)}"
        f"{already(source, archive)}, about {size_text(wanted.unpacked)} unpacked, from {source.url}, to {archive}"
    )
    with show(f"fetching the index {wanted.name}") as progress:
        downloaded(source, archive, given, progress).rename(archive)


def _unpack(wanted: Prebuilt, archive: Path, index: Path, given: str, progress: Progress) -> None:
    """The folder appears by rename, whole or not at all."""
    work = Path(tempfile.mkdtemp(prefix=_unpacking(index), dir=index.parent))
    try:
        with _Read(archive, progress) as packed, tarfile.open(fileobj=packed, mode="r|gz") as tar:
            for member in tar:
                tar.extract(member, work, filter="data")
        found = {segments.parent for segments in work.rglob("segments_*")}
        if len(found) != 1:
            raise UserError(f"{given}: {archive} holds {len(found)} Lucene indexes, not one")
        (inside,) = found
        write_manifest(inside, _manifest(wanted))
        settle(inside)  # the archive goes next
        inside.rename(index)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{given}: {archive} can't be unpacked ({error}); delete it, and it is fetched anew") from error
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        raise UserError(f"{given}: can't be unpacked: {refused(error)}; start again to go on") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _manifest(wanted: Prebuilt) -> Manifest:
    commit = ".".join(wanted.archive.removesuffix(".tar.gz").split(".")[-2:])
    return Manifest(
        format=FORMAT,
        backend="bm25",
        documents=wanted.documents,
        corpus=wanted.name,
        corpus_checksum=wanted.md5,
        made_with={"analyser": ANALYSER, "anserini": commit},
    )


def _unpacking(index: Path) -> str:
    return f".{index.name}.unpacking-"


class _Read(io.BufferedReader):
    """A file that tells how far it has been read."""

    def __init__(self, path: Path, progress: Progress) -> None:
        super().__init__(io.FileIO(path))
        self._progress = progress
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        block = super().read(size)
        self._progress(self.tell(), self._size)
        return block
