"""A connection with an end to what a client may leave open."""

from __future__ import annotations

import asyncio
import fcntl
import json
import sys
import termios
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from retrieval_service.server.config import ServeConfig
from retrieval_service.server.desk import RETRY_AFTER_S

MAX_HEAD = 64 << 10
"""Bytes of a request's line and headers; and of what follows a body's last byte, or stands between two of its bytes."""
BETWEEN = len(b": \r\n")
"""Bytes of a header beside its name and value."""
SLOWEST = 16_000
"""Bytes of its reply that a client has to read in a second, over ``read_timeout_s``."""
GONE = "slingshot.gone"
"""Set in the scope of a request whose client has gone, before its task is cancelled."""


class _TooLong(Exception):
    """Ends the parser's work on a head."""


class Connection(HttpToolsProtocol):
    """uvicorn's, which waits for ever for a request's head and reads one of any length.

    A head that isn't complete in ``read_timeout_s`` closes the connection, and one longer than ``MAX_HEAD`` or a
    connection too many is refused first. One whose client reads less than ``SLOWEST`` for so long is closed. The body's
    limits are the gate's; the headers that may follow it, and what stands between its chunks, have a head's. A request
    whose client goes away is cancelled, which makes the line shorter. A wish to go on in another protocol (curl's and
    Java's ``Upgrade: h2c``) is ignored, as RFC 9110, section 7.8, allows; uvicorn drops the body of such a request.
    """

    limits = ServeConfig()
    refused: Callable[[int], None]
    """Told the status of what is refused here, before the gate has seen it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._head = 0
        """Bytes that have come since the last head or part of a body."""
        self._running: Any = None
        if len(self.connections) > self.limits.max_connections:
            self._turn_away(
                "429 Too Many Requests", f"{self.limits.max_connections} connections are open", RETRY_AFTER_S
            )
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._late is None and self.cycle.response_complete:
            self._await_head()  # another request, on a connection that was kept
        self._head += len(data)  # of the next request too, while this one is answered
        self._feed(data)
        if self._head > MAX_HEAD and not self.transport.is_closing():
            self._turn_away("431 Request Header Fields Too Large", f"the head has more than {MAX_HEAD} bytes")

    def _feed(self, data: bytes) -> None:
        # uvicorn's own, but for the upgrade.
        self._unset_keepalive_if_required()
        left = memoryview(data)
        try:
            while left:
                try:
                    self.parser.feed_data(left)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    if not self._wants_upgrade():
                        return
                    left = left[upgrade.args[0] :]
                    self._begin_again()
        except httptools.HttpParserError:
            if self._head <= MAX_HEAD:
                self.send_400_response("Invalid HTTP request received.")

    def _wants_upgrade(self) -> bool:
        """Whether the parser is at a request that will come again without its upgrade."""
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _begin_again(self) -> None:
        """Gives a new parser the head that the parser has read, without the upgrade. The old one stops behind it."""
        start = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        lines = [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self.parser.feed_data(b"\r\n".join((start, *lines, b"", b"")))

    def on_headers_complete(self) -> None:
        if self._wants_upgrade():
            return
        self._head_came()
        # All of it may have come at once, and its body with it.
        self._head = len(self.url) + sum(len(name) + len(value) + BETWEEN for name, value in self.headers)
        if self._head > MAX_HEAD:
            raise _TooLong
        self._head = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._wants_upgrade():
            return
        super().on_message_complete()
        if self.cycle is self._running:
            # uvicorn stops reading where much of a body comes at once, until somebody asks for more of it: a client
            # that goes away meanwhile wouldn't be noticed.
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        self._was_read()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        self._was_read()
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            self._running.scope[GONE] = self._running.disconnected = True  # uvicorn's own: of the last one sent
            self._task.cancel()

    def send_400_response(self, msg: str) -> None:
        self.refused(400)
        super().send_400_response(msg)

    def cut(self) -> None:
        """Ends the connection with a 503 for the request that is being answered; half an answer stays half a one."""
        if self._running is None or self._running.response_complete:
            self.transport.close()
        elif self._running.response_started:
            self.transport.abort()
        else:
            self._refuse("503 Service Unavailable", "the server is ending", RETRY_AFTER_S)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        # uvicorn's own, but that the task is kept.
        self._running = cycle
        self._task = self.loop.create_task(cycle.run_asgi(app))
        self._task.add_done_callback(self.tasks.discard)
        self.tasks.add(self._task)

    def _await_head(self) -> None:
        self._head = 0
        self._late = self.loop.call_later(self.limits.read_timeout_s, self.transport.close)

    def _head_came(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _await_reading(self) -> None:
        self._unread = self.loop.call_later(self.limits.read_timeout_s, self._look_again, self._to_read())

    def _to_read(self) -> int:
        """Bytes of the reply that the client's system has not taken: also those that ours keeps, which are megabytes,
        and of which a third has to go before it asks for more."""
        socket = self.transport.get_extra_info("socket")
        queued = fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4))
        return self.transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    def _look_again(self, before: int) -> None:
        # Nothing is added meanwhile, and a rest of less than that, if it is read, ends the wait.
        if self._to_read() <= before - SLOWEST * self.limits.read_timeout_s:
            self._await_reading()
        else:
            self.transport.abort()

    def _was_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _turn_away(self, status: str, reason: str, retry_after_s: int | None = None) -> None:
        self.refused(int(status[:3]))
        self._refuse(status, reason, retry_after_s)

    def _refuse(self, status: str, reason: str, retry_after_s: int | None = None) -> None:
        body = json.dumps({"detail": reason}).encode()
        again = f"retry-after: {retry_after_s}\r\n" if retry_after_s is not None else ""
        head = (
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"{again}connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def connection(limits: ServeConfig, refused: Callable[[int], None]) -> type[Any]:
    """The class of connections with these limits, as uvicorn takes it; ``refused`` is told the status of refusals."""
    return type("LimitedConnection", (Connection,), {"limits": limits, "refused": staticmethod(refused)})
