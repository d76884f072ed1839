"""What a node is looked at for, and what is said of it. Two real nodes are in ``tests/e2e/test_nodes.py``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import ray

from actors.nodes import Needs, check_nodes, lacks
from agent.errors import UserError


def needs(folder: Path) -> Needs:
    marker, corpus = folder / "marker", folder / "corpus.jsonl"
    marker.write_text("token")
    corpus.touch()
    return Needs(marker=marker, token="token", cache=folder / "cache", files=(corpus,))


def test_a_node_with_the_same_files_lacks_nothing(tmp_path: Path) -> None:
    assert lacks(needs(tmp_path)) == []


def test_each_thing_that_a_node_lacks_is_said(tmp_path: Path) -> None:
    asked = needs(tmp_path)
    other = f"output_dir={tmp_path} isn't the one of this machine"
    assert lacks(replace(asked, token="of another run")) == [other]
    (tmp_path / "marker").unlink()
    (tmp_path / "corpus.jsonl").unlink()
    (tmp_path / "cache").touch()
    assert lacks(asked) == [
        other,
        f"cache_dir={tmp_path}/cache: {tmp_path}/cache is a file, not a folder",
        f"{tmp_path}/corpus.jsonl isn't there",
    ]


@pytest.mark.slow
def test_the_nodes_of_a_run_are_asked_before_it_starts(local_ray: None, tmp_path: Path) -> None:
    (node,) = {entry["NodeID"] for entry in ray.nodes() if entry["Alive"]}
    check_nodes([node, node], tmp_path, tmp_path / "cache", [], 600.0)
    assert not list(tmp_path.iterdir()), "what was written to look for is gone"
    with pytest.raises(
        UserError, match=r"^node [\d.]+ of the Ray cluster lacks what is on this one: \S+/gone isn't there; "
    ):
        check_nodes([node], tmp_path, tmp_path / "cache", [tmp_path / "gone"], 600.0)
