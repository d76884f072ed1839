"""The gate before all routes: who may enter, the body of a request, whole and of bounded size, and how much memory all
bodies and replies may take together; and the count of what is answered."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from retrieval_service.server.config import ServeConfig
from retrieval_service.server.connection import GONE
from retrieval_service.server.desk import RETRY_AFTER_S, Refused
from retrieval_service.server.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Hold = Callable[[int], None]
"""Takes so many bytes of what all requests may hold; raises ``Refused`` where they aren't left."""

OPEN = frozenset({"/docs", "/openapi.json"})
"""Paths that need no token: they say what the program is, and nothing of the index."""
LOOKED_AT = (b"host", b"origin", b"authorization", b"content-encoding")
"""Headers that say whether a request may enter."""
LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){1,3}|::1|\[::1\]", re.IGNORECASE)
SWALLOWED = 64 << 20
"""Bytes of a body too long that are still read, and dropped, so that the client gets to see why."""


class Counted:
    """An ASGI application around ``app`` that counts every request and how long it took."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", None)
            self._metrics.answered(route, status, time.perf_counter() - began)


class Gate:
    """An ASGI application around ``app``, which gets every body in one piece.

    At a loopback address without a token, a request must name one in its ``Host``, and in its ``Origin`` if it has one:
    a page in a browser on this machine could else search, also through a name of its own that leads here.
    """

    def __init__(self, app: App, config: ServeConfig, token: str | None) -> None:
        self._app = app
        self._config = config
        self._token = token.encode() if token is not None else None
        self._local = token is None and is_loopback(config.host)
        self._held = 0
        """Bytes of the bodies and replies that are held now."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held = 0
        start: Message | None = None

        def hold(size: int) -> None:
            nonlocal held
            self._check_room(size)
            held += size
            self._held += size

        async def watched(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message  # it waits until there is room for what follows
                return
            if start is not None:
                try:
                    hold(len(message.get("body", b"")))
                except Refused as refused:
                    start, message = _said(refused)
                await send(start)
                start = None
            await send({**message, "more_body": True})
            if not message.get("more_body", False):
                await send({"type": "http.response.body"})  # which waits until the client has read what was sent

        try:
            await self._enter(scope, receive, watched, hold)
        except asyncio.CancelledError:
            if not scope.get(GONE):
                raise
        finally:
            self._held -= held

    def _check_room(self, size: int) -> None:
        """Refuses what takes ``size`` bytes, where that is more than all requests together may take."""
        most = self._config.max_held_mib << 20
        if size > most:
            raise Refused(422, f"a reply of {size} bytes, and at most {most} may be held; ask for fewer passages")
        if self._held + size > most:
            raise Refused(429, f"requests and replies hold {self._held} bytes already; ask again in {RETRY_AFTER_S} s")

    async def _enter(self, scope: Scope, receive: Receive, send: Send, hold: Hold) -> None:
        try:
            body = await self._body(receive, hold, self._refusal(scope))
        except Refused as refused:
            for message in _said(refused):
                await send(message)
            return
        if body is None:
            return  # the client has gone
        given = False

        async def replay() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        if scope["method"] != "HEAD":
            await self._app(scope, replay, send)
            return
        # The answer to GET, of which uvicorn sends the head alone: FastAPI's routes know no HEAD by themselves.
        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, replay, send)
        finally:
            scope["route"] = inner.get("route")

    def _refusal(self, scope: Scope) -> Refused | None:
        """What is wrong with a request whatever its body is."""
        given: dict[bytes, list[bytes]] = {name: [] for name in LOOKED_AT}
        for name, value in scope["headers"]:
            if name in LOOKED_AT:
                given[name].append(value)
        if self._local:
            host = next(iter(given[b"host"]), b"").decode("latin-1")
            if not is_loopback(_name(host)):
                return Refused(403, "this server answers requests to localhost or 127.0.0.1 alone; set a token")
            for origin in (value.decode("latin-1") for value in given[b"origin"]):
                if origin not in self._config.cors and not is_loopback(_name(origin.rpartition("//")[2])):
                    return Refused(
                        403,
                        "this server answers no pages but those of localhost, 127.0.0.1 and serve.cors; set a token",
                    )
        if self._token is not None and scope["path"] not in OPEN:
            scheme, _, token = next(iter(given[b"authorization"]), b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(token, self._token):
                return Refused(401, "a token is needed: Authorization: Bearer TOKEN")
        for coding in given[b"content-encoding"]:
            if coding.lower() not in (b"", b"identity"):
                return Refused(415, "a body that is compressed; send it as it is, without Content-Encoding")
        return None

    async def _body(self, receive: Receive, hold: Hold, refused: Refused | None) -> bytes | None:
        """The whole body; None if the client went away meanwhile.

        Where the request is ``refused`` it is read, too: a connection that is closed on what is unread is reset, and
        the client doesn't get to see why.
        """
        limit = self._config.max_body_kib << 10
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self._config.read_timeout_s):
                while more and size <= SWALLOWED:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part: bytes = message.get("body", b"")
                    size += len(part)
                    more = message.get("more_body", False)
                    if refused is None and size > limit:
                        refused = Refused(413, f"a body of more than {limit} bytes")
                    elif refused is None:
                        try:
                            hold(len(part))
                        except Refused as full:
                            refused = full
                    if refused is None:
                        parts.append(part)
                    else:
                        parts.clear()
        except TimeoutError:
            late = Refused(408, f"the body was not there after {self._config.read_timeout_s:g} s")
            raise refused or late from None
        if refused is not None:
            raise refused
        return b"".join(parts)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    return LOOPBACK.fullmatch(host) is not None


def _name(host: str) -> str:
    """A ``Host`` header less its port."""
    return host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host


def _said(refused: Refused) -> tuple[Message, Message]:
    """A refusal as an answer."""
    body = json.dumps({"detail": refused.reason}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        # What is left of the body may still come.
        (b"connection", b"close"),
    ]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.status == 429:
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    start = {"type": "http.response.start", "status": refused.status, "headers": headers}
    return start, {"type": "http.response.body", "body": body}
