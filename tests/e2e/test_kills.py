"""A run that is killed at any moment and started again by the same command equals one that is not."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from damage import balanced
from patience import finished, until

from agent.pool import saved

KILLS = int(os.environ.get("SLINGSHOT_KILLS", "4"))
"""How often the run is killed; 30 take a quarter of an hour."""
SEED = int(os.environ.get("SLINGSHOT_KILLS_SEED", "0"))
STEPS = 10 * KILLS + 4
"""A kill comes within a few steps of its start; on a busy machine some more are done before it is there."""
STARTING_S = 12.0
"""Within so many seconds of a start most of it is read, loaded and started."""


@pytest.mark.slow
def test_a_run_killed_at_random_moments_is_the_uninterrupted_one(start, launch, small, tmp_path):
    """SIGKILL to the launcher, to the driver or to all processes: in starts, steps, publications, checkpoints."""
    command = [*small, f"algorithm.steps={STEPS}", "checkpoints.every=1", "checkpoints.keep=2", "evaluation.every=2"]
    whole = launch("uninterrupted", *command)
    assert whole.code == 0, whole.output
    (serving,) = [row["time_s"] for row in whole.rows("event") if row["event"] == "serving"]
    step_s = (whole.rows("step")[-1]["time_s"] - serving) / STEPS  # with evaluations and checkpoints
    folder = tmp_path / "killed"
    _killed(start, folder, command, step_s)

    steps = [row for row in _lines(folder / "metrics.jsonl") if row["kind"] == "step"]
    assert [row["step"] for row in steps] == [*range(1, STEPS + 1)]
    assert [row["version"] for row in steps] == [row["version"] for row in whole.rows("step")]
    assert _played(folder) == _played(whole.folder), "the same questions in the same order, and what was answered"
    ours, theirs = (path / "checkpoints" / f"step-{STEPS:06d}" for path in (folder, whole.folder))
    _assert_same_pool(saved.load(ours / "training"), saved.load(theirs / "training"))
    difference = _largest_difference(ours, theirs)
    print(f"largest difference of a weight: {difference:.3g}")
    assert difference <= 1e-5


@pytest.mark.slow
def test_an_asynchronous_run_killed_at_random_moments_keeps_its_books(start, small, tmp_path):
    """Rollouts and updates overlap: other questions may be drawn, but none is skipped or trained on twice."""
    command = [*small, f"algorithm.steps={STEPS}", "checkpoints.every=1", "checkpoints.keep=2", "pool.max_staleness=1"]
    folder = tmp_path / "killed"
    _killed(start, folder, command, step_s=0.5)
    steps = [row for row in _lines(folder / "metrics.jsonl") if row["kind"] == "step"]
    assert len(steps) == STEPS
    balanced(steps)
    rows = _lines(folder / "trajectories.jsonl")
    played = [(row["batch"], row["order"], row["member"]) for row in rows]
    assert len(played) == len({*played})
    trained = {(row["batch"], row["order"]) for row in rows if row["accepted"]}
    assert len(trained) == steps[-1]["books/groups/accepted"], "what was trained on, each once"
    groups = [(row["batch"], row["order"]) for row in _lines(folder / "groups.jsonl")]
    last = steps[-1]
    assert len(groups) == len({*groups}) == last["books/groups/received"] - last["books/groups/in_flight"]


def _killed(start, folder: Path, command: list[str], step_s: float) -> None:
    """Starts ``command`` and kills it ``KILLS`` times, then lets it end. ``step_s`` is about how long a step takes."""
    rng, moments = random.Random(SEED), []
    for number in range(KILLS):
        before, old = _steps(folder), _inode(folder)
        process = start(folder, *command, "resume=if_any")
        if rng.random() < 0.25:
            what, delay = "start", rng.uniform(0, STARTING_S)
            until(lambda: (folder / ".lock").exists(), process)
        else:
            ahead = rng.choice((0, 1, 1))
            what, delay = f"{ahead} steps", rng.uniform(0, 1.0) * step_s
            until(partial(_has_done, folder, before + ahead, old), process)
        time.sleep(delay)
        whom = rng.choice(("launcher", "driver", "all"))
        moments.append((number, what, round(delay, 2), whom, before, _steps(folder)))
        _kill(process, whom, folder)
        assert process.returncode == (1 if whom == "driver" else -signal.SIGKILL), _output(folder)
    process = start(folder, *command, "resume=if_any")
    with folder.with_name(f"{folder.name}.output").open() as file:
        output = finished(process, file)
    assert process.returncode == 0, output
    assert moments[-1][-1] > KILLS // 4, "the kills are spread over the run"
    print(f"{KILLS} kills (after what, and seconds; whom; steps before and then): {moments}")


def _kill(process, whom: str, folder: Path) -> None:
    """Kills, and waits until nothing of the run is left."""
    launcher = psutil.Process(process.pid)
    if whom == "driver":
        until(launcher.children, process)  # it may not be there yet
    with suppress(psutil.NoSuchProcess):
        family = launcher.children(recursive=True)
        driver = launcher.children()[:1]
        for victim in {"launcher": [launcher], "driver": driver, "all": [launcher, *family]}[whom]:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        with folder.with_name(f"{folder.name}.output").open() as file:
            finished(process, file)
        until(lambda: not any(map(_runs, family)))
        for pid in {p.pid for p in driver}:  # a launcher that was killed takes nothing away
            for session in Path(tempfile.gettempdir(), "ray").glob(f"session_*_{pid}"):
                shutil.rmtree(session, ignore_errors=True)


def _runs(process: psutil.Process) -> bool:
    """A zombie is gone: who inherits it may be slow to look."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _lines(path: Path) -> list[dict]:
    """The whole lines: the last may be half written."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def _steps(folder: Path) -> int:
    return sum(row["kind"] == "step" for row in _lines(folder / "metrics.jsonl"))


def _inode(folder: Path) -> int:
    """Of the metrics, which each start writes anew."""
    path = folder / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else 0


def _has_done(folder: Path, steps: int, old: int) -> bool:
    """Whether the newest start, whose metrics are no longer those of ``old``, serves and has done so many steps.

    The events of the starts before it are carried over.
    """
    if _inode(folder) == old or _steps(folder) < steps:
        return False
    events = [row.get("event") for row in _lines(folder / "metrics.jsonl")]
    return "serving" in [*itertools.takewhile(lambda event: event != "resumed", reversed(events))]


def _output(folder: Path) -> str:
    return folder.with_name(f"{folder.name}.output").read_text()


def _played(folder: Path) -> list[tuple]:
    rows = _lines(folder / "trajectories.jsonl")
    return sorted((r["batch"], r["order"], r["question_id"], *(turn["text"] for turn in r["turns"])) for r in rows)


def _assert_same_pool(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)
        else:
            assert value == theirs[name], name


def _largest_difference(ours: Path, theirs: Path) -> float:
    from safetensors.numpy import load_file

    a, b = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)
