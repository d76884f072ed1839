"""The simulator of a drifting policy, and what the rules do in it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from agent.errors import Fault, UserError
from agent.pool.rules.base import rule_class
from agent.simulation.policies import DriftingPolicy, SimulationConfig, simulate
from agent.tickets import QueryState

SMALL = SimulationConfig(queries=400, rollouts_per_query=10)


def cost(config, name, **settings):
    """Rollouts per signal-bearing group."""
    found = steps(config, name, **settings)
    return sum(s.rollouts for s in found) / sum(s.batch.states[QueryState.SIGNAL] for s in found)


def steps(config, name, seed=0, **settings):
    rule = rule_class(name)(**{"batch_questions": 16, "group_size": 4, **settings})
    return list(simulate(config, rule, seed))


@pytest.mark.parametrize("name", ["epoch", "dynamic", "recycle", "adaptive"])
def test_the_same_seed_simulates_the_same_and_spends_the_budget(name):
    config = dataclasses.replace(SMALL, queries=150)
    first, again, other = steps(config, name), steps(config, name), steps(config, name, seed=1)
    assert first == again
    assert first != other
    rollouts = [step.rollouts for step in first]
    assert sum(rollouts[:-1]) < 1500 <= sum(rollouts)
    for step in first:
        assert step.rollouts == 4 * len(step.batch.payloads)
        assert step.batch.states.total() == len(step.batch.payloads)


def test_rollouts_are_counted_by_hand():
    """Everything is solved always or never: epoch draws each query once, 4 rollouts each."""
    config = dataclasses.replace(SMALL, queries=32, rollouts_per_query=4, difficulties=[[0.5, -99, 0], [0.5, 99, 0]])
    found = steps(config, "epoch")
    assert [s.rollouts for s in found] == [64, 64]
    easy, hard = (sum(s.batch.states[state] for s in found) for state in (QueryState.TOO_EASY, QueryState.TOO_HARD))
    assert easy + hard == 32
    assert found[-1].em == pytest.approx(easy / 32)
    with pytest.raises(Fault, match="no signal-bearing group"):
        steps(dataclasses.replace(config, rollouts_per_query=99), "epoch")


def test_a_policy_learns_what_it_trains_on_and_transfers_a_part():
    config = dataclasses.replace(
        SMALL, difficulties=[[0.5, 1.0, 0.5], [0.5, 1.0, 0.5]], unsolvable=0.0, drift=0.0, learning=0.1, transfer=0.2
    )
    policy = DriftingPolicy(config, seed=0)
    before = policy.chances(practised=False).copy()
    mine = np.flatnonzero(policy.kind == 0)[:16]
    for _ in range(10):
        policy.update(mine, 16)
    gain = policy.chances(practised=False) - before
    other = policy.kind == 1
    assert gain[~other].mean() > 3 * gain[other].mean() > 0
    practised = policy.chances(mine) - policy.chances(mine, practised=False)
    assert practised.min() > 0.01, "and the queries themselves are known better than others like them"
    untouched = np.setdiff1d(np.arange(config.queries), mine)
    np.testing.assert_array_equal(policy.chances(untouched), policy.chances(untouched, practised=False))


def test_a_query_without_novelty_teaches_once():
    config = dataclasses.replace(SMALL, difficulties=[[1, 1.0, 0.5]], drift=0.0, learning=0.1, novelty=0.0)

    def gain(first, then):
        policy = DriftingPolicy(config, seed=0)
        policy.update(first, 16)
        before = policy.chances(practised=False).mean()
        policy.update(then, 16)
        return policy.chances(practised=False).mean() - before

    queries = np.arange(16)
    assert gain(queries, queries) == 0
    assert gain(queries, queries + 16) == pytest.approx(2 * gain(queries, queries + 8), rel=0.05)


def test_practice_fades_with_its_half_life():
    config = dataclasses.replace(
        SMALL, learning=0.0, drift=0.0, practice=1.0, practice_half_life=5.0, unsolvable=0.0, difficulties=[[1, 0, 1]]
    )
    policy = DriftingPolicy(config, seed=0)

    def logit(p):
        return np.log(p / (1 - p))

    plain = logit(policy.chances(np.array([3])))[0]
    policy.update(np.array([3]), 16)
    assert logit(policy.chances(np.array([3])))[0] - plain == pytest.approx(1.0)
    for _ in range(5):
        policy.update(np.array([7]), 16)
    assert logit(policy.chances(np.array([3])))[0] - plain == pytest.approx(0.5)


def test_unsolvable_queries_are_never_solved():
    config = dataclasses.replace(SMALL, unsolvable=0.5, difficulties=[[1, -50, 0.1]])
    chances = DriftingPolicy(config, seed=0).chances()
    assert set(np.round(chances, 6)) == {0.0, 1.0}
    assert 0.4 < (chances < 1e-12).mean() < 0.6


@pytest.mark.slow
def test_adaptive_needs_fewer_rollouts_per_group_with_signal_than_recycle():
    """One scenario of many; the table of the documentation has the others."""
    config = dataclasses.replace(SMALL, queries=1000)
    assert cost(config, "adaptive") < 0.8 * cost(config, "recycle")


def test_a_probe_saves_rollouts_in_a_pool_of_extremes():
    config = dataclasses.replace(SMALL, queries=1000, difficulties=[[0.4, -4, 1], [0.2, 0, 0.5], [0.4, 4, 1]])
    assert cost(config, "adaptive", group_size=8, pilot=3) < 0.95 * cost(config, "adaptive", group_size=8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"queries": 0}, r"simulation\.queries"),
        ({"rollouts_per_query": 0}, r"simulation\.rollouts_per_query"),
        ({"difficulties": []}, r"simulation\.difficulties"),
        ({"difficulties": [[1.0, 2.0]]}, r"simulation\.difficulties"),
        ({"novelty": 1.5}, r"simulation\.novelty=1\.5"),
        ({"unsolvable": 1.0}, r"simulation\.unsolvable=1\.0"),
    ],
)
def test_scenarios_are_checked(changed, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **changed)
