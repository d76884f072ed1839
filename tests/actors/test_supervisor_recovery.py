"""What the supervisor saves, and how a run goes on that has lost its learner or its pool."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from scripted_run import (
    FakeLearner,
    Play,
    World,
    scripted_run,
)

from actors import record, run_state
from actors.calls import Died
from actors.reports import Untrainable
from actors.resume import carry_metrics
from actors.searching import UNKNOWN, Searching
from agent.errors import Fault, UserError
from learner.checkpoint import checkpoints, latest
from tracking.metrics import MetricsLog, read


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    return scripted_run(tmp_path, monkeypatch)


# --- saving ----------------------------------------------------------------------------------------


def test_one_save_that_fails_is_tried_again_after_the_next_step(play: Play, tmp_path: Path) -> None:
    world = World(full=(2,))
    driver, summary = play(world, 5, save_every=2)
    assert [path.name for path in checkpoints(driver.run_dir / "checkpoints")] == [
        "step-000003",
        "step-000004",
        "step-000005",
    ]
    assert not [*(driver.run_dir / "checkpoints").glob(".tmp*")]
    assert world.released == 5  # the batch of the failed save, too
    assert summary["step"] == 5


def test_three_saves_in_a_row_that_fail_end_the_run(play: Play) -> None:
    world = World(full=(2, 3, 4))
    with pytest.raises(Fault, match=r"^the checkpoint of step 4 can't be written: .*model\.safetensors: No space left"):
        play(world, 9, save_every=2)
    assert "step 5" not in world.events


def test_the_last_save_has_no_step_to_be_tried_again_after(play: Play) -> None:
    with pytest.raises(Fault, match=r"^the checkpoint of step 2 can't be written"):
        play(World(full=(2,)), 2)


def test_the_best_evaluation_is_saved_and_stays(play: Play) -> None:
    world = World(ems={0: 0.9, 1: 0.1, 2: 0.5, 3: 0.5, 4: 0.2, 5: 0.2})
    driver, _ = play(world, 5, evaluate_every=1, keep=1, best=True)
    root = driver.run_dir / "checkpoints"
    assert [path.name for path in checkpoints(root)] == ["step-000002", "step-000005"]
    assert (root / "best").resolve() == (root / "step-000002").resolve()
    again = World(ems={6: 0.4, 7: 0.6})
    play(again, 7, evaluate_every=1, keep=1, best=True, resume=latest(root))
    assert (root / "best").resolve() == (root / "step-000007").resolve()
    assert run_state.load(root / "best").best == {"step": 7, "em": 0.6}
    assert "release 6 with state" not in again.events


def test_a_best_evaluation_whose_checkpoint_could_not_be_written_stands_for_nothing(play: Play) -> None:
    """The best of those that are there does, and a later one that is better than that one is worth a checkpoint."""
    world = World(full=(2,), ems={1: 0.5, 2: 0.9, 3: 0.8, 4: 0.8, 5: 0.8})
    driver, _ = play(world, 5, evaluate_every=1, keep=1, best=True)
    root = driver.run_dir / "checkpoints"
    assert [path.name for path in checkpoints(root)] == ["step-000003", "step-000005"]
    assert (root / "best").resolve() == (root / "step-000003").resolve()
    assert run_state.load(root / "step-000005").best == {"step": 3, "em": 0.8}


def test_an_evaluation_with_too_many_faults_is_no_result_and_the_run_goes_on(play: Play) -> None:
    world = World(shaky=(1,), ems={0: 0.5, 1: 0.9, 2: 0.6})
    driver, summary = play(world, 2, evaluate_every=1, keep=1, best=True)
    _, refused, last = read(driver.run_dir / "metrics.jsonl", "eval")
    assert (refused["em"], refused["f1"], refused["faults"]) == (None, None, 1)
    assert refused["refused"].startswith("1 of 2 episodes ended in a fault, more than evaluation.max_fault_share=0.01")
    assert world.events.count("evaluate version 1") == 2, "what broke was played again"
    assert (summary["last_eval"]["em"], last["em"]) == (0.6, 0.6)
    assert run_state.load(driver.run_dir / "checkpoints" / "best").best == {"step": 2, "em": 0.6}


# --- learner or pool is lost -----------------------------------------------------------------------

AGAIN = ("forget", "begin 2", "deliver 2", "serve")


@pytest.mark.parametrize("who", ["learner", "pool"])
@pytest.mark.parametrize("when", ["step 4", "deliver 4", "evaluate version 4", "release 4 with state", "save 4"])
@pytest.mark.parametrize("pinged_first", [False, True])
def test_learner_and_pool_go_on_together_from_the_last_checkpoint(
    play: Play, who: str, when: str, pinged_first: bool
) -> None:
    """Steps 3 and 4 are played again, in the rows and in the totals once; the run ends as if nothing had been."""
    world = World(deaths={when: who}, pinged_first=pinged_first)
    driver, summary = play(world, 6, evaluate_every=4, save_every=2)
    at = world.events.index("forget")
    assert world.events[at - 1] == when
    assert world.events[at : at + 5] == [*AGAIN, "step 3"]
    assert world.model_of == [None, "step-000002"]
    assert world.events.count("step 2") == 1, "no group is trained twice on top of itself"
    rows = read(driver.record.metrics.path)
    assert [r["step"] for r in rows if r["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in rows if r["kind"] == "eval"] == [0, 4, 6]
    assert (summary["step"], summary["rollouts"], summary["first_eval"]["step"]) == (6, 48, 0)
    (recovered,) = [r for r in rows if r.get("event") == "recovered"]
    lost = 1 if when == "step 4" else 2
    assert (recovered["lost"], recovered["step"], recovered["steps_lost"]) == (who, 2, lost)
    assert {p.name for p in (driver.run_dir / "checkpoints").iterdir()} == {f"step-00000{n}" for n in (2, 4, 6)}


@pytest.mark.parametrize(("who", "when"), [("learner", "deliver 4"), ("pool", "step 4"), ("pool", "save 4")])
def test_one_that_gives_what_cant_be_used_is_lost_as_if_it_had_died(play: Play, who: str, when: str) -> None:
    world = World(garbage={when: who})
    driver, summary = play(world, 6, save_every=2)
    at = world.events.index("forget")
    assert world.events[at - 1 : at + 5] == [when, *AGAIN, "step 3"]
    assert summary["step"] == 6
    (recovered,) = [r for r in read(driver.record.metrics.path) if r.get("event") == "recovered"]
    assert (recovered["lost"], recovered["cause"]) == (who, f"what the {who} gave can't be used: it is damaged")


def test_a_follower_that_hangs_is_lost_with_learner_and_pool_and_all_are_begun_anew(play: Play) -> None:
    world = World(hangs={"step 4": "learner-1"})
    driver, summary = play(world, 6, save_every=2)
    at = world.events.index("forget")
    assert world.events[at - 1 : at + 5] == ["step 4", *AGAIN, "step 3"]
    assert summary["step"] == 6
    (recovered,) = [r for r in read(driver.record.metrics.path) if r.get("event") == "recovered"]
    assert (recovered["lost"], recovered["cause"]) == ("learner-1", "learner-1 did not come")


def test_a_learner_that_lives_writes_its_checkpoint_to_the_end_when_the_pool_is_lost(play: Play) -> None:
    world = World(deaths={"step 3": "pool"}, slow_disk=True)
    driver, summary = play(world, 4, save_every=2)
    assert world.model_of == [None, "step-000002"]
    assert summary["step"] == 4
    (recovered,) = [r for r in read(driver.record.metrics.path) if r.get("event") == "recovered"]
    assert (recovered["step"], recovered["steps_lost"]) == (2, 0)


def test_what_a_dead_learner_was_writing_is_no_checkpoint(play: Play) -> None:
    world = World(deaths={"step 3": "learner"}, slow_disk=True)
    _, summary = play(world, 4, save_every=2)
    assert world.model_of == [None, None]
    assert summary["step"] == 4


def damages(world: World, monkeypatch: pytest.MonkeyPatch, event: str, *files: Path) -> None:
    """Lets ``files`` be damaged as ``event`` happens for the first time."""
    happens, left = world.happens, [*files]

    def damaged(what: str) -> None:
        while what == event and left:
            left.pop().write_text("damaged")
        happens(what)

    monkeypatch.setattr(world, "happens", damaged)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run" / "checkpoints"
    said: list[str] = []
    monkeypatch.setattr(record.Record, "say", lambda self, text, style="": said.append(text))
    world = World(deaths={"step 5": "learner"})
    damages(world, monkeypatch, "step 5", root / "step-000004" / "model.safetensors")
    driver, summary = play(world, 6, save_every=2)
    assert world.model_of == [None, "step-000002"]
    assert [r["step"] for r in read(driver.record.metrics.path, "step")] == [1, 2, 3, 4, 5, 6]
    assert summary["step"] == 6
    assert f"step-000004: model.safetensors is damaged; resume from another checkpoint: using {root}/step-000002" in (
        "\n".join(said)
    )
    assert [path.name for path in checkpoints(root)] == ["step-000002", "step-000004", "step-000006"]


def test_a_run_that_goes_back_behind_its_best_evaluation_has_the_best_one_before(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next of the same step may be worse, and the best one isn't to be pruned for it."""
    root = tmp_path / "run" / "checkpoints"
    world = World(deaths={"step 7": "learner"}, ems={2: 0.5, 4: 0.3, 6: 0.9, 8: 0.4})
    damages(world, monkeypatch, "step 7", root / "step-000006" / "model.safetensors")
    happens = world.happens

    def worse(event: str) -> None:
        world.ems = {**world.ems, 6: 0.2} if event == "step 7" else world.ems
        happens(event)

    monkeypatch.setattr(world, "happens", worse)
    play(world, 8, evaluate_every=2, save_every=2, keep=2, best=True)
    assert world.model_of == [None, "step-000004"]
    assert [path.name for path in checkpoints(root)] == ["step-000002", "step-000006", "step-000008"]
    assert (root / "best").resolve() == (root / "step-000002").resolve()
    assert run_state.load(root / "step-000008").best == {"step": 2, "em": 0.5}


