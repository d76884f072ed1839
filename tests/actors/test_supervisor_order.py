"""The order of a run, over fake parts that refuse to be used out of order.

    step ─► deliver ─► [evaluate] ─► release ─► [checkpoint]      the pool is closed before the last release

No Ray: what ``.remote`` returns is the result itself, and the fake workers hands it on.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from scripted_run import (
    INDEX,
    QUESTION,
    FakeRetrieval,
    Play,
    World,
    scripted_run,
)

from actors import record, run_state
from actors.reports import Untrainable
from agent.errors import Fault, Stopped
from agent.pool import saved
from learner.checkpoint import checkpoints, latest
from retrieval_service.stats import Stats
from tracking.alarms import Alarm
from tracking.console import Console
from tracking.dispensable import Dispensable
from tracking.draws import read_draws
from tracking.metrics import read
from tracking.progress import Phase
from tracking.trackers.several import Trackers


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    return scripted_run(tmp_path, monkeypatch)


def without_kind(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "kind"}


BEGINNING = ["begin 0", "deliver 0", "evaluate version 0", "serve"]


def test_each_step_publishes_before_it_releases(play: Play) -> None:
    world = World()
    play(world, 3)
    assert world.events == [
        *BEGINNING,
        *("step 1", "deliver 1", "release 1"),
        *("step 2", "deliver 2", "release 2"),
        *("step 3", "deliver 3", "evaluate version 3", "close", "release 3 with state", "save 3"),
        "dismiss",
    ]


def test_evaluation_comes_before_the_release_and_the_checkpoint_after_it(play: Play) -> None:
    world = World()
    play(world, 4, evaluate_every=2, save_every=3)
    assert world.events[len(BEGINNING) :] == [
        *("step 1", "deliver 1", "release 1"),
        *("step 2", "deliver 2", "evaluate version 2", "release 2"),
        *("step 3", "deliver 3", "release 3 with state", "save 3"),
        *("step 4", "deliver 4", "evaluate version 4", "close", "release 4 with state", "save 4"),
        "dismiss",
    ]


def test_a_warm_start_comes_before_the_first_version(play: Play) -> None:
    world = World()
    play(world, 1, warm_start=5)
    assert world.events[:3] == ["warm start", "begin 0", "deliver 0"]


def test_expert_seeding_comes_between_the_warm_start_and_the_first_step(play: Play) -> None:
    world = World()
    driver, summary = play(world, 1, warm_start=5, seeding=2)
    assert world.events == [
        *("warm start", "begin seeding", "deliver 0", "serve the seeding"),
        *("seed 1", "deliver 1", "release seed 1"),
        *("seed 2", "deliver 2", "close seeding", "release seed 2", "idle"),
        *("begin 0", "deliver 2", "evaluate version 2", "serve"),
        *("step 1", "deliver 3", "evaluate version 3", "close", "release 1 with state", "save 1", "dismiss"),
    ]
    events = [e for e in read(driver.record.metrics.path, "event") if e["event"] == "seeding"]
    assert [(e["step"], e["version"], e["learner/expert_sequences"]) for e in events] == [(1, 1, 1), (2, 2, 1)]
    assert (summary["rollouts"], summary["generated_tokens"]) == (3 * 8, 3 * 100), "what the seeding cost counts"
    assert summary["first_eval"]["rollouts"] == 16


def test_a_resumed_run_is_not_seeded_again(play: Play) -> None:
    driver, _ = play(World(), 1, seeding=1)
    world = World()
    play(world, 2, seeding=1, resume=latest(driver.run_dir / "checkpoints"), folder="again")
    assert not [event for event in world.events if "seed" in event]


def test_a_step_that_learnt_nothing_delivers_nothing_and_releases_its_batch(play: Play) -> None:
    world = World(barren=(1,))
    driver, _ = play(world, 3)
    assert world.events[len(BEGINNING) :][:8] == [
        *("step 1", "deliver 1", "release 1"),
        *("step 2", "release 2"),
        *("step 3", "deliver 2", "evaluate version 2"),
    ]
    rows = read(driver.record.metrics.path, "step")
    assert [row["version"] for row in rows] == [1, 1, 2]
    assert [row["weights/publish_s"] for row in rows] == [0.75, 0.25, 0.75]


# --- where everything fails ------------------------------------------------------------------------

BY_ENGINES = Untrainable(why="generation_failed: head size 16", lasting=True)
NO_SEARCH = Untrainable(why="retrieval_failed: the retrieval actor failed", lasting=False)
TOOLS = Untrainable(why="retrieval_failed: timeout", lasting=False, tools_failed=True)


def test_a_batch_without_a_sound_trajectory_is_no_step(play: Play) -> None:
    world = World(untrainable={1: NO_SEARCH, 2: NO_SEARCH, 3: BY_ENGINES})
    driver, summary = play(world, 2)
    assert world.events[len(BEGINNING) :] == [
        *("step 1", "deliver 1", "release 1"),
        *("untrainable batch 1", "release 2", "untrainable batch 2", "release 3", "untrainable batch 3", "release 4"),
        *("step 2", "deliver 2", "evaluate version 2", "close", "release 5 with state", "save 2"),
        "dismiss",
    ]
    assert [row["step"] for row in read(driver.record.metrics.path, "step")] == [1, 2]
    events = [e for e in read(driver.record.metrics.path, "event") if e["event"] == "untrainable_batch"]
    assert [(e["batch"], e["why"]) for e in events] == [(1, NO_SEARCH.why), (2, NO_SEARCH.why), (3, BY_ENGINES.why)]
    assert summary["step"] == 2
    assert summary["rollouts"] == 5 * 8, "what was played has cost something"
    assert [e["rollout/trajectories"] for e in events] == [8, 8, 8], "and is told"
    assert [e["step"] for e in events] == [2, 2, 2], "of the step that each was to be"


def test_after_failed_searches_nothing_is_played_until_they_are_answered(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The release, with which the next batch opens, waits for it."""
    monkeypatch.setattr("actors.searching.ASK_EVERY_S", 0.0)
    world = World(untrainable={1: TOOLS}, deaf=2)
    play(world, 2)
    assert world.events[len(BEGINNING) :][3:8] == [
        *("untrainable batch 1", "search fails", "search fails", "search is answered", "release 2"),
    ]


