"""The measures of a sweep, on runs small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
from sweep_rows import RUN, evaluation, step

from tracking.experiments import measures

# --- intervals -------------------------------------------------------------------------------------


def test_an_interval_by_hand() -> None:
    # Mean 3, variance (4 + 0 + 4) / 2 = 4, so s / sqrt(n) = 2 / sqrt(3); t of two degrees of freedom is 4.303.
    half = 4.303 * 2 / math.sqrt(3)
    assert measures.interval([1.0, 3.0, 5.0]) == {
        "mean": 3.0,
        "low": pytest.approx(3 - half),
        "high": pytest.approx(3 + half),
        "n": 3,
    }


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert measures.interval([0.5]) == {"mean": 0.5, "low": None, "high": None, "n": 1}
    assert measures.interval([]) == {"mean": None, "low": None, "high": None, "n": 0}
    assert math.isnan(measures.half_width([0.5]))


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.706), (5, 2.776), (10, 2.262), (31, 2.042), (100, 2.042)])
def test_the_quantile_is_that_of_one_degree_less(n: int, quantile: float) -> None:
    values = [0.0, 1.0] * (n // 2) + [0.5] * (n % 2)
    deviation = math.sqrt(sum((v - 0.5) ** 2 for v in values) / (n - 1))
    assert measures.half_width(values) == pytest.approx(quantile * deviation / math.sqrt(n))


def test_a_ratio_is_the_same_whichever_is_divided() -> None:
    one = measures.ratio_interval([0.5, 0.25])
    other = measures.ratio_interval([2.0, 4.0])
    assert one["mean"] == pytest.approx(math.sqrt(0.125))
    for end, opposite in (("mean", "mean"), ("low", "high"), ("high", "low")):
        assert one[end] == pytest.approx(1 / other[opposite])


# --- curves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "where"),
    [
        (0.5, 150.0),  # half way from 0.4 to 0.6
        (0.6, 200.0),
        (0.2, 0.0),
        (0.1, 0.0),
        (0.3, 50.0),
        (0.61, None),
    ],
)
def test_a_target_is_reached_between_evaluations(target: float, where: float | None) -> None:
    found = measures.first_reach([0, 100, 200, 300], [0.2, 0.4, 0.6, 0.5], target)
    assert found == (where if where is None else pytest.approx(where))


def test_a_target_counts_the_first_time() -> None:
    assert measures.first_reach([0, 10, 20, 30], [0.0, 1.0, 0.0, 1.0], 0.5) == 5.0
    assert measures.first_reach([], [], 0.5) is None


def test_the_mean_over_the_budget_is_the_area_under_the_line() -> None:
    # (0.2 + 0.4) / 2 * 100 + (0.4 + 0.6) / 2 * 300 = 180, over 400.
    assert measures.mean_height([0, 100, 400], [0.2, 0.4, 0.6]) == pytest.approx(0.45)
    assert measures.mean_height([0], [0.2]) == 0.2


# --- a run -----------------------------------------------------------------------------------------


def test_quarters_are_of_the_rollouts_not_of_the_steps() -> None:
    steps = [step(1, rollouts=100), step(2, rollouts=100), *(step(n, rollouts=20) for n in range(3, 13))]
    # 400 in all: the middles lie at 50, 150, then 210, 230, 250, 270, 290 and 310, …
    assert [[r["step"] for r in part] for part in measures.quarters(steps)] == [
        [1],
        [2],
        [3, 4, 5, 6, 7],
        [8, 9, 10, 11, 12],
    ]


def test_an_evaluation_that_scored_nothing_says_nothing_and_no_other_stands_for_it() -> None:
    """Of a run in which every episode broke for a while: no measure of it is an error, and none counts it as 0."""
    nothing = {"n": 0, **dict.fromkeys(("em", "em/1-hop", "em/2-hop", "search/mean", "action_tokens/mean"))}
    broken = {**evaluation(3, 0.0, 120, 1200), **nothing}
    whole, last = measures.measures(RUN, 0.3), measures.measures([*RUN[:-1], broken], 0.3)
    kinds = ("em_after", "em_after/1-hop", "em_after/2-hop", "em_over_budget")
    of_last = (*kinds, "searches", "question_tokens", "evidence_recall")
    assert {name for name in whole if whole[name] != last[name]} == {*of_last}
    assert [last[name] for name in of_last] == [None] * 7
    first = measures.measures([{**RUN[0], **nothing}, *RUN[1:]], None)
    assert [first[name] for name in ("em_before", "em_before/2-hop", "em_over_budget")] == [None] * 3
    assert first["em_after"] == whole["em_after"]
    alone = measures.measures([broken], 0.3)
    assert "em_after" not in alone
    assert (alone["rollouts"], alone["generated_tokens"]) == (120, 1200)


def test_evaluations_of_other_questions_or_played_otherwise_are_no_measure_of_one_run() -> None:
    """The newest ones say what the run came to; from where, nobody knows."""
    first, last = ({"held_out": "a", "played": "x"}, {"held_out": "a", "played": "y"})
    rows = [r | ((first if r["step"] < 4 else last) if r["kind"] == "eval" else {}) for r in RUN]
    assert [r["step"] for r in measures.evaluations(rows)] == [4]
    found = measures.measures(rows, 0.4)
    assert (found["em_before"], found["em_after"], found["em_over_budget"]) == (None, 0.5, None)
    assert not {"rollouts_to_target", "tokens_to_target"} & found.keys()
    assert [r["step"] for r in measures.evaluations(RUN)] == [0, 2, 4], "those of earlier versions don't say"


def test_every_measure_of_a_run_by_hand() -> None:
    assert measures.measures(RUN, 0.3) == {
        "rollouts": 160,
        "generated_tokens": 1800,
        "em_before": 0.2,
        "em_after": 0.5,
        "em_before/1-hop": 0.4,
        "em_after/1-hop": 0.9,
        "em_before/2-hop": 0.0,
        "em_after/2-hop": 0.1,
        "em_over_budget": pytest.approx((0.4 * 80 + 0.55 * 80) / 160),
        "rollouts_to_target": pytest.approx(20.0),
        "tokens_to_target": pytest.approx(200.0),
        "searches": 5.5,
        "question_tokens": 14.5,
        "evidence_recall": 0.25,
        "rollouts_per_signal_group": 160 / 20,
        "zero_variance_share": 20 / 40,
        "zero_variance_share/quarter_1": 0.6,
        "zero_variance_share/quarter_2": 0.4,
        "zero_variance_share/quarter_3": 0.8,
        "zero_variance_share/quarter_4": 0.2,
        "recycled_share_last_quarter": 0.25,
        "flipped_share": 0.125,
        "recovered_too_hard_share": 4 / 20,
        "recovered_too_easy_share": 1 / 20,
    }


def test_a_batch_that_was_skipped_has_cost_what_it_has_cost() -> None:
    lost = {"rollout/trajectories": 40, "rollout/generated_tokens": 300}
    skipped = {"kind": "event", "event": "untrainable_batch", "batch": 3, "why": "", **lost}
    whole, found = measures.measures(RUN, 0.3), measures.measures([*RUN, skipped], 0.3)
    assert (found["rollouts"], found["generated_tokens"]) == (200, 2100)
    assert found["rollouts_per_signal_group"] == 200 / 20
    assert found["zero_variance_share"] == whole["zero_variance_share"]


def test_what_came_before_the_first_step_counts_too() -> None:
    """The expert seeding is in the totals of the first evaluation, and in no step."""
    seeded = [{**RUN[0], "rollouts": 40, "generated_tokens": 300}, *RUN[1:]]
    lost = {"rollout/trajectories": 8, "rollout/generated_tokens": 60}
    skipped = {"kind": "event", "event": "untrainable_batch", "step": 0, "batch": 0, **lost}  # in the totals, too
    found = measures.measures([skipped, *seeded], None)
    assert (found["rollouts"], found["generated_tokens"]) == (160 + 40, 1800 + 300)
    assert found["rollouts_per_signal_group"] == 160 / 20


def test_without_a_target_nothing_is_said_of_one() -> None:
    assert not [name for name in measures.measures(RUN, None) if "target" in name]


def test_a_target_that_is_not_reached_has_no_cost() -> None:
    found = measures.measures(RUN, 0.7)
    assert (found["rollouts_to_target"], found["tokens_to_target"]) == (None, None)


def test_a_run_that_has_only_begun_says_what_it_can() -> None:
    assert measures.measures([], 0.5)["rollouts"] == 0
    found = measures.measures(RUN[:1], 0.5)
    assert (found["em_before"], found["em_after"], found["em_over_budget"]) == (0.2, 0.2, 0.2)
    assert (found["rollouts_per_signal_group"], found["zero_variance_share"], found["flipped_share"]) == (None,) * 3


def test_a_run_that_never_saw_a_signal() -> None:
    found = measures.measures([step(1, mix=(0, 9, 1), recycled=None)], None)
    assert (found["rollouts_per_signal_group"], found["zero_variance_share"]) == (None, 1.0)
    assert (found["recycled_share_last_quarter"], found["recovered_too_hard_share"]) == (None, None)


def test_the_recycled_share_weighs_each_step_by_its_trained_groups_with_signal() -> None:
    # Of the epoch rule: all ten are accepted, the share is of those with signal. Of recycling: two are beyond B.
    steps = [step(1, mix=(2, 8, 0), accepted=10, recycled=1.0), step(2, mix=(8, 1, 1), accepted=6, recycled=0.5)]
    assert measures.recycled_share(steps) == pytest.approx((2 * 1.0 + 6 * 0.5) / 8)


# --- runs together ---------------------------------------------------------------------------------


def test_a_measure_is_pooled_over_the_runs_that_have_it() -> None:
    found = measures.pooled([{"a": 1.0, "b": None}, {"a": 2.0, "b": 3.0}])
    assert (found["a"]["mean"], found["a"]["n"]) == (1.5, 2)
    assert found["b"] == {"mean": 3.0, "low": None, "high": None, "n": 1}


def test_conditions_are_compared_seed_by_seed() -> None:
    def run(em: float, cost: float | None) -> dict[str, float | None]:
        kinds = {"em_before/2-hop": 0.0, "em_after/2-hop": em / 10}
        return {"em_after": em, "em_over_budget": em / 2, "rollouts_per_signal_group": cost, **kinds}

    runs = {0: run(0.9, 4.0), 1: run(0.7, 5.0), 2: run(0.8, 3.0), 7: run(0.0, 1.0)}
    baseline = {2: run(0.75, None), 1: run(0.6, 10.0), 0: run(0.85, 8.0), 5: run(1.0, 1.0)}
    found = measures.paired(runs, baseline)
    # 0.05, 0.1 and 0.05: mean 1/15, deviation sqrt((2 (1/60)^2 + (1/30)^2) / 2) = sqrt(3) / 60.
    half = 4.303 * (math.sqrt(3) / 60) / math.sqrt(3)
    assert found["em_after"]["mean"] == pytest.approx(1 / 15)
    assert found["em_after"]["high"] == pytest.approx(1 / 15 + half)
    assert found["em_over_budget"]["mean"] == pytest.approx(1 / 30)
    assert found["em_after/2-hop"]["mean"] == pytest.approx(1 / 150)
    assert "em_before/2-hop" not in found
    assert found["em_after"]["n"] == 3
    ratio = found["rollouts_per_signal_group"]
    assert (ratio["mean"], ratio["low"], ratio["high"], ratio["n"]) == (*(pytest.approx(0.5),) * 3, 2)
