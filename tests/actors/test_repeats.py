"""Which failures of a worker would only happen again."""

from __future__ import annotations

import pytest

from actors.calls import Died
from actors.repeats import Repeats
from agent.errors import Fault

CRASH = "Fatal Python error: Segmentation fault"


@pytest.mark.parametrize("call", ["start", "receive"])
def test_the_first_of_all_settles_it(call: str) -> None:
    assert Repeats().would(call, Fault("rollout-0: head size 16 is not supported"))
    assert not Repeats().would("evaluate", Fault("rollout-0: a search broke"))


def test_a_start_that_raises_after_another_went_well_may_be_an_accident() -> None:
    repeats = Repeats()
    repeats.went_well("start")
    assert not repeats.would("start", Fault("rollout-1: address 127.0.0.1:8431 in use at 0x7f2a"))
    assert repeats.would("start", Fault("rollout-2: address 127.0.0.1:9007 in use at 0x81bc"))


def test_success_in_between_makes_it_two_accidents() -> None:
    repeats = Repeats()
    assert not repeats.would("evaluate", Fault("rollout-0: it broke"))
    repeats.went_well("evaluate")
    assert not repeats.would("evaluate", Fault("rollout-1: it broke"))


def test_other_words_and_other_calls_are_other_failures() -> None:
    repeats = Repeats()
    repeats.went_well("receive")
    assert not repeats.would("evaluate", Fault("rollout-0: it broke"))
    assert not repeats.would("receive", Fault("rollout-1: it broke"))
    assert not repeats.would("evaluate", Fault("rollout-2: it broke otherwise"))
    repeats.went_well("start")
    assert repeats.would("evaluate", Fault("rollout-3: it broke otherwise"))


def test_processes_that_are_killed_say_nothing() -> None:
    repeats = Repeats()
    for n in range(5):
        assert not repeats.would("start", Died(f"rollout-{n} died (ActorDiedError)"))


def test_processes_that_crash_alike_say_it_the_second_time() -> None:
    repeats = Repeats()
    assert not repeats.would("start", Died("rollout-0 died", CRASH))
    assert repeats.would("start", Died("rollout-1 died", CRASH))
