"""A simulated run's metrics, read as a real run's are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.pool.rules.base import rule_class
from agent.simulation.policies import SimulationConfig
from tracking.console import Console
from tracking.experiments import simulation, sweep
from tracking.experiments.measures import measures
from tracking.metrics import read
from tracking.view import in_lines
from tracking.view.episodes import find_evaluations
from tracking.view.lines import Notices
from tracking.view.run import facts

CONFIG = SimulationConfig(queries=400, rollouts_per_query=10)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only read."""
    folder = tmp_path_factory.mktemp("simulated")
    rule = rule_class("recycle")(batch_questions=16, group_size=4, oversample=2.0)
    simulation.write(CONFIG, rule, 3, folder, Console(quiet=True))
    return folder


def test_a_simulated_run_is_measured_as_a_real_one(run_dir: Path) -> None:
    rows = read(run_dir / "metrics.jsonl")
    steps = [r for r in rows if r["kind"] == "step"]
    found = measures(rows, 0.4)
    assert found["rollouts"] == sum(r["rollout/trajectories"] for r in steps) >= 4000
    groups = sum(r["groups/signal"] + r["groups/too_hard"] + r["groups/too_easy"] for r in steps)
    assert groups * 4 == found["rollouts"]
    assert found["recycled_share_last_quarter"] > 0.2
    assert found["em_after"] > found["em_before"]
    assert sweep.status(run_dir)[0] is sweep.Status.FINISHED


def test_it_is_evaluated_forty_times_from_the_start_to_the_last_update(run_dir: Path) -> None:
    rows = read(run_dir / "metrics.jsonl")
    evals, steps = ([r for r in rows if r["kind"] == kind] for kind in ("eval", "step"))
    played = [0]
    for row in steps:
        played.append(played[-1] + row["rollout/trajectories"])
    assert [r["rollouts"] for r in evals] == [played[r["step"]] for r in evals]
    assert evals[0]["step"] == 0
    assert evals[-1]["step"] == len(steps) - 1
    due = [next(n for n in played if n >= at * 100) for at in range(simulation.EVALUATIONS)]
    assert [r["rollouts"] for r in evals] == sorted({*due, played[-2]})


def test_its_view_says_nothing_of_what_it_cant_tell(run_dir: Path) -> None:
    notices = Notices()
    told = [str(line) for line in in_lines.run(facts(run_dir, notices, find_evaluations(run_dir, notices)), [])]
    evaluations = [line for line in told if line.startswith("eval after step")]
    assert len(evaluations) == len(read(run_dir / "metrics.jsonl", "eval"))
    for line in evaluations:
        assert re.fullmatch(r"eval after step \d+: held-out EM 0\.\d+", line)


def test_a_sweep_over_scenarios_is_reported(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a simulation can't tell keeps a report from being made."""
    from tracking.config import ReportConfig
    from tracking.experiments import pictures, report
    from tracking.experiments.sweep import Job, Plan

    monkeypatch.setattr(pictures, "draw", lambda *_: {})  # one that fails would be left out anyway
    folder = tmp_path / "sweep"
    job = Job(overrides={"pool": "recycle"}, seed=3)
    (folder / job.name).mkdir(parents=True)
    (folder / job.name / "metrics.jsonl").write_text((run_dir / "metrics.jsonl").read_text())
    sweep.save_plan(folder, Plan(jobs=(job,), report=ReportConfig()))
    report.write(folder, ReportConfig(), Console())
    assert "| rollouts per signal-bearing group |" in (folder / "table.md").read_text()
