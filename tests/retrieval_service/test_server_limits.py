"""What the server refuses, with which status, and what keeps others waiting."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import httpx
import pytest
import uvicorn
from hostile import request
from patience import until
from served import PATIENCE_S, Running, Scripted, refusal, running
from uvicorn.server import ServerState

from retrieval_service.config import RetrievalConfig
from retrieval_service.server import app
from retrieval_service.server.config import ServeConfig
from retrieval_service.server.connection import SLOWEST, connection
from retrieval_service.server.gate import Gate

pytestmark = pytest.mark.jvm


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/retrieve", {"queries": ["x" * 1001]}, 422, "a query of 1001 characters, and at most 1000"),
        ("/retrieve", {"queries": ["x"] * 201}, 422, "201 queries, and at most 200"),
        ("/retrieve", {"queries": ["x"], "topk": 51}, 422, "51 passages a query; from 1 to 50"),
        (
            "/retrieve",
            {"queries": ["x"] * 101, "topk": 50},
            422,
            "101 queries for 50 passages each are 5050, and at most",
        ),
        ("/retrieve", {"query": ["x"] * 101, "tok_k": 50}, 422, "are 5050, and at most 5000 may be asked for at once"),
        ("/batch_search", {"query": ["x"] * 101, "top_n": 50}, 422, "are 5050, and at most 5000"),
        ("/retrieve", {"queries": ["x"], "topk": -1}, 422, "topk: Input should be greater than or equal to 0"),
        ("/retrieve", {"queries": ["x"], "topk": 10**40}, 422, "passages a query"),
        ("/retrieve", {"queries": ["x"], "topk": "3"}, 422, "topk: Input should be a valid integer"),
        ("/retrieve", {"queries": "x"}, 422, "queries: Input should be a valid list"),
        ("/retrieve", {"queries": ["x", 3]}, 422, "queries.1: Input should be a valid string"),
        ("/retrieve", {"question": "x"}, 422, "the body needs"),
        ("/retrieve", ["x"], 422, "the body is a list, and an object is needed"),
        *(
            ("/retrieve", {"query": query, "tok_k": 3}, 422, "query: Input should be a valid string, or a list of them")
            for query in ({"a": 1}, ["x", 3], None)
        ),
        ("/retrieve", {"query": ["x"], "topk": 2}, 422, 'query: one query is read beside "topk"; write "queries"'),
        ("/search", {"query": ["x"]}, 422, "query: Input should be a valid string"),
        ("/batch_search", {"query": "x"}, 422, "query: Input should be a valid list"),
        ("/retrieve", {"queries": ["x" * 70_000]}, 413, "a body of more than 65536 bytes"),
    ],
    ids=str,
)
def test_what_is_over_a_limit_or_wrong_is_refused_with_the_reason(
    server: Running, path: str, body: Any, status: int, reason: str
) -> None:
    assert reason in refusal(server.post(path, body), status)


SEARCH_R1 = "'queries', 'topk', 'return_scores'"
DAVID_GRPO = "'query', 'tok_k', 'return_score'"
FLASHRAG = "'query', 'top_n', 'return_score'"


@pytest.mark.parametrize(
    ("path", "body", "wrong", "keys"),
    [
        *(
            ("/retrieve", {"queries": ["x"], name: 1}, name, SEARCH_R1)
            for name in ("top_k", "k", "limit", "num_results", "return_score", "topk_retrieval", "TopK", "")
        ),
        ("/retrieve", {"queries": ["x"], "topk": 3, "topk_rerank": 2}, "topk_rerank", SEARCH_R1),
        ("/retrieve", {"query": "x", "topk": 1, "return_score": True}, "topk", DAVID_GRPO),
        ("/retrieve", {"query_list": ["x"], "top_k": 1}, "top_k", "'query_list', 'topk', 'return_scores'"),
        ("/retrieve", {"query": "x", "num_results": 1}, "num_results", "'query', 'topk', 'return_scores'"),
        *(
            (path, {"query": query, "k": 2}, "k", FLASHRAG)
            for path, query in (("/batch_search", ["x"]), ("/search", "x"))
        ),
    ],
    ids=str,
)
def test_a_key_that_is_not_read_is_refused_with_those_that_are(
    server: Running, path: str, body: Any, wrong: str, keys: str
) -> None:
    assert refusal(server.post(path, body), 422) == f"{wrong!r} is no key of this request; its keys are {keys}"


def test_nor_is_one_behind_the_address(server: Running) -> None:
    told = refusal(server.post("/retrieve?topk=1", {"queries": ["x"]}), 422)
    assert told == "'topk' is not read behind the address; keys of the body are"
    told = refusal(server.client.get("/document/emma?folowing=1"), 422)
    assert told == "'folowing' is not read behind the address; 'following' is"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"queries=x",
        b'{"queries": ["\xff"]}',
        b'{"queries": ["x"], "topk": NaN}',
        b'{"queries": ["\\ud800"]}',
    ],
)
def test_what_is_no_json_is_refused(server: Running, body: bytes) -> None:
    assert "the body is no JSON" in refusal(server.client.post("/retrieve", content=body), 400)


def test_a_large_reply_is_made_while_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    made, go_on = app._large, threading.Event()
    begun = threading.Event()

    def slowly(*given: Any) -> Any:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return made(*given)

    monkeypatch.setattr(app, "_large", slowly)
    with running(Scripted) as server, ThreadPoolExecutor(1) as pool:
        asked = {"queries": [str(n) for n in range(20)], "topk": 10, "return_scores": True}
        large = pool.submit(server.post, "/retrieve", asked)
        try:
            assert begun.wait(PATIENCE_S)
            assert httpx.get(f"{server.url}/health", timeout=PATIENCE_S).status_code == 200
        finally:
            go_on.set()
        reply = large.result(PATIENCE_S)
    assert reply.status_code == 200
    assert [len(hits) for hits in reply.json()["result"]] == [10] * 20


@pytest.mark.parametrize(
    "value", [{}, [], [[]], [[], []], {"a": []}, {"result": [[{"document": {"id": "é"}, "score": 1.5}], []]}, "x", None]
)
def test_a_reply_in_pieces_is_the_reply(value: Any) -> None:
    assert "".join(app._pieces(value)) == json.dumps(value)


def test_a_full_line_is_answered_with_429_until_there_is_room() -> None:
    backend = Scripted()
    with running(lambda: backend, max_waiting=4, max_queries=4) as server:
        backend.go_on.clear()

        async def scene() -> None:
            async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as http:
                held = asyncio.ensure_future(http.post("/retrieve", json={"queries": ["a", "b", "c"]}))
                assert await asyncio.to_thread(backend.entered.acquire, timeout=PATIENCE_S)
                full = await http.post("/retrieve", json={"queries": ["d", "e"]})
                assert "3 searches wait already" in refusal(full, 429)
                assert full.headers["retry-after"] == "1"
                last = asyncio.ensure_future(http.post("/retrieve", json={"queries": ["d"]}))
                while (await http.get("/health")).json()["waiting"] < 4:
                    await asyncio.sleep(0.01)
                assert (await http.post("/search", json={"query": "e"})).status_code == 429
                assert (await http.get("/document/e")).status_code == 429
                assert not held.done()
                backend.go_on.set()
                assert [len(hits) for hits in (await held).json()["result"]] == [3, 3, 3]
                assert (await last).status_code == 200
                assert (await http.post("/search", json={"query": "e"})).status_code == 200

        asyncio.run(scene())


LARGE = {"queries": ["x"], "topk": 8}
"""Of passages of a million characters: 16 MB, more than the buffers of two sockets take."""


@contextmanager
def asking_without_reading(server: Running) -> Iterator[socket.socket]:
    """A client that has asked for ``LARGE`` and reads nothing; its reply has begun to come."""
    body = json.dumps(LARGE).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.place)
        client.sendall(request(body))
        assert client.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 200"
        yield client


def test_what_the_replies_take_together_is_bounded(backend: Scripted) -> None:
    backend.text = "x" * 1_000_000
    with running(lambda: backend, RetrievalConfig(timeout_s=PATIENCE_S), max_held_mib=19) as server:
        with asking_without_reading(server) as slow:
            full = server.post("/retrieve", LARGE)
            assert re.match(r"requests and replies hold 160\d{5} bytes already; ask again in 1 s", refusal(full, 429))
            assert full.headers["retry-after"] == "1"
            assert server.post("/retrieve", {"queries": ["x"], "topk": 1}).status_code == 200, "there is room for that"
            body = {"queries": ["x"], "padding": "x" * 4_000_000}
            assert "bytes already" in refusal(server.post("/retrieve", body), 429), "a body takes room, too"
            raw = b"".join(iter(lambda: slow.recv(1 << 20), b""))
            assert len(json.loads(raw.partition(b"\r\n\r\n")[2])["result"][0]) == 8
        until(lambda: server.post("/retrieve", LARGE).status_code == 200)
        told = refusal(server.post("/retrieve", {"queries": ["x"], "topk": 11}), 422)
        assert re.match(r"a reply of 220\d{5} bytes, and at most 19922944 may be held; ask for fewer passages", told)


def test_a_client_that_reads_nothing_of_its_reply_is_cut_off(backend: Scripted) -> None:
    backend.text = "x" * 1_000_000
    with (
        running(lambda: backend, max_held_mib=20, read_timeout_s=0.5) as server,
        asking_without_reading(server) as slow,
    ):
        until(lambda: server.post("/retrieve", LARGE).status_code == 200)
        got = 0
        with suppress(ConnectionError):
            while part := slow.recv(1 << 20):
                got += len(part)
        assert got < 8_000_000, "the reply has eight passages of a million characters"


class Loop:
    """Keeps what is to be called later, for the test to call it."""

    def __init__(self) -> None:
        self.later: list[Callable[[], None]] = []

    def call_later(self, delay: float, call: Callable[..., None], *given: Any) -> None:
        self.later.append(partial(call, *given))


class Transport:
    """Holds more than it may, before a socket that takes no more."""

    def __init__(self, socket: socket.socket) -> None:
        self.socket = socket
        self.aborted = False

    def get_extra_info(self, name: str) -> Any:
        return getattr(self, name)

    def get_write_buffer_size(self) -> int:
        return 10_000_000

    def abort(self) -> None:
        self.aborted = True


def test_a_client_that_reads_slowly_is_waited_for_and_one_that_hardly_reads_is_not() -> None:
    """What it reads comes out of the system's buffer for long before the transport has less."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        ours, _ = listener.accept()
        with ours:
            ours.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    ours.send(bytes(1 << 20))
            kind = connection(ServeConfig(read_timeout_s=30.0), lambda status: None)
            slow, loop, transport = kind.__new__(kind), Loop(), Transport(ours)
            slow.loop, slow.transport = loop, transport
            slow._await_reading()
            before = slow._to_read()
            assert before > 10_000_000 + 30 * SLOWEST
            until(lambda: client.recv(4096) and slow._to_read() <= before - 30 * SLOWEST)
            loop.later.pop()()
            assert not transport.aborted
            assert client.recv(1), "at a byte a time there is always something that it has read"
            loop.later.pop()()
            assert transport.aborted
            assert not loop.later


