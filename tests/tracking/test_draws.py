"""The record of all draws, as a file and as numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from agent.pool.history import DRAW, STATES
from tracking.draws import read_draws, summarise_draws, write_draws

U, H, S, E, C = range(5)  # unseen, too hard, signal, too easy, consumed


def log_of(*rows: tuple[int, int, int, int, int, bool]) -> np.ndarray:
    """``rows`` are (query, batch, before, found, after, accepted); groups of four."""
    log = np.zeros(len(rows), dtype=DRAW)
    successes = {H: 0, S: 2, E: 4}
    for i, (query, batch, before, found, after, accepted) in enumerate(rows):
        log[i] = (query, batch, i, batch + 3, 4, successes[found], before, found, found, after, accepted)
    return log


LOG = log_of(
    (2, 0, U, H, H, False),
    (0, 0, U, S, C, True),
    (1, 0, U, E, E, False),
    (2, 1, H, S, C, True),  # recovered from too hard
    (1, 2, E, H, H, False),
    (3, 2, U, S, S, False),  # beyond B: not trained
    (1, 3, H, S, C, True),  # flips from what it was last
    (3, 3, S, S, C, True),
    (0, 3, C, S, C, True),  # came back after it was consumed: not recycled
)


def test_states_are_numbered_as_these_tests_say() -> None:
    assert [str(s) for s in STATES] == ["unseen", "too_hard", "signal", "too_easy", "consumed"]


def test_the_file_says_everything_in_words(tmp_path: Path) -> None:
    path = tmp_path / "draws.parquet"
    write_draws(path, LOG, ["a", "b", "c", "d"])
    rows = parquet.read_table(path).to_pylist()
    assert rows[3] == {
        "query_id": "c",
        "batch": 1,
        "order": 3,
        "version": 4,
        "size": 4,
        "successes": 2,
        "before": "too_hard",
        "rolled_out": "signal",
        "found": "signal",
        "after": "consumed",
        "accepted": True,
    }
    again = read_draws(path)
    assert again["query"].tolist() == [0, 1, 2, 0, 2, 3, 2, 3, 1]
    for name in DRAW.names[1:]:
        np.testing.assert_array_equal(again[name], LOG[name])
    write_draws(path, LOG[:1], ["a", "b", "c", "d"])
    assert len(read_draws(path)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["draws.parquet"]


def test_a_summary_by_hand() -> None:
    summary = summarise_draws(LOG)
    assert (summary.draws, summary.queries, summary.trained_queries) == (9, 4, 4)
    assert summary.flipped_share == 2 / 4
    assert (summary.flipped_from_hard, summary.flipped_from_easy) == (1.0, 0.0)
    assert summary.recycled_share == 3 / 5
    assert summary.recycled_share_end == 2 / 3  # the batches from the third on
    assert summary.recycled_from == {"unseen": 0.2, "too_hard": 0.4, "signal": 0.2, "too_easy": 0.0, "consumed": 0.2}
    assert summary.transitions == {
        "unseen": {"too_hard": 1, "signal": 2, "too_easy": 1},
        "too_hard": {"signal": 2},
        "signal": {"signal": 1},
        "too_easy": {"too_hard": 1},
        "consumed": {"signal": 1},
    }


def test_a_flip_from_too_easy_is_drift() -> None:
    summary = summarise_draws(log_of((0, 0, U, H, H, False), (0, 1, H, E, E, False), (0, 2, E, S, C, True)))
    assert (summary.flipped_from_hard, summary.flipped_from_easy) == (0.0, 1.0)


@pytest.mark.parametrize("rows", [[], [(0, 0, U, H, H, False)]])
def test_shares_of_nothing_are_not_numbers(rows: list[tuple[int, int, int, int, int, bool]]) -> None:
    summary = summarise_draws(log_of(*rows))
    assert math.isnan(summary.recycled_share)
    assert math.isnan(summary.flipped_from_hard)
