"""TensorBoard, trackio, several at once: with the real libraries where they are installed, else with scripted ones."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import scripted_trackers as scripted
import view_runs as made

from agent.errors import UserError
from tracking.config import TRACKERS, TrackerConfig
from tracking.dispensable import Dispensable
from tracking.metrics import keep_lines
from tracking.trackers import several
from tracking.trackers.base import Asked, Tracker
from tracking.trackers.episodes import COLUMNS, Episodes, EpisodesLog
from tracking.trackers.in_time import InTime
from tracking.trackers.several import Trackers, check_installed
from tracking.trajectories import EVALUATIONS


def asked(folder: Path, *names: str, **more: Any) -> Asked:
    folder.mkdir(exist_ok=True)
    config = TrackerConfig(wandb_mode="offline", **dict.fromkeys(names, True))
    return Asked(config=config, folder=folder, settings={"seed": 3, "a": {"b": [1, None]}}, **more)


def opened(given: Asked, ids: Mapping[str, str] | None = None) -> Trackers:
    return Trackers.open(given, ids or {}, Dispensable(pytest.fail))


# --- each ------------------------------------------------------------------------------------------


def events(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """What TensorBoard shows of a run: steps and values, or texts, by tag."""
    files = sorted((folder / "tensorboard").iterdir())
    if files[-1].name.endswith("scripted"):
        found: dict[str, list[tuple[int, Any]]] = {}
        for row in map(json.loads, files[-1].read_text().splitlines()):
            if "purge_step" in row:
                end = math.inf if row["purge_step"] is None else row["purge_step"]
                found = {tag: [e for e in of if e[0] < end] for tag, of in found.items()}
            else:
                found.setdefault(row["tag"], []).append((row["step"], row.get("value", row.get("text"))))
        return found
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    shown = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    for tag in read.Tags()["tensors"]:
        shown[tag.removesuffix("/text_summary")] = [
            (e.step, e.tensor_proto.string_val[0].decode()) for e in read.Tensors(tag)
        ]
    return shown


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one where it is installed."""
    try:
        several.version("tensorboard")
    except PackageNotFoundError:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", scripted.tensorboard())


def test_tensorboard_shows_the_numbers_and_the_episodes(tmp_path: Path, tensorboard: None) -> None:
    folder = tmp_path / "run"
    trackers = opened(asked(folder, "tensorboard"))
    trackers.log({"step": 1, "reward/mean": 0.5, "kind": "step", "bad": math.nan, "unknown": None})
    made.lines(folder / EVALUATIONS, [made.evaluated(1, "q1", 1.0)])
    trackers.evaluation({"step": 1, "em": 0.25})
    trackers.close()
    shown = events(folder)
    assert set(shown) == {"reward/mean", "eval/em", "eval/episodes"}
    assert (shown["reward/mean"], shown["eval/em"]) == ([(1, 0.5)], [(1, 0.25)])
    ((step, text),) = shown["eval/episodes"]
    assert step == 1
    assert "    question_id: q1\n" in text
    assert "\n    <search> emma </search>\n" in text
    assert all(line.startswith("    ") for line in text.splitlines()), "nothing in it is markup"


def test_the_episodes_of_another_series_are_another_table(tmp_path: Path, tensorboard: None) -> None:
    folder = tmp_path / "run"
    trackers = opened(asked(folder, "tensorboard"))
    for step, series in ((1, 1), (2, 2)):
        made.lines(folder / EVALUATIONS, [made.evaluated(n, f"q{n}", 1.0) for n in range(1, step + 1)])
        trackers.evaluation({"step": step, "em": 0.25}, series)
    trackers.close()
    shown = events(folder)
    assert set(shown) == {"eval/em", "eval/episodes", "eval_2/em", "eval_2/episodes"}
    assert "question_id: q2\n" in shown["eval_2/episodes"][0][1]


def test_a_resumed_run_voids_what_tensorboard_was_told_after_its_checkpoint(tmp_path: Path, tensorboard: None) -> None:
    folder = tmp_path / "run"
    for first, steps, value in ((0, (1, 2, 3), 0.0), (2, (2,), 1.0)):
        trackers = opened(asked(folder, "tensorboard", first_step=first))
        for step in steps:
            trackers.log({"step": step, "reward/mean": value})
        trackers.close()
    assert events(folder)["reward/mean"] == [(1, 0.0), (2, 1.0)]


