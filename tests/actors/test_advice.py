"""What a user is told of a policy that never searches; when, is in ``test_supervisor_order.py``."""

from __future__ import annotations

import pytest

from actors.advice import no_searches
from agent.config import AgentConfig
from agent.pool.rules.epoch import Rule as Epoch
from conf.schema import RunConfig


@pytest.mark.parametrize(("format", "other"), [("tags", "tools"), ("tools", "tags")])
def test_a_model_that_calls_no_tool_is_told_of_with_the_cures(format: str, other: str) -> None:
    line = no_searches(RunConfig(agent=AgentConfig(format=format), pool=Epoch()))
    assert line.startswith("model=tiny called no tool in the first batch")
    assert f"agent.format={other}" in line
    for cure in ("data.experts=FILE", "agent.prompt=FILE", "model=…"):
        assert cure in line
