"""draws.parquet: one row per draw of a query from the pool, and what the rows say of query recycling."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as parquet

from agent.pool.history import DRAW, STATES
from agent.tickets import QueryState

_STATE_COLUMNS = ("before", "rolled_out", "found", "after")


def write_draws(path: Path, log: npt.NDArray[np.void], ids: Sequence[str]) -> None:
    """Writes ``log`` (``agent.pool.history.DRAW`` rows, questions as indices into ``ids``) as one Parquet file.

    Columns: ``query_id``, ``batch``, ``order`` (within the batch), ``version`` (oldest policy version of the
    rollouts), ``size`` (viable rollouts), ``successes``, ``accepted``, and four states: ``before`` the draw, of the K
    independent rollouts (``rolled_out``), of the group with its continuation (``found``), ``after`` the verdict.
    """
    columns: dict[str, pa.Array] = {"query_id": pa.array(ids, pa.string()).take(pa.array(log["query"]))}
    for name in ("batch", "order", "version", "size", "successes"):
        columns[name] = pa.array(log[name])
    names = pa.array([str(state) for state in STATES], pa.string())
    for name in _STATE_COLUMNS:
        columns[name] = pa.DictionaryArray.from_arrays(pa.array(log[name]), names)
    columns["accepted"] = pa.array(log["accepted"])
    unfinished = path.with_suffix(".tmp")
    parquet.write_table(pa.table(columns), unfinished)
    os.replace(unfinished, path)


def read_draws(path: Path) -> npt.NDArray[np.void]:
    """The rows of ``write_draws``; ``query`` numbers the ids in the order of their first draw."""
    table = parquet.read_table(path)
    log = np.zeros(table.num_rows, dtype=DRAW)
    log["query"] = table["query_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    for name in ("batch", "order", "version", "size", "successes", "accepted"):
        log[name] = table[name].to_numpy()
    code = {str(state): i for i, state in enumerate(STATES)}
    for name in _STATE_COLUMNS:
        log[name] = [code[state] for state in table[name].to_pylist()]
    return log


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawSummary:
    """What arXiv 2606.10709 reports of its runs. Shares are NaN where there is nothing to share."""

    draws: int
    queries: int
    """Queries that were drawn at least once."""
    trained_queries: int
    """Queries that were trained on at least once, with signal."""
    flipped_share: float
    """Of the drawn queries, how many went from zero-variance at some draw to signal-bearing at a later one."""
    flipped_from_hard: float
    """Share of the flips whose last draw before was too hard: the policy has improved."""
    flipped_from_easy: float
    """Share of the flips whose last draw before was too easy: the policy has drifted."""
    recycled_share: float
    """Share of the trained groups whose query had been drawn before and not consumed."""
    recycled_share_end: float
    """The same over the last quarter of the batches."""
    recycled_from: dict[str, float]
    """Shares of the trained groups by what the query was before: unseen, too_hard, signal, too_easy, consumed."""
    transitions: dict[str, dict[str, int]]
    """Draws by the state before and what they found."""


def summarise_draws(log: npt.NDArray[np.void]) -> DrawSummary:
    """The summary of a run's draws, which must be in the order in which they were decided."""
    hard, easy, signal = (STATES.index(s) for s in (QueryState.TOO_HARD, QueryState.TOO_EASY, QueryState.SIGNAL))
    last_zero: dict[int, int] = {}
    flips: dict[int, int] = {}  # query -> the zero-variance state that its first flip came from
    for row in log:
        query, found = int(row["query"]), int(row["found"])
        if found != signal:
            last_zero[query] = found
        elif query in last_zero:
            flips.setdefault(query, last_zero[query])
    trained = log[log["accepted"] & (log["found"] == signal)]
    fresh = np.isin(trained["before"], [STATES.index(QueryState.UNSEEN), STATES.index(QueryState.CONSUMED)])
    late = trained["batch"] >= (0.75 * (log["batch"].max() + 1) if len(log) else 0)
    pairs = Counter(zip(log["before"].tolist(), log["found"].tolist(), strict=True))
    queries = len(np.unique(log["query"]))
    return DrawSummary(
        draws=len(log),
        queries=queries,
        trained_queries=len(np.unique(trained["query"])),
        flipped_share=_share(len(flips), queries),
        flipped_from_hard=_share(sum(s == hard for s in flips.values()), len(flips)),
        flipped_from_easy=_share(sum(s == easy for s in flips.values()), len(flips)),
        recycled_share=_share(int((~fresh).sum()), len(trained)),
        recycled_share_end=_share(int((~fresh & late).sum()), int(late.sum())),
        recycled_from={
            str(state): _share(int((trained["before"] == i).sum()), len(trained)) for i, state in enumerate(STATES)
        },
        transitions={
            str(a): {str(b): pairs[i, j] for j, b in enumerate(STATES) if pairs[i, j]}
            for i, a in enumerate(STATES)
            if any(pairs[i, j] for j in range(len(STATES)))
        },
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
