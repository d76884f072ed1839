"""Questions by name on the command line: one set, and several together."""

from __future__ import annotations

from pathlib import Path

import pytest

import launch
from agent.errors import UserError
from conf.named_data import sets_together
from conf.schema import RunConfig
from retrieval_service.wikipedia import WIKI_18
from tasks.named import named
from tasks.paths import set_names

MORE = ("data.corpus=c.jsonl", "model=smollm2-135m")


def config_of(*arguments: str) -> RunConfig:
    (config,) = launch.check_overrides([*arguments, *MORE]).configs
    return config


def test_one_set_is_its_files() -> None:
    data = config_of("data=2wiki").data
    assert data.questions == "flashrag:2wikimultihopqa/train"
    assert data.eval_questions == "flashrag:2wikimultihopqa/dev"


def test_several_sets_are_lists_of_files() -> None:
    data = config_of("data=[hotpotqa, nq, popqa]", "data.shares=[0.7,0.3]").data
    assert data.questions == "['flashrag:hotpotqa/train','flashrag:nq/train']"
    assert data.eval_questions == "['flashrag:hotpotqa/dev','flashrag:nq/test','flashrag:popqa/test']"
    assert data.shares == [0.7, 0.3]
    data = config_of("data.eval_questions=own.jsonl", "data=[hotpotqa,nq]").data
    assert data.eval_questions == "own.jsonl", "what is said besides counts"


def test_the_six_sets_of_a_paper_are_several_by_name(tmp_path: Path) -> None:
    six = "data=[hotpotqa,2wiki,musique,bamboogle,bamtwoogle,antileak]"
    (config,) = launch.check_overrides(["mode=eval", "checkpoint=org/name", six]).configs
    files = named(config.data, tmp_path, "eval")
    assert [each.name for each in files[-2:]] == ["github:bamtwoogle", "github:antileak"]
    assert set_names([each.path for each in files])[-3:] == ("bamboogle-test", "bamtwoogle", "antileak")
    assert config.retrieval.prebuilt == WIKI_18.name
    (alone,) = launch.check_overrides(["mode=eval", "checkpoint=org/name", "data=antileak"]).configs
    assert (alone.data.named, alone.retrieval.prebuilt) == (("github:antileak",), WIKI_18.name)


def test_several_sets_in_a_sweep_of_something_else() -> None:
    configs = launch.check_overrides(["-m", "data=[hotpotqa,nq]", "seed=0,1", *MORE]).configs
    assert {config.data.questions for config in configs} == {"['flashrag:hotpotqa/train','flashrag:nq/train']"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "data=[hotpotq,nq]",
            "hotpotq is none of the named sets 2wiki, antileak, bamboogle, bamtwoogle, hotpotqa, musique, nq",
        ),
        ("data=[world,nq]", "world is none of the named sets"),
        ("data=[]", "nothing is none of the named sets"),
        ("data=[nq,nq]", "several named sets are written data=[hotpotqa,musique], each once and without -m"),
        ("data=[hotpotqa,nq],popqa", "several named sets are written"),
    ],
)
def test_a_list_of_anything_else_is_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        sets_together([setting])
    assert str(caught.value).startswith(f"{setting}: {message}")


def test_other_settings_stay() -> None:
    settings = ["data=jsonl", "data.questions=[a,b]", "seed=[", "pool=epoch"]
    assert sets_together(settings) == tuple(settings)
