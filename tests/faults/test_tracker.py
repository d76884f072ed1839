"""W&B's own process killed or stopped in a real run: the run says so once and goes on."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
from damage import SETTINGS, Damaged, left_behind, segments

LIMIT_S = 5.0


@pytest.mark.faults
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "the tracker wandb failed and is off for the rest of this run, which goes on: "),
        (signal.SIGSTOP, f"no answer within {LIMIT_S:g} s (tracker.timeout_s)"),
    ],
    ids=["kill", "stop"],
)
def test_a_tracker_that_is_lost_costs_the_run_nothing(tmp_path: Path, number: signal.Signals, said: str) -> None:
    before = segments()
    settings = [*(s for s in SETTINGS if s != "tracker=none"), "tracker=wandb", "tracker.wandb_mode=offline"]
    settings += [f"tracker.timeout_s={LIMIT_S}", "algorithm.steps=100000", "evaluation.every=2"]
    run = Damaged.start(tmp_path / "run", tmp_path / "cache", *settings)
    try:
        run.wait(run.steps)
        family = psutil.Process(run.process.pid).children(recursive=True)
        (service,) = [process for process in family if process.name() == "wandb-core"]
        service.send_signal(number)
        run.wait(lambda: said in run.output)
        steps = run.steps()
        run.wait(lambda: run.steps() > steps + 2)
        run.end()
    finally:
        run.process.kill()
    run.check()
    assert run.output.count("the tracker wandb failed") == 1
    assert "Traceback" not in run.output
    assert left_behind(run.faults) == []
    assert segments() <= before
