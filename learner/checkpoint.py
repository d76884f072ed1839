"""Checkpoints that are whole or not there: written aside, checksummed, synced, renamed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from agent.errors import UserError

MANIFEST = "manifest.json"
_ASIDE = ".tmp-"
_NAME = re.compile(r"step-(\d{6,})$")


def write_checkpoint(
    root: Path, step: int, write: Callable[[Path], None], *, keep: int = 0, spare: Path | None = None
) -> Path:
    """Writes ``root/step-000100`` (for step 100) and returns it.

    ``write`` is called with a folder and fills it. The manifest then lists every file with its size
    and BLAKE2b checksum; all is synced to the disk before the folder gets its name, so a reader
    never sees half of it. A checkpoint of the same step is replaced. With ``keep`` above 0 only the
    newest that many remain, and ``spare``. One writer per ``root``.
    """
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(f"{_ASIDE}*"):  # of a writer that was killed
        shutil.rmtree(leftover)
    final = root / f"step-{step:06d}"
    aside = root / f"{_ASIDE}{final.name}"
    aside.mkdir()
    write(aside)
    files = sorted(path for path in aside.rglob("*") if path.is_file())
    listed = {
        path.relative_to(aside).as_posix(): {"bytes": path.stat().st_size, "blake2b": _checksum(path)} for path in files
    }
    manifest = aside / MANIFEST
    manifest.write_text(json.dumps({"step": step, "files": listed}, indent=1) + "\n")
    for path in (*files, manifest, *(p for p in aside.rglob("*") if p.is_dir()), aside):
        _sync(path)
    if final.exists():
        _remove(final)
    aside.rename(final)
    _sync(root)
    if keep > 0:
        for old in checkpoints(root)[:-keep]:
            if spare is None or old.resolve() != spare.resolve():
                _remove(old)
    return final


def checkpoints(root: Path) -> list[Path]:
    """The checkpoints under ``root``, oldest step first."""
    found = [(int(match[1]), path) for path in root.glob("step-*") if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found)]


def latest(root: Path) -> Path | None:
    """The checkpoint of the highest step under ``root``, not verified; None when there is none."""
    found = checkpoints(root)
    return found[-1] if found else None


def verify(path: Path) -> int:
    """Checks every file of a checkpoint against its manifest and returns the step.

    Raises ``UserError`` naming the first file that is missing or damaged.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise UserError(f"checkpoint {path}: {MANIFEST} is missing; is this a checkpoint's folder?")
    try:
        content = json.loads(manifest.read_text())
        step = int(content["step"])
        files = {name: (int(f["bytes"]), str(f["blake2b"])) for name, f in dict(content["files"]).items()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {path}: {MANIFEST} is damaged; resume from another checkpoint") from error
    for name, (size, checksum) in files.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"checkpoint {path}: {name} is missing; resume from another checkpoint")
        if file.stat().st_size != size or _checksum(file) != checksum:
            raise UserError(f"checkpoint {path}: {name} is damaged; resume from another checkpoint")
    return step


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """``torch.save`` of tensors, numbers, strings, lists and dicts: what ``load_state`` may read."""
    torch.save(dict(state), path)


def load_state(path: Path) -> dict[str, Any]:
    """Reads a file of ``save_state`` onto the CPU, executing nothing from it.

    Raises ``UserError`` when the file is missing or can't be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is damaged or holds more than tensors and numbers") from error


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Takes a checkpoint away by rename first, so that it too is whole or not there."""
    aside = path.with_name(f"{_ASIDE}removed-{path.name}")
    path.rename(aside)
    shutil.rmtree(aside)