@pytest.mark.parametrize(("searches", "times"), [(0.0, 1), (0.01, 0), (float("nan"), 0)])
def test_a_policy_that_never_searches_is_told_of_after_the_first_step(
    play: Play, monkeypatch: pytest.MonkeyPatch, searches: float, times: int
) -> None:
    said: list[str] = []
    monkeypatch.setattr(record.Record, "say", lambda self, text, style="": said.append(text))
    play(World(searches=searches), 2)
    assert sum("called no tool in the first batch" in text for text in said) == times


def test_an_alarm_of_the_last_evaluation_reaches_the_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No row of a step comes after it."""
    told: list[Any] = []
    monkeypatch.setattr(record, "RayMetrics", lambda: None)
    monkeypatch.setattr(Trackers, "log", lambda self, row: told.append(dict(row)))
    off = Dispensable(pytest.fail)
    alarm = Alarm(name="no searches", what="0.00", look="the actions", change="Seed it.", step=5, last=5)
    record.Record(tmp_path, Console(quiet=True), Trackers({}, off), off).alarms([alarm], in_row=False)
    assert told == [{"step": 5, "alarms/no searches": 1}]


def test_trackers_are_told_once_of_an_alarm_at_a_step(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of TensorBoard takes a number that comes again for a run that went back, and hides the step."""
    told: list[tuple[int, str]] = []
    monkeypatch.setattr(
        Trackers, "log", lambda self, row, prefix="": told.extend((row["step"], f"{prefix}{name}") for name in row)
    )
    play(World(searches=0), 6)
    assert [step for step, name in told if name == "alarms/no searches"] == [5, 6]
    assert len(set(told)) == len(told)


