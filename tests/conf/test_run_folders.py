"""From a command line to a run's folder: never shared, never used twice by accident."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conf_runs import Command, Training, save

import launch
from agent.errors import Fault, Stopped
from agent.inference.evaluation import EvalRow
from conf.command_line import Request
from conf.schema import RunConfig
from tracking.evals.result import begin
from tracking.evals.rows import EvalRows
from tracking.metrics import read
from tracking.run_folder import claimed

ROOT = Path(launch.__file__).parent
SIMULATED = ("mode=simulate", "simulation.queries=200", "simulation.rollouts_per_query=8", "pool.batch_questions=8")


def test_a_run_has_a_new_folder_by_the_time(training: Training, command: Command) -> None:
    assert [command()[0] for _ in range(3)] == [0, 0, 0]
    folders = [*Path("outputs").glob("*/*")]
    assert len(folders) == 3
    assert all(len(read(folder / "metrics.jsonl", "step")) == 4 for folder in folders)


@pytest.mark.slow
def test_runs_of_the_same_second_have_folders_of_their_own(
    training: Training, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = launch.check_overrides

    def at_noon(arguments: list[str]) -> Request:
        return replace(check(arguments), folder=Path("outputs/2026-01-01/12-00-00"))

    monkeypatch.setattr(launch, "check_overrides", at_noon)
    assert [command()[0] for _ in range(3)] == [0, 0, 0]
    names = ["12-00-00", "12-00-00-2", "12-00-00-3"]
    assert sorted(path.name for path in Path("outputs/2026-01-01").iterdir()) == names
    assert [name for name, _ in training.played] == names


def test_one_command_starts_a_run_and_goes_on_with_it(training: Training, command: Command) -> None:
    training.fate["run"] = "Ctrl-C"
    for _ in range(2):
        assert command("resume=if_any", "output_dir=run")[0] == 0
    assert training.played == [("run", 1), ("run", 3)]
    assert [row["step"] for row in read(Path("run/metrics.jsonl"), "step")] == [1, 2, 3, 4]


def test_a_run_that_is_to_be_found_again_needs_a_folder_with_a_name(training: Training, command: Command) -> None:
    code, _, error = command("resume=if_any")
    assert (code, training.played) == (2, [])
    assert error == "slingshot: resume=if_any: the same command has to find the run again: set output_dir=FOLDER\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_run_that_a_signal_has_ended_says_so(
    training: Training, command: Command, number: signal.Signals, code: int
) -> None:
    training.fate["run"] = Stopped(number, " after step 3; resume with resume=run/checkpoints/step-000003")
    assert command("output_dir=run") == (
        *(code, ""),
        f"slingshot: stopped by {number.name} after step 3; resume with resume=run/checkpoints/step-000003\n",
    )


@pytest.mark.one_in(2)
@pytest.mark.parametrize("key", ["output_dir", "hydra.run.dir"])
def test_a_used_folder_is_refused(training: Training, command: Command, key: str) -> None:
    assert command(f"{key}=run")[0] == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert command(f"{key}=run", "seed=5") == (
        *(2, ""),
        f"slingshot: {key}=run: holds a run (metrics.jsonl); another folder starts a new one\n",
    )
    assert command(f"{key}=run", "mode=index") == (
        *(2, ""),
        f"slingshot: {key}=run: holds a run (metrics.jsonl); leave {key} out, or name another folder\n",
    )
    after = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert {p: c for p, c in after.items() if p.name != ".lock"} == {
        p: c for p, c in before.items() if p.name != ".lock"
    }, "also not its .hydra"
    assert len(training.played) == 1


def test_a_used_folder_is_gone_on_with_by_resume_alone(training: Training, command: Command) -> None:
    training.fate = {"run": "Ctrl-C"}
    command("output_dir=run")
    code, _, err = command("output_dir=run")
    assert (code, err) == (
        2,
        "slingshot: output_dir=run: holds a run (metrics.jsonl); resume=run goes on with it, another folder starts a "
        "new one\n",
    )
    save(Path("other"), 1)
    code, _, err = command("output_dir=run", "resume=other")
    assert code == 2, "another run's checkpoint is no reason to write here"
    assert "resume=run goes on with it" in err
    assert training.played == [("run", 1)]
    for resume in ("run", "run/checkpoints/step-000002"):
        assert command("output_dir=run", f"resume={resume}") == (0, "", "")
        assert training.played[-1] == ("run", 3)
        assert [row["step"] for row in read(Path("run/metrics.jsonl"), "step")] == [1, 2, 3, 4]
    assert command("resume=run")[0] == 0, "in a folder of its own"
    assert training.played[-1][0] != "run"


ROW = EvalRow(
    question_id="q",
    kind="",
    answer="a",
    em=1.0,
    f1=1.0,
    evidence=None,
    searches=1,
    action_tokens=3,
    stop_reason="answered",
    fault=False,
)


@pytest.mark.slow
def test_an_evaluation_goes_on_in_its_folder_by_resume_if_any(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = []

    def evaluate(config: RunConfig, run_dir: Path, console: Any) -> None:
        played.append(run_dir.name)
        begin(run_dir, {"seed": config.seed})
        EvalRows(run_dir).write([ROW])
        (run_dir / "logs").mkdir(exist_ok=True)

    monkeypatch.setitem(launch.MODES, "eval", evaluate)
    Path("model").mkdir()
    asked = ("mode=eval", "checkpoint=model", "agent=search", "model=tiny", "output_dir=one")
    assert command(*asked, "resume=if_any") == (0, "", "")
    assert command(*asked, "resume=if_any") == (0, "", "")
    refused = "slingshot: output_dir=one: holds a run (logs); leave output_dir out, or name another folder\n"
    assert command(*asked) == (2, "", refused)
    assert command(*asked[:-1], "resume=if_any")[0] == 2, "it has to be found again"
    code, _, error = command(*asked, "resume=if_any", "seed=5")
    assert (code, error.partition("; differs")[2]) == (2, ": seed=5 (was 0)\n")
    assert played == ["one", "one", "one"]


def test_resume_auto_may_go_on_in_the_same_folder(training: Training, command: Command) -> None:
    training.fate = {"run": "Ctrl-C"}
    command("output_dir=outputs/run")
    assert command("output_dir=outputs/run", "resume=auto") == (0, "", "")
    assert training.played == [("run", 1), ("run", 3)]


@pytest.mark.slow
def test_a_folder_that_only_was_planned_in_is_not_used(training: Training, command: Command) -> None:
    assert command("mode=plan", "output_dir=run")[0] == 0
    assert command("output_dir=run")[0] == 0


@pytest.mark.parametrize("key", ["output_dir", pytest.param("hydra.run.dir", marks=pytest.mark.slow)])
def test_the_plan_of_a_run_that_is_there_leaves_it_alone(training: Training, command: Command, key: str) -> None:
    """A report of a bug comes with the same command and mode=plan behind it."""
    asked = [f"{key}=run", "resume=if_any"] if key == "output_dir" else [f"{key}=run"]
    command(*asked)
    before = {path: path.stat().st_mtime_ns for path in [Path("run"), *Path("run").rglob("*")]}
    code, out, err = command(*asked, "mode=plan", "seed=5")
    assert (code, err) == (0, "")
    assert "GiB in run," in out
    assert {path: path.stat().st_mtime_ns for path in [Path("run"), *Path("run").rglob("*")]} == before
    assert [path.name for path in Path().iterdir()] == ["run"]


def test_a_folder_that_another_process_writes_to_is_refused(training: Training, command: Command) -> None:
    with claimed(Path("run"), "output_dir"):
        for arguments in (["output_dir=run"], ["output_dir=run", "mode=plan"]):
            code, out, err = command(*arguments)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert err.startswith(f"slingshot: output_dir=run: process {os.getpid()} on ")
    assert training.played == []
    assert not Path("run/.hydra").exists()


@pytest.mark.slow
def test_other_modes_have_folders_of_their_own_too(command: Command) -> None:
    assert command(*SIMULATED, "output_dir=sim")[0] == 0
    code, _, err = command(*SIMULATED, "output_dir=sim")
    assert (code, err) == (
        2,
        "slingshot: output_dir=sim: holds a run (metrics.jsonl); leave output_dir out, or name another folder\n",
    )
    assert command(*SIMULATED)[0] == 0


# --- sweeps ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_that_runs_is_not_started_again(training: Training, command: Command) -> None:
    sweep = ("-m", "seed=0,1", "report.sweep=here")
    with claimed(Path("here"), "report.sweep"):
        code, out, err = command(*sweep)
        assert (code, out) == (2, "")
        assert err.startswith("slingshot: report.sweep=here: process ")
    assert command(*sweep)[0] == 0
    assert command(*sweep)[0] == 0, "what is finished is skipped"
    assert len(training.played) == 2


@pytest.mark.slow
def test_a_job_whose_folder_is_held_is_not_touched(training: Training, command: Command) -> None:
    with claimed(Path("here/seed=1"), "output_dir"):
        code, _, err = command("-m", "seed=0,1", "report.sweep=here")
    assert code == 2
    assert "report.sweep=" in err
    assert [name for name, _ in training.played] == ["seed=0"]
    assert not Path("here/seed=1/metrics.jsonl").exists()


def test_a_sweep_does_not_go_into_a_runs_folder(training: Training, command: Command) -> None:
    command("output_dir=run")
    code, _, err = command("-m", "seed=0,1", "report.sweep=run")
    assert (code, err) == (
        2,
        "slingshot: report.sweep=run: holds a run (metrics.jsonl), not a sweep; name another folder\n",
    )


@pytest.mark.slow
def test_sweeps_of_the_same_second_have_folders_of_their_own(
    training: Training, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = launch.check_overrides
    noon = Path("multirun/2026-01-01/12-00-00")
    monkeypatch.setattr(launch, "check_overrides", lambda arguments: replace(check(arguments), folder=noon))
    assert [command("-m", "seed=0,1")[0] for _ in range(2)] == [0, 0]
    assert sorted(path.name for path in noon.parent.iterdir()) == ["12-00-00", "12-00-00-2"]
    assert all((noon.with_name(name) / "table.md").is_file() for name in ("12-00-00", "12-00-00-2"))


def test_the_plan_of_a_sweep_that_is_there_leaves_it_alone(training: Training, command: Command) -> None:
    asked = ["-m", "seed=0,1", "report.sweep=here"]
    command(*asked)
    before = {path: path.stat().st_mtime_ns for path in [Path("here"), *Path("here").rglob("*")]}
    code, out, err = command(*asked, "mode=plan", "algorithm.steps=7")
    assert (code, err, out.count("a batch: ")) == (0, "", 2)
    assert {path: path.stat().st_mtime_ns for path in [Path("here"), *Path("here").rglob("*")]} == before
    assert len([*Path("multirun").glob("*/*/seed=*")]) == 2


@pytest.mark.slow
def test_a_report_works_on_a_sweep_that_runs(training: Training, command: Command) -> None:
    command("-m", "seed=0,1", "report.sweep=here")
    with claimed(Path("here"), "report.sweep"):
        assert command("mode=report", "report.sweep=here")[0] == 0


def test_who_only_looks_leaves_no_folder(training: Training, command: Command) -> None:
    """``mode=view`` and ``mode=report`` write into the folder that they are given, and into no other."""
    command("output_dir=here")
    assert command("mode=view", "run=here")[0] == 0
    assert Path("here/report.html").is_file()
    assert not Path("outputs").exists()


# --- where nothing can be written ------------------------------------------------------------------


@pytest.mark.one_in(2)
@pytest.mark.parametrize("mode", ["train", *(pytest.param(m, marks=pytest.mark.slow) for m in ("plan", "simulate"))])
@pytest.mark.parametrize("key", ["output_dir", "hydra.run.dir", "report.sweep", "hydra.sweep.dir"])
def test_a_folder_that_cannot_be_written_to_gets_one_line(
    training: Training, command: Command, key: str, mode: str
) -> None:
    Path("file").touch()
    several = ["-m", "seed=0,1"] if "sweep" in key else []
    for folder, reason in {"file": "is a file, not a folder", "/proc/x": "nothing can be written to it"}.items():
        code, out, err = command(*several, f"mode={mode}", f"{key}={folder}")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"slingshot: {key}={folder}: ")
        assert reason in err
        assert err.endswith(f"; another folder is named by {key}=FOLDER\n")
    assert training.played == []


def test_the_default_folder_that_cannot_be_made_gets_one_line(training: Training, command: Command) -> None:
    Path("outputs").touch()
    code, out, err = command()
    assert (code, out) == (2, "")
    assert err.startswith("slingshot: output_dir=outputs/")
    assert f"{Path.cwd()}/outputs is a file, not a folder; another folder is named by output_dir=FOLDER" in err


@pytest.mark.slow
def test_a_disk_that_fills_up_is_a_fault_with_the_files_name(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(config: RunConfig, run_dir: Path, console: Any) -> None:
        raise OSError(28, "No space left on device", str(run_dir / "metrics.jsonl"))

    monkeypatch.setitem(launch.MODES, "train", full)
    code, out, err = command("output_dir=run")
    assert (code, out) == (1, "")
    assert err == f"slingshot: fault: {Path.cwd()}/run/metrics.jsonl: No space left on device\n"
    code, _, err = command("-m", "seed=0,1", "report.sweep=here")
    assert code == 1
    assert "seed=0/metrics.jsonl: No space left on device; seed=1" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_folder_that_is_gone_from_under_its_user_gets_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["sh", "-c", f'rmdir "$PWD" && exec "{sys.executable}" "{ROOT / "launch.py"}" mode=plan'],
        cwd=gone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "slingshot: the folder that you are in doesn't exist any more; cd to one that does\n"


def test_ctrl_c_before_anything_runs_is_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: list[str]) -> Request:
        signal.raise_signal(signal.SIGINT)
        raise Fault("the signal was lost")

    monkeypatch.setattr(launch, "check_overrides", interrupted)
    assert command() == (130, "", "slingshot: stopped\n")
