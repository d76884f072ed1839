"""The alarms: each fires at what it is for, names its cause, and is quiet in a healthy run."""

from __future__ import annotations

import re
from collections import UserDict
from collections.abc import Iterable
from typing import Any

import pytest
from settings import dictionary
from view_runs import step

from conf.tree import keys
from tracking.alarms import RULES, Alarms
from tracking.history import WINDOW


def fired(rows: Iterable[dict[str, Any]]) -> dict[str, str]:
    """What fires over these rows: the alarms' names and what they say."""
    alarms = Alarms()
    return {alarm.name: alarm.what for row in rows for alarm in alarms.add(row)}


def run(*, first: dict[str, Any] | None = None, then: dict[str, Any]) -> list[dict[str, Any]]:
    """As many steps of a healthy run (with ``first``) as a rule looks at, and as many in which ``then`` is so."""
    return [step(n + 1, **((first or {}) if n < WINDOW else then)) for n in range(2 * WINDOW)]


def evaluation(at: int, em: float, n: int = 400) -> dict[str, Any]:
    return {"kind": "eval", "step": at, "em": em, "n": n}


def test_a_healthy_run_is_quiet() -> None:
    noise = (0.9, 1.1, 1.0, 0.8, 1.2)
    names = ("reward/mean", "search/mean", "learner/entropy", "rollout/tokens_per_s", "rollout/mismatch")
    rows = [step(n + 1) for n in range(40)]
    for n, row in enumerate(rows):
        row.update({name: row[name] * noise[n % 5] for name in names})
    assert fired([evaluation(0, 0.3), *rows, evaluation(40, 0.6)]) == {}


ONE_EACH = {
    "train–inference mismatch": run(then={"rollout/mismatch": 0.3}),
    "entropy collapses": run(then={"learner/entropy": 0.01}),
    "episodes get shorter": run(then={"rollout/generated_tokens": 100}),
    "episodes get longer": run(then={"rollout/generated_tokens": 2000}),
    "no searches": run(then={"search/mean": 0.0}),
    "search limit": run(then={"stop/search_limit": 8}),
    "searches find nothing": run(first={"evidence/recall": 0.5}, then={"evidence/recall": 0.0}),
    "reward up, held-out EM down": [
        *(evaluation(0, 0.6), *run(then={"reward/mean": 0.9})),
        *(evaluation(10, 0.7), *run(then={"reward/mean": 0.99}), evaluation(20, 0.5)),
    ],
    "zero-variance groups": run(then={"groups/signal": 0, "groups/too_hard": 3}),
    "episodes left out": run(then={"rollout/excluded": 1, "rollout/excluded_why": "retrieval_failed: no"}),
    "learner idle": run(then={"learner/idle_s": 1.6}),
    "engines idle": run(then={"rollout/seconds": 0.4}),
    "rollouts get slower": run(then={"rollout/tokens_per_s": 150.0}),
}


def test_calls_of_a_tool_that_is_no_search_are_calls() -> None:
    assert fired(run(first={"search/mean": 0.0, "tools/mean": 2.0}, then={"search/mean": 0.0, "tools/mean": 2.0})) == {}
    assert list(fired(run(then={"search/mean": 0.0, "tools/mean": 0.05}))) == ["no searches"]


@pytest.mark.parametrize("name", [rule.name for rule in RULES])
def test_each_rule_sounds_alone_at_what_it_is_for(name: str) -> None:
    assert list(fired(ONE_EACH[name])) == [name]


def test_the_numbers_are_in_what_is_said() -> None:
    assert list(fired(ONE_EACH["train–inference mismatch"]).values()) == [
        "engine and learner differ by 0.3 nats a token, at first by 1e-06"
    ]
    one = fired(ONE_EACH["reward up, held-out EM down"])
    assert list(one.values()) == [
        "reward rose from 0.900 to 0.990 while held-out EM fell from 0.700 (step 10) to 0.500"
    ]
    assert list(fired(ONE_EACH["episodes left out"]).values()) == [
        "6% of the episodes ended in a fault: retrieval_failed: no"
    ]
    assert list(fired(ONE_EACH["zero-variance groups"]).values()) == [
        "85% of the groups have equal rewards, 29% of these are too easy"
    ]


