"""``mode=train`` with a scripted supervisor: what a run leaves that breaks."""

from __future__ import annotations

import json
import re
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import actors.train
from agent.errors import Fault, UserError
from agent.pool.rules.base import rule_class
from conf.schema import RunConfig
from tracking.console import Console
from tracking.metrics import MetricsLog, read


@pytest.fixture
def closed() -> list[str]:
    """What has been closed."""
    return []


@pytest.fixture
def breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: list[str]) -> Any:
    """Trains in ``tmp_path`` until the supervisor raises an error."""
    task = SimpleNamespace(name="world", train=(), eval=(), held_out_name="", corpus="c.jsonl", notices=())
    scripted: dict[str, Any] = {
        "plan.layouts.settled": lambda config: config,
        "plan.fit.refusal": lambda config: "",
        "plan.machine.check_machine": lambda config: None,
        "fetching.fetch": lambda config, console: None,
        "prepare.look": lambda config, say, count: task,
        "prepare.prepare": lambda config, run_dir, task: SimpleNamespace(task=task),
        "provenance.Provenance.of": lambda config, task, say: SimpleNamespace(settings={}),
        "ray_start.start_ray": lambda config, namespace: None,
        "ray_start.stop_ray": lambda: None,
        "train._trackers": lambda *given: SimpleNamespace(close=lambda: closed.append("the trackers")),
    }
    for name, does in scripted.items():
        monkeypatch.setattr(f"actors.{name}", does)

    def run(error: Exception) -> str:
        """What the page says of its end."""

        class Supervisor:
            def __init__(self, config: RunConfig, prepared: Any, run_dir: Path, console: Console, **more: Any) -> None:
                self.watch = SimpleNamespace(whole=lambda steps: nullcontext())
                self.saving = SimpleNamespace(newest=lambda: "c/step-000003")

            def train(self) -> None:
                MetricsLog(tmp_path / "metrics.jsonl").write("step", {"step": 3})
                raise error

        monkeypatch.setattr("actors.supervisor.Supervisor", Supervisor)
        config = RunConfig(mode="train", pool=rule_class("recycle")())
        with pytest.raises(type(error), match=str(error)):
            actors.train.train(config, tmp_path, Console(quiet=True), "small", "n")
        (told,) = re.findall(r'id="r0-run">(.*?)</script>', (tmp_path / "report.html").read_text(encoding="utf-8"))
        end: str = json.loads(told)["end"]
        return end

    return run


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (Fault("the engine died"), "the engine died; resume with resume=c/step-000003"),
        (UserError("the pool is of other questions"), "the pool is of other questions"),
        (KeyError("a bug"), "KeyError: 'a bug'"),
    ],
)
def test_the_report_of_a_run_that_broke_says_why(breaks: Any, closed: list[str], error: Exception, why: str) -> None:
    assert breaks(error) == f"The run broke after step 3: {why}"
    assert closed == ["the trackers"]


@pytest.mark.parametrize("where", ["prepare.prepare", "ray_start.start_ray", "noting.note"])
def test_trackers_that_a_run_never_came_to_use_are_closed(
    breaks: Any, closed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def refuses(*given: Any) -> None:
        raise UserError("the prompt is too long")

    monkeypatch.setattr(f"actors.{where}", refuses)
    config = RunConfig(mode="train", pool=rule_class("recycle")())
    with pytest.raises(UserError, match=r"^the prompt is too long$"):
        actors.train.train(config, tmp_path, Console(quiet=True), "small", "n")
    assert closed == ["the trackers"]


def test_a_signal_waits_for_no_tracker_that_is_still_being_opened() -> None:
    opening: Future[Any] = Future()
    with pytest.raises(KeyboardInterrupt), actors.train._closing(opening, Console(quiet=True)):
        raise KeyboardInterrupt


def test_the_fault_of_a_resumed_run_is_timed_from_the_runs_first_start(
    breaks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.resume.resumed", lambda *given: tmp_path / "step-000003")
    monkeypatch.setattr("actors.prepare.check_model", lambda *given, **more: tmp_path)
    monkeypatch.setattr("actors.run_state.load", lambda path: SimpleNamespace(time_s=1e6, step=3, trackers={}))
    breaks(Fault("the engine died"))
    (fault,) = (row for row in read(tmp_path / "metrics.jsonl", "event") if row["event"] == "fault")
    assert fault["time_s"] > 1e6