def test_trackers_get_each_series_of_evaluations_as_a_curve_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(record, "RayMetrics", lambda: None)
    monkeypatch.setattr(Console, "evaluation", lambda self, row: None)
    monkeypatch.setattr(Trackers, "log", lambda self, row, prefix: told.append(f"{prefix}{row['step']}"))
    off = Dispensable(pytest.fail)
    for step, played in enumerate("aabbca"):  # a start of the run each
        evaluated = {"step": step, "held_out": "x", "played": played}
        record.Record(tmp_path, Console(quiet=True), Trackers({}, off), off).evaluation(evaluated)
    assert told == ["eval/0", "eval/1", "eval_2/2", "eval_2/3", "eval_3/4", "eval_4/5"]


def test_engines_that_finish_nothing_end_the_run_with_the_second_batch(play: Play) -> None:
    world = World(untrainable={0: BY_ENGINES, 1: BY_ENGINES})
    with pytest.raises(Fault, match=r"^too few episodes of 2 batches in a row could be scored: .*: head size 16$"):
        play(world, 2)
    assert world.events[len(BEGINNING) :] == ["untrainable batch 0", "release 1", "untrainable batch 1"]


def test_an_unsound_batch_of_the_seeding_is_none_of_its_steps(play: Play) -> None:
    world = World(untrainable={0: NO_SEARCH})
    driver, _ = play(world, 0 + 1, seeding=1)
    assert [e["step"] for e in read(driver.record.metrics.path) if e.get("event") == "untrainable_batch"] == [0, 1]
    seeding = world.events[world.events.index("serve the seeding") + 1 : world.events.index("idle")]
    assert seeding == [
        *("untrainable seed 1", "release seed 1"),
        *("seed 2", "deliver 1", "close seeding", "release seed 2"),
    ]


@pytest.mark.usefixtures("hangup_counts")
@pytest.mark.parametrize("untrainable", [NO_SEARCH, TOOLS])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_stopped_where_everything_fails_is_saved(
    play: Play, untrainable: Untrainable, number: signal.Signals
) -> None:
    """As of the last step that it has trained, and no batch that was skipped is played again."""
    world = World(untrainable={2: untrainable}, interrupt=("untrainable batch 2",), signal_number=number)
    driver, summary = play(world, 9)
    end = ["untrainable batch 2", "close", "release 3 with state", "save 2"]
    assert world.events[-5:] == [*end, "dismiss"] if number == signal.SIGINT else world.events[-4:] == end
    assert (summary["step"], summary["interrupted"], summary["stopped_early"]) == (2, True, True)
    assert driver.stopping.leaving is (None if number == signal.SIGINT else number)
    (path,) = checkpoints(driver.run_dir / "checkpoints")
    assert (run_state.load(path).step, run_state.load(path).rollouts) == (2, 3 * 8)
    assert saved.load(path / "training")["released"] == 3


def test_so_is_one_that_is_stopped_where_the_engines_fail(play: Play) -> None:
    """The second batch of which they finish nothing ends a run; one that ends anyway is saved."""
    world = World(
        untrainable={2: BY_ENGINES, 3: BY_ENGINES},
        interrupt=("untrainable batch 3",),
        signal_number=signal.SIGTERM,
    )
    driver, summary = play(world, 9)
    assert world.events[-2:] == ["release 4 with state", "save 2"]
    assert (summary["step"], driver.stopping.leaving) == (2, signal.SIGTERM)


@pytest.mark.parametrize(
    ("untrainable", "cause"),
    [(NO_SEARCH, "too few episodes ended without a fault"), (TOOLS, "searches or tools failed")],
)
def test_a_run_that_is_stopped_where_nothing_was_trained_yet_says_why(
    play: Play, untrainable: Untrainable, cause: str
) -> None:
    """There is nothing to save."""
    world = World(untrainable={0: untrainable}, interrupt=("untrainable batch 0",))
    with pytest.raises(Fault, match=rf"^stopped after batch 0 was skipped, {cause}: retrieval_failed"):
        play(world, 3)


def test_a_first_evaluation_without_a_score_ends_the_run_and_leaves_no_row(play: Play, tmp_path: Path) -> None:
    world = World(faults=(0,))
    with pytest.raises(Fault, match=r"^none of 2 questions could be evaluated: generation_failed: head size 16$"):
        play(world, 1)
    assert read(tmp_path / "run" / "metrics.jsonl", "eval") == []
    assert not [event for event in world.events if "save" in event]


