"""The server as a process: from a backend and a port to the Ctrl-C that ends it."""

from __future__ import annotations

import asyncio
import errno
import faulthandler
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from agent.collector import settle
from agent.errors import Stopped, UserError, refused
from retrieval_service.backend import Backend, Identity
from retrieval_service.config import RetrievalConfig
from retrieval_service.server.app import make_app
from retrieval_service.server.config import ServeConfig
from retrieval_service.server.connection import Connection, connection
from retrieval_service.service import RetrievalService

KEEP_S = 75
"""Longest that a connection without a request stays open. After uvicorn's 5 s, a server or a client that a busy machine
stalls for that long closes a connection on which the next request is under way. Balancers (nginx, AWS's) keep theirs
for 60 s and have to be the first to close: they send no POST a second time."""
GRACE_S = 10
"""Longest that requests under way are waited for at the end."""
CUT_S = 1
"""Longest that the tasks of connections that were cut, and then the backend, are waited for. Nobody is there any more
whom they have something to say."""


class Server(uvicorn.Server):
    """uvicorn's, which ends by Ctrl-C or SIGTERM as it should, without raising the signal once more.

    Requests under way are waited for, for ``GRACE_S`` or until a second signal; then they are answered with 503.
    """

    again: int | None = None
    """The second signal, which ends the server at once."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(number: int, frame: FrameType | None) -> None:
            if self.should_exit:
                self.again = number
            self.should_exit = True

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def _wait_tasks_to_complete(self) -> None:
        # uvicorn's own cancels what is left, which is answered with 500 and a traceback.
        state, loop = self.server_state, asyncio.get_running_loop()
        end = loop.time() + GRACE_S
        while (state.connections or state.tasks) and self.again is None and loop.time() < end:
            await asyncio.sleep(0.1)
        for each in [*state.connections]:
            assert isinstance(each, Connection)
            each.cut()
        if state.tasks:
            await asyncio.wait([*state.tasks], timeout=CUT_S)


def bind(config: ServeConfig) -> socket.socket:
    """A socket with the address of ``config``, which refuses whoever comes until it listens. Raises ``UserError`` if it
    can't be had."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise _not_there(config, error) from error
    return listener


def _not_there(config: ServeConfig, error: OSError) -> UserError:
    mend = "serve.host is an address or a name of this machine, such as 127.0.0.1, localhost or 0.0.0.0"
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
        mend = "serve.port=0 takes a free port"
    return UserError(
        f"serve.host={config.host} serve.port={config.port}: can't listen there ({refused(error)}); {mend}"
    )


def address(listener: socket.socket) -> str:
    """The URL of a socket that ``bind`` gave."""
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
) -> int | None:
    """Opens the backend, serves on ``listener``, and closes both when the server given to ``ready`` ends. Gives the
    signal that ended it at once, where a second one came.

    ``stuck`` is told of a backend that never comes back. Raises what opening the backend raised, and ``UserError`` if
    another program listens at the address by then.
    """
    server: Server | None = None

    def stuck_now(seconds: float) -> None:
        if server is None or not server.should_exit:  # at the end nobody waits for it
            stuck(seconds)

    service = RetrievalService(open_backend, retrieval, stuck_now)
    try:
        await service.start()
        app, metrics = make_app(service, service.identity, config, token)
        server = Server(
            uvicorn.Config(
                app,
                http=connection(config, metrics.turned_away),
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_S,
                backlog=2 * config.max_connections,
            )
        )
        try:
            listener.listen(2 * config.max_connections)  # not before: a client would wait for the index
        except OSError as error:
            raise _not_there(config, error) from error
        ready(server, service.identity)
        await server.serve(sockets=[listener])
    finally:
        listener.close()
        await service.close(0 if server is not None and server.again else CUT_S)
    return server.again


def serve(
    open_backend: Callable[[], Backend],
    retrieval: RetrievalConfig,
    config: ServeConfig,
    token: str | None,
    ready: Callable[[str, Identity], None],
) -> None:
    """``serve_on`` the address of ``config``, until Ctrl-C; ``ready`` is told the URL when the index is open.

    Raises ``KeyboardInterrupt``, or ``Stopped`` for SIGTERM, if the signal came twice, and the first while the index is
    opened.
    """
    listener = bind(config)
    url = address(listener)

    def opened(_: Server, identity: Identity) -> None:
        settle()
        ready(url, identity)

    with asyncio.Runner(loop_factory=uvicorn.Config(app=None, loop="auto").get_loop_factory()) as runner:  # type: ignore[arg-type]
        again = runner.run(serve_on(listener, open_backend, retrieval, config, token, opened, _end))
    if again is not None:
        raise KeyboardInterrupt if again == signal.SIGINT else Stopped(signal.Signals(again))


def _end(seconds: float) -> None:
    """A thread that hangs can't be ended, but its process can: whoever keeps it running starts another."""
    faulthandler.dump_traceback(file=2)
    os.write(2, f"slingshot: fault: a search has not come back for {seconds:g} s\n".encode())
    os._exit(1)
