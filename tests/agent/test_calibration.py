"""Calibrating early exit, by hand: endings, curve, bounds, and the fixed sequence of tests."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from agent.errors import UserError
from agent.inference.calibration import (
    THRESHOLDS,
    Ending,
    calibrate,
    check_enough,
    ending,
    point,
    scaled,
    upper_bound,
)
from agent.inference.early_exit import Probe
from agent.inference.evaluation import EvalRow, ScoredProbe
from agent.inference.scaling import Scale


def row(em: float, *probes: tuple[float, float], searches: int | None = None, fault: bool = False) -> EvalRow:
    """A full episode of ten tokens a turn; ``probes`` are (confidence, em) after each search, of four tokens each."""
    made = tuple(
        ScoredProbe(probe=Probe(searches=i, action_tokens=10 * i, answer="x", confidence=c, tokens=4), em=e)
        for i, (c, e) in enumerate(probes, start=1)
    )
    searches = len(probes) if searches is None else searches
    return EvalRow(
        question_id="q",
        kind="",
        answer="x",
        em=em,
        f1=em,
        evidence=None,
        searches=searches,
        action_tokens=10 * (searches + 1),
        stop_reason="generation_failed" if fault else "answered",
        fault=fault,
        probes=made,
    )


def test_an_episode_ends_at_its_first_confident_probe():
    played = row(1.0, (0.2, 0.0), (0.8, 1.0), (0.5, 0.0))
    assert ending(played, 0.1) == Ending(em=0.0, searches=1, tokens=10 + 4, exited=True)
    assert ending(played, 0.2) == ending(played, 0.1)
    assert ending(played, 0.3) == Ending(em=1.0, searches=2, tokens=20 + 8, exited=True)
    assert ending(played, 0.9) == Ending(em=1.0, searches=3, tokens=40 + 12, exited=False)


def test_a_point_by_hand():
    rows = [
        row(1.0, (0.9, 1.0), (0.9, 1.0)),  # exits right after 1
        row(1.0, (0.9, 0.0)),  # exits wrong: lost
        row(0.0, (0.9, 1.0)),  # exits right where the full episode is wrong
        row(0.0, (0.1, 1.0), (0.1, 1.0)),  # never exits
    ]
    found = point(rows, 0.5, delta=0.05)
    assert (found.threshold, found.em, found.exited, found.lost) == (0.5, 0.5, 0.75, 1)
    assert found.searches == (1 + 1 + 1 + 2) / 4
    assert found.tokens == (14 + 14 + 14 + (30 + 8)) / 4
    assert found.risk_bound == upper_bound(1, 4, 0.05)


@pytest.mark.parametrize(
    ("k", "n", "delta", "bound"),
    [
        (0, 10, 0.05, 1 - 0.05 ** (1 / 10)),  # (1 - p)^n = delta
        (0, 299, 0.05, 1 - 0.05 ** (1 / 299)),
        (9, 10, 0.05, 0.95 ** (1 / 10)),  # 1 - p^n = delta
        (2, 10, 0.05, 0.50690),  # tables
        (1, 2, 0.25, math.sqrt(0.75)),
        (5, 5, 0.05, 1.0),
    ],
)
def test_clopper_and_pearsons_bound(k, n, delta, bound):
    assert upper_bound(k, n, delta) == pytest.approx(bound, abs=1e-5)


def test_the_bound_covers_as_it_says():
    """Whatever the true risk, a bound below it is drawn with probability of at most delta."""
    random = np.random.default_rng(0)
    for p in (0.004, 0.01, 0.05):
        drawn = random.binomial(400, p, 20_000)
        bounds = {int(k): upper_bound(int(k), 400, 0.1) for k in np.unique(drawn)}
        missed = np.mean([bounds[int(k)] < p for k in drawn])
        assert missed <= 0.1 + 0.01


def test_thresholds_go_from_cautious_to_bold():
    assert list(THRESHOLDS) == sorted(THRESHOLDS, reverse=True)
    assert 0 < THRESHOLDS[-1] < 0.02
    assert 0.999999 < THRESHOLDS[0] < 1


# --- the choice ------------------------------------------------------------------------------------


def test_the_boldest_threshold_before_the_first_that_fails():
    # 100 questions at risk 0.1: 4 lost have a bound of 0.0892, 5 of 0.1023.
    assert upper_bound(4, 100, 0.05) < 0.1 < upper_bound(5, 100, 0.05)
    sure = [row(1.0, (0.99, 1.0), (0.99, 1.0))] * 80
    lost_late = [row(1.0, (0.6, 0.0), (0.6, 1.0))] * 4
    lost_last = [row(1.0, (0.3, 0.0), (0.3, 1.0))] * 16
    found = calibrate([*sure, *lost_late, *lost_last], risk=0.1, delta=0.05, fit_share=0)
    assert found.chosen is not None
    below = [t for t in THRESHOLDS if t > 0.3]
    assert found.chosen.threshold == below[-1], "the next one would lose 20"
    assert (found.chosen.lost, found.chosen.exited) == (4, 0.84)
    assert (found.questions, found.em, found.searches, found.tokens) == (100, 1.0, 2.0, 30.0)
    assert [p.threshold for p in found.points] == list(THRESHOLDS)


def test_what_lies_behind_a_failure_is_never_reached():
    """At 0.9 thirty are lost; lower thresholds end these earlier, and right: good again, but behind the failure."""
    rows = [row(1.0, (0.5, 1.0), (0.9, 0.0), searches=3)] * 30 + [row(1.0, (0.01, 0.0))] * 70
    found = calibrate(rows, risk=0.1, delta=0.05, fit_share=0)
    assert found.chosen is not None
    assert found.chosen.threshold > 0.9
    assert min(p.lost for p in found.points if p.threshold < 0.4) == 0


def test_no_threshold_at_all():
    found = calibrate([row(1.0, (1.0, 0.0))] * 100, risk=0.1, delta=0.05, fit_share=0)
    assert found.chosen is None
    assert {p.em for p in found.points} == {0.0}


def test_faults_say_nothing():
    rows = [row(1.0, (0.99, 1.0))] * 60
    assert calibrate([*rows, row(0.0, (1.0, 0.0), fault=True)], risk=0.1, delta=0.05, fit_share=0) == calibrate(
        rows, risk=0.1, delta=0.05, fit_share=0
    )


def test_too_few_questions_to_show_anything():
    rows = [row(1.0, (0.99, 1.0))] * 299
    assert calibrate(rows, risk=0.01, delta=0.05, fit_share=0).chosen is not None
    with pytest.raises(UserError, match=r"298 development questions can't show a risk of exit\.risk=0\.01.*takes 299"):
        calibrate(rows[:-1], risk=0.01, delta=0.05, fit_share=0)


@pytest.mark.slow
def test_the_chosen_threshold_keeps_its_risk_as_often_as_it_says():
    """Confidence and risk of a made-up policy: the risk of a threshold t is the chance of an exit at t, times 0.2."""
    random = np.random.default_rng(1)
    failures, runs = 0, 200
    for _ in range(runs):
        confidence, wrong = random.random(150), random.random(150) < 0.2
        rows = [row(1.0, (float(c), 1.0 - float(w))) for c, w in zip(confidence, wrong, strict=True)]
        chosen = calibrate(rows, risk=0.1, delta=0.2, fit_share=0).chosen
        failures += chosen is not None and 0.2 * (1 - chosen.threshold) > 0.1
    assert failures / runs <= 0.2


# --- the scale -------------------------------------------------------------------------------------


def test_depths_that_do_not_compare_share_a_threshold_once_they_are_scaled():
    """After one search 0.01 means done and 0.002 not, after two 0.001 and 0.0001: no one threshold tells them apart."""
    rows = []
    for i in range(300):
        rows.append(row(1.0, (0.010 + i * 1e-6, 1.0), (0.99, 1.0), searches=2))
        rows.append(row(1.0, (0.002 + i * 1e-6, 0.0), (0.001 + i * 1e-7, 1.0), (0.99, 1.0), searches=3))
        rows.append(row(1.0, (0.002 + i * 1e-6, 0.0), (0.0001 + i * 1e-8, 0.0), (0.99, 1.0), searches=3))
    raw = calibrate(rows, risk=0.01, delta=0.05, fit_share=0).chosen
    found = calibrate(rows, risk=0.01, delta=0.05, fit_share=1 / 3)
    assert (found.questions, found.searches) == (600, pytest.approx(8 / 3, abs=0.05))
    assert raw is not None
    assert found.chosen is not None
    assert raw.searches > 2.6
    assert (found.chosen.searches, found.chosen.lost) == (pytest.approx(6 / 3, abs=0.05), 0)
    assert found.scale is not None
    assert sorted(found.scale.lines) == [1, 2, 3]


def test_the_questions_that_make_the_scale_do_not_find_the_threshold():
    """Of a hundred questions one is right only in its full episode: it counts where it is, and there alone."""
    rights = [row(1.0, (0.9, 1.0))] * 99
    seen = []
    for at in range(100):
        found = calibrate([*rights[:at], row(1.0, (0.9, 0.0)), *rights[at:]], risk=0.1, delta=0.05, fit_share=0.5)
        assert found.questions == 50
        assert found.scale is not None
        tested = found.points[-1].lost
        assert found.scale(1, 0.9) == pytest.approx(51 / 52 if tested else (49 * 50 / 51 + 1 / 3) / 50)
        seen.append(tested)
    assert sorted(seen) == [0] * 50 + [1] * 50


def test_a_scaled_opening_still_bounds_the_confidence():
    probe = Probe(searches=1, action_tokens=0, answer="x", confidence=0.2, tokens=3, opening=0.5, opening_tokens=1)
    unasked = Probe(searches=1, action_tokens=0, answer="x", confidence=0.2, tokens=3)
    scale = Scale(lines={1: (2.0, 1.0)})
    played = replace(row(1.0), probes=(ScoredProbe(probe=probe, em=1.0), ScoredProbe(probe=unasked, em=1.0)))
    first, second = (p.probe for p in scaled(played, scale).probes)
    assert (first.confidence, first.opening) == (scale(1, 0.2), scale(1, 0.5))
    assert (second.confidence, second.opening) == (scale(1, 0.2), 1.0)
    assert first.cost(0.9) == 1
    assert second.cost(0.9) == 3


def test_enough_are_left_if_as_many_fault_as_may():
    wanted = {"risk": 0.01, "delta": 0.05, "fit_share": 1 / 3}
    rows = [row(1.0, (0.9, 1.0))] * 448
    check_enough(448, **wanted)
    said = r"297 .* \(those that exit\.fit_share=0\.333 and evaluation\.max_fault_share=0\.01 leave of 449\)"
    with pytest.raises(UserError, match=said):
        check_enough(449, **wanted, max_fault_share=0.01)
    check_enough(452, **wanted, max_fault_share=0.01)
    assert calibrate([*rows, *[row(0.0, fault=True)] * 4], **wanted).questions == 299


def test_too_few_questions_beside_those_that_are_fitted():
    with pytest.raises(UserError, match=r"290 development questions \(those that exit\.fit_share=0\.333 leaves of 435"):
        calibrate([row(1.0, (0.9, 1.0))] * 435, risk=0.01, delta=0.05, fit_share=1 / 3)
