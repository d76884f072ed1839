"""The examples run as a newcomer runs them, and show what they say they show."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from by_path import module_at

ROOT = Path(__file__).parents[1]


def played(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "examples/bare_loop.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # this tree, wherever the environment's own is
        capture_output=True,
        text=True,
        check=False,
    )


def rewards(*arguments: str) -> list[float]:
    """The mean reward of each step that the bare loop prints."""
    run = played(*arguments)
    assert run.returncode == 0, run.stderr
    return [float(number) for number in re.findall(r"^step .*  reward (\S+) ", run.stdout, re.MULTILINE)]


def test_the_bare_loop_imitates_plays_and_updates(tmp_path, monkeypatch, capsys):
    """In smaller worlds, with less to imitate and to play: a few seconds of this process."""
    import torch

    from learner.config import WarmStartConfig

    bare_loop = module_at(ROOT / "examples" / "bare_loop.py")
    monkeypatch.setattr(bare_loop, "NAMES", bare_loop.NAMES[:8])
    monkeypatch.setattr(bare_loop, "K", 3)
    monkeypatch.setattr(bare_loop, "WarmStartConfig", lambda **all: WarmStartConfig(**{**all, "steps": 50}))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        asyncio.run(bare_loop.main(tmp_path, steps=2, seed=0, vllm=False))
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    ((first, last),) = re.findall(r"^imitation: loss (\S+) at first, (\S+) in the end$", said, re.MULTILINE)
    assert float(last) < float(first) / 2
    assert (
        len(re.findall(r"^step .*/2  reward \S+  searches \S+  trained on [1-8] of 8 groups$", said, re.MULTILINE)) == 2
    )
    assert "\nQuestion: who taught the teacher of " in said


@pytest.mark.slow
def test_the_bare_loop_learns():
    found = rewards()
    assert len(found) == 10
    assert found[-1] > found[0] + 0.3, found


@pytest.mark.slow
@pytest.mark.parametrize(("option", "given", "least"), [("--steps", "0", 1), ("--seed", "-1", 0)])
def test_a_number_of_the_bare_loop_that_is_too_small_is_refused(option, given, least):
    run = played(option, given)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.endswith(f"error: {option} must be at least {least}\n")


@pytest.mark.slow
def test_the_bare_loop_is_the_same_for_the_same_seed():
    once = rewards("--steps", "3", "--seed", "5")
    assert once == rewards("--steps", "3", "--seed", "5")
    assert once != rewards("--steps", "3", "--seed", "6")