def test_a_mask_that_is_off_from_the_first_step_needs_no_window() -> None:
    assert fired([step(1, **{"rollout/mismatch": 1.5})]) == {
        "train–inference mismatch": "engine and learner differ by 1.5 nats a token, from the first step on"
    }


def test_a_mismatch_that_is_a_shift_is_told() -> None:
    (said,) = fired([step(1, **{"rollout/mismatch": 1.5, "rollout/mismatch_shifted": 0.9})]).values()
    assert said.endswith(", from the first step on; most fit the token before or after")


def test_tokens_that_drifted_from_their_text_sound_at_once() -> None:
    assert fired([step(1, **{"rollout/drifted_tokens": 12})]) == {
        "train–inference mismatch": "12 sampled tokens are no longer the text that was parsed and scored"
    }
    assert fired([step(1, **{"rollout/drifted_tokens": 0})]) == {}


def test_float32_has_a_bound_of_its_own() -> None:
    off = step(1, **{"rollout/mismatch": 0.02})
    assert [alarm.name for alarm in Alarms("float32").add(off)] == ["train–inference mismatch"]
    assert Alarms("bfloat16").add(off) == Alarms().add(off) == []


def test_growth_of_the_mismatch_is_no_alarm_within_float32s_rounding() -> None:
    assert fired(run(first={"rollout/mismatch": 1e-7}, then={"rollout/mismatch": 1e-5})) == {}
    grown = fired(run(first={"rollout/mismatch": 1e-7}, then={"rollout/mismatch": 0.02}))
    assert list(grown.values()) == ["engine and learner differ by 0.02 nats a token, before by 1e-07"]


def test_one_step_with_hardly_any_tokens_is_no_beginning_to_compare_with() -> None:
    rows = [step(n + 1, **{"rollout/mismatch": 1e-9 if n in (0, 7) else 2e-3}) for n in range(20)]
    assert fired(rows) == {}


def test_bfloat16s_rounding_varies_without_an_alarm() -> None:
    assert fired(run(first={"rollout/mismatch": 1e-3}, then={"rollout/mismatch": 0.02})) == {}


def test_a_fall_within_the_noise_of_few_questions_is_no_alarm() -> None:
    rows = [*run(then={}), evaluation(10, 0.5, 40), *run(then={"reward/mean": 0.9}), evaluation(20, 0.4, 40)]
    assert fired(rows) == {}


def test_where_rollouts_and_updates_overlap_half_the_time_is_too_much() -> None:
    idle = {"learner/idle_s": 1.2}
    assert fired(run(then=idle)) == {}
    assert list(fired(run(first={"rollout/staleness_max": 1}, then=idle))) == ["learner idle"]


def test_idle_engines_are_not_laid_to_evaluations_which_the_time_of_a_step_leaves_out() -> None:
    (rule,) = (rule for rule in RULES if rule.name == "engines idle")
    assert "evaluation" not in rule.change
    assert "checkpoints" not in rule.change


def test_an_alarm_sounds_once_until_it_has_ceased() -> None:
    alarms, heard = Alarms(), []
    for n, entropy in enumerate([0.4] * 5 + [0.01] * 10 + [0.4] * 8 + [0.01] * 10):
        heard += [(alarm.name, alarm.step) for alarm in alarms.add(step(n + 1, **{"learner/entropy": entropy}))]
    assert heard == [("entropy collapses", 10), ("entropy collapses", 28)]
    assert [(a.step, a.last) for a in alarms.past] == [(10, 15)]
    assert [(a.step, a.last) for a in alarms.active] == [(28, 33)]
    assert alarms.all() == [*alarms.past, *alarms.active]


