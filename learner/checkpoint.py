"""Checkpoints that are whole or not there: written aside, listed with checksums, synced, renamed."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.errors import Fault, UserError
from agent.lock import lock
from learner import manifest
from learner.manifest import Files, Manifest

BEST = "best"
"""Beside the checkpoints: a link to the one with the best evaluation."""
_ASIDE = ".tmp-"
_REPLACED = f"{_ASIDE}replaced-"
"""A checkpoint whose name another of the same step is about to get."""
_NAME = re.compile(r"step-(\d{6,})$")
_NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)
"""What file systems say (CIFS, some FUSE) that sync files and no folders."""


class Writing:
    """A checkpoint that is being written: ``root/step-000100``, for step 100.

    Its ``folder`` is to be filled, by one thread or by several; ``finish`` gives it its name once all is synced to the
    disk, so that a reader never sees half of it. Until then, or ``discard``, no other process may write to ``root``: if
    one does, making this raises ``Fault``.
    """

    def __init__(self, root: Path, step: int) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root, self._step = root, step
        self._final = place(root, step)
        self._lock = ExitStack()
        self._lock.enter_context(_alone(root))
        self.folder = root / f"{_ASIDE}{self._final.name}"
        try:
            _put_back(root)
            for leftover in root.glob(f"{_ASIDE}*"):  # of a writer that was killed
                _discard(leftover)
            self.folder.mkdir()
        except BaseException:
            self._lock.close()
            raise

    def finish(self, files: Files, *, keep: int = 0, spare: Collection[Path] = ()) -> Path:
        """Names the checkpoint, whose writers list ``files`` (``learner/manifest.py``), and returns it.

        One of the same step is replaced. With ``keep`` above 0 only that many remain, those written last, and ``spare``
        and the best one. Raises ``Fault`` if the files aren't as listed.
        """
        root = self._root
        manifest.write(self.folder, Manifest(step=self._step, number=_next_number(root), files=files))
        for path in (*self.folder.rglob("*"), self.folder):
            _sync(path)
        replaced = root / f"{_REPLACED}{self._final.name}"
        if self._final.exists():  # a kill before the next line leaves it to ``_put_back``
            self._final.rename(replaced)
        self.folder.rename(self._final)
        _sync(root)
        # It is written: what can't be taken away now is left to the next one.
        _discard(replaced)
        if keep > 0:
            _prune(root, keep, {path.resolve() for path in (*spare, root / BEST)})
        self._lock.close()
        return self._final

    def discard(self) -> None:
        """Takes away what there is: a full disk needs the room."""
        _discard(self.folder)
        _put_back(self._root)
        self._lock.close()


def place(root: Path, step: int) -> Path:
    """The folder of the checkpoint of ``step`` under ``root``."""
    return root / f"step-{step:06d}"


def checkpoints(root: Path) -> list[Path]:
    """The checkpoints under ``root`` in the order in which they were written.

    Not in that of their steps: a run that went back to an earlier one has left later ones behind. One whose manifest
    can't be read counts as the newest. One that a kill left without its name is none of them before it is ``put_back``.
    """
    found = [(int(match[1]), path) for path in root.glob("step-*") if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found, key=lambda pair: (_number(pair[1]), pair[0]))]


def latest(root: Path) -> Path | None:
    """The checkpoint under ``root`` that was written last, not verified; None when there is none."""
    found = checkpoints(root)
    return found[-1] if found else None


def latest_sound(root: Path, check: Callable[[Path], Any]) -> tuple[Path | None, list[str]]:
    """The checkpoint under ``root`` that was written last and that ``check`` lets pass, and what it said of others.

    Of those before a refused one only earlier steps are looked at: later steps belong to what the run went back behind.
    One whose manifest can't be read says nothing of that, since nobody knows when it was written.
    """
    refused: list[str] = []
    before = math.inf
    for path in reversed(checkpoints(root)):
        step = int(path.name.removeprefix("step-"))
        if step >= before:
            continue
        try:
            check(path)
            return path, refused
        except UserError as error:
            refused.append(str(error))
            if _number(path) < math.inf:
                before = step
    return None, refused


def put_back(root: Path) -> None:
    """Gives a checkpoint under ``root`` its name again whose writer was killed while another was to get it.

    For whoever goes on to look for a checkpoint, and may write there; it is done only while nobody else writes.
    """
    with suppress(Fault, OSError):
        if any(root.glob(f"{_REPLACED}*")):
            with _alone(root):
                _put_back(root)


def go_back_to(path: Path) -> None:
    """Lets the checkpoint ``path`` be the one that was written last of those beside it, as a run goes on from it.

    Else a run that is killed before its next checkpoint would be resumed from what it had gone back behind. Raises
    ``Fault`` if another process writes checkpoints there, and ``UserError`` if the manifest can't be read.
    """
    root = path.parent
    with _alone(root):
        readable = [beside for beside in checkpoints(root) if _number(beside) < math.inf]
        if readable and readable[-1].name == path.name:
            return
        aside = root / f"{_ASIDE}{manifest.MANIFEST}"
        manifest.put(aside, replace(manifest.read(path), number=_next_number(root)))
        _sync(aside)
        aside.replace(path / manifest.MANIFEST)
        _sync(path)


def verify(path: Path) -> int:
    """Checks a checkpoint's files against its manifest, a model among them, and returns the step.

    Raises ``UserError`` naming the first file that is missing or damaged.
    """
    return manifest.check(path).step


def set_best(path: Path, root: Path | None = None) -> None:
    """Lets the link ``best`` beside the checkpoint ``path``, or in another folder of checkpoints, lead to it."""
    beside = path.parent if root is None else root
    beside.mkdir(parents=True, exist_ok=True)
    aside = beside / f"{_ASIDE}{BEST}"
    aside.unlink(missing_ok=True)
    # A folder of checkpoints may be moved.
    aside.symlink_to(path.name if path.parent.resolve() == beside.resolve() else path.absolute())
    aside.replace(beside / BEST)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """``torch.save`` of tensors, numbers, strings, lists and dicts: what ``load_state`` may read."""
    import torch

    torch.save(dict(state), path)


def load_state(path: Path) -> dict[str, Any]:
    """Reads a file of ``save_state`` onto the CPU, executing nothing from it.

    Raises ``UserError`` when the file is missing or can't be read.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except (PermissionError, IsADirectoryError) as error:  # another one may be damage: a place before the file
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    except Exception as error:  # of a dozen kinds, as the file is damaged
        raise UserError(f"{path} is damaged or holds more than tensors and numbers") from error


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keeps other writers out of ``root``."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        try:
            lock(descriptor)
        except BlockingIOError as error:
            raise Fault(f"{root}: another process is writing checkpoints there") from error
        yield
    finally:
        os.close(descriptor)


