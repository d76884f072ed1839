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


# --- what sequences have in common -----------------------------------------------------------------


def family(rng: np.random.Generator, prompt: int, lengths: list[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Answers of these lengths to one prompt, no two of which begin alike."""
    start = rng.integers(0, 900, prompt)
    ids = [
        np.concatenate([start, [900 + i], rng.integers(0, 900, n - 1)]).astype(np.int32) for i, n in enumerate(lengths)
    ]
    return ids, [np.arange(len(i)) >= prompt for i in ids]


def test_a_prompt_is_in_a_row_once_but_for_its_last_token() -> None:
    ids, masks = family(np.random.default_rng(0), 20, [3, 5])
    (row,) = pack_rows(ids, masks, 100, families=[7, 7])
    assert row.members == (1, 0)
    assert row.lengths.tolist() == [19, 6, 4]
    assert row.before.tolist() == [-1, 0, 0]
    assert row.positions.tolist() == [*range(19), *range(19, 25), *range(19, 23)]
    assert [row.token_ids[place].tolist() for place in row.places()] == [ids[1].tolist(), ids[0].tolist()]
    assert row.sources.tolist() == [19, 20, 21, 22, 23, 25, 26, 27], "the prompt's last token predicts, in each"
    assert row.targets.tolist() == [*ids[1][20:], *ids[0][20:]]
    assert (row.whole_tokens, row.selected.tolist()) == (48, [5, 3])


@pytest.mark.parametrize(("prompt", "families"), [(20, None), (20, [0, 1]), (12, [0, 0])])
def test_what_is_not_worth_it_is_not_shared(prompt: int, families: list[int] | None) -> None:
    ids, masks = family(np.random.default_rng(0), prompt, [3, 5])
    (row,) = pack_rows(ids, masks, 100, families=families)
    assert row.before.tolist() == [-1, -1]
    assert row.whole_tokens == len(row.token_ids) == 2 * prompt + 8


def test_inherited_actions_are_each_sequences_own() -> None:
    ids, masks = family(np.random.default_rng(0), 40, [3, 5])
    for mask in masks:
        mask[25:30] = True  # a continuation's, which are trained on again
    (row,) = pack_rows(ids, masks, 200, families=[0, 0])
    assert row.lengths.tolist() == [24, 21, 19]
    assert len(set(row.sources.tolist())) == len(row.sources) == 5 + 5 + 3 + 5


def test_families_stay_together_and_what_they_share_is_counted_in_each_row() -> None:
    rng = np.random.default_rng(1)
    ids, masks, families = [], [], []
    for number in range(9):
        more, wanted = family(rng, int(rng.integers(20, 60)), rng.integers(10, 80, 8).tolist())
        ids, masks, families = ids + more, masks + wanted, [*families, *[number] * 8]
    for world in (1, 3):
        rows = pack_rows(ids, masks, 400, multiple=world, families=families)
        assert len(rows) % world == 0
        assert sorted(m for row in rows for m in row.members) == list(range(72))
        assert all(len(row.token_ids) <= 400 for row in rows)
        assert packing_efficiency(rows) > 0.8
        for row in rows:
            for member, place, count in zip(row.members, row.places(), row.selected, strict=True):
                assert row.token_ids[place].tolist() == ids[member].tolist()
                assert count == masks[member].sum()
            assert row.concatenate([i[m] for i, m in zip(ids, masks, strict=True)]).tolist() == row.targets.tolist()
        copies = sum(int((row.before < 0).sum()) for row in rows)
        assert copies <= 9 + len(rows), "a family is parted where a row ends"
