"""What a user is told of a step's numbers."""

from __future__ import annotations

import pytest

from actors.advice import advice
from agent.config import AgentConfig
from agent.pool.rules.epoch import Rule as Epoch
from conf.schema import RunConfig
from learner.config import BFLOAT16_MISMATCH, ModelConfig


def said(searches: float, mismatch: float = 0.0, *, first: bool = True, dtype: str = "float32", format: str = "tags"):
    config = RunConfig(model=ModelConfig(dtype=dtype), agent=AgentConfig(format=format), pool=Epoch())
    return list(advice(config, {"search/mean": searches, "rollout/mismatch": mismatch}, first=first))


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


def test_a_mismatch_that_rounding_does_not_explain() -> None:
    assert said(1.0, 2 * BFLOAT16_MISMATCH) == []  # the learner stops a float32 run by itself
    assert said(1.0, BFLOAT16_MISMATCH, dtype="bfloat16") == []
    (line,) = said(1.0, 2 * BFLOAT16_MISMATCH, dtype="bfloat16", first=False)
    assert "differ by 0.100 nats" in line
