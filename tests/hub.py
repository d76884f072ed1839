"""A server on this machine in the place of the hub and of other hosts of files: whole, broken off, damaged, silent."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_ON_HUB = re.compile(r"/datasets/([\w-]+/[\w-]+)/resolve/([^/]+)/(.+)")


@dataclass
class Hub:
    """Files by ``OWNER/REPOSITORY/FILE``, as the hub's ``/resolve`` serves them; others by their path, plainly."""

    files: dict[str, bytes]
    etags: dict[str, str] = field(default_factory=dict)
    """Of files whose ETag isn't their SHA-256."""
    commit: str = COMMIT
    branches: tuple[str, ...] = ("main", "v2")
    breaks_after: int | None = None
    """Bytes that the next answer has; those after it are refused, unless it ``mends``."""
    mends: bool = False
    ranges: bool = True
    """Whether it can begin in the middle."""
    lengths: bool = True
    """Whether it says how long an answer is: else its end is the connection's."""
    instead: tuple[str, bytes] | None = None
    """Type and body of what is sent in place of every file, as a proxy does."""
    retry_after: str | None = None
    """What a refusal says of it."""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and range of each request."""
    url: str = ""

    def got(self) -> list[str | None]:
        """The ranges of what was fetched."""
        return [range for method, _, range in self.asked if method == "GET"]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """``hub`` behind its ``url`` while the body runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            if self.path.startswith("/api/"):  # what the hub's client asks for itself
                self.refuse(404, "")
                return
            hub.asked.append((self.command, self.path, self.headers["Range"]))
            match = _ON_HUB.fullmatch(self.path)
            name = f"{match[1]}/{match[3]}" if match else self.path.removeprefix("/")
            if name not in hub.files:
                self.refuse(404, "EntryNotFound")
            elif match and match[2] not in (*hub.branches, hub.commit):
                self.refuse(404, "RevisionNotFound")
            elif self.command == "GET" and hub.breaks_after == 0:
                self.refuse(500, "")
            else:
                self.send(name)

        def send(self, name: str) -> None:
            asked = self.headers["Range"] if hub.ranges else None
            start = int((asked or "bytes=0-").removeprefix("bytes=").split("-")[0])
            body = hub.files[name][start:]
            if hub.instead and self.command == "GET":
                start, body = 0, hub.instead[1]
            self.send_response(206 if start else 200)
            if start:
                whole = len(hub.files[name])
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            self.send_header("Content-Type", hub.instead[0] if hub.instead else "text/plain")
            self.send_header("X-Repo-Commit", hub.commit)
            self.send_header("ETag", f'"{hub.etags.get(name, hashlib.sha256(hub.files[name]).hexdigest())}"')
            if hub.lengths or self.command == "HEAD":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: hub.breaks_after])
                if hub.breaks_after is not None:
                    hub.breaks_after = None if hub.mends else 0
                    self.close_connection = True

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            if hub.retry_after is not None:
                self.send_header("Retry-After", hub.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
