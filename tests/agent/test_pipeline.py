"""The simulated loop, on cases whose times are worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from agent.errors import UserError
from agent.simulation.pipeline import Latencies, Layout, fit_engine, simulate

CONSTANT = Latencies(episodes=((5.0,),), searches=(0.0,), learner=(10.0,), publish=1.0, driver=0.5, token=1.0, half=0.0)
"""An engine makes a token per second, however many sequences share it."""
FOUR = Layout(batch_questions=2, group_size=2)
"""Four episodes a batch: 20 seconds of an engine's time when each has five tokens."""
TAILED = dataclasses.replace(
    CONSTANT,
    episodes=((3.0,), (2.0, 4.0), (5.0, 1.0, 30.0)),
    searches=(0.5, 2.0),
    learner=(20.0, 90.0),
    half=6.0,
    recompute=1.0,
)


def play(latencies, layout, *, steps=20, seed=0, **changed):
    return simulate(latencies, dataclasses.replace(layout, **changed), steps=steps, seed=seed)


def test_a_synchronous_step_is_the_sum_of_its_parts():
    """Rollouts 4 x 5, update 10, publication 1, driver 0.5."""
    found = play(CONSTANT, FOUR)
    assert found.step_s == pytest.approx(31.5)
    assert found.rollout_s == pytest.approx(20)
    assert found.learner_idle == pytest.approx(1 - 10 / 31.5)
    assert found.engine_idle == pytest.approx(1 - 20 / 31.5)
    assert found.staleness == 0
    assert found.steps_per_hour == pytest.approx(3600 / 31.5)


def test_an_engine_that_saturates_makes_half_of_its_tokens_at_half():
    """Four sequences at half=4: each step of the batch takes 4 + 4 seconds and makes four tokens."""
    assert play(dataclasses.replace(CONSTANT, half=4.0), FOUR).rollout_s == pytest.approx(5 * 8)


def test_a_search_leaves_the_engine_to_the_others():
    """Two turns of 5 and 3 tokens, 7 seconds between: together 4 x 5 + 7 + 4 x 3."""
    searching = dataclasses.replace(CONSTANT, episodes=((5.0, 3.0),), searches=(7.0,))
    assert play(searching, FOUR).rollout_s == pytest.approx(20 + 7 + 12)
    # Two at a time: the first two play 0-10, search until 17, wait for the others, who play 10-20, and play 20-26;
    # the others search until 27 and play until 33.
    apart = play(searching, FOUR, max_num_seqs=2)
    assert apart.rollout_s == pytest.approx(33)
    assert apart.engine_idle == pytest.approx(1 - 32 / apart.step_s)


def test_workers_divide_a_batch():
    assert play(CONSTANT, FOUR, rollout_workers=2).rollout_s == pytest.approx(10)
    assert play(CONSTANT, FOUR, rollout_workers=2, groups_per_worker=1).rollout_s == pytest.approx(10)
    assert play(CONSTANT, FOUR, groups_per_worker=1).rollout_s == pytest.approx(20), "one group after the other"


def test_a_learner_that_is_faster_waits_for_the_engine_alone():
    """While the learner learns the engine plays on: it rests for the delivery, one second a step, and never starves."""
    found = play(CONSTANT, FOUR, max_staleness=1)
    assert found.step_s == pytest.approx(21)
    assert found.engine_idle == pytest.approx(0)
    assert found.learner_idle == pytest.approx(11 / 21)


def test_a_learner_that_is_slower_never_waits_for_a_batch():
    slow = dataclasses.replace(CONSTANT, learner=(40.0,))
    for staleness in (1, 2, 4):
        found = play(slow, FOUR, max_staleness=staleness)
        assert found.step_s == pytest.approx(41.5)
        assert found.learner_idle == pytest.approx(1.5 / 41.5)
        assert found.engine_idle == pytest.approx(1 - 20 / 41.5)
        assert found.staleness == pytest.approx(staleness), "the engine is always ahead as far as it may be"


def test_new_weights_delay_the_episodes_in_flight_and_no_other():
    recompute = dataclasses.replace(CONSTANT, recompute=2.0)
    assert play(recompute, FOUR) == play(CONSTANT, FOUR), "nobody plays in synchronous mode"
    # Two tokens more for each of the at most four episodes that play when the weights arrive, once a step.
    step_s = play(recompute, FOUR, max_staleness=1).step_s
    assert 21 < step_s <= 21 + 4 * 2
    # It is also paid by an episode that waits for its search: the engine is empty then, and nobody waits for it.
    slow = dataclasses.replace(recompute, episodes=((5.0, 3.0),), searches=(200.0,), learner=(60.0,))
    late, early = (play(dataclasses.replace(slow, recompute=r), FOUR, max_staleness=1).rollout_s for r in (2.0, 0.0))
    assert late > early


def test_staleness_is_bounded_and_only_ever_helps_against_a_long_tail():
    found = [play(TAILED, FOUR, steps=60, max_staleness=s, rollout_workers=2) for s in range(4)]
    for bound, overlap in enumerate(found):
        assert 0 <= overlap.staleness <= bound
        assert 0 <= overlap.learner_idle < 1
        assert 0 <= overlap.engine_idle < 1
    steps = [overlap.step_s for overlap in found]
    assert steps[1] < 0.8 * steps[0]
    assert steps[3] < 1.02 * steps[2] < 1.05 * steps[1]


def test_more_groups_in_flight_than_a_batch_complete_the_oldest_batch_late():
    """The reason for which a worker's groups don't grow with the staleness bound; the engine saturates at once."""
    uneven = dataclasses.replace(TAILED, half=0.5, learner=(10.0, 90.0))
    one, all_open = (play(uneven, FOUR, steps=100, max_staleness=1, groups_per_worker=g) for g in (2, 4))
    assert one.step_s < all_open.step_s
    assert one.rollout_s < all_open.rollout_s


def test_the_same_seed_simulates_the_same():
    first, again, other = (play(TAILED, FOUR, max_staleness=2, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_engines_speed_is_found_again():
    true = dataclasses.replace(TAILED, token=0.004)
    rollout_s = play(true, FOUR, seed=3).rollout_s
    fitted = fit_engine(dataclasses.replace(true, token=1.0), FOUR, rollout_s, steps=20, seed=3)
    assert fitted.token == pytest.approx(0.004, rel=2e-3)
    with pytest.raises(UserError, match="searches alone take longer"):
        fit_engine(true, FOUR, 0.4, steps=20, seed=3)


@pytest.mark.parametrize(
    "changed",
    [
        {"episodes": ()},
        {"episodes": ((),)},
        {"episodes": ((0.0,),)},
        {"learner": ()},
        {"token": 0.0},
        {"publish": -1.0},
    ],
)
def test_latencies_are_checked(changed):
    with pytest.raises(UserError, match="latencies"):
        dataclasses.replace(CONSTANT, **changed)
