"""Files from the network: whole and verified, or not there. What an interrupted attempt has fetched is kept.

Questions (``tasks/named.py``), corpora and indexes come this way. A model comes by the hub's own client, which keeps
it where other programs look for it, too (``learner/hub.py``).
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any, NoReturn

from agent.errors import UserError, refused, shortened
from retrieval_service.retry import PASSING, retry_after_s
from retrieval_service.whole import settle

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, int], None]
"""Is told how many of how many bytes are there."""
Show = Callable[[str], AbstractContextManager[Progress]]
"""Shows what is under way while its body runs."""
TRIES = 5
"""Requests in a row that bring nothing new."""
TIMEOUT_S = 30.0
LONGEST_WAIT_S = 120.0
"""The most that a server's ``Retry-After`` is followed."""
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
_BLOCK = 1 << 20
_KINDS = {32: "MD5", 40: "git's checksum", 64: "SHA-256"}
"""Kinds of checksums, by their digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A file on a server, and what it has to be."""

    url: str
    size: int
    """Bytes."""
    checksum: str
    """SHA-256, MD5 or git's of a blob, in hexadecimal digits. Of another kind it can't be compared."""
    commit: str = ""
    """Of the hub's repository, where it comes from one."""

    @property
    def by_sha256(self) -> bool:
        """Whether ``checksum`` is a SHA-256: then what was verified has it."""
        return _kind(self.checksum) == "SHA-256"

    @property
    def on_hub(self) -> bool:
        from huggingface_hub import constants

        return self.url.startswith(f"{constants.ENDPOINT}/")


@contextmanager
def hidden(title: str) -> Iterator[Progress]:
    """A ``Show`` that nobody looks at."""
    yield lambda done, total: None


def hub_url(repository: str, file: str, revision: str) -> str:
    """Of a file in one of the hub's repositories of data sets."""
    from huggingface_hub import hf_hub_url

    return str(hf_hub_url(repository, file, repo_type="dataset", revision=revision))


def on_hub(repository: str, file: str, revision: str, given: str, path: Path) -> Source:
    """What the hub says of ``file``, which is going to be kept at ``path``.

    Raises ``UserError`` that starts with ``given`` where it doesn't have it, or can't be asked.
    """
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    url = hub_url(repository, file, revision)
    try:
        there = get_hf_file_metadata(url)
    except EntryNotFoundError as error:
        raise UserError(f"{given}: {repository} has no {file} at revision {revision}") from error
    except (RevisionNotFoundError, RepositoryNotFoundError) as error:
        raise UserError(f"{given}: the hub has no revision {revision} of {repository} (data.revision)") from error
    except Exception as error:  # whatever its client and the network raise
        _unreachable(error, given, url, path)
    if there.size is None or not there.etag or not there.commit_hash:
        raise UserError(f"{given}: {url} comes without size, checksum or commit; is HF_ENDPOINT a hub?")
    return Source(
        url=hub_url(repository, file, there.commit_hash),  # a branch may move meanwhile
        size=there.size,
        checksum=there.etag,
        commit=there.commit_hash,
    )


def part_of(path: Path, checksum: str) -> Path:
    """Where the beginning of ``path`` is kept until it is whole, and has that ``checksum``."""
    return path.parent / f".{path.name}.{checksum[:16]}.part"


def begun(path: Path, checksum: str) -> int:
    """Bytes of ``path`` that an earlier attempt has fetched."""
    part = part_of(path, checksum)
    return part.stat().st_size if part.is_file() else 0


def most_begun(path: Path) -> int:
    """The same, whatever its checksum is going to be."""
    return max((part.stat().st_size for part in path.parent.glob(f".{path.name}.*.part")), default=0)


def already(source: Source, path: Path) -> str:
    """What to say of ``begun``, behind the size; nothing where there is nothing."""
    have = begun(path, source.checksum)
    return f", of which {size_text(have)} are here already" if have else ""


def downloaded(source: Source, path: Path, given: str, progress: Progress) -> Path:
    """``part_of`` the file, whole and verified: the caller renames it to ``path``.

    What an earlier attempt has fetched isn't fetched again. Raises ``UserError`` that starts with ``given`` for a
    server that can't be asked, or sends something else, a disk that is too small, and a file that came whole and
    damaged, which is then deleted.
    """
    part = part_of(path, source.checksum)
    if begun(path, source.checksum) > source.size:
        part.unlink()
    check_disk(path.parent, source.size - begun(path, source.checksum), given)
    try:
        _download(part, source, progress)
    except Exception as error:  # whatever the network raises
        _unreachable(error, given, source.url, path)
    if checksum_of(part, source.checksum) != source.checksum:
        part.unlink()
        raise UserError(f"{given}: {source.url} came damaged (its checksum is another); start again to fetch it anew")
    settle(part)
    for other in path.parent.glob(f".{path.name}.*.part"):  # of what was there before
        if other != part:
            other.unlink()
    return part


