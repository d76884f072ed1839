"""The facts about each query, and the record of all draws."""

from __future__ import annotations

import numpy as np
import pytest

from agent.pool.beta_binomial import chance_of_all, chance_of_any, chance_of_both
from agent.pool.history import STATES, Population, QueryHistory
from agent.simulation.policies import outcome
from agent.tickets import QueryState, Ticket

SIGNAL, HARD, EASY = QueryState.SIGNAL, QueryState.TOO_HARD, QueryState.TOO_EASY


def half_every_four(age):
    return 0.5 ** (np.asarray(age, dtype=float) / 4)


def draw(history, query, batch, successes, size=4, accepted=False, after=None, pilot=None):
    found = SIGNAL if 0 < successes < size else EASY if successes else HARD
    ticket = Ticket(claim_id=0, query=query, batch=batch, order=7, seed=0)
    history.observe(outcome(ticket, size, successes, 0, pilot=pilot), batch)
    history.settle(
        query,
        batch=batch,
        order=7,
        version=batch + 100,
        size=size,
        successes=successes,
        rolled_out=found,
        found=found,
        after=after or found,
        accepted=accepted,
    )


def test_chances_against_numbers_worked_by_hand():
    # Beta(1, 1): p is uniform, so E[p^K] = 1 / (K + 1).
    assert chance_of_all(1.0, 1.0, 4) == pytest.approx(1 / 5)
    assert chance_of_both(1.0, 1.0, 4) == pytest.approx(3 / 5)
    assert chance_of_any(1.0, 1.0, 3) == pytest.approx(3 / 4)
    # Beta(4.5, 0.5), an arcsine prior after four successes: 4.5*5.5*6.5*7.5 / (5*6*7*8) and 0.5*1.5*2.5*3.5 / 1680.
    assert chance_of_both(4.5, 0.5, 4) == pytest.approx(1 - 0.7181919642857143 - 0.00390625, abs=1e-12)
    ones = np.array([1.0, 4.5])
    np.testing.assert_allclose(chance_of_both(ones, 1.0, 1), 0.0, atol=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (2.0, 7.0), (0.1, 3.0)])
def test_chances_against_sampling(a, b):
    p = np.random.default_rng(0).beta(a, b, 400_000)
    assert chance_of_both(a, b, 4) == pytest.approx((1 - p**4 - (1 - p) ** 4).mean(), abs=0.003)
    assert chance_of_any(a, b, 4) == pytest.approx((1 - (1 - p) ** 4).mean(), abs=0.003)


def test_the_population_is_of_pilots_where_there_are_any():
    """How many rollouts a group has after its pilot depends on what that found: its moments would be biased."""
    history = QueryHistory(3, half_every_four)
    draw(history, 0, batch=0, successes=0, size=2, pilot=(0, 2))  # cut short
    draw(history, 1, batch=0, successes=3, size=8, pilot=(1, 2))
    draw(history, 2, batch=0, successes=4, size=8)
    alone = Population()
    for successes, size in ((0, 2), (1, 2), (4, 8)):
        alone.observe(successes, size)
    assert history.population.values()[:3] == alone.values()[:3]
    assert history.population.rollouts == 18, "all that was played"
    assert history.counts_at(np.array([1]), 0)[1] == pytest.approx([5.0]), "what is known of the query itself"


def test_counts_lose_half_their_weight_every_half_life():
    history = QueryHistory(2, half_every_four)
    draw(history, 0, batch=0, successes=3)
    assert history.counts_at(np.array([0, 1]), 0) == (pytest.approx([3.0, 0.0]), pytest.approx([1.0, 0.0]))
    assert history.counts_at(np.array([0]), 8)[0] == pytest.approx([0.75])
    draw(history, 0, batch=4, successes=0)
    assert history.successes[0] == pytest.approx(1.5)
    assert history.failures[0] == pytest.approx(4.5)
    a, b = history.population.beta
    assert history.beta(0, 8) == (pytest.approx(a + 0.75), pytest.approx(b + 2.25))


def test_flips_streaks_and_states():
    history = QueryHistory(3, half_every_four)
    draw(history, 0, 0, 0)
    draw(history, 0, 1, 0)
    assert (history.streak[0], history.flipped_share) == (2, 0.0)
    draw(history, 0, 2, 4)
    assert (history.streak[0], history.state_of(0)) == (1, EASY), "another kind of zero variance starts anew"
    draw(history, 0, 3, 1, accepted=True, after=QueryState.CONSUMED)
    assert (history.streak[0], history.state_of(0)) == (0, QueryState.CONSUMED)
    draw(history, 1, 3, 2)
    assert history.flipped_share == 0.5, "of the two that were drawn, one went from zero variance to signal"
    assert history.state_of(2) is QueryState.UNSEEN


def test_the_log_has_a_row_per_draw_with_the_states_around_it():
    history = QueryHistory(5, half_every_four)
    for batch in range(40):
        for query in range(5):
            draw(history, query, batch, successes=batch % 5, accepted=batch % 5 == 2)
    log = history.log
    assert len(log) == 200
    assert log.dtype.itemsize == 23
    row = log[5 * 12 + 3]  # batch 12, query 3
    assert (row["query"], row["batch"], row["version"], row["order"]) == (3, 12, 112, 7)
    assert (row["size"], row["successes"], row["accepted"]) == (4, 2, True)
    assert [STATES[row[name]] for name in ("before", "rolled_out", "found", "after")] == 4 * [SIGNAL]
    assert STATES[log[0]["before"]] is QueryState.UNSEEN
    assert STATES[log[5 * 10]["before"]] is EASY


def test_a_population_of_uniform_chances_is_found():
    population, random = Population(), np.random.default_rng(1)
    for _ in range(200):
        for p in random.random(30):
            population.observe(int(random.binomial(8, p)), 8)
        population.forget()
    a, b = population.beta
    assert a == pytest.approx(1.0, rel=0.2)
    assert b == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize("successes", [0, 2, 4])
def test_a_population_without_variety_stays_a_distribution(successes):
    population = Population()
    for _ in range(1000):
        population.observe(successes, 4)
    a, b = population.beta
    assert a > 0
    assert b > 0
    assert 0.3 <= a + b <= 4.0 + 1e-12


def test_a_population_is_remembered_however_long_no_new_query_is_drawn():
    """One success in eight, always, and the imagined query: a mean of (0.5 + 20 / 8) / 21 = 1/7, and as many
    pseudo-counts as may be."""
    population = Population()
    for _ in range(20):
        population.observe(1, 8)
    for _ in range(20_000):
        population.forget()
    assert population.beta == pytest.approx((4 / 7, 24 / 7), rel=1e-9)
    population.observe(8, 8)
    assert population.beta == pytest.approx((0.98 * 0.3, 0.02 * 0.3)), "of one new query, the limits of a mean and sum"


def test_signal_per_rollout_is_what_draws_of_late_brought():
    population = Population()
    assert population.signal_per_rollout == 0.0
    for signal in (True, False, False, True):
        population.spend(signal=signal, rollouts=4)
    assert population.signal_per_rollout == 2 / 16
    for _ in range(200):
        population.forget()
    population.spend(signal=True, rollouts=4)
    assert population.signal_per_rollout == pytest.approx(1 / 4, rel=1e-3)