def test_a_client_that_has_gone_leaves_the_line() -> None:
    backend = Scripted()
    with running(lambda: backend, max_waiting=2, max_queries=2) as server:
        backend.go_on.clear()
        body = b'{"queries": ["a", "b"]}'
        with server.connect() as gone:
            gone.sendall(
                b"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            assert backend.entered.acquire(timeout=PATIENCE_S)
            assert server.client.get("/health").json()["waiting"] == 2
        until(lambda: server.client.get("/health").json()["waiting"] == 0)
        backend.go_on.set()
        assert server.post("/retrieve", {"queries": ["c"]}).status_code == 200


class Read(asyncio.Transport):
    """A transport of which the test says what comes, and that knows whether more would be read."""

    reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        self.reading = False


def test_nor_does_it_stay_where_much_of_its_body_came_at_once() -> None:
    """As the queries of a whole batch of rollouts do: the head before, from most clients."""
    read, gone = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        read.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(PATIENCE_S)
        gone.set()

    async def scene() -> None:
        kind = connection(ServeConfig(), lambda status: None)
        ours = kind(config=uvicorn.Config(app, log_config=None), server_state=ServerState(), app_state={})
        ours.connection_made(transport := Read())
        data = request(b"x" * 100_000).replace(b"Connection: close\r\n", b"")
        ours.data_received(data[:1000])
        await asyncio.sleep(0)
        ours.data_received(data[1000:])
        await read.wait()
        assert transport.reading, "or nobody hears that the client goes away"
        ours.data_received(request(b""))
        assert not transport.reading, "a second request waits, and no third is read"
        ours.connection_lost(None)
        await gone.wait()

    asyncio.run(scene())


def test_refusals_before_a_route_are_counted() -> None:
    def counted(status: int) -> float:
        return server.metric(f'slingshot_retrieval_requests_total{{route="other",status="{status}"}}')

    sent = {400: b"nonsense\r\n\r\n", 431: b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000}
    with running(Scripted, max_connections=2) as server:
        assert server.client.get("/health", headers={"Host": "evil.example"}).status_code == 403
        assert server.post("/retrieve", {}, headers={"Content-Encoding": "gzip"}).status_code == 415
        for status, head in sent.items():
            with server.connect() as connection, suppress(ConnectionError):
                connection.sendall(head)
                connection.recv(12)
            until(partial(lambda status: counted(status) == 1, status))
        with server.connect(), server.connect() as third:
            assert third.recv(12) == b"HTTP/1.1 429"
        until(lambda: [counted(status) for status in (403, 415, 429)] == [1, 1, 1])


def test_a_search_that_fails_is_a_503_and_one_that_takes_too_long_a_504() -> None:
    backend = Scripted()
    with running(lambda: backend, RetrievalConfig(timeout_s=0.5)) as server:
        assert "the index is gone" in refusal(server.post("/retrieve", {"queries": ["a", "poison"]}), 503)
        assert "the index is gone" in refusal(server.client.get("/document/a"), 503)
        backend.go_on.clear()
        assert "too long" in refusal(server.post("/retrieve", {"queries": ["slow"]}), 504)
        backend.go_on.set()


@pytest.mark.parametrize(
    ("header", "status"), [((b"origin", b"http://evil.example"), 403), ((b"content-encoding", b"gzip"), 415)]
)
def test_a_body_is_read_before_its_request_is_refused(header: tuple[bytes, bytes], status: int) -> None:
    """Closed on what is unread, the connection would be reset: the client wouldn't see the reason."""
    parts = [{"type": "http.request", "body": b"x", "more_body": more} for more in (True, True, False)]
    told: list[Any] = []

    async def receive() -> Any:
        return parts.pop(0)

    async def send(message: Any) -> None:
        told.append((message["type"], message.get("status"), len(parts)))

    async def app(*_: Any) -> None:
        raise AssertionError("nothing gets past the gate")

    scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": [(b"host", b"localhost"), header]}
    asyncio.run(Gate(app, ServeConfig(), None)(scope, receive, send))
    assert told[0] == ("http.response.start", status, 0)
