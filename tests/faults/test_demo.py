"""The demo with a part killed or stopped every half a minute: it learns what it learns without."""

from __future__ import annotations

import json
import os
import random
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from damage import PARTS, Damaged, left_behind, segments
from patience import finished

SEED = int(os.environ.get("SLINGSHOT_FAULTS_SEED", "0"))
EVERY_S = 30.0
WANTED = 0.40
"""By how much the demo raises held-out EM at least."""


@pytest.mark.faults
def test_the_demo_learns_with_a_fault_every_half_minute(tmp_path: Path) -> None:
    before, rng, done = segments(), random.Random(SEED), []
    settings = ["tracker=none", "cluster.dashboard=false", "checkpoints.every=3", "cluster.deadlines.ping=5"]
    settings += ["cluster.restarts_per_hour=1000", "cluster.losses_in_a_row=1000"]
    run = Damaged.start(tmp_path / "demo", tmp_path / "cache", *settings)
    try:
        run.wait(run.steps)
        while run.process.poll() is None:
            part, kind = rng.choice(PARTS), rng.choice(("kill", "stop"))
            phase = rng.choice(("generating", "searching", "publishing", "idle"))
            run.order(part, kind, phase)
            done.append((part, kind, phase))
            with suppress(subprocess.TimeoutExpired):
                run.process.wait(EVERY_S)
        with run.folder.with_name(f"{run.folder.name}.output").open() as file:
            output = finished(run.process, file)
    finally:
        run.process.kill()
    assert run.process.returncode == 0, output[-5000:]
    print(f"{len(done)} faults: {done}")
    run.check()
    (summary,) = [row for row in run.rows() if row["kind"] == "summary"]
    first, last = summary["first_eval"]["em"], summary["last_eval"]["em"]
    print(
        f"held-out EM {first:.3f} before, {last:.3f} after; {summary['time_s']:.0f} s; restarts {summary['restarts']}"
    )
    lost = [row["event"] for row in run.rows() if row.get("event") in ("worker_lost", "retrieval_lost", "recovered")]
    print(json.dumps(lost))
    assert len(lost) >= 2, "the faults were there"
    assert last - first >= WANTED
    assert left_behind(run.faults) == []
    assert segments() <= before
