"""``mode=eval`` without Ray: what it plays, what it leaves, and how it goes on."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray_fakes import row_of

from actors import calibrating, evaluating
from actors.inference import Served, inference
from actors.questions import Asked
from agent.config import ExitConfig
from agent.errors import Fault, Stopped, UserError
from agent.inference.evaluation import EvalRow
from agent.inference.infer import Inference
from agent.inference.scaling import Scale
from agent.pool.rules.base import rule_class
from agent.records import Question
from conf.evaluation import EvalConfig
from conf.schema import RunConfig
from retrieval_service.backend import Identity
from tracking.config import TrackerConfig
from tracking.console import Console
from tracking.evals.rows import EvalRows
from tracking.metrics import append, read
from tracking.trackers import trackio
from tracking.trackers.base import Asked as Tracked
from tracking.trackers.base import Tracker
from tracking.trackers.episodes import Episodes
from tracking.trajectories import EVALUATIONS
from tracking.view.mode import view_at_end

QUESTIONS = tuple(Question(id=f"q{i}", text=f"{i}?", golden_answers=("a",), kind=f"{i % 2}-hop") for i in range(6))


class Workers:
    """Rows of the questions that it is given, two at a time. ``faults`` break, and ``dies`` ends it after a chunk, or
    with that."""

    def __init__(self, samples: int, faults: set[str], dies: bool | Exception = False) -> None:
        self.samples = samples
        self.faults = faults
        self.dies = dies
        self.played: list[str] = []

    def evaluate(
        self,
        questions: Sequence[Question],
        played: Callable[[int, int], None] | None = None,
        *,
        step: int | None,
        chunk: int,
        keep: Callable[[list[EvalRow]], None],
    ) -> list[EvalRow]:
        found: list[EvalRow] = []
        for at in range(0, len(questions), 2):
            rows = [
                replace(row_of(q), sample=k, kind=q.kind, fault=q.id in self.faults, error="timeout")
                for q in questions[at : at + 2]
                for k in range(self.samples)
            ]
            self.played += [q.id for q in questions[at : at + 2]]
            keep(rows)
            found += rows
            if self.dies:
                raise self.dies if isinstance(self.dies, Exception) else KeyboardInterrupt
        return found


class House:
    """Evaluates in ``folder`` with workers of the test's."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.weights = "w"
        self.how = Inference()
        self.tracker = TrackerConfig()
        self.workers: Any = None
        monkeypatch.setattr(evaluating, "inference", self._inference)
        folder.mkdir()

    @contextmanager
    def _inference(self, config: RunConfig, run_dir: Path, namespace: str, console: Console) -> Iterator[Served]:
        task: Any = SimpleNamespace(name="world", train=(), eval=QUESTIONS, held_out_name="", corpus="c.jsonl")
        index = Identity(name="c", backend="bm25")
        yield Served(
            task=task,
            asked=Asked(questions=QUESTIONS),
            workers=self.workers,
            weights=self.weights,
            index=lambda: index,
            ending=self.how.ending,
        )

    def evaluate(
        self, *faults: str, dies: bool | Exception = False, compare: Path | None = None, **how: Any
    ) -> list[str]:
        """What was played."""
        self.workers = Workers(how.get("samples", 1), {*faults}, dies)
        config = RunConfig(
            mode="eval",
            checkpoint="model",
            pool=rule_class("recycle")(),
            evaluation=EvalConfig(**how),
            compare=str(compare) if compare else None,
            tracker=self.tracker,
        )
        evaluating.evaluate(config, self.folder, Console(quiet=True), "n")
        played: list[str] = self.workers.played
        return played

    @property
    def end(self) -> str:
        """What the page says of it."""
        (run,) = re.findall(r'id="r0-run">(.*?)</script>', (self.folder / "report.html").read_text(encoding="utf-8"))
        end: str = json.loads(run)["end"]
        return end

    @property
    def result(self) -> Any:
        return json.loads((self.folder / "eval.json").read_text())


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return House(tmp_path / "eval", monkeypatch)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_evaluation_leaves_its_result_and_tables(house: House) -> None:
    assert house.evaluate(samples=2, temperature=1.0) == [q.id for q in QUESTIONS]
    found = house.result
    assert {"eval.md", "eval.csv", "eval.tex", "eval_rows.jsonl"} < names(house.folder)
    assert [s["name"] for s in found["slices"]] == ["all", "0-hop", "1-hop"]
    assert (found["weights"], found["index"]["name"], found["played"]["samples"]) == ("w", "c", 2)
    assert (found["data"]["questions"], found["episodes"], found["slices"][0]["pass@2"]["mean"]) == (6, 12, 1.0)
    (row,) = read(house.folder / "metrics.jsonl", "eval")
    assert (row["em"], row["samples"], row["n"]) == (1.0, 2, 12)
    assert house.end == "An evaluation of model."