@pytest.mark.parametrize("again", [0, 2, 3])
def test_steps_that_a_run_tells_again_after_a_recovery_are_shown_once(
    tmp_path: Path, tensorboard: None, again: int
) -> None:
    folder = tmp_path / "run"
    trackers = opened(asked(folder, "tensorboard"))
    for steps, value in ((range(4), 0.0), (range(again, 5), 1.0)):
        for step in steps:
            trackers.log({"step": step, "reward/mean": value})
            trackers.evaluation({"step": step, "em": value})
    trackers.close()
    for name in ("reward/mean", "eval/em"):
        assert events(folder)[name] == [(step, float(step >= again)) for step in range(5)]


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[scripted.Run]:
    """The runs of the scripted one; empty with the real one, which keeps its files in the test's folder."""
    runs: list[scripted.Run] = []
    try:
        several.version("trackio")
    except PackageNotFoundError:
        monkeypatch.setitem(sys.modules, "trackio", scripted.trackio(runs))
    else:
        import trackio
        from trackio import sqlite_storage, utils

        for module in (trackio, sqlite_storage, utils):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    return runs


def test_trackio_gets_the_numbers_and_the_episodes_of_a_run_that_goes_on(
    tmp_path: Path, trackio: list[scripted.Run]
) -> None:
    folder = tmp_path / "run"
    first = opened(asked(folder, "trackio"))
    name = first.ids["trackio"]
    assert name.startswith(f"{tmp_path.name}/run ")
    first.log({"step": 1, "reward/mean": 0.5, "kind": "step", "bad": math.nan})
    first.close()
    namesake = opened(asked(tmp_path / "another", "trackio"))
    assert namesake.ids["trackio"] != name, "a resumed run is told apart from a newer one by its name alone"
    namesake.close()
    second = opened(asked(folder, "trackio"), {"trackio": "the name before"})
    assert second.ids == {"trackio": "the name before"}
    made.lines(folder / EVALUATIONS, [made.evaluated(2, "q1", 1.0)])
    second.evaluation({"step": 2, "em": 0.25})
    second.close()
    if not trackio:  # the real one
        from trackio.sqlite_storage import SQLiteStorage

        assert {name, "the name before"} <= set(SQLiteStorage.get_runs("slingshot"))
        (row,) = SQLiteStorage.get_logs("slingshot", name)
        assert (row["step"], row["reward/mean"]) == (1, 0.5)
        told = SQLiteStorage.get_logs("slingshot", "the name before")
        assert any("eval/episodes" in row for row in told)
        return
    one, _, other = trackio
    assert (one.project, one.logged) == ("slingshot", [(1, {"reward/mean": 0.5})])
    assert (one.resume, other.resume) == ("never", "allow")
    assert other.logged[0] == (2, {"eval/em": 0.25})
    (row,) = other.logged[1][1]["eval/episodes"].data
    assert (row["question_id"], row["em"], row["golden_answers"]) == ("q1", 1, "yes")
    assert not one.open
    assert not other.open


# --- several ---------------------------------------------------------------------------------------


class Broken(Tracker):
    """One whose server goes away."""

    def __init__(self, given: Asked) -> None:
        self.id = "b"

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        raise RuntimeError("gone")

    def episodes(self, episodes: Episodes, step: int) -> None:
        raise AssertionError("it is off")

    close = None  # type: ignore[assignment]


class Heard(Tracker):
    """One that hears everything."""

    def __init__(self, given: Asked) -> None:
        self.heard: list[Any] = []

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.heard.append((step, dict(numbers)))

    def episodes(self, episodes: Episodes, step: int) -> None:
        self.heard.append((step, len(episodes.rows)))

    def close(self) -> None:
        self.heard.append("closed")


