"""What a run does when something breaks or its user steps in."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from damage import Damaged, left_behind, listening
from patience import finished, until


@pytest.mark.slow
def test_a_run_goes_on_when_its_parts_are_killed(cache, small, tmp_path):
    """A worker that plays, the retrieval as it is asked, the learner as it publishes, all in one run.

    ``tests/faults`` has all parts, phases and kinds of faults.
    """
    settings = (*small, "algorithm.steps=1000", "pool.max_staleness=1", "checkpoints.every=1")
    run = Damaged.start(tmp_path / "killed", cache, *settings)
    try:
        run.damage("rollout", "kill", "generating")
        run.damage("retrieval", "kill", "searching")
        run.wait(lambda: any(row.get("event") == "checkpoint" for row in run.rows()))
        run.damage("learner", "kill", "publishing")
        run.end()
    finally:
        run.process.kill()
    run.check()
    events = [row for row in run.rows() if row.get("event") in ("worker_lost", "retrieval_lost", "recovered")]
    assert [event["event"] for event in events] == ["worker_lost", "retrieval_lost", "recovered"]
    assert events[-1]["lost"] == "learner"
    assert f"learner lost: learner and pool go on from {events[-1]['path']}; " in run.output
    assert left_behind(run.faults) == []


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_and_leaves_a_checkpoint(start, small, tmp_path):
    folder = tmp_path / "stopped"
    process = start(folder, *small, "algorithm.steps=200")
    try:
        _wait_for_row(folder, process, lambda row: row["kind"] == "step")
        process.send_signal(signal.SIGINT)
        output = _output(process, folder)
    finally:
        process.kill()
    assert process.returncode == 0, output
    steps = [r["step"] for r in _rows(folder) if r["kind"] == "step"]
    assert steps[-1] < 200
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {f"step-{steps[-1]:06d}", "best"}


@pytest.mark.slow
def test_one_command_starts_is_taken_away_and_goes_on(start, small, tmp_path):
    """SIGTERM within a run: saved without an evaluation, in less than 30 s; then the same command plays the rest."""
    folder = tmp_path / "requeued"
    command = [*small, "algorithm.steps=6", "evaluation.every=2", "resume=if_any"]
    process = start(folder, *command)
    try:
        _wait_for_row(folder, process, lambda row: row["kind"] == "step" and row["step"] == 3)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        output = _output(process, folder)
    finally:
        process.kill()
    assert process.returncode == 143, output
    assert time.monotonic() - began < 30
    saved = [r for r in _rows(folder) if r.get("event") == "checkpoint"][-1]
    assert f"stopped by SIGTERM after step {saved['step']}; resume with resume={saved['path']}" in output
    again = start(folder, *command)
    try:
        output = _output(again, folder)
    finally:
        again.kill()
    assert again.returncode == 0, output
    rows = _rows(folder)
    assert [r["step"] for r in rows if r["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    (resumed,) = [r for r in rows if r.get("event") == "resumed"]
    assert resumed["step"] == saved["step"]
    changed = start(folder, *command, "seed=1")
    try:
        output = _output(changed, folder)
    finally:
        changed.kill()
    assert changed.returncode == 2, output
    assert "seed=1 (was 0); set them back, or resume_allow_changes=true goes on with them" in output


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launch.py", "gcs_server", "raylet"])
def test_the_death_of_driver_or_head_is_one_line_and_leaves_nothing(start, small, tmp_path, victim):
    folder = tmp_path / "killed"
    quick = ["algorithm.warm_start.steps=0", "pool.max_empty_batches=1000", "pool.batch_questions=2"]
    process = start(folder, *small, *quick, "algorithm.steps=999", "checkpoints.every=1")
    try:
        _wait_for_row(folder, process, lambda row: row.get("event") == "checkpoint")
        family = psutil.Process(process.pid).children(recursive=True)
        (one,) = [p for p in family if victim in " ".join(p.cmdline()[:2])]
        driver = one.pid if victim == "launch.py" else one.ppid()
        ports = listening(family)
        assert ports, "Ray listens"
        segments = {line.path for p in family for line in p.memory_maps() if line.path.startswith("/dev/shm/")}
        one.kill()
        output = _output(process, folder)
    finally:
        process.kill()
    assert process.returncode == 1, output
    last = output.splitlines()[-1]
    saved = [r for r in _rows(folder) if r.get("event") == "checkpoint"][-1]["path"]
    assert last.startswith("slingshot: fault: ")
    assert last.endswith(f"; resume with resume={saved}")
    assert output.count("slingshot: ") == 1
    assert not [p for p in family if p.is_running()]
    assert not ports & listening(psutil.process_iter())
    assert not [path for path in segments if Path(path).exists()]
    ray_folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")
    assert not [*ray_folder.glob(f"session_*_{driver}")]
    assert (folder / "logs" / "ray").is_dir()


@pytest.mark.slow
def test_a_sweep_that_is_stopped_and_started_again_does_the_rest(start, small, tmp_path):
    """Stopped in its second job: the first is not run again, the second goes on from its checkpoint."""
    folder = tmp_path / "sweep"
    sweep = [*small, "-m", "seed=0,1", f"report.sweep={folder}", "algorithm.rollout_budget=240", "algorithm.steps=99"]
    process = start(folder, *sweep)
    try:
        _wait_for_row(folder / "seed=1", process, lambda row: row["kind"] == "step")
        process.send_signal(signal.SIGINT)
        output = _output(process, folder)
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert _states(folder) == {"seed=0": "finished", "seed=1": "unfinished"}
    finished, (stopped,) = _rows(folder / "seed=0"), [r for r in _rows(folder / "seed=1") if r["kind"] == "summary"]
    again = start(folder, *sweep)
    try:
        output = _output(again, folder)
    finally:
        again.kill()
    assert again.returncode == 0, output
    assert _states(folder) == {"seed=0": "finished", "seed=1": "finished"}
    assert _rows(folder / "seed=0") == finished
    rows = _rows(folder / "seed=1")
    assert [r["step"] for r in rows if r["kind"] == "step"] == [*range(1, 11)]  # of 24 trajectories each
    (resumed,) = [r for r in rows if r.get("event") == "resumed"]
    assert resumed["step"] == stopped["step"] > 0
    (summary,) = [r for r in rows if r["kind"] == "summary"]
    assert (summary["rollouts"], summary["first_eval"]["step"]) == (240, 0)
    batches = [
        json.loads(line)["batch"] for line in (folder / "seed=1" / "trajectories.jsonl").read_text().splitlines()
    ]
    assert sorted(set(batches)) == [*range(10)]
    assert len(batches) == 240
    made = {path.name for path in folder.glob("*.*")}
    assert made >= {"sweep.json", "table.md", "em.png", "groups.png", "pool.png", "spent.png", "spent_tokens.png"}


def _states(folder) -> dict[str, str]:
    return {job["name"]: job["status"] for job in json.loads((folder / "sweep.json").read_text())["jobs"]}


def _rows(folder) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _wait_for_row(folder, process, wanted) -> None:
    until(lambda: any(wanted(row) for row in _rows(folder)), process)


def _output(process, folder) -> str:
    """What the run has printed, once it has ended."""
    with folder.with_name(f"{folder.name}.output").open() as file:
        return finished(process, file)
