"""What the search server costs: queries per second of 64 clients, against Lucene called directly and a plain server.

    python bench/retrieval.py [--quick] [--passages N] [--queries N] [--keep FOLDER]

Three ways to the same passages, each in a process of its own, over one synthetic index (words drawn by Zipf's law, 60
a passage, 6 a query, no query twice, so no cache helps):

- ``direct``: ``batch_search`` of Anserini's searcher, which Pyserini calls, in batches of 64 with as many threads, and
  the contents of each hit read;
- ``served``: ``mode=serve``'s server, asked by 64 clients, ``--queries`` a request (1: verl's tool; a trainer that
  searches for a batch of episodes at once, as Search-R1's does, sends as many as there are episodes);
- ``loop``: a faithful copy in form of Search-R1's ``retrieval_server.py``: FastAPI with a synchronous handler, whose
  threads search each request's queries one after the other.

Clients are one process of raw sockets; it shares the machine with the server, and its own processor time is printed. So
Lucene has half of the machine's cores, in all three.
Rounds alternate, and ratios are medians of pairs, since the machine may be busy with other things; ``cpu_ms`` is the
processor time of a query in the process that answers, which others disturb less. What should hold:
``served`` at least 0.9 of ``direct``, and 5 times ``loop``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from agent.records import Passage  # noqa: E402
from retrieval_service import jvm  # noqa: E402
from retrieval_service.config import RetrievalConfig  # noqa: E402
from retrieval_service.corpus import write_corpus  # noqa: E402
from retrieval_service.rankers import index_for, open_backend  # noqa: E402
from retrieval_service.server.config import ServeConfig  # noqa: E402
from retrieval_service.server.run import serve  # noqa: E402

THREADS = max(1, (os.cpu_count() or 1) // 2)
CONFIG = RetrievalConfig(cache_size=0, threads=THREADS)
CLIENTS, K, BATCH = 64, 3, 64
WARM = 3
"""Times the measured seconds, for which each is asked beforehand: Java compiles what is called often, on a core that a
server needs and a direct caller doesn't."""
WORDS, PER_PASSAGE, PER_QUERY = 200_000, 60, 6
LIMITS = {"direct": 0.9, "loop": 5.0}
"""Least ratio of ``served`` to each."""


# --- the index and the queries ---------------------------------------------------------------------


class Language:
    """Words by Zipf's law."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._words = [f"w{n:x}" for n in range(WORDS)]
        self._weights = list(accumulate(1 / (n + 10) for n in range(WORDS)))

    def text(self, words: int) -> str:
        return " ".join(self._rng.choices(self._words, cum_weights=self._weights, k=words))


def corpus(passages: int) -> Iterator[Passage]:
    language = Language(0)
    for n in range(passages):
        yield Passage(id=str(n), title=f"Title {n}", text=language.text(PER_PASSAGE))


def built(folder: Path, passages: int) -> Path:
    """The index of so many passages in ``folder``, made there if it is missing."""
    file = folder / f"{passages}.jsonl"
    if not file.exists():
        write_corpus(file, corpus(passages))
    began = time.perf_counter()
    index = index_for(file, CONFIG, folder)
    print(f"the index of {passages} passages: {time.perf_counter() - began:.1f} s", flush=True)
    return index


# --- the three, each in a process of its own ---------------------------------------------------------


def direct(index: Path, seconds: float, seed: int) -> None:
    """Prints the queries per second of ``batch_search``."""
    jvm.start_jvm(CONFIG.heap, CONFIG.threads)
    searcher = jvm.java_class("io.anserini.search.SimpleSearcher")(str(index))
    searcher.set_bm25(CONFIG.k1, CONFIG.b)
    array_list, language = jvm.java_class("java.util.ArrayList"), Language(seed)

    def batch() -> None:
        texts, keys = array_list(), array_list()
        for number in range(BATCH):
            texts.add(language.text(PER_QUERY))
            keys.add(str(number))
        hits = searcher.batch_search(texts, keys, K, CONFIG.threads)
        for number in range(BATCH):
            for hit in hits.get(str(number)):
                json.loads(hit.lucene_document.get("raw"))

    began = time.perf_counter()
    while time.perf_counter() - began < WARM * seconds:
        batch()
    count, began, worked = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        batch()
        count += BATCH
    told = {"qps": count / (time.perf_counter() - began), "cpu_ms": 1e3 * (time.process_time() - worked) / count}
    print(json.dumps(told))


def served(index: Path) -> None:
    """Prints its URL, and serves."""
    serve(
        lambda: open_backend(CONFIG, index),
        CONFIG,
        ServeConfig(port=0),
        None,
        lambda url, identity: print(url, flush=True),
    )


class Request(BaseModel):
    """Search-R1's."""

    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


def loop(index: Path) -> None:
    """The same, with a handler that takes one query after the other."""
    import uvicorn
    from fastapi import FastAPI

    jvm.start_jvm(CONFIG.heap, CONFIG.threads)
    searcher = jvm.java_class("io.anserini.search.SimpleSearcher")(str(index))
    searcher.set_bm25(CONFIG.k1, CONFIG.b)
    app = FastAPI()

    def found(query: str, k: int) -> list[dict[str, Any]]:
        results = []
        for hit in searcher.search(query, k):
            contents = json.loads(searcher.doc_raw(hit.docid))["contents"]
            title, _, text = contents.partition("\n")
            document = {"title": title.strip('"'), "text": text, "contents": contents}
            results.append({"document": document, "score": hit.score})
        return results

    @app.post("/retrieve")
    def retrieve(request: Request) -> dict[str, Any]:
        return {"result": [found(query, request.topk or K) for query in request.queries]}

    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])


