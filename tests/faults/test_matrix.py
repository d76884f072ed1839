"""The matrix of faults, on a real run: whatever is done to any part in any phase, the run sees it and goes on.

``make test-faults`` runs all of it, in an order that a seed gives; one run takes as many faults as it survives.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from damage import HANGS, KINDS, PARTS, PHASES, SETTINGS, Damaged, Seen, left_behind, segments

SEED = 14
BACK_S = {"rollout": 30.0, "retrieval": 30.0, "pool": 90.0, "learner": 90.0}
"""On a CPU that does nothing else."""
HELD_S = 10.0
"""Longer than several pings: they see the death before anything that was asked of the dead part fails."""
RUN = ["algorithm.steps=100000", "evaluation.every=3", "checkpoints.every=2", "checkpoints.keep=2"]


def cells() -> list[tuple[str, str, str]]:
    """(part, kind of fault, phase), shuffled."""
    every = [*itertools.product(PARTS, KINDS, PHASES)]
    every += [(part, "hang", phase) for part, phases in HANGS.items() for phase in phases]
    random.Random(SEED).shuffle(every)
    return every


class House:
    """The run that takes the faults; another one where it has ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self.run: Damaged | None = None

    def running(self) -> Damaged:
        if self.run is None or self.run.process.poll() is not None:
            self._number += 1
            self.run = Damaged.start(self._folder / f"run{self._number}", self._folder / "cache", *SETTINGS, *RUN)
            self.run.wait(self.run.steps)
        return self.run


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    before = segments()
    house = House(tmp_path_factory.mktemp("faults"))
    yield house
    if house.run is not None and house.run.process.poll() is None:
        house.run.end()
        house.run.check()
        assert left_behind(house.run.faults) == []
        assert segments() <= before


def note(part: str, kind: str, phase: str, seen: Seen) -> None:
    """Adds a line to the file that ``FAULTS_SEEN`` names."""
    if name := os.environ.get("FAULTS_SEEN"):
        with Path(name).open("a") as file:
            file.write(json.dumps([part, kind, phase, seen.detected_s, seen.recovered_s]) + "\n")


@pytest.mark.faults
@pytest.mark.parametrize(("part", "kind", "phase"), cells())
def test_a_fault_is_seen_and_got_over(house: House, part: str, kind: str, phase: str) -> None:
    run = house.running()
    try:
        seen = run.damage(part, kind, phase)
    except BaseException:
        run.process.kill()  # the next cell has a run of its own
        raise
    note(part, kind, phase, seen)
    if kind != "slow":
        assert seen.recovered_s is not None
    run.check()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("part", "phase"),
    [(p, name) for p in PARTS for name, (busy, _) in PHASES.items() if busy != p and name not in ("starting", "idle")],
)
def test_a_death_is_seen_while_a_phase_of_another_part_lasts(house: House, part: str, phase: str) -> None:
    run = house.running()
    try:
        seen = run.damage(part, "kill", phase, held_s=HELD_S)
    except BaseException:
        run.process.kill()
        raise
    note(part, "kill, held", phase, seen)
    assert seen.recovered_s is not None
    run.check()