@pytest.mark.parametrize("version", [1, 2])
def test_a_later_evaluation_without_a_score_ends_nothing(play: Play, tmp_path: Path, version: int) -> None:
    """The last one neither."""
    world = World(faults=(version,))
    _, summary = play(world, 2, evaluate_every=1)
    rows = read(tmp_path / "run" / "metrics.jsonl", "eval")
    assert [row["step"] for row in rows if row["em"] is None] == [version]
    assert [(row["n"], row["faults"]) for row in rows] == [(0, 2) if step == version else (2, 0) for step in range(3)]
    assert summary["step"] == 2
    assert "save 2" in world.events


# --- a shared card ---------------------------------------------------------------------------------


def test_on_a_shared_card_the_engines_sleep_while_the_learner_works(play: Play) -> None:
    world = World(barren=(1,))
    play(world, 2, warm_start=5, seeding=1, turns=True)
    assert world.events == [
        *("sleep", "warm start", "wake", "sleep", "begin seeding", "wake", "deliver 0", "serve the seeding"),
        *("take", "sleep", "seed 1", "wake", "deliver 1", "close seeding", "release seed 1", "idle"),
        *("sleep", "begin 0", "wake", "deliver 1", "evaluate version 1", "serve"),
        *("take", "sleep", "step 1", "wake", "deliver 2", "release 1"),
        *(
            "take",
            "sleep",
            "step 2",
            "wake",
            "evaluate version 2",
            "close",
            "release 2 with state",
            "save 2",
            "dismiss",
        ),
    ]


def test_the_checkpoint_holds_the_state_that_the_release_gave(play: Play) -> None:
    driver, summary = play(World(), 4, save_every=2)
    found = checkpoints(driver.run_dir / "checkpoints")
    assert [path.name for path in found] == ["step-000002", "step-000004"]
    for step, path in zip((2, 4), found, strict=True):
        state = run_state.load(path)
        pool = saved.load(path / "training")
        assert (state.step, pool["released"], pool["weight"].tolist()) == (step, step, [step] * 3)
        assert (path / "model.safetensors").read_text() == f"weights {step}"
    assert summary["checkpoint"] == str(found[-1])


def test_a_resumed_run_goes_on_where_the_checkpoint_ends(play: Play) -> None:
    driver, _ = play(World(), 2)
    world = World()
    again, summary = play(
        world, 4, resume=latest(driver.run_dir / "checkpoints"), folder="again", warm_start=5, evaluate_every=3
    )
    assert world.events == [
        *("begin 2", "deliver 2", "serve"),
        *("step 3", "deliver 3", "evaluate version 3", "release 3"),
        *("step 4", "deliver 4", "evaluate version 4", "close", "release 4 with state", "save 4"),
        "dismiss",
    ]
    assert [row["step"] for row in read(again.record.metrics.path, "step")] == [3, 4]
    evals = read(driver.record.metrics.path, "eval")
    assert without_kind(evals[0]) == summary["first_eval"]
    assert summary["last_eval"]["step"] == 4
    assert [row["rollouts"] for row in read(again.record.metrics.path, "eval")] == [24, 32]
    assert (summary["rollouts"], summary["generated_tokens"]) == (32, 400)


def test_a_finished_run_that_is_resumed_plays_nothing_more(play: Play) -> None:
    driver, _ = play(World(), 2)
    checkpoint = latest(driver.run_dir / "checkpoints")
    world = World()
    _, summary = play(world, 2, resume=checkpoint, folder="again")
    assert world.events == ["begin 2", "deliver 2", "dismiss"]
    assert (summary["step"], summary["stopped_early"], summary["checkpoint"]) == (2, False, str(checkpoint))
    (before,) = read(driver.record.metrics.path, "summary")
    same = ("first_eval", "last_eval", "rollouts", "generated_tokens")
    assert {key: summary[key] for key in same} == {key: before[key] for key in same}


