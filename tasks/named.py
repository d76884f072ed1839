"""Questions by name: ``flashrag:SET/SPLIT`` is a file of FlashRAG's data sets on the hub, fetched once and kept.

``RUC-NLPIR/FlashRAG_datasets`` has ``hotpotqa/train``, ``musique/dev``, ``2wikimultihopqa/train``, ``nq/test``,
``triviaqa/test``, ``popqa/test``, ``bamboogle/test`` and others; ``conf/data`` names the usual ones.

What is fetched is said first. It goes on where an earlier attempt was interrupted, is compared with the hub's checksum,
and lies in the cache with a note beside it: from which commit, and its SHA-256, which every later run compares. A file
that was put there by hand is taken as it is, and noted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from agent.errors import UserError, refused, shortened
from tasks.config import DataConfig
from tasks.paths import files_of, is_named, listed

if TYPE_CHECKING:
    from huggingface_hub.file_download import HfFileMetadata

REPOSITORY = "RUC-NLPIR/FlashRAG_datasets"
_NAME = re.compile(r"flashrag:([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w-]*)")
_GIT = re.compile(r"[0-9a-f]{40}")
"""A commit; as a checksum, that of a file that git keeps itself."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
"""The checksum of a large file."""
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """What is kept beside a file."""

    sha256: str
    size: int
    """Bytes."""
    revision: str | None = None
    """That was asked for; None of a file that was put there by hand."""
    commit: str | None = None


def fetched(config: DataConfig, cache: Path, mode: str, say: Callable[[str], None]) -> DataConfig:
    """``config`` with paths in place of the names that ``mode`` reads; what isn't in ``cache`` is fetched.

    ``say`` is told of it before. Raises ``UserError`` for a name that isn't there, a file that isn't what was fetched,
    a disk that is too small, and where the hub can't be asked.
    """
    paths: dict[str, Any] = {}
    for key in _read(config, mode):
        value = getattr(config, key)
        files = files_of(value, f"data.{key}") if value else ()
        if any(map(is_named, files)):
            paths[key] = listed(
                [
                    str(_file(file, f"data.{key}={file}", config.revision, cache, say)) if is_named(file) else file
                    for file in files
                ]
            )
    return replace(config, **paths) if paths else config


def _read(config: DataConfig, mode: str) -> tuple[str, ...]:
    """The settings whose files ``mode`` reads (``tasks/sets.py``)."""
    if mode in ("ask", "index", "serve"):
        return ()
    if mode == "eval":
        return ("questions",) if config.eval_questions is None else ("eval_questions",)
    return ("questions", "eval_questions", "dev_questions")


def _file(name: str, given: str, revision: str, cache: Path, say: Callable[[str], None]) -> Path:
    """The file of a named split, whole and as it was when it came."""
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(f"{given}: a named set is written flashrag:SET/SPLIT, such as flashrag:hotpotqa/train")
    from huggingface_hub.utils import WeakFileLock

    path = cache / "questions" / "flashrag" / match[2] / f"{match[1]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path.with_suffix(".lock")):  # jobs that start together fetch it once
        note = _kept(path, given)
        # A branch moves: what it was when it was fetched stays, so that runs can be compared.
        if note is None or (note.revision is not None and revision not in (note.revision, note.commit)):
            _fetch(path, f"{match[1]}/{match[2]}.jsonl", given, revision, say)
    return path


def _note_of(path: Path) -> Path:
    return path.with_suffix(".source.json")


def _write_note(path: Path, note: Note) -> None:
    _note_of(path).write_text(json.dumps(asdict(note), indent=1) + "\n")


def _kept(path: Path, given: str) -> Note | None:
    """The note of a file that is here, and is what it was; None where there is none."""
    if not path.is_file():
        return None
    digest, size = _sha256(path), path.stat().st_size
    try:
        note = Note(**json.loads(_note_of(path).read_text()))
    except FileNotFoundError:
        note = Note(sha256=digest, size=size)
        _write_note(path, note)
    except (ValueError, TypeError) as error:
        raise UserError(f"{given}: {_note_of(path)} can't be read; delete it and {path.name}") from error
    if (note.sha256, note.size) != (digest, size):
        raise UserError(
            f"{given}: {path} is not what it was when it came (SHA-256); delete it, and it is fetched again"
        )
    return note


