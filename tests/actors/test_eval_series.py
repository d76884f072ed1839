"""Which evaluations are of one series."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from actors.eval_series import EvalSeries
from agent.config import AgentConfig, ExitConfig, SelectivityConfig
from agent.pool.rules.epoch import Rule
from agent.records import Question
from conf.evaluation import EvalConfig
from conf.schema import CheckpointConfig, RunConfig
from learner.config import ModelConfig
from retrieval_service.config import RetrievalConfig
from tasks.config import DataConfig
from tasks.load import Task

ASKED = (Question(id="e", text="when?", golden_answers=("then",)),)
TASK = Task(name="t", train=(), eval=ASKED, corpus=None, config=DataConfig())
EXIT = {"evaluation": EvalConfig(saving=True), "exit": ExitConfig(threshold=0.9)}


def same(before: dict[str, Any], now: dict[str, Any], corpus: str = "one") -> bool:
    """Whether a run that is resumed with other settings goes on with its series."""
    row = series(before, "one")._about
    return series(now, corpus).has(row)


def series(settings: dict[str, Any], corpus: str) -> EvalSeries:
    return EvalSeries(RunConfig(**{"pool": Rule(), **settings}), TASK, {"corpus": corpus})


def test_an_evaluation_is_called_as_the_questions_that_it_plays() -> None:
    config = RunConfig(pool=Rule())
    for held_out_name, data in (("", "t"), ("others", "others")):
        about = EvalSeries(config, replace(TASK, held_out_name=held_out_name), {}).scores([], needed=False)
        assert about["data"] == data


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, EXIT),
        (EXIT, EXIT | {"exit": ExitConfig(threshold=0.8)}),
        (EXIT, EXIT | {"exit": ExitConfig(threshold=0.9, confidence="mean")}),
        (EXIT, EXIT | {"selectivity": SelectivityConfig(evidence=True)}),
        ({}, {"agent": AgentConfig(max_searches=4)}),
        ({}, {"agent": AgentConfig(prompt="plain")}),
        ({}, {"retrieval": RetrievalConfig(k1=1.2)}),
        ({}, {"model": ModelConfig(dtype="bfloat16")}),
    ],
)
def test_what_decides_how_a_question_is_played_begins_another_series(
    before: dict[str, Any], now: dict[str, Any]
) -> None:
    assert same(before, before)
    assert not same(before, now)


def test_so_does_another_corpus() -> None:
    assert not same({}, {}, corpus="other")


@pytest.mark.parametrize(
    "now",
    [
        {"evaluation": EvalConfig(every=3)},
        {"checkpoints": CheckpointConfig(keep=7)},
        {"agent": AgentConfig(temperature=1.0)},
        {"retrieval": RetrievalConfig(cache_size=7, index="moved")},
        EXIT | {"exit": ExitConfig(threshold=0.9, risk=0.1)},
    ],
)
def test_what_decides_nothing_of_that_goes_on_with_it(now: dict[str, Any]) -> None:
    assert same(EXIT if "exit" in now else {}, now)