# --- the budget ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "budget", "last_step"),
    [(9, 0, 9), (9, 16, 2), (9, 17, 3), (9, 1, 1), (2, 17, 2)],
    ids=["no budget", "reached exactly", "passed", "within the first step", "too few steps for it"],
)
def test_a_run_ends_with_the_step_that_reaches_its_budget(play: Play, steps: int, budget: int, last_step: int) -> None:
    world = World()  # where a step plays 8 trajectories
    driver, summary = play(world, steps, budget=budget)
    assert world.events[-4:] == ["close", f"release {last_step} with state", f"save {last_step}", "dismiss"]
    assert (summary["step"], summary["rollouts"], summary["stopped_early"]) == (last_step, 8 * last_step, False)
    assert [row["step"] for row in read(driver.record.metrics.path, "eval")] == [0, last_step]


def test_tokens_are_a_budget_too_and_the_seeding_has_a_share_in_it(play: Play) -> None:
    _, summary = play(World(), 9, token_budget=301)  # a step generates 100
    assert (summary["step"], summary["generated_tokens"]) == (4, 400)
    _, summary = play(World(), 9, token_budget=301, seeding=2, folder="seeded")
    assert (summary["step"], summary["generated_tokens"]) == (2, 400)


def test_a_seeding_that_uses_up_the_budget_is_a_fault_that_says_so(play: Play) -> None:
    """Nothing would be saved: a checkpoint is a step's."""
    with pytest.raises(Fault, match=r"the expert seeding has used up the budget \(24 trajectories, .*raise algorithm"):
        play(World(), 5, seeding=3, token_budget=300)


def test_a_resumed_run_has_used_up_the_budget_of_its_first_part(play: Play) -> None:
    driver, first = play(World(interrupt=("step 1",)), 9, budget=24)
    assert (first["rollouts"], first["stopped_early"], first["interrupted"]) == (8, True, True)
    checkpoint = latest(driver.run_dir / "checkpoints")
    _, summary = play(World(), 9, budget=24, resume=checkpoint, folder="again")
    assert (summary["step"], summary["rollouts"], summary["stopped_early"]) == (3, 24, False)
    checkpoint = latest(driver.run_dir.parent / "again" / "checkpoints")
    world = World()
    play(world, 9, budget=24, resume=checkpoint, folder="once more")
    assert "serve" not in world.events


def test_what_a_run_was_resumed_from_stays_for_workers_that_start_later(play: Play) -> None:
    driver, _ = play(World(), 2)
    play(World(), 6, resume=latest(driver.run_dir / "checkpoints"), save_every=1, keep=1)
    assert [path.name for path in checkpoints(driver.run_dir / "checkpoints")] == ["step-000002", "step-000006"]


