"""A minute without retrieval, on a real run: nothing of that time is trained on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from damage import Damaged
from small_run import SMALL_RUN

OUTAGE_S = 60.0
RUN = ["algorithm.steps=100000", "evaluation.every=0", "pool.max_empty_batches=1000000"]


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.faults
def test_nothing_is_trained_on_from_a_minute_without_retrieval(tmp_path: Path) -> None:
    run = Damaged.start(tmp_path / "run", tmp_path / "cache", *SMALL_RUN, *RUN)
    outage, began = run.faults / "outage", 0.0
    try:
        run.wait(lambda: run.steps() >= 2)
        run.order("retrieval", "outage", "publishing")  # between two batches
        run.wait(outage.exists)
        began = time.time()
        run.wait(lambda: time.time() - began >= OUTAGE_S and "episodes wait for retrieval" in run.output)
        waiting = run.steps()
        outage.unlink()
        ended = time.time()
        run.wait(lambda: run.steps() >= waiting + 3)
        run.end()
    finally:
        run.process.kill()
    run.check()
    groups = rows_of(run.folder / "groups.jsonl")
    struck = {group["batch"] for group in groups if group["faults"]}
    assert struck, "searches failed"
    of_that_time = [group for group in groups if group["batch"] in struck]
    idle = sum(not searches for group in of_that_time for searches in group["searches"])
    print(f"{len(of_that_time)} groups in {len(struck)} batches; {idle} episodes that didn't search")
    assert not any(group["accepted"] for group in of_that_time)
    assert not any(row["accepted"] for row in rows_of(run.folder / "trajectories.jsonl") if row["batch"] in struck)
    played = [at for at, _, phase, _ in run.phases(began + OUTAGE_S / 2) if phase == "generate"]
    assert played[0] >= ended, "rollouts wait, and nothing is played for nothing"
    assert "retrieval answers again after" in run.output
