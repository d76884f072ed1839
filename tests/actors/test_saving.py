"""When a run is saved, and how it is ended from outside. The order of both within a run: test_supervisor_order.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from actors.calls import Died
from actors.saving import Saving
from actors.stopping import Stopping, at_once
from agent.errors import Fault, Stopped
from conf.schema import CheckpointConfig
from learner.checkpoint import checkpoints
from learner.manifest import Files, listed
from tracking.dispensable import Dispensable


def write(folder: Path) -> Files:
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return listed(folder)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def saving(root: Path, clock: Clock, said: list[str] | None = None, **settings: float) -> Saving:
    config = CheckpointConfig(**({"every": 0, "every_minutes": 0.0} | settings))  # type: ignore[arg-type]
    say = pytest.fail if said is None else lambda text, style: said.append(text)
    return Saving(config, root, None, say, Dispensable(pytest.fail), clock=clock)


def test_by_steps(tmp_path: Path) -> None:
    saved = saving(tmp_path, Clock(), every=3)
    assert [step for step in range(1, 10) if saved.due(step)] == [3, 6, 9]
    never = saving(tmp_path, Clock())
    assert not any(never.due(step) for step in range(1, 10))


def test_by_minutes_since_the_last_one(tmp_path: Path) -> None:
    clock = Clock()
    saved = saving(tmp_path, clock, every_minutes=2.0)
    clock.now = 119.0
    assert not saved.due(1)
    clock.now = 120.0
    assert saved.due(2)
    assert saved.write(2, write, last=False)
    assert not saved.due(3)
    clock.now = 240.0
    assert saved.due(3)


def test_a_better_evaluation_is_worth_a_checkpoint(tmp_path: Path) -> None:
    saved = saving(tmp_path, Clock())
    due = []
    for step, em in enumerate((0.9, 0.2, 0.2, 0.1, 0.3, None)):
        saved.evaluated(step, em)
        due.append(saved.due(step))
    assert due == [False, True, False, False, True, False]
    assert saved.best == {"step": 4, "em": 0.3}


def test_what_an_actor_that_died_leaves_is_no_failed_save(tmp_path: Path) -> None:
    def dies(folder: Path) -> Files:
        raise Died("learner died (ActorDiedError)")

    with pytest.raises(Died):
        saving(tmp_path, Clock()).write(1, dies, last=False)
    assert [*tmp_path.iterdir()] == []


def test_failures_count_in_a_row(tmp_path: Path) -> None:
    said: list[str] = []
    saved = saving(tmp_path, Clock(), said)

    def fails(folder: Path) -> Files:
        raise Fault("learner: OSError: [Errno 28] No space left on device")

    assert [saved.write(1, fails, last=False), saved.write(2, fails, last=False)] == [False, False]
    assert saved.due(3)
    assert saved.write(3, write, last=False)
    assert not saved.due(4)
    assert [saved.write(4, fails, last=False), saved.write(5, fails, last=False)] == [False, False]
    with pytest.raises(Fault, match=r"^the checkpoint of step 6 can't be written: learner: .* \(3 in a row\)$"):
        saved.write(6, fails, last=False)
    assert len(said) == 4
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000003"]
    assert saved.checkpoint == tmp_path / "step-000003"


@pytest.mark.usefixtures("hangup_counts")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_before_the_first_step_a_signal_ends_the_run_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with at_once(), pytest.raises(Stopped, match=f"^stopped by {number.name}$"):
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stopping = Stopping(lambda text, style: None)
        with at_once(), stopping.after_the_step():
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stopping.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_steps_take_the_signals_over_and_give_them_back() -> None:
    said: list[str] = []
    stopping = Stopping(lambda text, style: said.append(text))
    with at_once():
        with stopping.after_the_step():
            os.kill(os.getpid(), signal.SIGTERM)
            assert (stopping.asked, stopping.leaving) == (True, signal.SIGTERM)
            with pytest.raises(Stopped):
                os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
    assert len(said) == 1
