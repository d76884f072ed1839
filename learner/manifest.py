"""The list of a checkpoint's files, with the sizes and checksums that their writers give.

No torch here: the pool's process lists its own files, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.errors import Fault, UserError
from agent.readable import WRONG, json_of

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """What a file held when it was written."""

    bytes: int
    blake2b: str


Files = dict[str, File]
"""By their names within the checkpoint, ``training/pool.json``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a checkpoint's folder has to hold."""

    step: int
    number: int
    """Of the checkpoints written into the same folder, in the order of time, from 1. 0 in an earlier version's.

    One that a run has gone back to counts as written then."""
    files: Files


def names(folder: Path) -> set[str]:
    """All files in ``folder``, as a manifest names them."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def listed(folder: Path, *, without: Collection[str] = ()) -> Files:
    """The files in ``folder`` but for those ``without``: what its caller has written there."""
    return {name: _listed(folder / name) for name in sorted(names(folder) - set(without))}


def one(folder: Path, name: str) -> Files:
    """The file ``name`` in ``folder``."""
    return {name: _listed(folder / name)}


def write(folder: Path, manifest: Manifest) -> Path:
    """Writes the manifest of a ``folder`` and returns its path.

    Raises ``Fault`` if the files there aren't those that the writers listed.
    """
    there = names(folder)
    if strange := sorted(there ^ manifest.files.keys()):
        what = "was listed by no writer" if strange[0] in there else "is gone again"
        raise Fault(f"checkpoint of step {manifest.step}: {strange[0]} {what}")
    for name, file in manifest.files.items():
        if (size := (folder / name).stat().st_size) != file.bytes:
            raise Fault(f"checkpoint of step {manifest.step}: {name} has {size} bytes, and {file.bytes} were written")
    path = folder / MANIFEST
    put(path, manifest)
    return path


def put(path: Path, manifest: Manifest) -> None:
    """Writes ``manifest`` into the file ``path``."""
    path.write_text(json.dumps(asdict(manifest), indent=1) + "\n")


def read(path: Path) -> Manifest:
    """The manifest of the checkpoint ``path``. Raises ``UserError`` if it is missing or damaged."""
    file = path / MANIFEST
    try:
        if not file.is_file():
            raise UserError(f"checkpoint {path}: {MANIFEST} is missing; is this a checkpoint's folder?")
        content: Mapping[str, Any] = json_of(file.read_text())
        files = {name: File(bytes=int(f["bytes"]), blake2b=str(f["blake2b"])) for name, f in content["files"].items()}
        return Manifest(step=int(content["step"]), number=int(content.get("number", 0)), files=files)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"checkpoint {path}: {MANIFEST} can't be read ({error.strerror})") from error
    except WRONG as error:
        raise UserError(f"checkpoint {path}: {MANIFEST} is damaged; resume from another checkpoint") from error


def check(path: Path) -> Manifest:
    """Checks that a checkpoint holds a model, and every file of it against its manifest, which it returns.

    Raises ``UserError`` naming the first file that is missing or damaged.
    """
    manifest = read(path)
    if "config.json" not in manifest.files or not any(name.endswith(".safetensors") for name in manifest.files):
        raise UserError(f"checkpoint {path}: it holds no model; resume from another checkpoint")
    for name, wanted in manifest.files.items():
        file = path / name
        try:
            if not file.is_file():
                raise UserError(f"checkpoint {path}: {name} is missing; resume from another checkpoint")
            damaged = file.stat().st_size != wanted.bytes or _listed(file) != wanted
        except OSError as error:
            raise UserError(f"checkpoint {path}: {name} can't be read ({error.strerror})") from error
        if damaged:
            raise UserError(f"checkpoint {path}: {name} is damaged; resume from another checkpoint")
    return manifest


def _listed(path: Path) -> File:
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "blake2b").hexdigest()
        return File(bytes=file.tell(), blake2b=checksum)
