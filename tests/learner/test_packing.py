from __future__ import annotations

import numpy as np
import pytest

from learner.packing import pack_rows, packing_efficiency


def sequences(lengths: list[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 99, n).astype(np.int32) for n in lengths]
    return ids, [(rng.random(n) < 0.5) & (np.arange(n) > 0) for n in lengths]


def test_a_row_by_hand() -> None:
    ids = [np.array([7, 8], np.int32), np.array([1, 2, 3], np.int32)]
    (row,) = pack_rows(ids, [np.array([False, True]), np.array([False, True, True])], 16)
    assert row.members == (1, 0)
    assert row.token_ids.tolist() == [1, 2, 3, 7, 8]
    assert row.cu_seqlens.tolist() == [0, 3, 5]
    assert row.positions.tolist() == [0, 1, 2, 0, 1]
    assert row.sources.tolist() == [0, 1, 3]
    assert row.targets.tolist() == [2, 3, 8]
    assert row.repeat(np.array([10, 20])).tolist() == [20, 20, 10]
    assert row.concatenate([np.array([5]), np.array([6, 7])]).tolist() == [6, 7, 5]
    assert [part.tolist() for part in row.split(np.array([6, 7, 5]))] == [[6, 7], [5]]


@pytest.mark.parametrize("limit", [1, 10, 33, 1000])
def test_every_sequence_is_in_one_row_and_rows_keep_the_limit(limit: int) -> None:
    ids, masks = sequences([5, 9, 2, 7, 7, 30, 1, 12])
    rows = pack_rows(ids, masks, limit)
    assert sorted(m for row in rows for m in row.members) == list(range(8))
    for row in rows:
        assert len(row.token_ids) <= limit or len(row.members) == 1
        assert sorted(row.lengths.tolist(), reverse=True) == row.lengths.tolist()
        np.testing.assert_array_equal(row.targets, np.concatenate([ids[m][masks[m]] for m in row.members]))


def test_first_fit_decreasing_fills_the_gaps() -> None:
    ids, masks = sequences([4, 6, 5, 5, 7, 3])
    rows = pack_rows(ids, masks, 10)
    assert [row.lengths.tolist() for row in rows] == [[7, 3], [6, 4], [5, 5]]
    assert packing_efficiency(rows) == 1.0


def test_rows_are_evened_out() -> None:
    """First fit alone gives 6 + 4 and 5; two rows can do with 9, but not with 8."""
    ids, masks = sequences([6, 5, 4])
    rows = pack_rows(ids, masks, 10)
    assert [row.lengths.tolist() for row in rows] == [[6], [5, 4]]
    assert packing_efficiency(rows) == 15 / 18
    ids, masks = sequences([30, 4, 4, 4])  # one is longer than the limit, and alone
    assert [row.lengths.tolist() for row in pack_rows(ids, masks, 10)] == [[30], [4, 4], [4]]


@pytest.mark.parametrize(("limit", "least"), [(16384, 0.95), (9216, 0.94)])
@pytest.mark.parametrize("seed", range(10))
def test_efficiency_on_long_tailed_lengths(limit: int, least: float, seed: int) -> None:
    """An optimizer update of 12 questions x 5 episodes: a prompt, 1 to 10 searches with their passages, an answer."""
    rng = np.random.default_rng(seed)
    searches = np.minimum(1 + rng.geometric(0.35, 60), 10)
    lengths = [
        min(9216, int(rng.integers(150, 350) + rng.normal(480, 60, n).sum() + rng.lognormal(4.3, 0.9, n + 1).sum()))
        for n in searches
    ]
    assert max(lengths) > 2 * np.median(lengths)
    rows = pack_rows(*sequences(lengths), limit)
    assert packing_efficiency(rows) > least
    assert len(rows) <= -(-sum(lengths) // limit) + 1
    assert max(len(row.token_ids) for row in rows) <= limit


def test_efficiency() -> None:
    ids, masks = sequences([6, 5])
    assert packing_efficiency(pack_rows(ids, masks, 10)) == 11 / 12
    assert np.isnan(packing_efficiency(pack_rows([], [], 10)))


def test_a_first_token_cannot_be_selected() -> None:
    with pytest.raises(ValueError, match="first token"):
        pack_rows([np.array([1, 2], np.int32)], [np.array([True, True])], 10)