def _fetch(path: Path, file: str, given: str, revision: str, say: Callable[[str], None]) -> None:
    """Fetches ``file`` of the repository to ``path``, which appears when it is whole and right."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(REPOSITORY, file, repo_type="dataset", revision=revision)
    try:
        there = get_hf_file_metadata(url)
    except Exception as error:  # whatever its client and the network raise
        _not_there(error, given, file, revision, url, path)
    if there.size is None or not there.etag or not there.commit_hash:
        raise UserError(f"{given}: {url} comes without size, checksum or commit; is HF_ENDPOINT a hub?")
    part = path.parent / f".{path.name}.{there.etag[:16]}.part"
    have = part.stat().st_size if part.exists() else 0
    if have > there.size:
        part.unlink()
        have = 0
    _check_disk(path, there.size - have, given)
    already = f", of which {_megabytes(have)} are here already" if have else ""
    say(
        f"fetching {file} of {REPOSITORY} (revision {revision}, commit {there.commit_hash[:7]}): "
        f"{_megabytes(there.size)}{already}, to {path}"
    )
    try:
        _download(part, there)
    except Exception as error:
        _not_there(error, given, file, revision, url, path)
    if part.stat().st_size != there.size or _checksum(part, there.etag) != there.etag:
        part.unlink()
        raise UserError(f"{given}: {url} came damaged (its checksum is another); start again to fetch it anew")
    note = Note(sha256=_sha256(part), size=there.size, revision=revision, commit=there.commit_hash)
    path.unlink(missing_ok=True)  # of another revision; never beside a note that isn't its own
    _write_note(path, note)
    part.rename(path)
    for other in path.parent.glob(f".{path.name}.*.part"):  # of what a branch was before
        other.unlink()


def _download(part: Path, there: HfFileMetadata) -> None:
    """Appends what ``part`` lacks. A server that can't go on in the middle sends all of it again."""
    from urllib.parse import urlsplit

    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers()
    if urlsplit(there.location).netloc != urlsplit(constants.ENDPOINT).netloc:
        headers.pop("authorization", None)  # the token is for the hub alone
    with open(part, "ab") as file:
        http_get(there.location, file, resume_size=file.tell(), headers=headers, expected_size=there.size)


def _not_there(error: Exception, given: str, file: str, revision: str, url: str, path: Path) -> NoReturn:
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, EntryNotFoundError):
        raise UserError(f"{given}: {REPOSITORY} has no {file} at revision {revision}") from error
    if isinstance(error, RevisionNotFoundError | RepositoryNotFoundError):
        raise UserError(f"{given}: the hub has no revision {revision} of {REPOSITORY} (data.revision)") from error
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        raise UserError(f"{given}: can't be kept: {refused(error)}") from error
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else shortened(error, 120)
    raise UserError(
        f"{given}: is not here, and the hub can't be asked ({reason}); start again to go on, or get {url} "
        f"elsewhere and put it at {path}"
    ) from error


def _check_disk(path: Path, needed: int, given: str) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise UserError(
            f"{given}: needs {_megabytes(needed)} in {path.parent}, where {_megabytes(free)} are free; make room, or "
            "set cache_dir=FOLDER"
        )


def _checksum(path: Path, like: str) -> str:
    """The checksum of the kind that ``like`` is: SHA-256, or git's of a blob. Another kind can't be computed."""
    if _SHA256.fullmatch(like):
        return _sha256(path)
    if _GIT.fullmatch(like):
        return _digest(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False))
    return like


def _sha256(path: Path) -> str:
    return _digest(path, hashlib.sha256())


def _digest(path: Path, digest: Any) -> str:
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return str(digest.hexdigest())


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
