"""Whether each node of a Ray cluster has what a run's actors need there; looked at before any of them starts.

Ray brings no files to a node. The run's folder, the cache, the corpus and the model have to be at the same paths on all
of them, and so has this program.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from agent.errors import UserError, all_of, last_line
from tracking.run_folder import unwritable


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What has to be on every node."""

    marker: Path
    """A file that the driver has just written to the run's folder."""
    token: str
    """What is in it."""
    cache: Path
    files: tuple[Path, ...]
    """The corpus, the model's folder."""


def lacks(needs: Needs) -> list[str]:
    """A line for each thing that the machine which this runs on lacks."""
    found = [*_output(needs)]
    if refusal := unwritable(needs.cache):
        found.append(f"cache_dir={needs.cache}: {refusal}")
    return found + [f"{file} isn't there" for file in needs.files if not os.access(file, os.R_OK)]


def _output(needs: Needs) -> Iterator[str]:
    folder = needs.marker.parent
    try:
        same = needs.marker.read_text() == needs.token
    except OSError:
        same = False
    if not same:
        yield f"output_dir={folder} isn't the one of this machine"
    elif refusal := unwritable(folder):
        yield f"output_dir={folder}: {refusal}"


def check_nodes(nodes: Sequence[str], run_dir: Path, cache: Path, files: Sequence[Path], timeout_s: float) -> None:
    """Raises ``UserError`` that names each of ``nodes`` (ids) that lacks something, or doesn't answer in time."""
    marker, token = run_dir / ".on-every-node", secrets.token_hex(8)
    marker.write_text(token)
    try:
        if problems := list(
            _problems(nodes, Needs(marker=marker, token=token, cache=cache, files=(*files,)), timeout_s)
        ):
            raise UserError(all_of(problems))
    finally:
        marker.unlink(missing_ok=True)


def _problems(nodes: Sequence[str], needs: Needs, timeout_s: float) -> Iterator[str]:
    names = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    look = ray.remote(lacks)
    calls = {
        look.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(needs): node
        for node in dict.fromkeys(nodes)
    }
    deadline = time.monotonic() + timeout_s
    for call, node in calls.items():
        name = f"node {names.get(node, node)}"
        try:
            found = ray.get(call, timeout=max(0.0, deadline - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            yield f"{name} of the Ray cluster starts no process within cluster.start_timeout_s={timeout_s:g}"
            continue
        except ray.exceptions.RayError as error:
            reason = last_line(str(error)) or type(error).__name__
            yield (
                f"{name} of the Ray cluster can't run this program ({reason}); install it there at the same "
                "path, with the same environment"
            )
            continue
        if found:
            yield (
                f"{name} of the Ray cluster lacks what is on this one: {'; '.join(found)}; put it on a file system "
                "that all nodes have at the same path"
            )