def test_rows_without_the_numbers_are_no_alarm() -> None:
    assert fired([{"kind": "step", "step": n, "rollout/mismatch": None} for n in range(10)]) == {}
    assert fired([{"kind": "eval", "step": n, "em": None, "n": 0} for n in range(10)]) == {}


def test_reward_up_and_em_down_is_seen_from_the_evaluation_before_the_first_step() -> None:
    """So a policy looks that was warm-started and learns to please the reward."""
    hacking = [evaluation(0, 0.6), *run(then={"reward/mean": 0.9}), evaluation(10, 0.3)]
    said = "reward rose from 0.500 to 0.900 while held-out EM fell from 0.600 (step 0) to 0.300"
    assert fired(hacking) == {"reward up, held-out EM down": said}
    assert fired([evaluation(0, 0.6), *run(then={}), evaluation(10, 0.3)]) == {}


def test_an_evaluation_is_looked_at_once_however_long_the_run() -> None:
    asked: list[str] = []

    class Told(UserDict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            asked.append(name)
            return super().__getitem__(name)

    alarms = Alarms()
    for n in range(50):
        alarms.add(Told(evaluation(n, 0.5)))
        alarms.add(step(n + 1))
    assert asked.count("em") == 50


def test_evaluations_of_other_questions_are_not_compared() -> None:
    before, *steps, after = evaluation(0, 0.6), *run(then={"reward/mean": 0.9}), evaluation(10, 0.3)
    assert fired([before | {"held_out": "a"}, *steps, after | {"held_out": "b"}]) == {}


def test_a_retrieval_that_answers_nothing_is_seen_without_supporting_documents() -> None:
    unknown = {"evidence/recall": None}
    assert fired(run(first=unknown, then=unknown | {"search/empty_share": 0.4})) == {}
    found = fired(run(first=unknown, then=unknown | {"search/empty_share": 0.75}))
    assert found == {"searches find nothing": "75% of the searches found no passage"}


def test_a_retrieval_that_answers_nothing_at_all_is_seen_at_once() -> None:
    assert fired([step(1, **{"search/empty_share": 1.0, "evidence/recall": 0.0})]) == {
        "searches find nothing": "100% of the searches found no passage"
    }
    assert fired([step(1, **{"search/empty_share": 0.75, "evidence/recall": 0.0})]) == {}


def test_an_alarm_that_may_follow_from_another_sends_there_first() -> None:
    alarms, flat = Alarms(), {"groups/signal": 0, "groups/too_hard": 3}
    for row in run(first={"search/empty_share": 1.0}, then={"search/empty_share": 1.0} | flat):
        alarms.add(row)
    cause, consequence = alarms.active
    assert (cause.name, consequence.name) == ("searches find nothing", "zero-variance groups")
    assert consequence.change == "It may follow from 'searches find nothing': mend that first."
    assert "data.corpus" in cause.change
    for row in run(first=flat, then=flat):
        alarms.add(row)
    (alone,) = alarms.active
    assert "pool=adaptive" in alone.change


def test_episodes_that_heed_the_notice_are_at_the_search_limit_too() -> None:
    found = fired(run(then={"search/refused_share": 0.5}))
    assert found == {"search limit": "50% of the episodes ask for more searches than they have"}
    assert fired(run(then={"search/refused_share": 0.25})) == {}


def test_searches_that_the_pools_own_limits_refuse_are_no_alarm() -> None:
    assert fired(run(then={"search/refused_share": 0.5, "search/limit_mean": 2.0})) == {}


def test_a_number_that_no_float_holds_is_none() -> None:
    assert fired(run(then={"rollout/mismatch": 10**400})) == {}


SETTING = re.compile(r"\b(?:algorithm|agent|cluster|data|reward|pool|model|evaluation|checkpoints)\.[a-z_.]*[a-z]")


def test_the_settings_that_an_alarm_names_exist() -> None:
    named = {key for rule in RULES for key in SETTING.findall(f"{rule.look} {rule.change}")}
    assert len(named) > 10
    assert named <= set(keys(dictionary()))
