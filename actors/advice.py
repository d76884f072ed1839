"""What a user should be told of a run's first step, with the cures. ``tracking/alarms.py`` watches the later ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from conf.schema import RunConfig


def advice(config: RunConfig, row: Mapping[str, Any], *, first: bool) -> Iterator[str]:
    """Lines to print after a step with the metrics ``row``; ``first`` is the first step of a run."""
    if first and row["search/mean"] == 0:
        yield no_searches(config)


def no_searches(config: RunConfig) -> str:
    """Of a policy that calls no tool: what it never does, no reward can teach it."""
    other = "agent.format=tools" if config.agent.format == "tags" else "agent.format=tags"
    return (
        f"model={config.model.name} called no tool in the first batch, so it can't learn to search from its own "
        "episodes. Three cures: expert trajectories to start from (data.experts=FILE or auto, with "
        "algorithm.warm_start.steps=30 or algorithm.seeding.steps=50), another prompt or format (agent.prompt=FILE, "
        f"{other}), or a larger model (model=…)"
    )