# --- Ctrl-C ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pressed", "last_step"),
    [
        ("step 2", 2),
        ("deliver 2", 2),
        ("evaluate version 2", 2),
        ("close", 4),
        ("release 2", 3),  # too late for step 2, whose checkpoint would need the pool's state at the release
        ("save 3", 4),
    ],
)
def test_ctrl_c_ends_the_run_after_a_whole_step_and_its_checkpoint(play: Play, pressed: str, last_step: int) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    world = World(interrupt=(pressed,))
    driver, summary = play(world, 4, evaluate_every=2, save_every=3)
    assert world.interrupt == []
    n = last_step
    ending = ["close", f"release {n} with state", f"save {n}", "dismiss"]
    assert world.events[-4:] == ending
    assert world.events.count("close") == 1
    assert f"step {n + 1}" not in world.events
    written = latest(driver.run_dir / "checkpoints")
    assert (run_state.load(written).step, saved.load(written / "training")["released"]) == (n, n)
    assert len(read_draws(driver.run_dir / "draws.parquet")) == n
    assert (summary["step"], summary["stopped_early"]) == (n, n < 4)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_run_that_is_stopped_is_evaluated_where_it_stopped(play: Play) -> None:
    world = World(interrupt=("step 2",))
    _, summary = play(world, 9)
    assert world.events[-6:-4] == ["deliver 2", "evaluate version 2"]
    assert summary["last_eval"]["step"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_while_an_evaluation_waits_for_searches_is_saved(
    play: Play, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr("actors.searching.ASK_EVERY_S", 0.0)
    down = {"shaky": (1,), "shaken_by": "retrieval_failed", "deaf": 1000}
    world = World(interrupt=("search fails",), signal_number=number, **down)
    play(world, 9, evaluate_every=1)
    assert "save 1" in world.events
    assert "step 2" not in world.events


@pytest.mark.parametrize("asked", ["step 1", "evaluate version 1"])
def test_a_step_of_a_run_that_is_stopped_is_saved_though_its_evaluation_has_no_score(
    play: Play, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """As where the retrieval is down. What is missing is owed by the run that goes on."""
    said: list[str] = []
    monkeypatch.setattr(record.Record, "say", lambda self, text, style="": said.append(text))
    driver, summary = play(World(faults=(1,), interrupt=(asked,)), 9, evaluate_every=1)
    assert (summary["step"], summary["stopped_early"], summary["last_eval"]["step"]) == (1, True, 0)
    assert any(text.startswith("step 1 has no evaluation: none of 2 questions could be evaluated") for text in said)
    again = World()
    play(again, 2, evaluate_every=1, resume=latest(driver.run_dir / "checkpoints"))
    assert again.events[:3] == ["begin 1", "deliver 1", "evaluate version 1"]


def test_ctrl_c_twice_stops_at_once(play: Play) -> None:
    before = signal.getsignal(signal.SIGINT)
    world = World(interrupt=("step 2", "deliver 2"))
    with pytest.raises(KeyboardInterrupt):
        play(world, 9)
    assert world.events[-2:] == ["step 2", "deliver 2"]
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_the_first_step_stops_at_once(play: Play) -> None:
    with pytest.raises(KeyboardInterrupt):
        play(World(interrupt=("evaluate version 0",)), 9)


@pytest.mark.usefixtures("hangup_counts")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("pressed", ["step 2", "deliver 2", "evaluate version 2"])
def test_a_machine_that_is_taken_away_gets_a_checkpoint_and_no_evaluation(
    play: Play, number: signal.Signals, pressed: str
) -> None:
    before = signal.getsignal(number)
    world = World(interrupt=(pressed,), signal_number=number)
    driver, summary = play(world, 9, evaluate_every=2)
    assert world.interrupt == []
    assert world.events[-3:] == ["close", "release 2 with state", "save 2"]
    assert (summary["step"], summary["interrupted"], summary["last_eval"]["step"]) == (2, True, 0)
    assert [row["step"] for row in read(driver.record.metrics.path, "eval")] == [0]
    assert driver.stopping.leaving is number
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("hangup_counts")
@pytest.mark.parametrize("steps", [2, 4])
def test_an_evaluation_that_was_left_is_made_up_for(play: Play, steps: int) -> None:
    """The run's last one, or one on the way. Until then the run isn't finished, and no older one stands for it."""
    world = World(interrupt=("evaluate version 2",), signal_number=signal.SIGTERM)
    driver, summary = play(world, steps, evaluate_every=2)
    assert (summary["stopped_early"], summary["last_eval"]["step"]) == (True, 0)
    checkpoint = latest(driver.run_dir / "checkpoints")
    seconds = run_state.load(checkpoint).time_s
    assert seconds > 0
    again, summary = play(World(), steps, evaluate_every=2, resume=checkpoint, folder="again")
    rows = read(again.record.metrics.path, "eval")
    assert [row["step"] for row in rows] == [step for step in (2, 4) if step <= steps]
    assert (summary["stopped_early"], summary["last_eval"]["step"]) == (False, steps)
    assert rows[0]["time_s"] > seconds, "the seconds of both starts"


@pytest.mark.usefixtures("hangup_counts")
def test_a_run_whose_last_evaluation_was_made_up_for_is_finished(play: Play) -> None:
    world = World(interrupt=("evaluate version 2",), signal_number=signal.SIGTERM)
    driver, _ = play(world, 2)
    for times in (1, 0):
        world = World()
        _, summary = play(world, 2, resume=latest(driver.run_dir / "checkpoints"))
        assert world.events.count("evaluate version 2") == times
        assert (summary["stopped_early"], summary["last_eval"]["step"]) == (False, 2)
    assert [row["step"] for row in read(driver.record.metrics.path, "eval")] == [0, 2]


@pytest.mark.usefixtures("hangup_counts")
def test_an_evaluation_is_made_up_for_once_whatever_happens_before_the_next_checkpoint(play: Play) -> None:
    world = World(interrupt=("evaluate version 2",), signal_number=signal.SIGTERM)
    driver, _ = play(world, 6, evaluate_every=2)
    checkpoint = latest(driver.run_dir / "checkpoints")
    with pytest.raises(KeyboardInterrupt):
        play(World(interrupt=("step 3", "deliver 3")), 6, evaluate_every=2, resume=checkpoint)
    world = World(deaths={"step 3": "learner"})
    play(world, 6, evaluate_every=2, resume=checkpoint)
    assert "evaluate version 2" not in world.events
    assert [row["step"] for row in read(driver.record.metrics.path, "eval")] == [0, 2, 4, 6]


@pytest.mark.usefixtures("hangup_counts")
@pytest.mark.parametrize("folder", ["run", "again"])
def test_the_best_evaluation_keeps_its_checkpoint_where_it_is_made_up_for(play: Play, folder: str) -> None:
    first = World(interrupt=("evaluate version 2",), signal_number=signal.SIGTERM)
    driver, _ = play(first, 9, evaluate_every=2)
    checkpoint = latest(driver.run_dir / "checkpoints")
    world = World(ems={2: 0.9, 4: 0.5}, interrupt=("step 3", "deliver 3"), signal_number=signal.SIGTERM)
    options = {"evaluate_every": 2, "save_every": 1, "keep": 1, "best": True, "folder": folder}
    with pytest.raises(Stopped):
        play(world, 9, resume=checkpoint, **options)
    best = driver.run_dir.parent / folder / "checkpoints" / "best"
    assert best.resolve() == checkpoint.resolve()
    play(World(ems={2: 0.9, 4: 0.5}), 4, resume=checkpoint, **options)
    assert best.resolve() == checkpoint.resolve()
    assert run_state.load(best.parent / "step-000004").best == {"step": 2, "em": 0.9}


@pytest.mark.parametrize(
    ("name", "other"),
    [("held_out", {"held_out": (replace(QUESTION, text="another?"),)}), ("played", {"selective": True})],
)
def test_evaluations_that_are_asked_or_played_otherwise_compare_with_none_of_before(
    play: Play, name: str, other: dict[str, Any]
) -> None:
    options = {"evaluate_every": 2, "save_every": 2, "best": True}
    driver, _ = play(World(ems={0: 0.1, 2: 0.9}), 2, **options)
    checkpoint = latest(driver.run_dir / "checkpoints")
    assert run_state.load(checkpoint).best == {"step": 2, "em": 0.9}
    again, summary = play(World(ems={2: 0.4, 4: 0.5}), 4, resume=checkpoint, folder="run", **options, **other)
    rows = read(again.record.metrics.path, "eval")
    assert [row["step"] for row in rows] == [0, 2, 2, 4], "evaluated at once"
    assert len({row[name] for row in rows[:2]}) == len({row[name] for row in rows[2:]}) == 1
    assert rows[0][name] != rows[2][name]
    assert [summary[name]["em"] for name in ("first_eval", "last_eval")] == [0.4, 0.5]
    assert run_state.load(latest(again.run_dir / "checkpoints")).best == {"step": 4, "em": 0.5}
    once_more, summary = play(World(), 6, resume=latest(again.run_dir / "checkpoints"), **options, **other)
    assert [row["step"] for row in read(once_more.record.metrics.path, "eval")] == [0, 2, 2, 4, 6], "and only then"
    assert (summary["first_eval"]["em"], summary["first_eval"]["step"]) == (0.4, 2)


@pytest.mark.usefixtures("hangup_counts")
def test_an_evaluation_that_nobody_asked_for_is_not_owed(play: Play) -> None:
    world = World(interrupt=("step 1",), signal_number=signal.SIGTERM)
    driver, _ = play(world, 3, evaluate_every=2)
    again, _ = play(World(), 3, evaluate_every=2, resume=latest(driver.run_dir / "checkpoints"), folder="again")
    assert [row["step"] for row in read(again.record.metrics.path, "eval")] == [2, 3]


def test_a_signal_that_comes_twice_stops_at_once(play: Play) -> None:
    with pytest.raises(Stopped, match="stopped by SIGTERM") as stopped:
        play(World(interrupt=("step 2", "deliver 2"), signal_number=signal.SIGTERM), 9)
    assert stopped.value.code == 143


# --- what it writes --------------------------------------------------------------------------------


def test_a_steps_row_joins_the_learners_the_pools_and_the_searches_numbers(play: Play) -> None:
    driver, summary = play(World(), 2)
    first, second = read(driver.record.metrics.path, "step")
    expected = {
        "step": 1,
        "version": 1,
        "reward/mean": 0.5,
        "weights/publish_s": 0.75,  # put and delivered
        "pool/available": 3,
        "pool/in_use": 5,
        "pool/resting": 2,
        "pool/consumed": 4,
        "pool/flipped_share": 0.25,
        "pool/late_groups": 6,
        "pool/seen_too_hard": 5,
        "books/groups/received": 1,
        "books/groups/returned/zero_variance": 2,
        "retrieval/qps": 7.0,
        "retrieval/p99_s": 0.5,
    }
    assert {key: first[key] for key in expected} == expected
    assert second["time_s"] >= first["time_s"] > 0
    evals = read(driver.record.metrics.path, "eval")
    assert [(e["step"], e["data"], e["n"], e["em"], e["rollouts"]) for e in evals] == [
        (0, "fake", 2, 0.0, 0),
        (2, "fake", 2, 0.0, 16),
    ]
    (written,) = read(driver.record.metrics.path, "summary")
    assert written["rollouts"] == summary["rollouts"] == 16
    assert written["generated_tokens"] == 200
    assert written["first_eval"]["step"] == 0
    assert written["last_eval"]["step"] == 2
    assert [e["event"] for e in read(driver.record.metrics.path, "event")] == [
        "weight_channel",
        "serving",
        "checkpoint",
    ]
    (serving,) = (e for e in read(driver.record.metrics.path, "event") if e["event"] == "serving")
    assert serving["index"] == asdict(INDEX), "what is searched is known of each run"


def test_the_drivers_spans_that_can_not_be_written_are_told_as_all_that_a_run_does_without(
    play: Play, tmp_path: Path
) -> None:
    (tmp_path / "run" / "spans.jsonl").mkdir(parents=True)
    with pytest.raises(pytest.fail.Exception, match=r"^spans\.jsonl failed and is off for the rest of this run"):
        play(World(), 1)  # whose ``extras`` say it by ``pytest.fail``


def test_searches_that_cannot_be_counted_cost_no_step(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> Stats:
        raise Fault("retrieval died")

    monkeypatch.setattr(FakeRetrieval, "stats", broken)
    driver, _ = play(World(), 1)
    (row,) = read(driver.record.metrics.path, "step")
    assert (row["retrieval/qps"], row["retrieval/p99_s"]) == (0.0, None)


def test_whatever_a_run_waits_for_is_on_the_screen(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being shown, and for how long, whenever one of the actors does anything; see ``tracking/progress.py``."""
    shown: list[Phase] = []

    @contextmanager
    def phase(self: Console, title: str) -> Iterator[Phase]:
        shown.append(Phase(title, 0.0))
        try:
            yield shown[-1]
        finally:
            shown.pop()

    monkeypatch.setattr(Console, "phase", phase)
    world, seen = World(), []
    happens = world.happens
    monkeypatch.setattr(world, "happens", lambda event: (seen.append((event, *map(str, shown))), happens(event)))
    play(world, 3, seeding=2, warm_start=3, evaluate_every=2, save_every=2)
    assert all(where for _, *where in seen), seen
    assert {"step 1", "step 3", "evaluation", "expert seeding", "warm start"} <= {
        w for _, *where in seen for w in where
    }
    assert seen[-1][1].startswith("the run")
    assert any(where[0] == "the run 2/3 steps" for _, *where in seen)
