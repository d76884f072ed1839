"""What the tests of the server and of its clients share: a real index, and real servers on real ports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for served.py: importlib mode adds no folder by itself

from served import CONFIG, PASSAGES, Running, Scripted, open_index, running

from retrieval_service.corpus import write_corpus
from retrieval_service.rankers import index_for


@pytest.fixture(scope="session")
def served_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Lucene index of ``served.PASSAGES``."""
    folder = tmp_path_factory.mktemp("served")
    write_corpus(folder / "corpus.jsonl", PASSAGES)
    return index_for(folder / "corpus.jsonl", CONFIG, folder / "cache")


@pytest.fixture(scope="session")
def server(served_index: Path) -> Iterator[Running]:
    """A server over that index with limits that are small enough to be reached."""
    with running(
        open_index(served_index),
        max_query_chars=1000,
        max_queries=200,
        max_waiting=2000,
        max_top_k=50,
        max_passages=5000,
        max_body_kib=64,
        read_timeout_s=2.0,
    ) as there:
        yield there


@pytest.fixture
def backend() -> Scripted:
    return Scripted()


@pytest.fixture
def few(backend: Scripted) -> Iterator[Running]:
    """A server over a scripted backend that gives four passages a query at most."""
    with running(lambda: backend, max_top_k=4) as server:
        yield server
