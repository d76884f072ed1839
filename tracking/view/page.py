"""The HTML file: template, style, program, and the data as JSON that no text in it can end or run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from html import escape
from pathlib import Path
from typing import Any, TypeVar

from agent.aside import aside
from agent.errors import UserError

T = TypeVar("T")
HERE = Path(__file__).parent
PROGRAM = ("page.js", "charts.js", "run.js", "groups.js", "episode.js", "others.js", "start.js")
"""Joined in this order into one script."""


def encoded(value: Any) -> bytes:
    """``value`` as JSON for a script element. Every ``<`` is escaped, so neither ``</script>`` nor ``<!--`` is in it.

    Half a surrogate pair, which UTF-8 can't hold, becomes a question mark.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").encode("utf-8", "replace")


def fitted(make: Callable[[int], T], most: int, room: float) -> tuple[T, int]:
    """``make(n)`` for ``most``, or for fewer if it is more than ``room`` bytes of JSON; and ``n``."""
    while (size := len(encoded(value := make(most)))) > room and most:
        most = min(most * 9 // 10, int(most * max(room, 0) / size))
    return value, most


class Page:
    """A page that is being written, an element of data at a time."""

    def __init__(self, file: Any, title: str) -> None:
        style = (HERE / "report.css").read_text(encoding="utf-8")
        self._program = "\n".join((HERE / name).read_text(encoding="utf-8") for name in PROGRAM)
        for text in (style, self._program):
            assert "</" not in text.replace("<\\/", ""), "an end tag in the program would end its element"
        policy = (
            f"default-src 'none'; script-src '{_hash(self._program)}'; style-src '{_hash(style)}'; "
            "base-uri 'none'; form-action 'none'"
        )
        head, self._foot = (HERE / "report.html").read_text(encoding="utf-8").split("<!-- data -->")
        for mark, text in (("{policy}", policy), ("{style}", style), ("{title}", escape(title))):
            head = head.replace(mark, text)
        self._file = file
        self.size = 0
        self._write(head.encode("utf-8", "replace"))  # a folder's name need not be UTF-8
        self.rest = len(self._program.encode()) + len(self._foot.encode())
        """Bytes that ``close`` will add."""

    def add(self, name: str, data: bytes) -> None:
        """An element of data with the id ``name``; ``data`` is of ``encoded``."""
        self._write(f'<script type="application/json" id="{escape(name)}">'.encode() + data + b"</script>\n")

    def close(self) -> None:
        self._write(self._foot.replace("{program}", self._program).encode())

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)


ELEMENT = 80
"""Bytes of the tags around an element of data, at most."""


@contextmanager
def page(path: Path, title: str) -> Iterator[Page]:
    """The page at ``path``, in a run's folder, which is there when it is whole. Raises ``UserError`` where the folder
    takes no file."""
    with ExitStack() as stack:
        try:
            made = stack.enter_context(aside(path)) / path.name
            file = stack.enter_context(made.open("wb"))
        except OSError as error:
            raise UserError(
                f"run={path.parent}: {path.name} can't be written there ({error.strerror}); mode=view view=terminal "
                "shows the run without writing to it, or copy the folder and name the copy"
            ) from error
        written = Page(file, title)
        yield written
        written.close()
        file.close()
        made.replace(path)


def _hash(text: str) -> str:
    """As a content security policy names an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