def test_one_that_fails_is_off_and_the_others_go_on(tmp_path: Path) -> None:
    told: list[str] = []
    given = asked(tmp_path)
    heard = Heard(given)
    runs = {"wandb": (Broken(given), InTime(60)), "trackio": (heard, InTime(60))}
    trackers = Trackers(runs, Dispensable(told.append), EpisodesLog(tmp_path))
    assert trackers.ids == {"wandb": "b"}
    trackers.log({"step": 1, "x": 2.0, "gone": math.nan, "beyond": math.inf, "below": -math.inf})
    made.lines(tmp_path / EVALUATIONS, [made.evaluated(1, "q1", 1.0), made.evaluated(1, "q2", 1.0)])
    trackers.evaluation({"step": 1, "em": 1.0})
    trackers.close()
    assert told == ["the tracker wandb failed and is off for the rest of this run, which goes on: RuntimeError: gone"]
    assert heard.heard == [(1, {"x": 2.0}), (1, {"eval/em": 1.0}), (1, 2), "closed"]


class Hanging(Heard):
    """One whose library waits for a process that never answers, until ``freed``."""

    def __init__(self, given: Asked) -> None:
        super().__init__(given)
        self.freed = Event()

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        super().log(numbers, step)
        self.freed.wait()


def test_one_that_hangs_is_off_and_the_others_go_on(tmp_path: Path) -> None:
    told: list[str] = []
    given = asked(tmp_path)
    hanging, heard = Hanging(given), Heard(given)
    trackers = Trackers(
        {"wandb": (hanging, InTime(0.05)), "trackio": (heard, InTime(60))},
        Dispensable(told.append),
        EpisodesLog(tmp_path),
    )
    for step in (1, 2):
        trackers.log({"step": step, "x": 2.0})
    trackers.close()
    hanging.freed.set()
    assert told == [
        "the tracker wandb failed and is off for the rest of this run, which goes on: "
        "no answer within 0.05 s (tracker.timeout_s)"
    ]
    assert hanging.heard == [(1, {"x": 2.0})]
    assert heard.heard == [(1, {"x": 2.0}), (2, {"x": 2.0}), "closed"]


def test_one_that_hangs_as_it_is_opened_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freed, told, abandoned = Event(), [], []

    class Slow:
        def __init__(self, given: object) -> None:
            freed.wait()

        @staticmethod
        def abandon() -> None:
            abandoned.append(freed.is_set())

    monkeypatch.setattr("tracking.trackers.trackio.Tracker", Slow)
    given = asked(tmp_path, "trackio")
    given.config.timeout_s = 0.05
    trackers = Trackers.open(given, {}, Dispensable(told.append))
    freed.set()
    assert trackers.ids == {}
    assert len(told) == 1
    assert told[0].endswith("no answer within 0.05 s (tracker.timeout_s)")
    trackers.close()
    assert abandoned == [True], "it may have been opened since, and leaves a hook for the process's end"


def test_what_a_tracker_raises_in_time_is_its_own() -> None:
    in_time = InTime(60)

    def refused() -> None:
        raise TimeoutError("the server said so")

    with pytest.raises(TimeoutError, match=r"^the server said so$"):
        in_time(refused)
    assert in_time(lambda: 3) == 3


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_one_whose_library_would_end_the_process_is_off_and_the_others_go_on(
    tmp_path: Path, end: type[BaseException]
) -> None:
    """No signal of a user's comes to the thread of a tracker."""

    class Ending(Heard):
        def log(self, numbers: Mapping[str, float], step: int) -> None:
            raise end("no more")

        @staticmethod
        def abandon() -> None:
            raise SystemExit("no more")

        def close(self) -> None:
            raise end("no more")

    told: list[str] = []
    given = asked(tmp_path)
    heard = Heard(given)
    runs = {"wandb": (Ending(given), InTime(60)), "trackio": (heard, InTime(60))}
    trackers = Trackers(runs, Dispensable(told.append), unopened=[Ending])
    for step in (1, 2):
        trackers.log({"step": step, "x": 2.0})
    trackers.close()
    assert told == [
        "the tracker wandb failed and is off for the rest of this run, which goes on: "
        f"RuntimeError: it raised {end.__name__}: no more"
    ]
    assert heard.heard == [(1, {"x": 2.0}), (2, {"x": 2.0}), "closed"]


