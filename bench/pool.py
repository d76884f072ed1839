"""The query pool at up to a million queries: time per question drawn, submitted and taken, and memory per question.

python bench/pool.py [--quick]

What should hold, and why: a draw walks two binary trees and touches nothing else of size n, so its time
grows like log n. ``adaptive`` also weighs idle questions anew, at ever longer intervals. That is work per draw
and not per question of the pool, but a small pool draws its questions again before most of it is due; so
the growth is counted from 10,000 questions on. The limits are 1 ms per question drawn and 200 bytes per question.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import tracemalloc
from dataclasses import dataclass

import numpy as np

from agent.pool.query_pool import QueryPool
from agent.pool.rules.base import rule_class
from agent.simulation.policies import outcome

LIMIT_S, LIMIT_BYTES = 1e-3, 200
BATCH, K = 64, 4


@dataclass(frozen=True)
class Row:
    """One pool's numbers."""

    rule: str
    queries: int
    seconds_per_draw: float
    bytes_per_query: float


def measure(name: str, queries: int, batches: int) -> Row:
    """Medians over ``batches`` steps of ``BATCH`` questions, after as many to warm up."""
    rule = rule_class(name)(batch_questions=BATCH, group_size=K, max_empty_batches=10**9)
    tracemalloc.start()
    pool: QueryPool[None] = QueryPool([str(i) for i in range(queries)], rule, seed=0)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    rng = np.random.default_rng(0)
    times = []
    for _ in range(2 * batches):
        started, drawn = time.perf_counter(), 0
        while tickets := pool.claim("bench", now=0.0, limit=BATCH):
            drawn += len(tickets)
            for ticket in tickets:
                solved = int(rng.integers(K + 1))
                pool.submit(outcome(ticket, K, solved, ticket.batch), None)
        pool.release(pool.take(version=0).index)
        times.append((time.perf_counter() - started) / drawn)
    return Row(name, queries, float(np.median(times[batches:])), size / queries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer batches, up to 100,000 queries")
    quick = parser.parse_args().quick
    sizes = [10_000, 100_000] if quick else [10_000, 100_000, 1_000_000]
    rows = []
    for name in ("epoch", "recycle", "adaptive"):
        first = None
        for queries in sizes:
            row = measure(name, queries, 20 if quick else 60)
            first = first or row
            growth = row.seconds_per_draw / first.seconds_per_draw
            print(
                f"{name:9} {queries:>9,} queries  {1e6 * row.seconds_per_draw:6.1f} us per query drawn  "
                f"x{growth:.2f} (log n: x{math.log2(queries) / math.log2(sizes[0]):.2f})  "
                f"{row.bytes_per_query:5.1f} bytes per query",
                flush=True,
            )
            rows.append(row)
    largest = max((r for r in rows if r.queries == sizes[-1]), key=lambda r: r.seconds_per_draw)
    if largest.seconds_per_draw > LIMIT_S or max(r.bytes_per_query for r in rows) > LIMIT_BYTES:
        print("over the limit")
    result = [
        {
            "bench": f"pool/{r.rule}/{r.queries}",
            "value": r.seconds_per_draw,
            "unit": "s per query drawn",
            "baseline": "limit",
            "baseline_value": LIMIT_S,
            "ratio": r.seconds_per_draw / LIMIT_S,
            "bytes_per_query": r.bytes_per_query,
        }
        for r in rows
    ]
    print(json.dumps({"bench": "pool", "rows": result}))


if __name__ == "__main__":
    main()
