"""A Ray cluster of two nodes: two raylets on this machine, the second of which may see other files, and may die."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from patience import until
from ray_nodes import Nodes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    """The head, with what a test gives for ``ray start``; a test adds the second node."""
    started = Nodes(*getattr(request, "param", ()))
    yield started
    started.end()


def said(process: subprocess.Popen, folder: Path) -> str:
    """All that a run has said, once it has ended. The work is done by the nodes' processes, and it may well be idle."""
    try:
        until(lambda: process.poll() is not None)
    finally:
        process.kill()
    return folder.with_name(f"{folder.name}.output").read_text()


def rows(folder: Path, file: str) -> list[dict]:
    """Those that are whole by now."""
    path = folder / file
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def node_of(folder: Path, actor: str, nodes: Nodes) -> int:
    """Which node's processes the actor is one of."""
    pid = int((folder / "logs" / f"{actor}.log").read_text().split("pid ")[1].split()[0])
    (number,) = [n for n in range(len(nodes.processes)) if pid in {p.pid for p in nodes.family(n)}]
    return number


def versions(folder: Path, worker: str) -> set[int]:
    """Of the weights that the worker has sampled by."""
    episodes = [row for row in rows(folder, "trajectories.jsonl") if row["worker"] == worker]
    return {run[0] for row in episodes for turn in row["turns"] for run in turn["versions"]}


def test_engines_are_spread_and_a_node_that_dies_is_done_without(
    nodes: Nodes, start: Callable[..., subprocess.Popen], small: list[str], tmp_path: Path
) -> None:
    nodes.add()
    folder = tmp_path / "two"
    arguments = ["algorithm.steps=10", "cluster.rollout_workers=2", "pool.max_staleness=1"]
    process = start(folder, *small, *arguments, f"cluster.address={nodes.address}", **nodes.access)

    def reached(condition: Callable[[], bool]) -> None:
        until(lambda: condition() or process.poll() is not None)
        assert condition(), folder.with_name(f"{folder.name}.output").read_text()

    try:
        reached(lambda: any(row["kind"] == "step" for row in rows(folder, "metrics.jsonl")))
        where = {name: node_of(folder, name, nodes) for name in ("learner", "pool", "retrieval")}
        engines = {node_of(folder, name, nodes): name for name in ("rollout-0", "rollout-1")}
        assert where == dict.fromkeys(where, 0), "what the run can't lose is on the node that it was started on"
        assert set(engines) == {0, 1}
        reached(lambda: len(versions(folder, engines[1])) > 1)  # new weights have come to the other node
        nodes.kill(1)
        output = said(process, folder)
    finally:
        process.kill()
    assert process.returncode == 0, output
    metrics = rows(folder, "metrics.jsonl")
    assert [row["step"] for row in metrics if row["kind"] == "step"] == [*range(1, 11)]
    (lost,) = [row for row in metrics if row.get("event") == "worker_lost"]
    assert lost["worker"] == engines[1]
    assert "died" in lost["cause"]


def test_who_lacks_the_runs_folders_or_the_token_is_told_before_anything_starts(
    nodes: Nodes, start: Callable[..., subprocess.Popen], small: list[str], tmp_path: Path
) -> None:
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run([*hidden, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount in a namespace of its own")
    nodes.add(wrapped=hidden)

    def refusal(name: str, **environment: str) -> str:
        """The one line."""
        folder = tmp_path / name
        process = start(folder, *small, "algorithm.steps=1", f"cluster.address={nodes.address}", **environment)
        output = said(process, folder)
        assert process.returncode == 2, output
        assert not list((folder / "logs").glob("learner*"))
        (line,) = [line for line in output.splitlines() if line.startswith("slingshot: ")]
        return line

    line = refusal("alone", **nodes.access)
    assert " of the Ray cluster lacks what is on this one: output_dir=" in line
    assert "isn't the one of this machine" in line

    another = {**nodes.access, "RAY_AUTH_TOKEN": "0" * 64}
    assert f"cluster.address={nodes.address}: can't join the Ray cluster there (" in refusal("stranger", **another)

    nodes.end()
    gone = refusal("late", **nodes.access)
    assert f"cluster.address={nodes.address}: no Ray cluster answers there: Connection refused; " in gone


@pytest.mark.parametrize("nodes", [["--num-gpus=2"]], indirect=True)
def test_cards_of_two_nodes_are_reserved_together_and_those_of_one_do_not_suffice(nodes: Nodes, tmp_path: Path) -> None:
    """Ray counts cards that aren't there; who takes them here needs none."""
    nodes.add("--num-gpus=2")
    with (tmp_path / "found").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("placed.py")), nodes.address, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **nodes.access, "PYTHONPATH": str(ROOT)},
        )
        try:
            found = until(lambda: (tmp_path / "found").read_text().partition("\n")[0], process)
            nodes.kill(1)
            process.communicate("\n")
        finally:
            process.kill()
    assert json.loads(found) == {"cards": [2, 2], "home": True, "engines": True, "retrieval": True, "pinned": True}
    *_, elsewhere, refused = (tmp_path / "found").read_text().splitlines()  # after what Ray itself says of the end
    assert elsewhere == "elsewhere: True", "what was to be on the node that is gone"
    assert refused == (
        "cluster=ray needs 4 GPU, and the nodes of the Ray cluster have 2 GPU; start Ray on more nodes, or use fewer "
        "cluster.rollout_workers"
    )
