"""Checksums of large files, kept: a file of the same size and times isn't read again.

A stamp is taken for what it says as long as the file's size, modification time, change time and inode are those that
were noted. A file that was written to within the last seconds before it was read gets none, since a further change
could leave no trace in its times (git calls such entries racy).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.errors import UserError, refused
from agent.readable import json_of
from retrieval_service.whole import written

FORMAT = 1
SETTLED_S = 2.0
"""Seconds since the last change after which another one shows in a file's times, on any usual file system."""
LARGE = 500_000_000
"""Bytes that take some seconds to read."""
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """What a file was when it was read as a whole."""

    format: int
    path: str
    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    checksum: str
    """128-bit BLAKE2b of its bytes, as 32 hexadecimal digits."""
    lines: int
    """Newlines in the file as it is: of one that is compressed no number of lines."""

    def holds(self, now: os.stat_result) -> bool:
        """Whether a file of these properties is the one that was read."""
        return (self.size, self.modified_ns, self.changed_ns, self.inode) == _properties(now)


def stamp_of(path: Path, cache: Path, say: Callable[[str], None] = lambda text: None) -> Stamp:
    """The stamp of ``path``: from the folder ``cache / "stamps"`` if it still holds, else the file is read.

    ``say`` is told of a reading that takes long, and why it is needed. Raises ``OSError`` if the file can't be read,
    and ``UserError`` if it changes meanwhile, or its stamp can't be kept.
    """
    path = Path(os.path.realpath(path))  # of links in a circle ``resolve`` raises a RuntimeError
    file = cache / "stamps" / f"{hashlib.blake2b(bytes(path), digest_size=16).hexdigest()}.json"
    before = path.stat()
    kept = _kept(file)
    if kept is not None and kept.holds(before):
        return kept
    if before.st_size >= LARGE:
        why = "it is new here" if kept is None else "it has changed since"
        say(f"reading {path} for its checksum, {before.st_size / 1e9:.1f} GB, once: {why}")
    now = time.time_ns()
    checksum, lines = _read(path)
    if _properties(path.stat()) != _properties(before):
        raise UserError(f"{path}: changed while it was being read; start again when it is complete")
    size, modified, changed, inode = _properties(before)
    stamp = Stamp(
        format=FORMAT,
        path=str(path),
        size=size,
        modified_ns=modified,
        changed_ns=changed,
        inode=inode,
        checksum=checksum,
        lines=lines,
    )
    if now - changed > SETTLED_S * 1e9:  # whatever it may say of its modification, which anyone can set
        _write(file, stamp)
    return stamp


def _properties(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _read(path: Path) -> tuple[str, int]:
    digest, lines = hashlib.blake2b(digest_size=16), 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            lines += block.count(b"\n")
    return digest.hexdigest(), lines


def _kept(file: Path) -> Stamp | None:
    """None where there is none, or one that can't be used: it is only made again."""
    try:
        stamp = Stamp(**json_of(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return stamp if stamp.format == FORMAT else None


def _write(file: Path, stamp: Stamp) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with written(file) as out:
            out.write(f"{json.dumps(asdict(stamp), indent=1)}\n".encode())
    except OSError as error:
        raise UserError(
            f"{file.parent}: a checksum can't be kept there ({refused(error)}); fix that, or set cache_dir=FOLDER"
        ) from error
