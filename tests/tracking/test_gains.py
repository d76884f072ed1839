"""What a sweep's report says over held-out questions: before and after, paired by question, the mean of the seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sweep_rows import RUN

from tracking.config import ReportConfig
from tracking.console import Console
from tracking.experiments import report, sweep
from tracking.experiments.gains import Ends, ends_of, gains
from tracking.experiments.sweep import Job, Plan
from tracking.metrics import replace
from tracking.trajectories import EVALUATIONS

SUMMARY = {"kind": "summary", "step": 4, "stopped_early": False, "interrupted": False}


def episode(step: int, question: str, em: Any, sample: int = 0, **more: Any) -> dict[str, Any]:
    """A row of ``eval_trajectories.jsonl``."""
    row = {"step": step, "sample": sample, "question_id": question, "fault": "", "em": em, "f1": em, "searches": 2}
    return {**row, "evidence": 0.5, "answerable": None, **more}


def logged(folder: Path, rows: list[dict[str, Any]]) -> Path:
    replace(folder / EVALUATIONS, rows)
    return folder


BEFORE = [episode(0, "a", 0.0), episode(0, "b", 1.0), episode(0, "c", 0.0)]
AFTER = [episode(4, "a", 1.0, evidence=1.0), episode(4, "b", 1.0), episode(4, "c", 1.0)]


# --- one run ---------------------------------------------------------------------------------------


def test_the_ends_of_a_run_are_its_first_and_its_last_evaluation(tmp_path: Path) -> None:
    between = [episode(2, name, 0.0) for name in "abc"]
    found = ends_of(logged(tmp_path, [*BEFORE, *between, *AFTER]), RUN)
    assert found is not None
    assert found.before["em"] == {"a": 0.0, "b": 1.0, "c": 0.0}
    assert found.after["em"] == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert found.after["evidence_recall"] == {"a": 1.0, "b": 0.5, "c": 0.5}
    assert "answerable" not in found.after, "no question has one"


def test_a_question_has_the_mean_of_its_episodes_and_of_one_that_was_played_again_the_last(tmp_path: Path) -> None:
    of_samples = [episode(4, "a", 1.0), episode(4, "a", 0.0, sample=1), episode(4, "a", 1.0, sample=1)]
    found = ends_of(logged(tmp_path, [*BEFORE, *of_samples, episode(4, "b", 1.0), episode(4, "b", 0.0)]), RUN)
    assert found is not None
    assert found.after["em"] == {"a": 1.0, "b": 0.0}


def test_a_fault_is_no_value_and_a_line_that_is_none_is_left_out(tmp_path: Path) -> None:
    broken = [episode(4, "b", None, fault="search_failed: no answer"), {"step": 4}, episode(4, "c", None)]
    strange = [{"step": [4], "question_id": "a"}, {"step": 4, "question_id": 7, "em": 1.0}, episode(4, "d", "much")]
    logged(tmp_path, [*BEFORE, episode(4, "a", 1.0), *broken, *strange])
    with (tmp_path / EVALUATIONS).open("a") as file:
        file.write('no object\n[1]\n{"step": 4, "question_id": "a", "em": 0.0')
    found = ends_of(tmp_path, RUN)
    assert found is not None
    assert found.after["em"] == {"a": 1.0}
    assert found.after["searches"] == {"a": 2.0, "c": 2.0, "d": 2.0}


@pytest.mark.parametrize(
    ("rows", "episodes"),
    [
        (RUN, None),
        (RUN, AFTER),
        (RUN, BEFORE),
        (RUN[:1], BEFORE),
        (RUN[1:3], [*BEFORE, *AFTER]),
        ([{**RUN[0], "held_out": "x"}, {**RUN[-2], "held_out": "y"}], [*BEFORE, *AFTER]),
    ],
    ids=["no log", "no first", "no last", "one evaluation", "no evaluation", "another series"],
)
def test_a_run_that_lacks_an_end_says_nothing(
    tmp_path: Path, rows: list[dict[str, Any]], episodes: list[dict[str, Any]] | None
) -> None:
    if episodes is not None:
        logged(tmp_path, episodes)
    assert ends_of(tmp_path, rows) is None


# --- seeds together --------------------------------------------------------------------------------


def ends(before: dict[str, float], after: dict[str, float]) -> Ends:
    return Ends(before={"em": before}, after={"em": after})


def test_a_question_has_the_mean_of_its_seeds_and_counts_where_all_of_them_have_it() -> None:
    runs = {
        0: ends({"a": 0.0, "b": 0.0, "c": 1.0}, {"a": 1.0, "b": 0.0, "c": 1.0}),
        1: ends({"a": 0.0, "b": 1.0}, {"a": 0.0, "b": 1.0, "c": 1.0}),
    }
    found = gains(runs, None)
    assert found["seeds"] == 2
    em = found["em"]
    assert {line: (each["mean"], each["n"]) for line, each in em.items()} == {
        "before": (0.25, 2),
        "after": (0.5, 2),
        "gain": (0.25, 2),
    }
    # Gains of 0.5 and 0: resampled means lie between them.
    assert (em["gain"]["low"], em["gain"]["high"]) == (0.0, 0.5)
    assert gains(runs, None) == found, "the same resamples each time"
    assert gains({}, None) == {"seeds": 0}


def test_the_baseline_is_compared_in_the_seeds_that_both_have() -> None:
    runs = {0: ends({"a": 0.0}, {"a": 1.0}), 1: ends({"a": 0.0}, {"a": 0.0})}
    other = {1: ends({"a": 0.0}, {"a": 1.0, "b": 1.0}), 2: ends({"a": 0.0}, {"a": 1.0})}
    assert gains(runs, other)["em"]["against"] == {"mean": -1.0, "low": None, "high": None, "n": 1}
    assert "against" not in gains(runs, {2: other[2]})["em"]


# --- in the report ---------------------------------------------------------------------------------


def test_a_report_has_a_table_over_questions_where_the_episodes_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracking.experiments.pictures.draw", lambda *_: {})  # seconds
    jobs = [Job(overrides={"pool": rule, "seed": "0"}, seed=0) for rule in ("epoch", "recycle")]
    for each in jobs:
        replace(tmp_path / each.name / "metrics.jsonl", [*RUN[:-1], SUMMARY])
    logged(tmp_path / jobs[0].name, [*BEFORE, *(row | {"step": 4} for row in BEFORE)])
    sweep.save_plan(tmp_path, Plan(jobs=tuple(jobs), report=ReportConfig(title="A title", baseline="pool=epoch")))
    report.write(tmp_path, ReportConfig(), Console(quiet=True))
    told = json.loads((tmp_path / "sweep.json").read_text())["conditions"]
    assert told[1]["over_questions"] == {"seeds": 0}
    table = (tmp_path / "table.md").read_text()
    assert (
        "| pool=epoch (1 seed), before | 0.333 [0.000, 1.000] | 0.333 [0.000, 1.000] | 0.500 [0.500, 0.500] |" in table
    )
    assert "pool=recycle (" not in table

    logged(tmp_path / jobs[1].name, [*BEFORE, *AFTER])
    report.write(tmp_path, ReportConfig(), Console(quiet=True))
    lines = (tmp_path / "table.md").read_text().splitlines()
    start = lines.index("## Over held-out questions, each with the mean of its seeds: mean and 95 % interval") + 2
    assert lines[start] == "|  | EM | F1 | evidence | answerable | searches |"
    # Two of three questions were gained; evidence of one of them, by half.
    gain = "+0.667 [+0.000, +1.000] | +0.667 [+0.000, +1.000] | +0.167 [+0.000, +0.500] | – | +0.00 [+0.00, +0.00] |"
    assert [line.split(" | ")[0] for line in lines[start + 2 : start + 9]] == [
        "| pool=epoch (1 seed), before",
        "| &nbsp;&nbsp;after",
        "| &nbsp;&nbsp;after less before",
        "| pool=recycle (1 seed), before",
        "| &nbsp;&nbsp;after",
        "| &nbsp;&nbsp;after less before",
        "| &nbsp;&nbsp;after, less that of pool=epoch",
    ]
    assert lines[start + 7] == f"| &nbsp;&nbsp;after less before | {gain}"
    assert lines[start + 8] == f"| &nbsp;&nbsp;after, less that of pool=epoch | {gain}"
