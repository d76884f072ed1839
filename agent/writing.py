"""Files that are written, with their names in what goes wrong: of a full disk, the system itself doesn't say which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Has each ``OSError`` of the body that names no file name ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Makes ``text``, as UTF-8, the content of the file ``path``. Raises ``OSError`` that names it."""
    with naming(path):
        path.write_text(text, encoding="utf-8")
