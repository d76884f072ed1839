"""Nothing that a person waits for is silent: the time stamps of a small run's console, in a log and in a terminal."""

from __future__ import annotations

import os
import re
import sys

import pytest
from first_hour import LOG_S, ROOT, TERMINAL_S, watch


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [False, True], ids=["log", "terminal"])
def test_a_run_is_never_silent_for_long(small, tmp_path, terminal: bool) -> None:
    command = [sys.executable, str(ROOT / "launch.py"), *small, "algorithm.steps=3", "evaluation.every=2"]
    command += [f"hydra.run.dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"]
    seen = watch(command, tmp_path, {**os.environ, "TERM": "xterm"}, terminal=terminal)
    assert seen.code == 0, seen.text
    assert seen.silence <= (TERMINAL_S if terminal else LOG_S), f"silent after: {seen.before}"
    if terminal:  # which is shown what is done, of how much, how fast, and how long it takes
        for pattern in (
            r"warm start \d+/120 steps .*?\d+ s, [\d.]+ steps/(s|min), \d+ s left",
            r"step 2: rollouts \d+/6 groups",
            r"evaluation \d+/24 questions",
            r"the run 2/3 steps",
            r"the checkpoint of step 3 is written",
        ):
            assert re.search(pattern, seen.text), pattern
