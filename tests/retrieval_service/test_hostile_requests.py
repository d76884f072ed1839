"""Hostile requests over real sockets: every one is answered or its connection closed, none with a 5xx."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from hostile import MAKERS, Hostile, hostile, request
from served import PATIENCE_S, Running, Scripted, running

pytestmark = pytest.mark.jvm

AT_ONCE = 24
CUT = b"cut"
"""In the place of an answer: the server has closed a connection on which more was being sent."""


async def reply(place: tuple[str, int], sent: Hostile) -> bytes:
    """All that comes back over one connection, until the server closes it."""
    reader, writer = await asyncio.open_connection(*place)
    try:
        writer.write(sent.data)
        if not sent.whole:
            return b""  # and it closes in the middle
        await writer.drain()
        return await reader.read()
    except ConnectionError:
        return b""  # it was refused before it had sent all
    finally:
        writer.close()


async def replies(place: tuple[str, int], seeds: range) -> Counter[tuple[str, str]]:
    """How often each kind of request was answered with which status; ``-`` is a connection closed without one."""
    counted: Counter[tuple[str, str]] = Counter()
    waiting = iter(seeds)

    async def client() -> None:
        for seed in waiting:
            sent = hostile(seed)
            try:
                raw = await asyncio.wait_for(reply(place, sent), PATIENCE_S)
            except TimeoutError:
                pytest.fail(f"request {seed} ({sent.kind}) was not answered")
            status = raw[9:12].decode("latin-1") if raw.startswith(b"HTTP/1.1 ") else "-"
            assert status == "-" or status[0] in "1234", f"request {seed} ({sent.kind}): {raw[:300]!r}"
            counted[sent.kind, status] += 1

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return counted


def attack(server: Running, seeds: range, caplog: pytest.LogCaptureFixture) -> Counter[tuple[str, str]]:
    before = server.post("/retrieve", {"queries": ["Emma Austen"], "return_scores": True}).json()
    with caplog.at_level(logging.ERROR):
        counted = asyncio.run(replies(server.place, seeds))
    assert sum(counted.values()) == len(seeds)
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert server.post("/retrieve", {"queries": ["Emma Austen"], "return_scores": True}).json() == before
    assert server.metric("slingshot_retrieval_waiting") == 0
    scraped = server.client.get("/metrics").text
    assert 'status="500"' not in scraped
    return counted


def test_hundreds_of_hostile_requests_do_no_harm(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    counted = attack(server, range(200), caplog)
    assert {kind for kind, _ in counted} == set(MAKERS)
    assert {"200", "400", "404", "405", "413", "422"} <= {status for _, status in counted}
    assert {status for kind, status in counted if kind == "odd_text"} <= {"200", "400", "422"}


@pytest.mark.slow
def test_ten_thousand_hostile_requests_do_no_harm(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    attack(server, range(1_000_000, 1_010_000), caplog)


# --- connections that stay open ----------------------------------------------------------------------


async def open_ended(place: tuple[str, int], *sent: bytes) -> list[bytes]:
    """What each connection gets that sends so much and then waits."""

    async def one(data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*place)
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(), PATIENCE_S)
        except ConnectionError:
            return CUT
        finally:
            writer.close()

    return await asyncio.gather(*map(one, sent))


def test_connections_left_open_are_closed_by_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing sent, with half a head, with half a body, and after a whole request with half of another."""
    monkeypatch.setattr("retrieval_service.server.run.KEEP_S", 3)
    good = request(b'{"queries":["emma"]}').replace(b"Connection: close\r\n", b"")
    sent = (b"", good[:30], good[:-5], good + b"POST /retr")
    with running(Scripted, read_timeout_s=2.0) as server:
        nothing, head, body, second = asyncio.run(open_ended(server.place, *sent))
    assert nothing == head == b""
    assert body.startswith(b"HTTP/1.1 408 ")
    assert b"the body was not there after 2 s" in body
    assert second.startswith(b"HTTP/1.1 200 ")
    assert second.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_a_wish_for_another_protocol_is_ignored_and_the_body_read(server: Running, size: int) -> None:
    """As curl --http2 and Java's client ask, in packets that part names and the head's end; the next one is normal."""
    body = b'{"queries": ["Emma Austen"], "topk": 1}'
    wish = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    first = request(body, "/retrieve", "POST", *wish).replace(b"Connection: close\r\n", b"")
    assert b"close" not in first

    def parts(data: bytes) -> Iterator[bytes]:
        return (data[at : at + size] for at in range(0, len(data), size))

    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts(first + first + request(body)):
            connection.sendall(part)
        told = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert told.count(b"HTTP/1.1 200 OK") == 3
    assert told.count(b'"id": "emma"') == 3


def test_a_head_without_an_end_is_refused(server: Running) -> None:
    (told,) = asyncio.run(open_ended(server.place, b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 20_000))
    assert told.startswith(b"HTTP/1.1 431 ")


def test_a_long_head_that_comes_at_once_is_refused() -> None:
    """Also with its body, behind the body of another request, and with a wish for another protocol."""
    body = b'{"queries":["emma"]}'
    short = request(body).replace(b"Connection: close\r\n", b"")
    wish = ("Connection: Upgrade", "Upgrade: h2c")
    fits = request(body, "/retrieve", "POST", "X: " + "y" * 60_000)
    long = request(body, "/retrieve", "POST", "X: " + "y" * 70_000)
    wishes = request(body, "/retrieve", "POST", "X: " + "y" * 70_000, *wish)
    with running(Scripted) as server:
        told = asyncio.run(open_ended(server.place, fits, long, wishes, short + long))
    assert [answer.count(b"HTTP/1.1 200") for answer in told[:3]] == [1, 0, 0]
    assert told[3].count(b"HTTP/1.1 200") <= 1, "of the short one"
    assert all(answer == CUT or b"HTTP/1.1 431 " in answer for answer in told[1:])


@pytest.mark.parametrize(
    "endless",
    [b"0\r\nX: " + b"y" * 8_000_000, b"0\r\n" + b"A: b\r\n" * 500_000, b"1;" + b"x" * 8_000_000],
    ids=["a trailer", "trailers", "a chunk's extension"],
)
def test_nor_may_one_stand_behind_a_body(endless: bytes) -> None:
    """Or between two of its chunks: the parser keeps it in memory, whatever the limits of a body."""
    head = b"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with running(Scripted) as server:
        (told,) = asyncio.run(open_ended(server.place, head + endless))
    assert told == CUT or told.startswith(b"HTTP/1.1 431 "), "and not when the body took too long"


def test_nor_is_one_that_follows_a_request_which_is_being_answered() -> None:
    backend = Scripted()
    with running(lambda: backend) as server:
        backend.go_on.clear()
        good = request(b'{"queries":["emma"]}').replace(b"Connection: close\r\n", b"")
        (told,) = asyncio.run(open_ended(server.place, good + b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 500_000))
        assert told == CUT or told.startswith(b"HTTP/1.1 431 "), "and not when the search took too long"
        backend.go_on.set()


def test_ten_megabytes_are_refused_with_the_reason(server: Running) -> None:
    seeds = (seed for seed in range(10_000) if hostile(seed).kind == "long")
    for _, seed in zip(range(2), seeds, strict=False):
        raw = asyncio.run(reply(server.place, hostile(seed)))
        assert raw.startswith(b"HTTP/1.1 413 ")
        assert raw.endswith(b'{"detail": "a body of more than 65536 bytes"}')
