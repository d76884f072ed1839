"""What rows say of a policy: means over questions, pass@k, bootstrap intervals, slices."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from agent.inference.estimates import RESAMPLES, interval, pass_at, passes, resampled, slices, tried, values
from agent.inference.evaluation import EvalRow


def row(question, em=0.0, *, sample=0, kind="", documents=0, fault=False, evidence=None):
    return EvalRow(
        question_id=question,
        kind=kind,
        answer="x",
        em=em,
        f1=em,
        evidence=evidence,
        searches=2,
        action_tokens=10,
        probe_tokens=3,
        stop_reason="retrieval_failed" if fault else "answered",
        fault=fault,
        documents=documents,
        sample=sample,
    )


def test_a_question_counts_once_and_faults_not_at_all():
    rows = [row("a", 1.0), row("a", 0.0, sample=1), row("b", 1.0), row("b", 0.0, sample=1, fault=True)]
    rows.append(row("c", 1.0, fault=True))
    assert values(rows, "em") == {"a": 0.5, "b": 1.0}
    assert values(rows, "tokens") == {"a": 13.0, "b": 13.0}
    assert values([row("a"), row("b", evidence=0.5)], "evidence_recall") == {"b": 0.5}
    assert passes(rows, 2, 2) == {"a": 1.0}, "b has one viable episode"


@pytest.mark.parametrize("n", [1, 2, 5])
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(n):
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        right = [i < correct for i in range(n)]
        choices = [*itertools.combinations(right, k)]
        assert pass_at(n, correct, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_more_tries_are_never_worse_whatever_faults_there_are():
    """Of a, which is always right, a fault ended an episode."""
    rows = [row("a", 1.0, sample=k, fault=k == 3) for k in range(4)] + [row("b", sample=k) for k in range(4)]
    assert [passes(rows, k, 4) for k in (1, *tried(4))] == [{"b": 0.0}] * 3


def test_pass_at_more_than_there_are_is_refused():
    for k in (0, 4):
        with pytest.raises(ValueError, match=rf"pass@{k} of 3 episodes"):
            pass_at(3, 1, k)


def test_the_k_that_are_shown():
    assert [tried(n) for n in (1, 2, 3, 4, 5, 8)] == [[], [2], [2, 3], [2, 4], [2, 4, 5], [2, 4, 8]]


def test_an_interval_is_seeded_and_covers_what_the_normal_one_does():
    each = [1.0] * 60 + [0.0] * 140
    found = interval(each, 0)
    assert found == interval(each, 0)
    spread = np.random.default_rng(0).random(200)
    assert (resampled(spread, 0) == resampled(spread, 0)).all()
    assert (resampled(spread, 0) != resampled(spread, 1)).any()
    half = 1.96 * math.sqrt(0.3 * 0.7 / 200)
    assert found["mean"] == pytest.approx(0.3)
    assert (found["low"], found["high"]) == pytest.approx((0.3 - half, 0.3 + half), abs=0.012)
    assert interval([], 0) == {"mean": None, "low": None, "high": None, "n": 0}
    assert interval([0.5], 0) == {"mean": 0.5, "low": None, "high": None, "n": 1}
    assert interval([1.0, 1.0], 0) == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 2}


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(5)
    held = 0
    for seed in range(200):
        found = interval((rng.random(150) < 0.4).astype(float).tolist(), seed)
        held += found["low"] <= 0.4 <= found["high"]
    assert 180 <= held <= 199


def test_many_values_are_resampled_in_parts(monkeypatch):
    each = np.arange(100.0)
    monkeypatch.setattr("agent.inference.estimates._AT_ONCE", 7 * 100)
    parts = resampled(each, 3)
    assert parts.shape == (RESAMPLES,)
    assert parts.mean() == pytest.approx(49.5, abs=0.3)


def test_slices_by_type_and_by_supporting_documents():
    rows = [row("a", kind="bridge", documents=2), row("b", kind="bridge", documents=4), row("c", documents=2)]
    found = [(by, name, [r.question_id for r in own]) for by, name, own in slices(rows)]
    assert found == [
        ("all", "all", ["a", "b", "c"]),
        ("type", "bridge", ["a", "b"]),
        ("documents", "2", ["a", "c"]),
        ("documents", "4", ["b"]),
    ]


def test_the_same_slices_are_shown_once():
    hops = [row("a", kind="2-hop", documents=2), row("b", kind="3-hop", documents=3)]
    assert [(by, name) for by, name, _ in slices(hops)] == [("all", "all"), ("type", "2-hop"), ("type", "3-hop")]
    assert [by for by, _, _ in slices([row("a", documents=2), row("b", documents=2)])] == ["all"]
    assert [by for by, _, _ in slices([row("a", kind="bridge"), row("b", kind="bridge")])] == ["all"]


def test_numbers_in_names_are_in_their_order():
    rows = [row(str(n), kind=f"{n}-hop", documents=d) for n, d in ((10, 10), (9, 2), (100, 10))]
    found = [name for by, name, _ in slices(rows) if by != "all"]
    assert found == ["9-hop", "10-hop", "100-hop", "2", "10"]
