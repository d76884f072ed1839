"""The matrix of faults for W&B's own process, in a real run: the run loses the tracker at most, and goes on."""

from __future__ import annotations

import itertools
import json
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from damage import PHASES, SETTINGS, Damaged, left_behind, segments, started_with

LIMIT_S = 5.0
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
SAID = {"kill": "", "stop": f"no answer within {LIMIT_S:g} s (tracker.timeout_s)"}
"""What the line of the failure says beside that."""
FAILED = "the tracker wandb failed and is off for the rest of this run, which goes on: "


def start(folder: Path, *more: str) -> Damaged:
    settings = [*(s for s in SETTINGS if s != "tracker=none"), "tracker=wandb", "tracker.wandb_mode=offline"]
    settings += ["algorithm.steps=100000", "evaluation.every=2", "checkpoints.every=2", *more]
    return Damaged.start(folder / "run", folder.parent / "cache-of-trackers", *settings)  # one warm start for all


def process_of(run: Damaged) -> psutil.Process | None:
    found = [process for process in started_with(run.faults) if process.name() == "wandb-core"]
    return found[0] if found else None


def hit(run: Damaged, kind: str, phase: str) -> int:
    """Does it in that phase of the run, ``starting`` being the tracker's own; the process that was hit."""
    if phase == "starting":
        process: psutil.Process = run.wait(lambda: process_of(run))
        if kind in SIGNALS:
            process.send_signal(SIGNALS[kind])
        if kind == "garbage":
            (run.faults / "garbage-tracker").touch()
        return process.pid
    run.wait(run.steps)
    run.order("tracker", kind, phase)
    run.wait((run.faults / "done").exists)
    (run.faults / "taken").unlink(missing_ok=True)
    return int(json.loads((run.faults / "done").read_text())["pid"])


def records(file: Path) -> Iterator[bytes]:
    """Of W&B's file, which is LevelDB's log behind 7 bytes: blocks of 32 KiB, in which each part of a record has a
    checksum, its length and whether it is whole, the first, a middle or the last one."""
    content, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def steps_told(run: Damaged) -> set[int]:
    """Those whose rewards W&B's file has."""
    from wandb.proto import wandb_internal_pb2

    (file,) = run.folder.glob("wandb/offline-run-*/run-*.wandb")
    told = set()
    for data in records(file):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.ParseFromString(data)
        row: dict[str, Any] = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
        if "reward/mean" in row:
            told.add(row["step"])
    return told


def end(run: Damaged) -> None:
    run.end()
    run.check()
    assert "Traceback" not in run.output
    assert run.output.count("the tracker wandb failed") <= 1
    assert left_behind(run.faults) == []


@pytest.mark.faults
@pytest.mark.parametrize(("kind", "phase"), itertools.product(SIGNALS, PHASES))
def test_a_tracker_that_is_lost_costs_the_run_nothing(tmp_path: Path, kind: str, phase: str) -> None:
    before = segments()
    run = start(tmp_path, f"tracker.timeout_s={LIMIT_S}")
    try:
        hit(run, kind, phase)
        run.wait(lambda: FAILED in run.output and SAID[kind] in run.output)
        run.goes_on()
        end(run)
    finally:
        run.process.kill()
    assert segments() <= before


@pytest.mark.faults
@pytest.mark.parametrize("phase", PHASES)
def test_a_tracker_that_answers_garbage_costs_the_run_nothing(tmp_path: Path, phase: str) -> None:
    """The damaged answer is one to its start or, since nothing that is told is answered, to its end."""
    run = start(tmp_path)
    try:
        hit(run, "garbage", phase)
        run.wait(run.steps)
        run.goes_on()
        end(run)
    finally:
        run.process.kill()
    assert (run.faults / "given-tracker").exists()


@pytest.mark.faults
def test_a_slow_tracker_is_told_everything(tmp_path: Path) -> None:
    run = start(tmp_path)
    try:
        for phase in PHASES:
            run.slow(hit(run, "slow", phase))
            run.goes_on()
        end(run)
    finally:
        run.process.kill()
    assert "the tracker wandb failed" not in run.output
    steps = {row["step"] for row in run.rows() if row["kind"] == "step"}
    assert len(steps) > 2 * len(PHASES)
    assert steps_told(run) == steps