# --- the clients -----------------------------------------------------------------------------------


async def one_client(host: str, port: int, texts: Iterator[str], queries: int, end: float, took: list[float]) -> None:
    """Asks ``queries`` at a time, one request after the other, until ``end``."""
    reader, writer = await asyncio.open_connection(host, port)
    while request := list(islice(texts, queries)):
        if (began := time.perf_counter()) >= end:
            break
        body = json.dumps({"queries": request, "topk": K, "return_scores": True}).encode()
        head = f"POST /retrieve HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200 "):
            sys.exit(f"answered with {answer[:80]!r}")
        length = next(row for row in answer.lower().split(b"\r\n") if row.startswith(b"content-length: "))
        await reader.readexactly(int(length.rpartition(b" ")[2]))
        took.append(time.perf_counter() - began)
    writer.close()


def processor_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def ask(url: str, seconds: float, seed: int, queries: int, pid: int) -> None:
    """Prints the queries per second of all clients together, their latencies, and what the server ``pid`` worked."""
    host, _, port = url.removeprefix("http://").partition(":")
    language = Language(seed)
    texts = iter([language.text(PER_QUERY) for _ in range(int(6000 * (1 + WARM) * seconds))])  # more than are asked

    async def clients(end: float, took: list[float]) -> None:
        await asyncio.gather(*(one_client(host, int(port), texts, queries, end, took) for _ in range(CLIENTS)))

    async def all_clients() -> dict[str, float]:
        await clients(time.perf_counter() + WARM * seconds, [])
        took: list[float] = []
        began, worked, before = time.perf_counter(), time.process_time(), processor_seconds(pid)
        await clients(began + seconds, took)
        elapsed = time.perf_counter() - began
        took.sort()
        return {
            "qps": len(took) * queries / elapsed,
            "cpu_ms": 1e3 * (processor_seconds(pid) - before) / (len(took) * queries),
            "p50_ms": 1e3 * took[len(took) // 2],
            "p99_ms": 1e3 * took[len(took) * 99 // 100],
            "client_cores": (time.process_time() - worked) / elapsed,
        }

    print(json.dumps(asyncio.run(all_clients())))


# --- the rounds ------------------------------------------------------------------------------------


def call(*arguments: object) -> dict[str, float]:
    """What another process of this file prints."""
    done = subprocess.run([sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{arguments}: {done.stderr or done.stdout}")
    told: dict[str, float] = json.loads(done.stdout)
    return told


def asked(way: str, index: Path, seconds: float, seed: int, queries: int) -> dict[str, float]:
    """What the clients measure of the server ``way``, with its memory and the seconds that it took to start."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, __file__, way, str(index)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        start = time.perf_counter() - began
        told = call("ask", url, seconds, seed, queries, process.pid)
        return {**told, "start_s": start, "rss_mib": psutil.Process(process.pid).memory_info().rss / 2**20}
    finally:
        process.terminate()
        process.wait()


def compare(index: Path, rounds: int, seconds: float, queries: int) -> dict[str, dict[str, float]]:
    """Medians over the rounds, by way; in those of ``direct`` and ``loop`` the ratio of ``served`` to it."""
    found: dict[str, list[dict[str, float]]] = {"direct": [], "served": [], "loop": []}
    for seed in range(rounds):
        found["direct"].append(call("direct", index, seconds, seed))
        for way in ("served", "loop"):
            found[way].append(asked(way, index, seconds, seed, queries))
        for way in LIMITS:
            there, here = found[way][-1], found["served"][-1]
            there["ratio"] = here["qps"] / there["qps"]
            there["cpu_ratio"] = there["cpu_ms"] / here["cpu_ms"]
        print("  ".join(f"{way} {rows[-1]['qps']:.0f}/s" for way, rows in found.items()), flush=True)
    return {
        way: {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
        for way, rows in found.items()
    }


def part(way: str, target: str, *numbers: str) -> None:
    """What one of the other processes does."""
    if way == "direct":
        direct(Path(target), float(numbers[0]), int(numbers[1]))
    elif way == "ask":
        ask(target, float(numbers[0]), *map(int, numbers[1:]))
    else:
        {"served": served, "loop": loop}[way](Path(target))


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in ("direct", "served", "loop", "ask"):
        part(*sys.argv[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10,000 passages unless told otherwise, one round")
    parser.add_argument("--passages", type=int)
    parser.add_argument("--queries", type=int, default=1, help="of a request")
    parser.add_argument("--keep", type=Path, help="a folder in which the index is looked for, and kept")
    given = parser.parse_args()
    if given.queries < 1:
        parser.error("--queries must be at least 1")
    passages = given.passages or (10_000 if given.quick else 100_000)
    with tempfile.TemporaryDirectory() as folder:
        index = built(given.keep or Path(folder), passages)
        rows = compare(index, 1 if given.quick else 3, 3.0 if given.quick else 10.0, given.queries)
    for way, numbers in rows.items():
        print(f"{way:7}", "  ".join(f"{key} {value:g}" for key, value in numbers.items()))
    result = [
        {
            "bench": f"retrieval/{passages}/served" + (f"/{given.queries}" if given.queries > 1 else ""),
            "value": rows["served"]["qps"],
            "unit": "queries per second",
            "baseline": way,
            "baseline_value": rows[way]["qps"],
            "ratio": rows[way]["ratio"],
            "cpu_ratio": rows[way]["cpu_ratio"],
            "limit": limit,
        }
        for way, limit in LIMITS.items()
    ]
    print(json.dumps({"bench": "retrieval", "cores": os.cpu_count(), "threads": THREADS, "rows": result}))


if __name__ == "__main__":
    main()
