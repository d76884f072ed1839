"""The server as a process: from a backend and a port to the Ctrl-C that ends it."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from agent.errors import UserError, refused
from retrieval_service.backend import Backend, Identity
from retrieval_service.config import RetrievalConfig
from retrieval_service.server.app import make_app
from retrieval_service.server.config import ServeConfig
from retrieval_service.server.connection import connection
from retrieval_service.service import RetrievalService

KEEP_S = 60
"""Longest that a connection without a request stays open. After uvicorn's 5 s, a server or a client that a busy machine
stalls for that long closes a connection on which the next request is under way."""
GRACE_S = 10
"""Longest that requests under way are waited for at the end."""


class Server(uvicorn.Server):
    """uvicorn's, which ends by Ctrl-C or SIGTERM as it should, without raising the signal once more."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(number: int, frame: FrameType | None) -> None:
            self.should_exit = True

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(config: ServeConfig) -> socket.socket:
    """A socket at the address of ``config``, listening. Raises ``UserError`` if it can't be had."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=2 * config.max_connections)
    except OSError as error:
        raise UserError(
            f"serve.host={config.host} serve.port={config.port}: can't listen there ({refused(error)}); serve.port=0 "
            "takes a free port"
        ) from error


def address(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve_on(
    listener: socket.socket,
    open_backend: Callable[[], Backend],
    retrieval: RetrievalConfig,
    config: ServeConfig,
    token: str | None,
    ready: Callable[[Server, Identity], None],
    stuck: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Opens the backend, serves on ``listener``, and closes both when the server given to ``ready`` ends.

    ``stuck`` is told of a backend that never comes back. Raises what opening the backend raised.
    """
    service = RetrievalService(open_backend, retrieval, stuck)
    try:
        await service.start()
        app = make_app(service, service.identity, config, token)
        server = Server(
            uvicorn.Config(
                app,
                http=connection(config),
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_S,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        ready(server, service.identity)
        await server.serve(sockets=[listener])
    finally:
        listener.close()
        await service.close()


def serve(
    open_backend: Callable[[], Backend],
    retrieval: RetrievalConfig,
    config: ServeConfig,
    token: str | None,
    ready: Callable[[str, Identity], None],
) -> None:
    """``serve_on`` the address of ``config``, until Ctrl-C; ``ready`` is told the URL when the index is open."""
    listener = listen(config)
    url = address(listener)
    with asyncio.Runner(loop_factory=uvicorn.Config(app=None, loop="auto").get_loop_factory()) as runner:  # type: ignore[arg-type]
        runner.run(
            serve_on(listener, open_backend, retrieval, config, token, lambda _, identity: ready(url, identity), _end)
        )


def _end(seconds: float) -> None:
    """A thread that hangs can't be ended, but its process can: whoever keeps it running starts another."""
    faulthandler.dump_traceback(file=2)
    os.write(2, f"slingshot: fault: a search has not come back for {seconds:g} s\n".encode())
    os._exit(1)
