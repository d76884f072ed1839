"""Damaged files of each kind that a user gives: a result, or one line that names the file; nothing else, and soon."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from patience import run

FILES = Path(__file__).parent / "files.py"
CHEAP = ("questions", "corpus", "experts", "calibration")
KINDS = (*CHEAP, "tokenizer", "checkpoint", "configuration")
COUNT = int(os.environ.get("SLINGSHOT_FUZZ", "1000"))
"""Files of each kind; 10,000 take hours for those that take a model or Hydra to read."""
SEED = os.environ.get("SLINGSHOT_FUZZ_SEED", "0")


def fuzz(kinds: tuple[str, ...], count: int, seed: str) -> None:
    done = run([sys.executable, str(FILES), ",".join(kinds), str(count), seed])
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]  # tokenizers print what they ignore
    assert len(lines) == len(kinds)
    for told in map(json.loads, lines):
        assert told["broken"] == {}, told
        assert told["refused"] > count / 4, "the damage shows"
        assert told["loaded"] + told["refused"] == count
        print(told)


def test_damaged_files_are_refused_in_one_line() -> None:
    fuzz(CHEAP, 120, "first")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_are_refused_in_one_line(kind: str) -> None:
    fuzz((kind,), COUNT, SEED)
