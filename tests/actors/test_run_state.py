"""Which checkpoint ``resume=`` means, what a run continues from, and which of its rows it keeps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import run_state
from agent.errors import UserError
from agent.pool import saved
from agent.pool.query_pool import QueryPool
from agent.pool.rules.recycle import Rule as Recycle
from learner.checkpoint import write_checkpoint
from tracking.metrics import MetricsLog, read, replace

IDS = [f"q{i}" for i in range(4)]


def checkpoint(run: Path, step: int, pool: dict[str, Any] | None = None) -> Path:
    """A checkpoint of ``run``, as the supervisor writes it."""
    state = run_state.RunState(
        step=step,
        rollouts=8 * step,
        generated_tokens=100 * step,
        first_eval={"step": 0, "em": 0.1},
        last_eval=None,
    )

    def write(folder: Path) -> None:
        run_state.save(folder, state)
        saved.save(folder / "training", pool or {"weight": np.ones(2), "released": step})

    return write_checkpoint(run / "checkpoints", step, write)


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) if isinstance(a[k], np.ndarray) else a[k] == b[k]
        for k in a
    )


# --- load ------------------------------------------------------------------------------------------


def test_a_pools_state_comes_back_as_it_was(tmp_path: Path) -> None:
    pool = QueryPool(IDS, Recycle(batch_questions=2, group_size=2), seed=1)
    claimed = pool.claim("w", now=0.0, limit=2)
    pool.worker_lost("w")
    state = pool.state()
    assert len(claimed) == 2
    assert state["books"]["groups"]["returned"] == {"worker_lost": 2}
    path = checkpoint(tmp_path, 3, state)
    loaded, pool_state = run_state.load(path), saved.load(path / "training")
    assert loaded.step == 3
    assert (loaded.rollouts, loaded.generated_tokens) == (24, 300)
    assert (loaded.first_eval, loaded.last_eval) == ({"step": 0, "em": 0.1}, None)
    assert equal(pool_state, state)
    again = QueryPool(IDS, Recycle(batch_questions=2, group_size=2), seed=1)
    again.load_state(pool_state)
    assert equal(again.state(), state)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json is missing; is this a checkpoint's folder\?"):
        run_state.load(tmp_path)


@pytest.mark.parametrize("name", ["run.json", "pool.json", "pool.npz"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    path = checkpoint(tmp_path, 3)
    file = path / "training" / name
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=rf"training/{name} is damaged; resume from another checkpoint"):
        run_state.load(path)
    file.unlink()
    with pytest.raises(UserError, match=rf"training/{name} is missing; resume from another checkpoint"):
        run_state.load(path)


def test_a_checkpoint_without_a_training_state_cannot_be_resumed(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1, lambda folder: (folder / "model.safetensors").write_text("x"))
    with pytest.raises(UserError, match=r"step-000001: training/run\.json is missing, so no run can go on from it; "):
        run_state.load(path)


def test_a_checkpoint_of_an_earlier_version_cannot_be_resumed(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "training").mkdir()
        (folder / "training" / "run.json").write_text(json.dumps({"step": 1, "pool": {"released": 1}}))
        np.savez(folder / "training" / "pool.npz", weight=np.ones(2))

    path = write_checkpoint(tmp_path, 1, write)
    with pytest.raises(UserError, match=r"training/pool\.json is missing.* may be an earlier version's"):
        run_state.load(path)


# --- find ------------------------------------------------------------------------------------------


def test_auto_is_the_last_checkpoint_of_the_run_that_wrote_last(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    old, new = outputs / "2026-01-02" / "10-00-00", outputs / "2026-01-01" / "09-00-00"
    checkpoint(old, 900)
    checkpoint(new, 20)
    checkpoint(new, 100)
    (outputs / "2026-01-03" / "08-00-00" / "checkpoints").mkdir(parents=True)  # started, and saved nothing yet
    os.utime(old / "checkpoints", (1000, 1000))
    os.utime(new / "checkpoints", (2000, 2000))
    assert run_state.find("auto", outputs) == new / "checkpoints" / "step-000100"
    os.utime(old / "checkpoints", (3000, 3000))
    assert run_state.find("auto", outputs) == old / "checkpoints" / "step-000900"


@pytest.mark.parametrize("exists", [True, False])
def test_auto_without_any_checkpoint_says_so(tmp_path: Path, exists: bool) -> None:
    outputs = tmp_path / "outputs"
    if exists:
        (outputs / "2026-01-01" / "10-00-00" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^resume=auto: no run under .*outputs has a checkpoint$"):
        run_state.find("auto", outputs)


def test_a_runs_folder_means_its_last_checkpoint_and_a_checkpoint_itself(tmp_path: Path) -> None:
    first, last = checkpoint(tmp_path, 99), checkpoint(tmp_path, 100)
    assert run_state.find(str(tmp_path), tmp_path / "elsewhere") == last
    assert run_state.find(str(first), tmp_path / "elsewhere") == first


def test_the_users_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = checkpoint(tmp_path / "run", 1)
    assert run_state.find("~/run", tmp_path) == path


@pytest.mark.parametrize("folder", ["nothing", "empty", "started"])
def test_any_other_folder_is_refused_with_an_example(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "started" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"^resume=.*{folder}: neither a checkpoint nor a run with one; .*step-000100"):
        run_state.find(str(tmp_path / folder), tmp_path)


# --- metrics ---------------------------------------------------------------------------------------


def old_run(run: Path) -> Path:
    """A run of four steps, saved after the second; the checkpoint."""
    log = MetricsLog(run / "metrics.jsonl")
    log.write("event", {"event": "serving"})
    log.write("eval", {"step": 0, "em": 0.1})
    for step in range(1, 5):
        log.write("step", {"step": step, "reward/mean": step / 10})
    log.write("eval", {"step": 2, "em": 0.2})
    log.write("eval", {"step": 4, "em": 0.4})
    log.write("summary", {"step": 4})
    return checkpoint(run, 2)


def test_a_resumed_run_keeps_the_rows_up_to_its_checkpoint(tmp_path: Path) -> None:
    path = old_run(tmp_path / "old")
    run_state.carry_metrics(path, tmp_path / "new")
    assert read(tmp_path / "new" / "metrics.jsonl") == [
        {"kind": "eval", "step": 0, "em": 0.1},
        {"kind": "step", "step": 1, "reward/mean": 0.1},
        {"kind": "step", "step": 2, "reward/mean": 0.2},
        {"kind": "eval", "step": 2, "em": 0.2},
        {"kind": "event", "event": "resumed", "step": 2, "path": str(path)},
    ]


def test_a_run_that_goes_on_in_its_own_folder_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = old_run(run)
    played = [{"batch": batch, "question": "wer\u2028?"} for batch in (0, 0, 1, 2, 3)]
    replace(run / "trajectories.jsonl", played)
    for _ in range(2):  # it may be interrupted again before its next checkpoint
        run_state.carry_metrics(path, run)
        rows = read(run / "metrics.jsonl")
        assert [(r["kind"], r["step"]) for r in rows] == [
            ("eval", 0),
            ("step", 1),
            ("step", 2),
            ("eval", 2),
            ("event", 2),
        ]
        assert read(run / "trajectories.jsonl") == played[:3]
        MetricsLog(run / "metrics.jsonl").write("step", {"step": 3})


def test_trajectories_go_by_batches_of_which_not_each_is_a_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = checkpoint(run, 2, {"weight": np.ones(2), "released": 3})
    MetricsLog(run / "metrics.jsonl").write("step", {"step": 1})
    replace(run / "trajectories.jsonl", [{"batch": batch} for batch in range(5)])
    run_state.carry_metrics(path, run)
    assert read(run / "trajectories.jsonl") == [{"batch": batch} for batch in range(3)]


def test_a_row_that_was_never_finished_is_left_behind(tmp_path: Path) -> None:
    path = old_run(tmp_path / "old")
    with (tmp_path / "old" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    run_state.carry_metrics(path, tmp_path / "new")
    assert len(read(tmp_path / "new" / "metrics.jsonl", "step")) == 2


def test_a_checkpoint_that_was_copied_alone_carries_no_rows(tmp_path: Path) -> None:
    run_state.carry_metrics(checkpoint(tmp_path / "old", 2), tmp_path / "new")
    assert not (tmp_path / "new" / "metrics.jsonl").exists()
