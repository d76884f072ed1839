"""What a user is told where the policy never searches, with the cures. ``tracking/alarms.py`` has the other rules."""

from __future__ import annotations

from agent.formats.catalogue import format_class
from conf.schema import RunConfig


def no_searches(config: RunConfig) -> str:
    """Of a policy that calls no tool in its first batch: what it never does, no reward can teach it."""
    other = "agent.format=tools" if format_class(config.agent.format).in_tags else "agent.format=tags"
    return (
        f"model={config.model.name} called no tool in the first batch, so it can't learn to search from its own "
        "episodes. Three cures: expert trajectories to start from (data.experts=FILE or auto, with "
        "algorithm.warm_start.steps=30 or algorithm.seeding.steps=50), another prompt or format (agent.prompt=FILE, "
        f"{other}), or a larger model (model=…)"
    )
