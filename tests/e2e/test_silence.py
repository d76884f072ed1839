"""Nothing that a person waits for is silent: the time stamps of a small run's console, in a log and in a terminal."""

from __future__ import annotations

import os
import re
import sys

import pytest
from first_hour import LOG_S, ROOT, TERMINAL_S, watch


def crowded() -> float:
    """How many processes wait for each core: the limits are those of a machine that has a core for the run."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [False, True], ids=["log", "terminal"])
def test_a_run_is_never_silent_for_long(small, tmp_path, terminal: bool) -> None:
    command = [sys.executable, str(ROOT / "launch.py"), *small, "algorithm.steps=3", "evaluation.every=2"]
    command += [f"hydra.run.dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"]
    before = crowded()
    seen = watch(command, tmp_path, {**os.environ, "TERM": "xterm", "COLUMNS": "120"}, terminal=terminal)
    assert seen.code == 0, seen.text
    limit = (TERMINAL_S if terminal else LOG_S) * max(before, crowded())
    assert seen.silence <= limit, f"silent for {seen.silence:.1f} s after: {seen.before}"
    if terminal:  # which is shown what is done, of how much, how fast, and how long it takes
        warm_steps = dict(setting.split("=", 1) for setting in small)["algorithm.warm_start.steps"]
        for pattern in (
            rf"warm start \d+/{warm_steps} steps .*?\d+ s, [\d.]+ steps/(s|min), \d+ (s|min) ",
            r"the run \d/3 steps",
            r"step [123]\b",
        ):
            assert re.search(pattern, seen.text), pattern
