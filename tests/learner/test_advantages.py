from __future__ import annotations

import numpy as np
import pytest

from learner.advantages import group_advantages


def test_one_success_of_five() -> None:
    assert group_advantages([1, 0, 0, 0, 0], "std").round(2).tolist() == [1.79, -0.45, -0.45, -0.45, -0.45]


def test_dr_grpo_keeps_the_scale_of_the_rewards() -> None:
    np.testing.assert_allclose(group_advantages([1, 0, 0, 1], "mean"), [0.5, -0.5, -0.5, 0.5])


def test_rloo_compares_with_the_others() -> None:
    np.testing.assert_allclose(group_advantages([1, 0, 0.5], "rloo"), [0.75, -0.75, 0.0], atol=1e-15)


@pytest.mark.parametrize("method", ["std", "mean", "rloo"])
@pytest.mark.parametrize("rewards", [[0.1] * 3, [0.7] * 7, [1 / 3] * 5, [0.3], []])
def test_equal_rewards_give_exactly_zero(method: str, rewards: list[float]) -> None:
    assert not np.any(group_advantages(rewards, method))


def test_the_case_that_a_float_std_gets_wrong() -> None:
    """The mean of three 0.1 isn't 0.1, so a std compared with an epsilon sees a signal."""
    rewards = np.array([0.1] * 3)
    assert rewards.mean() != 0.1
    assert not np.any(group_advantages(rewards.tolist(), "std"))


@pytest.mark.parametrize("rewards", [[1.0, float("nan")], [float("inf"), 0.0]])
def test_rewards_must_be_finite(rewards: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        group_advantages(rewards, "std")


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="gae"):
        group_advantages([1, 0], "gae")
