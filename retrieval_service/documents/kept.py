"""What was read of documents that take long to read: kept, so that a reading that was interrupted, or one after another
file has changed, doesn't read them anew."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from agent.errors import UserError, refused
from agent.readable import json_of
from retrieval_service.documents.chunks import Paragraph
from retrieval_service.documents.readers import Document
from retrieval_service.whole import written

FORMAT = 1
"""Raise it when the same file would be read as another document than before."""
SLOW = {".pdf": "pypdf"}
"""Ends of such documents' names, and the package that reads them."""


def properties(file: Path) -> list[Any] | None:
    """What makes a document another one to its reader: its size, its times, and the reader. None of one that is read
    quickly. Raises ``OSError``."""
    package = SLOW.get(file.suffix.lower())
    if package is None:
        return None
    stat = file.stat()
    try:
        return [FORMAT, package, version(package), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    except PackageNotFoundError:
        return None


def kept(file: Path, now: list[Any], cache: Path) -> Document | None:
    """What was read of ``file`` when its properties were those of ``now``; None where nothing is kept of that."""
    try:
        told = json_of(_place(file, cache).read_bytes())
        if told["of"] != now:
            return None
        paragraphs = [Paragraph(text=str(text), heading=bool(heading)) for text, heading in told["paragraphs"]]
        return Document(title=str(told["title"]), guessed=str(told["guessed"]), paragraphs=paragraphs)
    except (OSError, ValueError, LookupError, TypeError):  # it is only read again
        return None


def keep(file: Path, now: list[Any], document: Document, cache: Path) -> None:
    """Keeps what was read of ``file``, in place of what was kept of an earlier one. Raises ``UserError`` if that can't
    be written."""
    place = _place(file, cache)
    paragraphs = [[each.text, each.heading] for each in document.paragraphs]
    told = {"of": now, "title": document.title, "guessed": document.guessed, "paragraphs": paragraphs}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with written(place) as out:
            out.write(json.dumps(told).encode())  # in ASCII: a PDF may give halves of surrogate pairs
    except OSError as error:
        raise UserError(
            f"{place.parent}: what was read of {file.name} can't be kept there ({refused(error)}); make room, or set "
            "cache_dir=FOLDER"
        ) from error


def _place(file: Path, cache: Path) -> Path:
    digest = hashlib.blake2b(os.fsencode(os.path.realpath(file)), digest_size=16).hexdigest()
    return cache / "documents" / digest[:2] / f"{digest}.json"
