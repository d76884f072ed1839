from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from learner_cases import MIXED, as_expert, group, random_groups, trajectory

from agent.errors import Fault
from agent.records import NO_VERSION
from learner.batch import Sample, loss_weights, make_batch, minibatches
from learner.config import AlgorithmConfig

ACTIONS = np.array([2, 4, 6, 0, 8])
QUESTIONS = np.array([0, 0, 1, 1, 2])
INCLUDED = np.array([True, True, True, True, False])


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", [1 / 12, 1 / 12, 1 / 12, 0, 0]),
        ("sequence_mean", [1 / 6, 1 / 12, 1 / 18, 0, 0]),
        ("constant_length", [1 / 30, 1 / 30, 1 / 30, 0, 0]),
        ("prompt_balanced", [1 / 8, 1 / 16, 1 / 12, 0, 0]),
    ],
)
def test_weights_by_hand(aggregation: str, expected: list[float]) -> None:
    """The sequence without action tokens and the group left out are in no denominator."""
    np.testing.assert_allclose(loss_weights(ACTIONS, QUESTIONS, INCLUDED, aggregation, 10), expected)


def test_nothing_included() -> None:
    assert not loss_weights(ACTIONS, QUESTIONS, np.zeros(5, np.bool_), "token_mean", 10).any()


def test_sample_holds_prompt_response_and_action_tokens() -> None:
    t = trajectory(rng(), [(2, 3), (1, 0)], prompt=4, version=7)
    (sample, other) = make_batch([group("q0", [t, t], [1, 0])], "mean").samples
    assert sample.action_mask.tolist() == [False] * 4 + [True, True, False, False, False, True]
    np.testing.assert_array_equal(sample.token_ids, [*t.prompt_ids, *t.token_ids])
    np.testing.assert_array_equal(sample.engine_logprobs, t.logprobs[[0, 1, 5]])
    assert sample.versions.tolist() == [7, 7, 7]
    assert (sample.advantage, other.advantage) == (0.5, -0.5)


def test_groups_without_signal_carry_no_loss() -> None:
    groups = random_groups(0, MIXED)
    (part,) = minibatches(make_batch(groups, "std"), AlgorithmConfig(), rng())
    assert {s.question for s in part.samples} == {0, 2, 4}
    signal_only = [g for g in groups if g.signal_bearing]
    (alone,) = minibatches(make_batch(signal_only, "std"), AlgorithmConfig(), rng())
    np.testing.assert_array_equal(part.policy_weights, alone.policy_weights)


def test_no_signal_no_minibatch() -> None:
    batch = make_batch(random_groups(0, [[1, 1], [0, 0, 0], [0.5]]), "std")
    assert minibatches(batch, AlgorithmConfig(), rng()) == ()
    assert minibatches(batch, AlgorithmConfig(kl="k2"), rng()) == ()
    assert minibatches(make_batch([], "std"), AlgorithmConfig(), rng()) == ()


def test_kl_on_zero_variance_groups_leaves_the_surrogates_weights_alone() -> None:
    batch = make_batch(random_groups(0, MIXED), "std")
    plain = AlgorithmConfig(kl="k2")
    (without,) = minibatches(batch, plain, rng())
    (everything,) = minibatches(batch, replace(plain, kl_zero_variance=True), rng())
    np.testing.assert_array_equal(without.policy_weights, without.kl_weights)
    assert len(everything.samples) == len(batch.samples) > len(without.samples)
    np.testing.assert_array_equal(everything.policy_weights[everything.policy_weights > 0], without.policy_weights)
    counts = np.array([s.actions for s in everything.samples])
    assert np.isclose((everything.kl_weights * counts).sum(), 1)


def test_minibatches_count_questions_and_skip_the_empty_ones() -> None:
    batch = make_batch(random_groups(0, MIXED), "std")
    parts = minibatches(batch, AlgorithmConfig(minibatch_questions=1), rng())
    assert [{s.question for s in p.samples} for p in parts] == [{0}, {2}, {4}]
    parts = minibatches(batch, AlgorithmConfig(minibatch_questions=2), rng())
    assert [{s.question for s in p.samples} for p in parts] == [{0}, {2}, {4}]
    for part in parts:
        assert [batch.samples[i] for i in part.indices] == list(part.samples)


@pytest.mark.parametrize(
    ("questions", "most", "sizes"),
    [(7, 3, [3, 2, 2]), (4, 3, [2, 2]), (5, 3, [3, 2]), (6, 3, [3, 3]), (2, 3, [2]), (9, 4, [3, 3, 3]), (3, 0, [3])],
)
def test_minibatches_are_as_even_as_can_be(questions: int, most: int, sizes: list[int]) -> None:
    """The rest of a batch was an update of its own: of a single question, say."""
    batch = make_batch(random_groups(0, [[1, 0]] * questions), "std")
    parts = minibatches(batch, AlgorithmConfig(minibatch_questions=most, epochs=2), rng())
    found = [[s.question for s in part.samples] for part in parts]
    assert [len(set(part)) for part in found] == sizes * 2
    for epoch in (found[: len(sizes)], found[len(sizes) :]):
        assert sorted({q for part in epoch for q in part}) == list(range(questions))


def test_later_epochs_are_drawn_from_the_generator() -> None:
    batch = make_batch(random_groups(0, [[1, 0]] * 8), "std")
    config = AlgorithmConfig(minibatch_questions=2, epochs=3)
    orders = [[p.indices for p in minibatches(batch, config, np.random.default_rng(s))] for s in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][:4] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15)]
    for epoch in range(3):
        assert sorted(i for part in orders[0][4 * epoch : 4 * epoch + 4] for i in part) == list(range(16))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_engine_logprob_is_a_fault(value: float) -> None:
    t = trajectory(rng(), [(3, 2)])
    bad = replace(t, logprobs=np.where(np.arange(5) == 1, value, t.logprobs))
    with pytest.raises(Fault, match="q0"):
        make_batch([group("q0", [t, bad], [1, 0])], "std")


def test_an_experts_trajectory_has_no_engine_logprobs() -> None:
    t = trajectory(rng(), [(3, 2), (1, 0)])
    batch = make_batch([group("q0", [t, as_expert(t)], [0, 1])], "std")
    assert [s.expert for s in batch.samples] == [False, True]
    assert batch.samples[1].versions.tolist() == [NO_VERSION] * 4
    assert batch.samples[1].engine_logprobs.tolist() == [0.0] * 4


def test_log_probabilities_that_are_not_there_make_no_expert() -> None:
    t = trajectory(rng(), [(3, 2), (1, 0)])
    silent = replace(t, logprobs=np.where(t.action_mask, np.nan, 0.0))
    with pytest.raises(Fault, match="q0"):
        make_batch([group("q0", [t, silent], [0, 1])], "std")


def test_a_sample_checks_itself() -> None:
    (good,) = make_batch(random_groups(0, [[1]]), "std").samples
    with pytest.raises(ValueError, match="log-probabilities"):
        replace(good, engine_logprobs=good.engine_logprobs[1:])
    with pytest.raises(ValueError, match="first token"):
        Sample(
            question=0,
            token_ids=np.zeros(2, np.int32),
            action_mask=np.array([True, False]),
            engine_logprobs=np.zeros(1, np.float32),
            versions=np.zeros(1, np.int32),
            advantage=0.0,
            signal=True,
        )
