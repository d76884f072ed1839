"""What a user is told of a step's numbers."""

from __future__ import annotations

import pytest

from actors.advice import advice
from agent.config import AgentConfig
from agent.pool.rules.epoch import Rule as Epoch
from conf.schema import RunConfig


def said(searches: float, *, first: bool = True, format: str = "tags"):
    config = RunConfig(agent=AgentConfig(format=format), pool=Epoch())
    return list(advice(config, {"search/mean": searches}, first=first))


@pytest.mark.parametrize(("format", "other"), [("tags", "tools"), ("tools", "tags")])
def test_a_model_that_calls_no_tool_is_told_of_with_the_cures(format: str, other: str) -> None:
    (line,) = said(0.0, format=format)
    assert line.startswith("model=tiny called no tool in the first batch")
    assert f"agent.format={other}" in line
    for cure in ("data.experts=FILE", "agent.prompt=FILE", "model=…"):
        assert cure in line


def test_nothing_is_said_of_a_model_that_searches_or_of_a_later_step() -> None:
    assert said(0.01) == []
    assert said(0.0, first=False) == []
    assert said(float("nan")) == []  # nothing was scored
