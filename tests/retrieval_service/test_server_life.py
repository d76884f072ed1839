"""How the server begins and ends: its settings, its socket, its index, and signals."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from patience import until
from served import CONFIG, PASSAGES, PATIENCE_S, Running, Scripted, open_index, refusal, running

from agent.errors import Stopped, UserError
from agent.records import Passage
from retrieval_service.config import RetrievalConfig
from retrieval_service.rankers import open_backend
from retrieval_service.server.config import ServeConfig
from retrieval_service.server.run import bind, serve, serve_on
from retrieval_service.service import RetrievalService

pytestmark = pytest.mark.jvm


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings and errors; another test of this process may have asked libraries for more."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def refused(url: httpx.URL) -> bool:
    """Whether nobody listens there any more."""
    try:
        socket.create_connection((url.host, url.port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_ctrl_c_while_the_index_is_opened_ends_it_at_once() -> None:
    go_on, closed = threading.Event(), threading.Event()

    class Closing(Scripted):
        def close(self) -> None:
            closed.set()

    def slowly() -> Scripted:
        os.kill(os.getpid(), signal.SIGINT)
        assert go_on.wait(PATIENCE_S)
        return Closing()

    with pytest.raises(KeyboardInterrupt):
        serve(slowly, CONFIG, ServeConfig(port=0), None, lambda url, identity: None)
    go_on.set()
    assert closed.wait(PATIENCE_S), "what was opened after all is closed"


def test_no_client_is_taken_before_the_index_is_open() -> None:
    listener = bind(ServeConfig(port=0))
    place = listener.getsockname()[:2]

    def opening() -> Scripted:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(place)
        return Scripted()

    def ready(server: Any, identity: Any) -> None:
        socket.create_connection(place, timeout=PATIENCE_S).close()
        server.should_exit = True

    asyncio.run(serve_on(listener, opening, CONFIG, ServeConfig(), None, ready))


def test_a_connection_stays_open_for_longer_than_a_balancer_keeps_it() -> None:
    there: list[Any] = []

    def ready(server: Any, identity: Any) -> None:
        there.append(server)
        server.should_exit = True

    asyncio.run(serve_on(bind(ServeConfig(port=0)), Scripted, CONFIG, ServeConfig(), None, ready))
    assert there[0].config.timeout_keep_alive > 60


def test_a_port_that_was_taken_meanwhile_is_told() -> None:
    config = ServeConfig(port=0)
    listener = bind(config)
    config.port = listener.getsockname()[1]
    other = bind(config)
    other.listen()
    with other, pytest.raises(UserError, match=rf"serve\.port={config.port}: can't listen there"):
        asyncio.run(serve_on(listener, Scripted, CONFIG, config, None, lambda *told: None))


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)], ids=["SIGINT", "SIGTERM"]
)
def test_a_second_signal_ends_it_at_once(
    backend: Scripted, caplog: pytest.LogCaptureFixture, number: signal.Signals, raised: type[BaseException]
) -> None:
    """The backend is held up to the end, and the time-out of a search is never reached."""
    backend.go_on.clear()

    def client(url: httpx.URL) -> httpx.Response:
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(httpx.post, url.join("/search"), json={"query": "x"}, timeout=PATIENCE_S)
            assert backend.entered.acquire(timeout=PATIENCE_S)
            os.kill(os.getpid(), number)
            until(lambda: refused(url))
            assert not reply.done(), "the first signal lets it be answered"
            os.kill(os.getpid(), number)
            return reply.result(PATIENCE_S)

    with ThreadPoolExecutor(1) as pool:
        replies: list[Future[httpx.Response]] = []
        with pytest.raises(raised) as error:
            serve(
                lambda: backend,
                RetrievalConfig(timeout_s=PATIENCE_S),
                ServeConfig(port=0),
                None,
                lambda url, identity: replies.append(pool.submit(client, httpx.URL(url))),
            )
        assert "the server is ending" in refusal(replies[0].result(PATIENCE_S), 503)
    backend.go_on.set()
    assert getattr(error.value, "code", 130) == 128 + number
    assert not complaints(caplog)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_one_signal_ends_it_without_a_fault_whatever_the_index_is_at(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The search is out for longer than all time-outs: its request gets a 503, and nothing says that it is stuck."""
    monkeypatch.setattr("retrieval_service.server.run.GRACE_S", 0.3)
    monkeypatch.setattr("retrieval_service.server.run.CUT_S", 0.3)
    monkeypatch.setattr("retrieval_service.server.run._end", lambda seconds: pytest.fail("it is stuck"))
    urls: list[httpx.URL] = []
    told: list[Callable[[float], None]] = []

    class Told(RetrievalService):
        def __init__(self, opened: Any, config: RetrievalConfig, stuck: Callable[[float], None]) -> None:
            super().__init__(opened, config, stuck)
            told.append(stuck)

    class Interrupted(Scripted):
        def search_batch(self, queries: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
            os.kill(os.getpid(), number)
            until(lambda: refused(urls[0]))
            told[0](60.0)
            return super().search_batch(queries, k)

    monkeypatch.setattr("retrieval_service.server.run.RetrievalService", Told)
    backend = Interrupted()
    backend.go_on.clear()
    with ThreadPoolExecutor(1) as pool:
        replies: list[Future[httpx.Response]] = []

        def ready(url: str, identity: Any) -> None:
            urls.append(httpx.URL(url))
            replies.append(pool.submit(httpx.post, f"{url}/search", json={"query": "x"}, timeout=PATIENCE_S))

        serve(lambda: backend, RetrievalConfig(timeout_s=PATIENCE_S), ServeConfig(port=0), None, ready)
        assert "the server is ending" in refusal(replies[0].result(PATIENCE_S), 503)
    backend.go_on.set()


@pytest.mark.parametrize("behind", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["one", "two"])
def test_what_takes_longer_than_the_end_waits_gets_a_503(
    backend: Scripted, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, behind: bytes
) -> None:
    monkeypatch.setattr("retrieval_service.server.run.GRACE_S", 0.1)
    backend.go_on.clear()
    body = b'{"queries": ["a"]}'
    head = b"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with running(lambda: backend) as server, server.connect() as connection:
        connection.sendall(head + body + behind)
        assert backend.entered.acquire(timeout=PATIENCE_S)
        server.server.should_exit = True
        told = b"".join(iter(lambda: connection.recv(65_536), b""))
        backend.go_on.set()
    assert told.startswith(b"HTTP/1.1 503 ")
    assert told.endswith(b'{"detail": "the server is ending"}')
    assert not complaints(caplog)


# --- settings --------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_named(server: Running) -> None:
    with pytest.raises(UserError, match=rf"serve\.port={server.place[1]}: can't listen there .*serve\.port=0"):
        bind(ServeConfig(port=server.place[1]))
    for host in ("no.such.host.invalid", "[::1]", "http://localhost"):
        with pytest.raises(
            UserError, match=rf"^serve\.host={re.escape(host)} .*\(.*\); serve\.host is an address or a"
        ):
            bind(ServeConfig(host=host))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"host": ""}, r"serve\.host is empty; write 127\.0\.0\.1 for this machine alone"),
        ({"port": 70_000}, r"serve\.port=70000 must lie in \[0, 65535\]"),
        ({"max_top_k": 0}, r"serve\.max_top_k=0 must be at least 1"),
        ({"read_timeout_s": float("nan")}, r"serve\.read_timeout_s=nan must be above 0"),
        ({"max_passages": 99}, r"serve\.max_passages=99 must be at least serve\.max_top_k=100"),
        (
            {"cors": ["http://localhost:1", "*"]},
            r"serve\.cors: \* is no origin as a browser sends it; write http://HOST",
        ),
        ({"cors": ["http://localhost:1/"]}, r"serve\.cors: http://localhost:1/ is no origin"),
        ({"max_held_mib": 3}, r"serve\.max_held_mib=3 must be at least serve\.max_body_kib=4096 KiB"),
        ({"max_waiting": 10}, r"serve\.max_waiting=10 must be at least serve\.max_queries=4096"),
    ],
)
def test_wrong_limits_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        ServeConfig(**settings)


def test_an_index_that_cannot_be_opened_is_told_before_anything_is_served(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"), running(open_index(tmp_path / "none")):
        pass


def test_a_passage_is_found_by_its_id_in_the_backend(served_index: Path) -> None:
    backend = open_backend(CONFIG, served_index)
    try:
        found = backend.document_batch(["emma", "nobody", "twin-2", "\ud800"], 2)
    finally:
        backend.close()
    assert [[p.id for p in one] for one in found] == [["emma"], [], ["twin-2", "twin-10"], []]
    assert found[0][0] == PASSAGES[0]
