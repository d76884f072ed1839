"""A Ray cluster of two nodes: two raylets on this machine, the second of which may see other files, and may die."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import output_of
from patience import finished, until
from ray_nodes import Nodes

pytestmark = pytest.mark.slow


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    started = Nodes()
    yield started
    started.end()


def rows(folder: Path) -> list[dict]:
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def pid(folder: Path, actor: str) -> int:
    return int((folder / "logs" / f"{actor}.log").read_text().split("pid ")[1].split()[0])


def node_of(process: int, nodes: Nodes) -> int:
    """Which node's processes ``process`` is one of."""
    (number,) = [n for n in range(len(nodes.processes)) if process in {p.pid for p in nodes.family(n)}]
    return number


def test_engines_are_spread_and_a_node_that_dies_is_done_without(
    nodes: Nodes, start: Callable[..., subprocess.Popen], small: list[str], tmp_path: Path
) -> None:
    nodes.add()
    folder = tmp_path / "two"
    arguments = ["algorithm.steps=6", "cluster.rollout_workers=2", "pool.max_staleness=1"]
    process = start(folder, *small, *arguments, f"cluster.address={nodes.address}")
    try:
        until(lambda: any(r["kind"] == "step" and r["step"] == 2 for r in rows(folder)), process)
        where = {name: node_of(pid(folder, name), nodes) for name in ("learner", "pool", "retrieval")}
        engines = {node_of(pid(folder, f"rollout-{n}"), nodes) for n in range(2)}
        nodes.kill(1)
        with output_of(folder).open() as file:
            output = finished(process, file)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert set(where.values()) == {0}, "what the run can't lose is on the node that it was started on"
    assert engines == {0, 1}
    assert [r["step"] for r in rows(folder) if r["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    (lost,) = [r for r in rows(folder) if r.get("event") == "worker_lost"]
    assert "died" in lost["cause"]


def test_a_node_without_the_runs_folders_is_named_before_anything_starts(
    nodes: Nodes, start: Callable[..., subprocess.Popen], small: list[str], tmp_path: Path
) -> None:
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run([*hidden, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount in a namespace of its own")
    nodes.add(*hidden)
    folder = tmp_path / "alone"
    process = start(folder, *small, "algorithm.steps=1", f"cluster.address={nodes.address}")
    with output_of(folder).open() as file:
        output = finished(process, file)
    assert process.returncode == 2, output
    (line,) = [line for line in output.splitlines() if line.startswith("slingshot: ")]
    assert " of the Ray cluster lacks what is on this one: output_dir=" in line
    assert "isn't the one of this machine" in line
    assert not list((folder / "logs").glob("learner*"))
