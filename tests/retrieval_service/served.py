"""A server in a thread of this process, over a Lucene index or a scripted backend, for the tests that ask it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from agent.records import Passage
from retrieval_service.backend import Backend, Identity
from retrieval_service.config import RetrievalConfig
from retrieval_service.rankers import open_backend
from retrieval_service.server.config import ServeConfig
from retrieval_service.server.run import address, bind, serve_on

PATIENCE_S = 600.0
"""How long a test waits for an event that is certain to come."""
CONFIG = RetrievalConfig(timeout_s=PATIENCE_S)
"""The defaults of heap and threads, which other tests in this process are likely to start the JVM with. No search
takes too long because the machine is busy."""
PASSAGES = [
    Passage(id="emma", title="Emma (novel)", text="Emma is a novel by Jane Austen, published in 1815."),
    Passage(id="persuasion", title="Persuasion", text="Persuasion is the last novel that Jane Austen completed."),
    Passage(id="heroes", title='"Heroes" (David Bowie album)', text="Recorded in Berlin.\nReleased in 1977."),
    Passage(id="untitled", title="", text="A passage about lighthouses, without a title."),
    Passage(id="tokyo", title="東京", text="東京は日本の首都である。 😀"),
    *(Passage(id=f"a/b c?{n}.txt#0", title="", text=f"Odd names of files, number {n}.") for n in range(3)),
    *(Passage(id=f"twin-{n}", title="Twin", text="The very same marmalade.") for n in (3, 1, 2, 10)),
    *(Passage(id=f"year-{n}", title=f"Year {n}", text=f"In {n} a novel was sold {n % 7} times.") for n in range(500)),
]


@dataclass
class Running:
    """A server that answers."""

    url: str
    server: uvicorn.Server
    identity: Identity
    client: httpx.Client

    @property
    def place(self) -> tuple[str, int]:
        parts = httpx.URL(self.url)
        assert parts.port is not None
        return parts.host, parts.port

    def post(self, path: str, body: Any, **how: Any) -> httpx.Response:
        return self.client.post(path, json=body, **how)

    def metric(self, line: str) -> float:
        """The value of a line of ``/metrics``, 0 if it isn't there."""
        for row in self.client.get("/metrics").text.splitlines():
            if row.startswith(f"{line} "):
                return float(row.rpartition(" ")[2])
        return 0.0

    def connect(self) -> socket.socket:
        return socket.create_connection(self.place, timeout=PATIENCE_S)


@contextmanager
def running(
    open_backend: Callable[[], Backend],
    retrieval: RetrievalConfig = CONFIG,
    token: str | None = None,
    **limits: Any,
) -> Iterator[Running]:
    """A server on a port of its own; at the end it has to have ended by itself."""
    config = ServeConfig(port=0, **limits)
    listener = bind(config)
    url = address(listener)
    there: list[tuple[uvicorn.Server, Identity]] = []
    came = threading.Event()
    broken: list[BaseException] = []

    def ready(server: uvicorn.Server, identity: Identity) -> None:
        there.append((server, identity))
        came.set()

    def work() -> None:
        try:
            asyncio.run(serve_on(listener, open_backend, retrieval, config, token, ready))
        except BaseException as error:
            broken.append(error)
            came.set()

    thread = threading.Thread(target=work, name="server")
    thread.start()
    try:
        assert came.wait(PATIENCE_S)
        if broken:
            raise broken[0]
        server, identity = there[0]
        with httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client:
            yield Running(url=url, server=server, identity=identity, client=client)
    finally:
        for server, _ in there:
            server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert not broken


def open_index(index: Path) -> Callable[[], Backend]:
    return lambda: open_backend(CONFIG, index)


@dataclass
class Scripted:
    """A backend that answers a query with passages made from it, can be held up, and fails when the query says so."""

    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go_on: threading.Event = field(default_factory=threading.Event)
    batches: list[tuple[str, ...]] = field(default_factory=list)
    text: str | None = None
    """Of every passage; by default the query."""

    def __post_init__(self) -> None:
        self.go_on.set()

    def search_batch(self, queries: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        assert queries
        assert k >= 1
        self.batches.append(tuple(queries))
        self.entered.release()
        assert self.go_on.wait(PATIENCE_S)
        if "poison" in queries:
            raise OSError("the index is gone")
        return [
            tuple(Passage(id=f"{q}-{n}", title="", text=self.text or q or "-", score=1.0 / (n + 1)) for n in range(k))
            for q in queries
        ]

    def following_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        raise AssertionError("nobody asks for it")

    def document_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        raise OSError("the index is gone")

    def identity(self) -> Identity:
        return Identity(name="scripted", backend="scripted")

    def close(self) -> None:
        self.go_on.set()


def refusal(reply: httpx.Response, status: int) -> str:
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["detail"]
    reason: str = reply.json()["detail"]
    assert reason.isprintable()
    return reason
