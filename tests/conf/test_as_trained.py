"""A checkpoint brings its agent."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import launch
from agent.config import AgentConfig
from agent.errors import UserError
from conf.as_trained import MADE_WITH, agent_of
from conf.schema import RunConfig

TRAINED = AgentConfig(prompt="plain", chat=False, tools=["search", "open"], top_k=2, temperature=1.0, thinking=None)


def checkpoint(folder: Path, agent: AgentConfig = TRAINED) -> Path:
    (folder / MADE_WITH).parent.mkdir(parents=True)
    settings = {"agent": asdict(agent), "model": {"dtype": "bfloat16"}}
    (folder / MADE_WITH).write_text(json.dumps({"settings": settings, "data": {}}))
    return folder


def asked(*arguments: str) -> list[RunConfig]:
    return list(launch.check_overrides(list(arguments)).configs)


@pytest.mark.parametrize("mode", [["eval"], ["calibrate", "data.dev_questions_per_hop=4"], ["ask", "question=who?"]])
def test_a_checkpoint_is_played_as_it_was_trained(tmp_path: Path, mode: list[str]) -> None:
    here = checkpoint(tmp_path / "it's")
    (config,) = asked(f"mode={mode[0]}", *mode[1:], f"checkpoint={here}")
    assert config.agent == TRAINED
    assert (config.model.dtype, config.model.path, config.model.name) == ("bfloat16", str(here), "it's")


def test_what_is_said_counts(tmp_path: Path) -> None:
    here = checkpoint(tmp_path / "here")
    (config,) = asked("mode=eval", f"checkpoint={here}", "agent.top_k=7", "agent.prompt=instruct")
    assert config.agent == replace(TRAINED, top_k=7, prompt="instruct")
    (config,) = asked("mode=eval", f"checkpoint={here}", "agent=tools")
    assert (config.agent.format, config.agent.top_k) == ("tools", 3), "another agent altogether"
    (config,) = asked("mode=eval", f"checkpoint={here}", "model=smollm2-135m")
    assert (config.model.name, config.agent) == ("smollm2-135m", TRAINED)
    (config,) = asked("mode=plan", f"checkpoint={here}")
    assert config.model.name == "tiny", "a plan is not of the checkpoint"


def test_a_folder_that_no_run_wrote_is_a_model(tmp_path: Path) -> None:
    (config,) = asked("mode=eval", f"checkpoint={tmp_path}")
    assert config.model.path == str(tmp_path)
    assert replace(config.agent, max_response_tokens=8192) == AgentConfig()
    (tmp_path / MADE_WITH).parent.mkdir()
    (tmp_path / MADE_WITH).write_text('{"settings": 3}')
    assert agent_of([str(tmp_path)]) == []


def test_models_that_no_run_wrote_are_evaluated_alike_one_by_one_and_in_a_sweep() -> None:
    names = ["Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"]
    for more in ([], ["data=hotpotqa"]):
        alone = [asked("mode=eval", "cluster=1x24gb", f"checkpoint={name}", *more)[0] for name in names]
        jobs = {
            job.checkpoint: job
            for job in asked("-m", "mode=eval", "cluster=1x24gb", f"checkpoint={','.join(names)}", *more)
        }
        for name, one in zip(names, alone, strict=True):
            job = jobs[name]
            assert (job.model, job.agent, job.data, job.retrieval) == (one.model, one.agent, one.data, one.retrieval)
            assert (job.model.path, job.model.dtype, job.data.source) == (name, "bfloat16", "jsonl")


def test_each_model_behind_an_endpoint_has_its_own_name() -> None:
    asked_of = ["mode=eval", "evaluation.endpoint.url=http://there/v1", "data=hotpotqa"]
    jobs = asked("-m", *asked_of, "evaluation.endpoint.model=one,two")
    assert {job.evaluation.endpoint.model: job.model.path for job in jobs} == {"one": "one", "two": "two"}
    (alone,) = asked(*asked_of, "evaluation.endpoint.model=one")
    assert (alone.model.path, alone.model.name) == ("one", "one")


def test_a_sweep_over_checkpoints(tmp_path: Path) -> None:
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    jobs = asked("-m", "mode=eval", f"checkpoint={one},{two}")
    assert [job.agent for job in jobs] == [TRAINED] * len(jobs)
    assert {(job.model.name, job.model.path) for job in jobs} == {("one", str(one)), ("two", str(two))}
    other = checkpoint(tmp_path / "other", replace(TRAINED, top_k=9))
    with pytest.raises(UserError, match=rf"^checkpoint={other}: was trained with another agent\.top_k than {one}"):
        asked("-m", "mode=eval", f"checkpoint={one},{other}")