def _number(path: Path) -> float:
    try:
        return manifest.read(path).number
    except UserError:
        return math.inf


def _next_number(root: Path) -> int:
    """Of a checkpoint that is to count as written after all others under ``root``."""
    return 1 + max((int(n) for path in checkpoints(root) if (n := _number(path)) < math.inf), default=0)


def _prune(root: Path, keep: int, spare: Collection[Path]) -> None:
    """Takes old checkpoints away; what can't be read is left for its user to look at."""
    readable = [path for path in checkpoints(root) if _number(path) < math.inf]
    for old in readable[:-keep]:
        if old.resolve() not in spare:
            with suppress(OSError):
                _discard(_aside(old))


def _sync(path: Path) -> None:
    """Raises ``OSError`` that names the path: the system itself doesn't say."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_SYNC):
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _put_back(root: Path) -> None:
    """See ``put_back``; by who keeps others out. Where the new one has its name, the old one is a leftover."""
    for replaced in root.glob(f"{_REPLACED}*"):
        named = root / replaced.name.removeprefix(_REPLACED)
        if not named.exists():
            replaced.rename(named)


def _aside(path: Path) -> Path:
    """Takes a checkpoint's name away, so that it, too, is whole or not there, and returns where it is now."""
    aside = path.with_name(f"{_ASIDE}removed-{path.name}")
    path.rename(aside)
    return aside
