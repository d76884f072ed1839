"""When a run is saved, and how it is ended from outside. The order of both within a run: test_supervisor_order.py."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.calls import Died
from actors.saving import Saving
from actors.stopping import Stopping, at_once
from agent.errors import Fault, Stopped
from conf.schema import CheckpointConfig
from learner.checkpoint import Writing, checkpoints
from learner.manifest import Files, listed
from tracking.dispensable import Dispensable

PATIENCE_S = 600.0


def cut(folder: Path) -> Callable[[], Files]:
    def write() -> Files:
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text("{}")
        return listed(folder)

    return write


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def saving(root: Path, clock: Clock, said: list[str] | None = None, **settings: float) -> Saving:
    config = CheckpointConfig(**({"every": 0, "every_minutes": 0.0} | settings))  # type: ignore[arg-type]
    say = pytest.fail if said is None else lambda text, style: said.append(text)
    return Saving(config, root, None, say, Dispensable(pytest.fail), DONE.append, clock=clock)


DONE: list[dict[str, Any]] = []
"""What was told of checkpoints that are written."""


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
    saved.begin(2, cut, last=False)
    saved.settle()
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
    def dies() -> Files:
        raise Died("learner died (ActorDiedError)")

    def dies_at_once(folder: Path) -> Callable[[], Files]:
        dies()
        return dies

    saved = saving(tmp_path, Clock())
    with pytest.raises(Died):
        saved.begin(1, dies_at_once, last=False)
    saved.begin(1, lambda folder: dies, last=False)
    with pytest.raises(Died):
        saved.settle()
    assert [*tmp_path.iterdir()] == []


def test_failures_count_in_a_row(tmp_path: Path) -> None:
    said: list[str] = []
    saved = saving(tmp_path, Clock(), said)

    def fails() -> Files:
        raise Fault("learner: OSError: [Errno 28] No space left on device")

    def fails_at_once(folder: Path) -> Callable[[], Files]:
        fails()
        return fails

    for step, broken in ((1, fails_at_once), (2, lambda folder: fails)):
        saved.begin(step, broken, last=False)
        saved.settle()
        assert saved.due(step + 1)
    saved.begin(3, cut, last=False)
    saved.settle()
    assert not saved.due(4)
    for step in (4, 5):
        saved.begin(step, lambda folder: fails, last=False)
        saved.settle()
    with pytest.raises(Fault, match=r"^the checkpoint of step 6 can't be written: learner: .* \(3 in a row\)$"):
        saved.begin(6, lambda folder: fails, last=True)
    assert len(said) == 4
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000003"]
    assert saved.checkpoint == tmp_path / "step-000003"


def test_a_checkpoint_is_written_while_the_run_goes_on(tmp_path: Path) -> None:
    clock, disk, begun = Clock(), threading.Event(), threading.Event()
    saved = saving(tmp_path, clock, every=1)

    def slow(folder: Path) -> Callable[[], Files]:
        clock.now += 2.0

        def write() -> Files:
            begun.set()
            assert disk.wait(PATIENCE_S)
            return cut(folder)()

        return write

    saved.begin(1, slow, last=False)
    assert begun.wait(PATIENCE_S)
    saved.look()
    assert saved.checkpoint is None, "there is none before it is whole"
    assert checkpoints(tmp_path) == []
    with pytest.raises(Fault, match="another process is writing checkpoints there"):
        Writing(tmp_path, 7)
    clock.now += 5.0
    disk.set()
    saved.begin(2, cut, last=True)  # once the one before is written
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000001", "step-000002"]
    first, second = DONE[-2:]
    assert first == {"step": 1, "path": str(tmp_path / "step-000001"), "stopped_s": 2.0, "written_s": 5.0}
    assert second["step"] == 2
    assert saved.newest() == tmp_path / "step-000002"


def test_a_run_that_breaks_names_the_checkpoint_that_was_being_written(tmp_path: Path) -> None:
    saved = saving(tmp_path, Clock())
    saved.begin(1, cut, last=False)
    assert saved.newest() == tmp_path / "step-000001"


@pytest.mark.parametrize(("ems", "best"), [((0.5, 0.9, 0.8), 3), ((0.5, 0.9, 0.4), 1)])
def test_a_save_of_the_best_that_fails_after_the_next_evaluation(
    tmp_path: Path, ems: tuple[float, ...], best: int
) -> None:
    said: list[str] = []
    saved, full = saving(tmp_path, Clock(), said), threading.Event()

    def fails() -> Files:
        assert full.wait(PATIENCE_S)
        raise Fault("learner: OSError: [Errno 28] No space left on device")

    saved.evaluated(1, ems[0])
    saved.begin(1, cut, last=False)
    saved.evaluated(2, ems[1])
    saved.begin(2, lambda folder: fails, last=False)
    saved.evaluated(3, ems[2])
    assert saved.best == {"step": 2, "em": 0.9}, "it may still be written"
    full.set()
    saved.begin(3, cut, last=True)
    assert saved.best == {"step": best, "em": ems[best - 1]}
    assert (tmp_path / "best").resolve().name == f"step-00000{best}"
    assert len(said) == 1


@pytest.mark.usefixtures("hangup_counts")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_before_the_first_step_a_signal_ends_the_run_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with at_once(), pytest.raises(Stopped, match=f"^stopped by {number.name}$"):
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_signal_that_ray_makes_a_ctrl_c_of_is_still_that_signal() -> None:

    def gets() -> None:
        """As Ray's ``get``: a plain ``KeyboardInterrupt``, whatever the handler has raised."""
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    with pytest.raises(Stopped, match=r"^stopped by SIGTERM$"), at_once():
        gets()
    with pytest.raises(KeyboardInterrupt) as ctrl_c, at_once():
        os.kill(os.getpid(), signal.SIGINT)
    assert not isinstance(ctrl_c.value, Stopped)


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
