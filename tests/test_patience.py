"""What the tests' own waiting does: a slow process is waited for, one that stands still is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from patience import LIFE, Pulse, processor_seconds, run, until

ROOT = Path(__file__).parents[1]


def pulse_of(work: list[float], every_s: float = 10.0) -> list[bool]:
    """What a pulse says at each look of a process that had used ``work`` processor seconds by then."""
    now, done = iter(every_s * n for n in range(len(work))), iter(work)
    pulse = Pulse(0, still_s=60.0, clock=lambda: next(now), worked=lambda pid: next(done))
    return [pulse.beats() for _ in work]


def test_a_starved_process_lives() -> None:
    assert all(pulse_of([2 * LIFE * 10 * n for n in range(30)]))


def test_one_that_does_nothing_stands_still_after_its_time() -> None:
    assert pulse_of([5.0] * 8) == [True] * 6 + [False] * 2


def test_a_little_work_of_an_idle_service_is_no_life() -> None:
    assert pulse_of([LIFE / 2 * 10 * n for n in range(8)]) == [True] * 6 + [False] * 2


def test_work_after_a_pause_is_life() -> None:
    assert all(pulse_of([0, 0, 0, 0, 0, 8, 8, 8, 8, 16]))


def test_an_ended_child_takes_no_life_away() -> None:
    assert all(pulse_of([100, 100, 100, 40, 40, 40, 40]))


def test_processor_time_counts_children() -> None:
    spin = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
    child = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {spin + 'input()'!r}]); p.wait()"
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE) as process:
        until(lambda: processor_seconds(process.pid) >= 0.3, process)
        process.kill()
    assert processor_seconds(process.pid) == 0.0


def test_a_process_that_ends_too_early_is_told() -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process,
        pytest.raises(AssertionError, match="ended with 3"),
    ):
        until(lambda: False, process)


def test_run_brings_back_what_was_written() -> None:
    done = run([sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(4)"])
    assert (done.returncode, done.stdout, done.stderr) == (4, "out\n", "err\n")


@pytest.mark.slow
def test_pytest_says_what_runs_when_it_has_been_silent(tmp_path: Path) -> None:
    """In a pytest of its own, whose test ends when the line about it has been written."""
    (tmp_path / "conftest.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import conftest_of_all as of_all\nof_all.SILENCE_S = 0.0\nfrom conftest_of_all import pytest_configure\n"
    )
    (tmp_path / "conftest_of_all.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_long.py").write_text(
        "import os, time\ndef test_long():\n    while not os.path.exists('seen'): time.sleep(0.05)\n"
    )
    output = tmp_path / "output"
    with output.open("w") as file:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT)
    until(lambda: "… test_long.py::test_long, " in output.read_text(), process)
    (tmp_path / "seen").touch()
    until(lambda: process.poll() is not None, process)
    assert "1 passed" in output.read_text()