@pytest.mark.parametrize("folder", ["run", "again"])
def test_a_run_whose_checkpoints_are_all_damaged_ends_and_says_so(
    play: Play, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """What it was resumed from is one of them, though it may lie in another folder."""
    first, _ = play(World(), 2)
    saved = latest(first.run_dir / "checkpoints")
    assert saved is not None
    world = World(deaths={"step 3": "learner"})
    damages(world, monkeypatch, "step 3", saved / "training" / "run.json")
    with pytest.raises(UserError, match=r"^no checkpoint of .* is whole: .*step-000002: training/run\.json is damaged"):
        play(world, 4, resume=saved, folder=folder)
    assert "begin 0" not in world.events


def test_a_run_goes_on_from_what_it_was_resumed_from_where_its_own_are_damaged(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = play(World(), 2)
    world = World(deaths={"step 4": "learner"})
    own = tmp_path / "again" / "checkpoints" / "step-000003" / "config.json"
    damages(world, monkeypatch, "step 4", own)
    play(world, 4, resume=latest(first.run_dir / "checkpoints"), folder="again", save_every=3)
    assert world.model_of == ["step-000002", "step-000002"]


def test_workers_that_were_replaced_are_counted_over_all_starts_and_not_taken_back(play: Play) -> None:
    first, summary = play(World(restarts=2), 1)
    assert summary["restarts"] == 2
    again, summary = play(World(restarts=1), 2, resume=latest(first.run_dir / "checkpoints"))
    assert summary["restarts"] == 3
    assert [row["workers/restarts"] for row in read(again.record.metrics.path, "step")] == [2, 3]


def test_an_alarm_that_has_sounded_before_a_resume_or_a_recovery_holds_on_and_is_not_said_again(play: Play) -> None:
    first, _ = play(World(searches=0), 6)
    saved = latest(first.run_dir / "checkpoints")
    driver, _ = play(World(searches=0, deaths={"step 8": "learner"}), 13, resume=saved)
    rows = read(driver.record.metrics.path)
    assert [r["step"] for r in rows if r.get("event") == "alarm" and r["name"] == "no searches"] == [5]
    assert [r["step"] for r in rows if r.get("alarms/no searches")] == [*range(5, 14)]


def test_without_a_checkpoint_the_run_begins_again(play: Play) -> None:
    world = World(deaths={"step 2": "learner"})
    driver, summary = play(world, 3, warm_start=5)
    at = world.events.index("forget")
    assert world.events[at : at + 6] == ["forget", "warm start", "begin 0", "deliver 0", "evaluate version 0", "serve"]
    assert world.model_of == [None, None]
    rows = read(driver.record.metrics.path)
    assert [(r["kind"], r["step"]) for r in rows if r["kind"] in ("step", "eval")] == [
        ("eval", 0),
        ("step", 1),
        ("step", 2),
        ("step", 3),
        ("eval", 3),
    ]
    assert summary["rollouts"] == 24


@pytest.mark.parametrize("turns", [False, True])
def test_a_learner_that_is_lost_before_there_are_workers_is_started_again(
    play: Play, monkeypatch: pytest.MonkeyPatch, turns: bool
) -> None:
    """As it is on a shared card, where the learner is the first to start. The retrieval stays."""
    world, left = World(), [Died("learner died", actor="learner")]
    start = FakeLearner.start

    def lost(self: FakeLearner) -> int:
        if left:
            world.dead = "learner"
            raise left.pop()
        return start(self)

    monkeypatch.setattr(FakeLearner, "start", lost)
    driver, summary = play(world, 2, turns=turns)
    assert (summary["step"], world.model_of) == (2, [None, None])
    (recovered,) = [r for r in read(driver.record.metrics.path) if r.get("event") == "recovered"]
    assert (recovered["lost"], recovered["steps_lost"]) == ("learner", 0)


@pytest.mark.parametrize("turns", [False, True])
def test_a_pool_that_is_lost_in_the_seeding_takes_it_back_to_its_beginning(play: Play, turns: bool) -> None:
    world = World(deaths={"seed 2": "seeding-pool"})
    play(world, 1, seeding=2, turns=turns)
    assert world.events.count("begin seeding") == 2
    assert world.events.count("seed 1") == 2
    assert world.events[-1] == "dismiss"


def test_a_fault_of_a_learner_that_lives_ends_the_run(play: Play) -> None:
    world = World(faults=(0,))
    with pytest.raises(Fault, match="head size 16"):
        play(world, 3, evaluate_every=1)
    assert "forget" not in world.events


# --- the run ends with a fault, and learner and pool live ------------------------------------------

BY_ENGINES = Untrainable(why="generation_failed: head size 16", lasting=True)
NO_SEARCH = Untrainable(why="retrieval_failed: timeout", lasting=False, tools_failed=True)


@pytest.mark.parametrize(
    ("given", "last", "batches"),
    [
        ({"untrainable": {3: BY_ENGINES, 4: BY_ENGINES}}, 3, 5),
        ({"untrainable": {3: NO_SEARCH}}, 3, 4),
        ({"final": ("wait 3",)}, 3, 3),
        ({"final": ("deliver 3",)}, 3, 3),
        ({"final": ("evaluate version 3",)}, 3, 3),
        ({"final": ("wait 1",)}, 1, 1),
        ({"mistakes": ("deliver 3",)}, 3, 3),
        ({"mistakes": ("evaluate version 3",)}, 3, 3),
    ],
)
def test_what_is_trained_is_saved_before_a_fault_of_others_ends_the_run(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], last: int, batches: int
) -> None:
    """Among them the step that the learner was in. The run that is resumed goes on after it, and no row is missing."""

    def outage(searching: Searching) -> None:
        raise Fault("retrieval has not answered for 600 s")

    monkeypatch.setattr(Searching, "until_they_answer", outage)
    world = World(**given)
    root = tmp_path / "run" / "checkpoints"
    ends = r"rollout workers failed too often|2 batches in a row|has not answered for 600 s"
    ends += rf"|^no such tool; resume with resume={root}/step-000003$"
    with pytest.raises((Fault, UserError), match=ends):
        play(world, 6, evaluate_every=3)
    (saved,) = checkpoints(root)
    run_state.check(saved)
    state = run_state.load(saved)
    assert (state.step, world.released, world.closed) == (last, batches, True)
    monkeypatch.undo()
    again = World()
    driver, summary = scripted_run(tmp_path, monkeypatch)(again, 6, evaluate_every=3, resume=saved)
    assert again.events[: again.events.index(f"step {last + 1}")][0] == f"begin {last}"
    rows = read(driver.record.metrics.path, "step")
    assert [row["step"] for row in rows] == [*range(1, 7)]
    always = {"time/step_s", "weights/publish_s", "rollout/mismatch", "pool/available", *UNKNOWN}
    assert all(always <= row.keys() for row in rows)
    assert summary["step"] == 6
    assert summary["rollouts"] == 8 * (6 + batches - last)


def test_a_step_after_which_an_engine_does_not_wake_is_saved_as_it_was_trained(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a shared card: the learner's report is there, and nobody has read it yet."""
    world = World()
    happens = world.happens

    def tired(event: str) -> None:
        happens(event)
        if event == "wake" and "step 3" in world.events:
            raise Fault("rollout workers failed too often")

    monkeypatch.setattr(world, "happens", tired)
    with pytest.raises(Fault, match="failed too often"):
        play(world, 6, turns=True)
    (saved,) = checkpoints(tmp_path / "run" / "checkpoints")
    assert (run_state.load(saved).step, world.released) == (3, 3)
    assert [row["step"] for row in read(tmp_path / "run" / "metrics.jsonl", "step")] == [1, 2, 3]


def test_a_checkpoint_that_has_all_that_is_trained_is_not_written_again(play: Play, tmp_path: Path) -> None:
    world = World(untrainable={3: BY_ENGINES, 4: BY_ENGINES})
    with pytest.raises(Fault, match="2 batches in a row"):
        play(world, 6, save_every=3)
    assert world.events.count("save 3") == 1
    assert not world.closed


def test_what_can_not_be_saved_either_is_said_and_the_fault_is_the_first_one(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(record.Record, "say", lambda self, text, style="": said.append(text))
    with pytest.raises(Fault, match="2 batches in a row"):
        play(World(untrainable={3: BY_ENGINES, 4: BY_ENGINES}, full=(3,)), 6)
    assert checkpoints(tmp_path / "run" / "checkpoints") == []
    assert said[-1].startswith(
        "steps 1 to 3 are lost, and a resumed run goes on from the beginning: the checkpoint of step 3 can't be "
        "written: "
    )


@pytest.mark.parametrize("again", [False, True])
def test_a_full_disk_costs_the_steps_since_the_checkpoint_if_no_room_is_made_and_says_which(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """``metrics.jsonl`` is what has to be written. No checkpoint is damaged or left behind by halves."""
    said: list[str] = []
    monkeypatch.setattr(record.Record, "say", lambda self, text, style="": said.append(text))
    write, full = MetricsLog.write, [4] if again else [4, 4]

    def written(self: MetricsLog, kind: str, row: Mapping[str, Any]) -> None:
        if kind == "step" and row["step"] in full:
            full.remove(row["step"])
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
        write(self, kind, row)

    monkeypatch.setattr(MetricsLog, "write", written)
    with pytest.raises(OSError, match="No space left on device"):
        play(World(), 6, save_every=2)
    root = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in root.iterdir()) == ["step-000002", *(["step-000004"] if again else [])]
    saved = latest(root)
    assert saved is not None
    run_state.check(saved)
    lost = "steps 3 to 4 are lost, and a resumed run goes on after step 2: "
    lost += f"{root.parent}/metrics.jsonl: No space left on device"
    assert said.count(lost) == (not again)
    carry_metrics(saved, root.parent)
    driver, summary = play(World(), 6, resume=saved)
    assert [row["step"] for row in read(driver.record.metrics.path, "step")] == [1, 2, 3, 4, 5, 6]
    assert summary["rollouts"] == 48


@pytest.mark.parametrize("who", ["learner", "pool"])
def test_a_run_that_is_lost_again_and_again_without_a_new_step_ends(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Nobody knows how long each time takes: steps that are played again are no progress."""
    world = World()
    lose(world, monkeypatch, lambda event: event == "step 4", who)
    with pytest.raises(
        Fault,
        match=r"^learner or pool was lost 5 times in a row before step 4 was trained \(cluster.losses_in_a_row=5\); "
        rf"mend the cause and resume: {who} died",
    ):
        play(world, 20, save_every=2)
    assert world.model_of == [None, *["step-000002"] * 4]
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000002"]


def test_losses_with_a_new_step_between_them_end_no_run(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    seen: dict[str, int] = {}

    def twice(event: str) -> bool:
        seen[event] = seen.get(event, 0) + 1
        return event.startswith("step ") and seen[event] <= 2

    lose(world, monkeypatch, twice, "learner")
    _, summary = play(world, 9, save_every=1)
    assert summary["step"] == 9
    assert len(world.model_of) == 1 + 2 * 9


def lose(world: World, monkeypatch: pytest.MonkeyPatch, when: Callable[[str], bool], who: str) -> None:
    """Loses ``who`` at each event that ``when`` says."""
    happens = world.happens

    def lost(event: str) -> None:
        if when(event):
            world.deaths[event] = who
        happens(event)

    monkeypatch.setattr(world, "happens", lost)


def test_a_run_that_is_to_end_does_not_begin_again(play: Play) -> None:
    world = World(deaths={"deliver 3": "learner"}, interrupt=("step 3",))
    with pytest.raises(Fault, match=r"^learner died$"):
        play(world, 9, save_every=2)