class Heard(Tracker):
    """One that hears everything."""

    told: list[Any]

    def __init__(self, given: Tracked) -> None:
        self.told.append((given.name, given.settings["checkpoint"]))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.told.append((step, numbers["eval/em"]))

    def episodes(self, episodes: Episodes, step: int) -> None:
        self.told.append((step, [row[0] for row in episodes.rows]))

    def close(self) -> None:
        self.told.append("closed")


def test_the_trackers_are_told_the_result_and_all_of_its_episodes(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = EvalRows.write

    def logged(log: EvalRows, rows: Sequence[EvalRow]) -> None:
        write(log, rows)
        append(house.folder / EVALUATIONS, [{"step": 0, "question_id": row.question_id} for row in rows])

    monkeypatch.setattr(EvalRows, "write", logged)
    monkeypatch.setattr(trackio, "Tracker", Heard)
    Heard.told = []
    house.tracker = TrackerConfig(trackio=True)
    with pytest.raises(KeyboardInterrupt):
        house.evaluate(dies=True)
    assert Heard.told == [], "there is no result yet"
    house.evaluate()
    name = f"{house.folder.parent.name}/{house.folder.name}"
    assert Heard.told == [(name, "model"), (0, 1.0), (0, [q.id for q in QUESTIONS]), "closed"]


def test_there_is_a_page_while_it_goes_on(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []

    def look(log: EvalRows, rows: list[EvalRow]) -> None:
        view_at_end(house.folder, Console(quiet=True))
        ends.append(house.end)

    monkeypatch.setattr(EvalRows, "write", look)
    house.evaluate()
    assert ends == ["An evaluation of model that goes on, or was stopped."] * 3


@pytest.mark.parametrize("error", [Fault("the engine died"), UserError("no index there"), RuntimeError("some bug")])
def test_one_that_breaks_has_a_page_that_says_why(house: House, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        house.evaluate(dies=error)
    named = "RuntimeError: some bug" if type(error) is RuntimeError else error
    assert house.end == f"The evaluation of model broke: {named}"
    house.evaluate()
    assert house.end == "An evaluation of model."
    assert len(read(house.folder / "metrics.jsonl", "event")) == 1


def test_one_that_broke_off_goes_on_with_the_questions_that_are_missing(house: House) -> None:
    with pytest.raises(KeyboardInterrupt):
        house.evaluate(dies=True)
    assert "eval.json" not in names(house.folder)
    assert house.evaluate() == ["q2", "q3", "q4", "q5"]
    assert [*EvalRows(house.folder).read(1)] == ["q0", "q1", "q2", "q3", "q4", "q5"]
    assert house.result["episodes"] == 6
    assert house.evaluate() == [], "nothing is missing"
    assert house.result["slices"][0]["questions"] == 6


def test_it_goes_on_only_with_the_same_weights(house: House) -> None:
    house.evaluate()
    before = {path.name: path.read_bytes() for path in house.folder.iterdir()}
    house.weights = "others"
    with pytest.raises(UserError, match=r"holds another evaluation, .* differs: weights=others \(was w\)$"):
        house.evaluate()
    assert {path.name: path.read_bytes() for path in house.folder.iterdir()} == before


def test_it_goes_on_only_with_the_same_early_exit(house: House) -> None:
    """Wherever that was read from: a calibration's file may have been written again."""
    house.how = Inference(exit=ExitConfig(threshold=0.9), scale=Scale(lines={1: (1.0, 0.0)}))
    house.evaluate()
    probes = {"confidence": "product", "max_tokens": 32, "before_first_search": False}
    assert house.result["exit"] == {"threshold": 0.9, "scale": {"1": [1.0, 0.0]}, **probes}
    for changed, said in (
        (replace(house.how, exit=ExitConfig(threshold=0.5)), r"exit\.threshold=0\.5 \(was 0\.9\)"),
        (
            replace(house.how, scale=Scale(lines={1: (2.0, 0.0)})),
            r"exit\.scale\.1=\[2\.0, 0\.0\] \(was \[1\.0, 0\.0\]\)",
        ),
    ):
        house.how = changed
        with pytest.raises(UserError, match=rf"holds another evaluation, .* differs: {said}$"):
            house.evaluate()


def test_whole_episodes_have_no_early_exit(house: House) -> None:
    """One that records probes and ends nothing, as calibrating does, is none either."""
    house.how = Inference(exit=ExitConfig())
    house.evaluate()
    assert house.result["exit"] is None


def test_too_many_faults_are_no_result_until_they_are_played_again(house: House) -> None:
    with pytest.raises(
        Fault, match=r"^1 of 6 episodes ended in a fault, .*timeout; resume=if_any output_dir=.*eval plays these"
    ):
        house.evaluate("q3")
    assert house.workers.played[-1] == "q3", "played twice"
    assert "eval.json" not in names(house.folder)
    (row,) = read(house.folder / "metrics.jsonl", "eval")
    assert (row["em"], row["faults"]) == (None, 1)
    assert house.end.startswith("The evaluation of model broke: 1 of 6 episodes ended in a fault")
    assert house.evaluate() == ["q3"]
    assert (house.result["faults"], house.result["slices"][0]["em"]["n"]) == (0, 6)


def test_faults_that_are_allowed_are_marked(house: House) -> None:
    house.evaluate("q3", max_fault_share=0.2)
    assert (house.result["faults"], house.result["refused"]) == (1, None)
    assert house.result["slices"][0]["em"]["n"] == 5


def test_an_evaluation_is_compared_with_another(house: House, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^compare=.*nothing: holds no eval\.json"):
        house.evaluate(compare=tmp_path / "nothing")
    assert house.workers.played == [], "said before anything is played"
    house.evaluate()
    other = house.folder
    house.folder = tmp_path / "second"
    house.folder.mkdir()
    house.evaluate(compare=other)
    found = json.loads((house.folder / "comparison.json").read_text())
    assert (found["slices"][0]["em"]["mean"], found["slices"][0]["em"]["alike"], found["notices"]) == (0.0, 6, [])


def test_what_can_not_be_compared_is_said_before_anything_is_played(house: House, tmp_path: Path) -> None:
    house.evaluate()
    other, rows = house.folder, house.folder / "eval_rows.jsonl"
    house.folder = tmp_path / "second"
    house.folder.mkdir()
    text = rows.read_text()
    of_sets = r"^compare=.* no question in common .*: the one was of several sets \('nq/q0' is of nq\) and the other of"
    for now, said in (
        (text.replace('"question_id": "', '"question_id": "nq/'), of_sets),
        (re.sub(r'"text": "\w*"', '"text": "another"', text), r": 6 ids \(.*\) are of other questions in the one than"),
    ):
        rows.write_text(now)
        with pytest.raises(UserError, match=said):
            house.evaluate(compare=other)
        assert house.workers.played == []
    rows.unlink()
    with pytest.raises(UserError, match=r"eval_rows\.jsonl is missing: the episodes are compared one by one"):
        house.evaluate(compare=other)
    assert house.workers.played == []
    assert names(house.folder) == set(), "nothing binds the folder"


# --- calibrating ---------------------------------------------------------------------------------


class Passing(Workers):
    """Those whose faults have passed at the second attempt."""

    def evaluate(self, *arguments: Any, **more: Any) -> list[EvalRow]:
        rows = super().evaluate(*arguments, **more)
        self.faults = set()
        return rows


def calibrated(house: House, workers: Workers, monkeypatch: pytest.MonkeyPatch, how: EvalConfig | None = None) -> Any:
    """calibration.json."""
    house.workers = workers
    monkeypatch.setattr(calibrating, "inference", house._inference)
    config = RunConfig(
        mode="calibrate",
        checkpoint="model",
        pool=rule_class("recycle")(),
        exit=ExitConfig(risk=0.4, delta=0.4, fit_share=0.0),
        evaluation=how or EvalConfig(),
    )
    calibrating.calibrate(config, house.folder, Console(quiet=True), "n")
    return json.loads((house.folder / "calibration.json").read_text())


def test_a_calibration_plays_what_a_fault_ended_once_more(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Passing(1, {"q1"})
    found = calibrated(house, workers, monkeypatch)
    assert (found["questions"], found["faults"]) == (6, 0)
    assert workers.played == [*(q.id for q in QUESTIONS), "q1"]


def test_a_calibration_with_too_many_faults_is_none(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Fault, match=r"^1 of 6 episodes ended in a fault, more than evaluation\.max_fault_share=0\.01"):
        calibrated(house, Workers(1, {"q1"}), monkeypatch)
    assert "calibration.json" not in names(house.folder)
    workers = Workers(1, set())
    assert calibrated(house, workers, monkeypatch)["questions"] == 6
    assert workers.played == ["q1"], "the others were played before"


def test_a_calibration_that_broke_off_goes_on_with_the_questions_that_are_missing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        calibrated(house, Workers(1, set(), dies=True), monkeypatch)
    workers = Workers(1, set())
    found = calibrated(house, workers, monkeypatch)
    assert workers.played == ["q2", "q3", "q4", "q5"]
    assert found["questions"] == 6, "those from the file among them"
    with pytest.raises(UserError, match=r"holds another evaluation, .* differs: exit=.*calibrating"):
        house.evaluate()


def test_a_calibration_of_faults_alone_keeps_what_was_played(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Fault, match=r"^none of 6 questions could be evaluated: "):
        calibrated(house, Workers(1, {q.id for q in QUESTIONS}), monkeypatch)
    assert names(house.folder) == {"eval_rows.jsonl", "eval_setting.json"}


def test_a_calibration_that_faults_could_spoil_plays_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(1, set())
    with pytest.raises(
        UserError, match=r"^1 development questions \(those that evaluation\.max_fault_share=0\.9 leaves"
    ):
        calibrated(house, workers, monkeypatch, EvalConfig(max_fault_share=0.9))
    assert workers.played == []


def test_a_signal_ends_what_plays_a_checkpoint_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its report is written, Ray shuts down, and a sweep says how it goes on."""
    ended: list[str] = []

    @contextmanager
    def serving(*_: Any) -> Iterator[str]:
        try:
            yield "who plays"
        finally:
            ended.append("Ray")

    monkeypatch.setattr("actors.inference._serving", serving)

    def plays(nothing: Any = None) -> None:
        with inference(nothing, nothing, "", nothing):
            os.kill(os.getpid(), signal.SIGTERM)
            ended.append("the evaluation")

    with pytest.raises(Stopped, match=r"^stopped by SIGTERM$"):
        plays()
    assert ended == ["Ray"]