def _download(part: Path, source: Source, progress: Progress) -> None:
    """Appends what ``part`` lacks, over as many connections as it takes."""
    import httpx  # most commands download nothing

    tries = 0
    with httpx.Client(timeout=TIMEOUT_S, follow_redirects=True) as client:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                _append(client, part, source, progress)
                return
            except (httpx.HTTPError, _Amiss) as error:
                refusal = error.response if isinstance(error, httpx.HTTPStatusError) else None
                passing = refusal is None or refusal.status_code in PASSING
                tries = 1 if part.exists() and part.stat().st_size > before else tries + 1
                if not passing or tries >= TRIES:
                    raise
                asked = 0.0 if refusal is None else min(retry_after_s(refusal.headers), LONGEST_WAIT_S)
                sleep(max(asked, 2.0 ** (tries - 1)))


class _Amiss(Exception):
    """A success that isn't the file, or not all of it. The next answer may be right."""


def _append(client: httpx.Client, part: Path, source: Source, progress: Progress) -> None:
    """What one answer brings; what is there stays, whatever comes.

    A server that can't go on in the middle sends all of it again: as much as is there is passed over. Raises ``_Amiss``
    for an answer that is not the file, of which nothing is kept, and for one that ends early.
    """
    with open(part, "ab") as file:
        have = file.tell()
        progress(have, source.size)
        if have == source.size:
            return
        headers = {"Accept-Encoding": "identity", **_headers(source)}
        if have:
            headers["Range"] = f"bytes={have}-"
        with client.stream("GET", source.url, headers=headers) as answer:
            answer.raise_for_status()
            before = have
            known = have - _start_of(answer, have, source)
            for block in answer.iter_raw():  # as they come: what a broken connection has brought is kept
                new = block[known:]
                known -= len(block) - len(new)
                file.write(new)
                have += len(new)
                if have > source.size:
                    file.truncate(before)
                    raise _Amiss(f"it sends more than {source.size:,} bytes, and is another file")
                progress(have, source.size)
        if have < source.size:
            raise _Amiss(f"it broke off after {have:,} of {source.size:,} bytes")


def _start_of(answer: httpx.Response, have: int, source: Source) -> int:
    """Where in the file the answer begins, at most ``have``.

    Raises ``_Amiss`` for what can be seen to be something else: a proxy and a login page say 200, too.
    """
    start, size = 0, answer.headers.get("Content-Length", "")
    if answer.status_code == HTTPStatus.PARTIAL_CONTENT:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        start, size = (int(found[1]), found[2]) if found else (have, "")
    if size != str(source.size):
        if answer.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise _Amiss("it sends a web page in place of the file, as proxies and login pages do")
        if size.isdecimal():
            raise _Amiss(f"it sends a file of {int(size):,} bytes, not the one of {source.size:,}")
    if start > have:
        raise _Amiss(f"it begins at byte {start:,}, not at {have:,}")
    return start


def _headers(source: Source) -> dict[str, str]:
    """Who we are, to the hub with the user's token; httpx drops that where the hub sends us elsewhere."""
    if not source.on_hub:
        return {}
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import build_hf_headers

    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    return dict(build_hf_headers())


def _unreachable(error: Exception, given: str, url: str, path: Path) -> NoReturn:
    import httpx
    from huggingface_hub import constants

    if isinstance(error, UserError):
        raise error
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        raise UserError(f"{given}: can't be kept: {refused(error)}") from error
    hub = url.startswith(f"{constants.ENDPOINT}/")
    if isinstance(error, httpx.HTTPStatusError):
        reason = f"it answers {error.response.status_code} {error.response.reason_phrase}".rstrip()
    else:
        reason = "HF_HUB_OFFLINE is set" if hub and constants.HF_HUB_OFFLINE else shortened(error, 120)
    who = "the hub" if hub else httpx.URL(url).host
    raise UserError(
        f"{given}: is not here, and {who} can't be asked ({reason}); start again to go on, or get {url} elsewhere and "
        f"put it at {path}"
    ) from error


class NoRoom(UserError):
    """The disk is too small."""


def check_disk(folder: Path, needed: int, given: str) -> None:
    """Raises ``NoRoom`` that starts with ``given`` if ``folder`` has less than ``needed`` bytes of room."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoRoom(
            f"{given}: needs {size_text(needed)} in {folder}, where {size_text(free)} are free; make room, or set "
            "cache_dir=FOLDER"
        )


def checksum_of(path: Path, like: str) -> str:
    """The checksum of ``path`` of the kind that ``like`` is; ``like`` itself if that can't be computed."""
    kind = _kind(like)
    if kind == "MD5":
        return _digest(path, hashlib.md5(usedforsecurity=False))
    if kind == "git's checksum":
        return _digest(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False))
    return sha256(path) if kind == "SHA-256" else like


def _kind(checksum: str) -> str | None:
    return _KINDS.get(len(checksum)) if re.fullmatch("[0-9a-f]+", checksum) else None


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    return _digest(path, hashlib.sha256())


def _digest(path: Path, digest: Any) -> str:
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return str(digest.hexdigest())


def size_text(count: int) -> str:
    """Bytes for people, in powers of ten as disks and networks count them.

    >>> size_text(2_019_088_696), size_text(56_400_000)
    ('2.02 GB', '56.4 MB')
    """
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
