"""What a report that is made while a run goes on takes of the machine, beside the run."""

from __future__ import annotations

import time

import pytest
from patience import processor_seconds, until

from tracking.view.report import write


@pytest.mark.slow
def test_reports_made_while_a_run_goes_on_take_under_a_hundredth_of_it(start, small, tmp_path) -> None:
    """In processor time, which doesn't depend on what else runs; a report every eight steps of a small run."""
    folder = tmp_path / "run"
    process = start(folder, *small, "algorithm.steps=20", "evaluation.every=10")
    log, took, used = folder / "metrics.jsonl", 0.0, 0.0

    def steps() -> int:
        nonlocal used
        used = max(used, processor_seconds(process.pid))
        return log.read_text().count('"kind": "step"') if log.is_file() else 0

    try:
        for wanted in (8, 16):
            until(lambda wanted=wanted: steps() >= wanted, process)
            before = time.process_time()
            report, _ = write(folder)
            took += time.process_time() - before
            assert report.stat().st_size > 100_000
        until(lambda: steps() == 20, process)
        until(lambda: process.poll() is not None, process)
    finally:
        process.kill()
    assert process.returncode == 0
    print(f"two reports took {took:.2f} s of processor time, the run {used:.0f} s: {took / used:.2%}")
    assert took < 0.01 * used