@pytest.mark.parametrize("broken", ["__init__", "of"])
def test_a_log_that_cant_be_read_is_no_table_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def refuses(self: EpisodesLog, given: object) -> None:
        raise PermissionError(13, "Permission denied", "eval_trajectories.jsonl")

    told: list[str] = []
    extras = Dispensable(told.append)
    monkeypatch.setattr(EpisodesLog, broken, refuses)
    monkeypatch.setattr("tracking.trackers.trackio.Tracker", Heard)
    trackers = Trackers.open(asked(tmp_path, "trackio"), {}, extras)
    for step in (1, 2):
        trackers.evaluation({"step": step, "em": 1.0})
    heard, _ = trackers._runs["trackio"]
    assert isinstance(heard, Heard)
    assert heard.heard == [(1, {"eval/em": 1.0}), (2, {"eval/em": 1.0})]
    (line,) = told
    assert line.startswith("the trackers' table of episodes failed and is off for the rest of this run, which goes on:")


def test_one_that_cant_be_opened_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setitem(sys.modules, "trackio", None)
    trackers = Trackers.open(asked(tmp_path, "trackio"), {}, Dispensable(told.append))
    assert trackers.ids == {}
    trackers.log({"step": 1})
    trackers.close()
    assert len(told) == 1
    assert told[0].startswith("the tracker trackio failed and is off for the rest of this run, which goes on: ")


def test_a_tracker_whose_package_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "wandb":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(several, "version", version)
    check_installed(TrackerConfig(wandb=True))
    with pytest.raises(UserError, match=r"^tracker=tensorboard: the package tensorboard isn't installed: .*") as error:
        check_installed(TrackerConfig(wandb=True, tensorboard=True))
    assert str(error.value).endswith(f"{sys.executable} -m pip install tensorboard")


@pytest.mark.parametrize("name", TRACKERS)
def test_each_tracker_has_its_file(name: str) -> None:
    __import__(f"tracking.trackers.{name}")
    assert issubclass(sys.modules[f"tracking.trackers.{name}"].Tracker, Tracker)


# --- episodes --------------------------------------------------------------------------------------


def test_each_evaluation_has_its_own_episodes(tmp_path: Path) -> None:
    path = tmp_path / EVALUATIONS
    made.lines(path, [made.evaluated(0, "old", 1.0)])  # of a process before
    assert [row[0] for row in EpisodesLog(tmp_path, whole=True).of(0).rows] == ["old"]
    log = EpisodesLog(tmp_path)
    assert log.of(0).rows == ()
    with path.open("a") as file:
        for row in (made.evaluated(0, "a", 1.0), made.evaluated(0, "half \ud800", 0.0) | {"turns": None}):
            file.write(json.dumps(row) + "\n")
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in log.of(0).rows]
    assert [(r["question_id"], r["em"], r["searches"], r["stop_reason"]) for r in rows] == [
        ("a", 1, 1, "answered"),
        ("half ?", 0, 1, "answered"),
    ]
    assert rows[0]["episode"].startswith('<search> emma </search>\n<result>\nResult 1: "Emma"')
    assert log.of(0).rows == ()


def test_a_question_that_is_played_again_after_a_fault_is_there_once(tmp_path: Path) -> None:
    log = EpisodesLog(tmp_path)
    broken = made.evaluated(0, "a", 0.0) | {"em": None, "stop_reason": "search_failed"}
    made.lines(tmp_path / EVALUATIONS, [broken, made.evaluated(0, "b", 1.0), made.evaluated(0, "a", 1.0)])
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in log.of(0).rows]
    assert [(r["question_id"], r["em"]) for r in rows] == [("a", 1), ("b", 1)]


def test_an_evaluation_that_is_played_again_after_a_recovery_has_its_episodes(tmp_path: Path) -> None:
    """The log has another inode then, and is shorter."""
    path = tmp_path / EVALUATIONS
    log = EpisodesLog(tmp_path)
    made.lines(path, [made.evaluated(0, "a", 1.0), made.evaluated(4, "b", 1.0), made.evaluated(4, "c", 1.0)])
    assert len(log.of(4).rows) == 2
    keep_lines(path, lambda row: row["step"] <= 0)
    with path.open("a") as file:
        file.writelines(json.dumps(made.evaluated(4, name, 0.0)) + "\n" for name in "bcde")
    assert [row[0] for row in log.of(4).rows] == ["b", "c", "d", "e"]
    assert log.of(4).rows == ()
