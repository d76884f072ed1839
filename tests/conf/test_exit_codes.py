"""From an error to a line and an exit code: in this process, and by the command itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conf_runs import Command, exit_of
from patience import run

import launch
from agent.errors import UserError
from conf.schema import RunConfig

ROOT = Path(launch.__file__).parent


@pytest.mark.parametrize("looks", [["--cfg", "job"], ["--info", "defaults"]])
def test_nothing_watches_over_what_only_shows_settings(looks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(launch, "launch", lambda: called.append("launcher"))
    monkeypatch.setattr(launch, "_by_hydra", lambda: called.append("run"))
    monkeypatch.setattr(sys, "argv", ["launch.py", *looks])
    launch.main(launched=True)
    assert called == ["run"]


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", pytest.param(">&-", marks=pytest.mark.slow)])
def test_a_closed_stream_is_as_good_as_nobody_who_reads(closed: str, tmp_path: Path) -> None:
    """A file that took its number would have in it what is said."""
    simulated = "mode=simulate simulation.queries=200 simulation.rollouts_per_query=8 output_dir=run"
    command = f'exec "{sys.executable}" "{ROOT / "launch.py"}" {simulated} {closed}'
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    said = (tmp_path / "run/.lock").read_text()
    assert said.startswith("process ")
    assert said.count("\n") == 1


def test_ctrl_c_before_all_is_read_is_no_traceback(tmp_path: Path) -> None:
    """Ctrl-C comes as the first of our modules is read."""
    (tmp_path / "hydra.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    read = f"runpy.run_path({str(ROOT / 'launch.py')!r}, run_name='__main__')"
    program = f"import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); {read}"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", ""), "130 in a shell"


# --- from an error to an exit code -------------------------------------------------------------------


@pytest.fixture
def leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs ``mode=plan`` with a plan that raises what it is given, and further arguments."""
    monkeypatch.chdir(tmp_path)

    def run(error: BaseException | None, *arguments: str) -> tuple[int, str, str]:
        def mode(config: RunConfig, run_dir: Path, console: Any) -> None:
            run.config, run.folder = config, run_dir  # type: ignore[attr-defined]
            if error is not None:
                raise error

        monkeypatch.setitem(launch.MODES, "plan", mode)
        return exit_of(["mode=plan", *arguments], monkeypatch, capsys)

    return run


def test_success_is_0_and_the_run_has_a_folder_of_its_own(leave: Any, tmp_path: Path) -> None:
    assert leave(None, "seed=5") == (0, "", "")
    assert leave.folder.is_absolute()
    assert leave.folder.parent.parent == tmp_path / "outputs"
    assert (leave.folder / ".hydra" / "overrides.yaml").read_text() == "- mode=plan\n- seed=5\n"
    assert leave.config.seed == 5


def test_a_users_mistake_is_2_and_one_line(leave: Any) -> None:
    assert leave(UserError("corpus.jsonl: line 3: bad")) == (2, "", "slingshot: corpus.jsonl: line 3: bad\n")


def test_a_fault_is_1(leave: Any) -> None:
    from agent.errors import Fault

    assert leave(Fault("rollout-0 died; resume with x")) == (1, "", "slingshot: fault: rollout-0 died; resume with x\n")


def test_ctrl_c_is_130(leave: Any) -> None:
    assert leave(KeyboardInterrupt()) == (130, "", "slingshot: stopped\n")


@pytest.mark.parametrize("wrong", ["seed=5", "sed=5"])
def test_debug_shows_the_traceback_before_the_line(leave: Any, wrong: str) -> None:
    code, _, err = leave(UserError("bad"), "debug=true", wrong)
    assert code == 2
    assert err.startswith("Traceback (most recent call last)")
    assert err.splitlines()[-1].startswith("slingshot: ")


@pytest.mark.parametrize("argument", ["hydra.foo=1", "hydra/launcher=nowhere"])
def test_hydras_own_errors_are_one_line_too(leave: Any, argument: str) -> None:
    code, _, err = leave(None, argument)
    assert code == 2
    assert err.startswith("slingshot: ")
    assert err.count("\n") == 1


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "question",
    ["Who wrote Emma?", "Where was Emma's author born, and when?", 'What is (x=3) in "y": [a] or {b}?', "größer 世界?"],
)
def test_a_question_may_have_any_punctuation(leave: Any, question: str) -> None:
    assert leave(None, f"question={question}")[0] == 0
    assert leave.config.question == question


# --- the command itself ------------------------------------------------------------------------------


def started(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python launch.py`` in ``folder`` on a machine without a GPU, of a user who has measured nothing on it."""
    return run(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        cwd=folder,
        env={**os.environ, "PATH": str(folder), "HOME": str(folder), "OMP_NUM_THREADS": "1"},  # no nvidia-smi
    )


@pytest.mark.slow
def test_a_machine_without_the_gpus_is_told_so(tmp_path: Path) -> None:
    done = started(tmp_path, "cluster=4x3090", "model=qwen1.5b")
    assert (done.returncode, done.stdout) == (2, "")
    first = done.stderr.splitlines()[0]
    for part in ("needs 4 CUDA GPUs of 24 GiB", "this machine has none", "mode=plan"):
        assert part in first


@pytest.mark.slow
def test_what_does_not_fit_is_refused_before_the_machine_is_looked_at(tmp_path: Path) -> None:
    done = started(tmp_path, "cluster=4x3090", "model=qwen1.5b", "algorithm.optimizer.kind=adamw")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    for part in ("the learner needs 27.8 GiB at its peak", "algorithm.optimizer.kind=adamw8bit makes it fit"):
        assert part in done.stderr


def test_a_plan_needs_no_gpu(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    code, out, err = command("mode=plan", "cluster=4x3090", "model=qwen1.5b")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("cluster=4x3090 model=qwen1.5b: 1,543,714,304 parameters in bfloat16, 4 x rtx3090 ")
    assert {"GPU 0: learner", "GPU 1 to 3: rollout-0 to rollout-2, each"} <= set(lines)


def test_a_sweep_runs_a_job_per_value_wherever_the_flag_stands(tmp_path: Path) -> None:
    done = started(tmp_path, "seed=1", "-m", "mode=plan", "pool=epoch,recycle")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("cluster=local model=tiny") == 2
    jobs = sorted(file.parent.parent for file in tmp_path.glob("multirun/*/*/*/.hydra/overrides.yaml"))
    assert [job.name for job in jobs] == ["pool=epoch", "pool=recycle"]
    for job, rule in zip(jobs, ("epoch", "recycle"), strict=True):
        assert (job / ".hydra" / "overrides.yaml").read_text() == f"- seed=1\n- mode=plan\n- pool={rule}\n"


def test_a_typing_error_exits_2_with_one_line(tmp_path: Path) -> None:
    done = started(tmp_path, "pool.group_siz=4")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "slingshot: pool.group_siz is not a setting; did you mean 'pool.group_size'?\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # test_help asks it of the command itself
@pytest.mark.parametrize("module", ["conf.schema", "launch"])
def test_the_settings_import_nothing_heavy(module: str) -> None:
    heavy = ("torch", "ray", "vllm", "transformers", "pyserini", "jnius", "wandb", "datasets", "httpx", "pydantic")
    code = f"import sys, {module}; print(sorted(set({heavy!r}) & set(sys.modules)))"
    done = run([sys.executable, "-c", code], cwd=ROOT)
    assert (done.stdout, done.stderr) == ("[]\n", "")
