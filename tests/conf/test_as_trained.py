"""A checkpoint brings its agent."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import launch
from actors.provenance import Provenance
from agent.config import AgentConfig
from agent.errors import UserError
from agent.prompts import prompt_text
from conf.as_trained import MADE_WITH, agent_of, prompt_name
from conf.inputs import check_inputs, missing
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


@pytest.mark.parametrize("named", ["step-000002", "best"])
def test_a_checkpoint_that_a_kill_left_without_its_name_is_found_by_it(tmp_path: Path, named: str) -> None:
    """Between two renames: another of the same step was to get the name."""
    here = checkpoint(tmp_path / "step-000002")
    (tmp_path / "best").symlink_to(here.name)
    here.rename(tmp_path / f".tmp-replaced-{here.name}")
    (config,) = asked("mode=eval", f"checkpoint={tmp_path / named}")
    check_inputs(config)
    assert config.agent == TRAINED
    here.rename(tmp_path / f".tmp-replaced-{here.name}")
    assert missing(str(tmp_path / named)) is not None, "it was only looked for"
    (config,) = asked("mode=train", f"resume={tmp_path / named}")
    check_inputs(config)


def test_a_prompt_of_ones_own_stays_with_the_checkpoint(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"

    def trained(name: str, text: str, file: Path = own) -> Path:
        file.write_text(text)
        here = checkpoint(tmp_path / name, replace(TRAINED, prompt=str(file)))
        Provenance(settings=json.loads((here / MADE_WITH).read_text())["settings"], data={}, prompt=text).save(here)
        return here

    one = trained("one", "{tools} First: {question}")
    same = trained("same", "{tools} First: {question}", tmp_path / "other.txt")
    other = trained("other", "{tools} Then: {question}")
    (config,) = asked("mode=ask", "question=who?", f"checkpoint={one}")
    assert config.agent == replace(TRAINED, prompt=str(one / "training" / "prompt.txt"))
    assert prompt_text(config.agent) == "{tools} First: {question}", "whatever has become of the file"
    assert prompt_name(config.agent.prompt) == "own.txt", "and not what its copy is called"
    own.unlink()
    assert len(asked("-m", "mode=eval", f"checkpoint={one},{same}")) == 2
    with pytest.raises(UserError, match=rf"^checkpoint={other}: was trained with another agent\.prompt than {one}"):
        asked("-m", "mode=eval", f"checkpoint={one},{other}")


@pytest.mark.parametrize("prompt", ["plain", "prompts/short.txt", "nowhere/prompt.txt"])
def test_other_prompts_are_called_by_their_own_name(prompt: str) -> None:
    assert prompt_name(prompt) == Path(prompt).name


def test_what_is_said_counts(tmp_path: Path) -> None:
    here = checkpoint(tmp_path / "here")
    (config,) = asked("mode=eval", f"checkpoint={here}", "agent.top_k=7", "agent.prompt=instruct")
    assert config.agent == replace(TRAINED, top_k=7, prompt="instruct")
    (config,) = asked("mode=eval", f"checkpoint={here}", "agent=tools")
    assert (config.agent.format, config.agent.top_k) == ("tools", 3), "another agent altogether"
    (config,) = asked("mode=eval", f"checkpoint={here}", "model=smollm2-135m")
    assert (config.model.name, config.agent) == ("smollm2-135m", TRAINED)


def test_a_folder_that_no_run_wrote_is_a_model(tmp_path: Path) -> None:
    (config,) = asked("mode=eval", f"checkpoint={tmp_path}")
    assert config.model.path == str(tmp_path)
    assert replace(config.agent, max_response_tokens=8192) == AgentConfig()
    (tmp_path / MADE_WITH).parent.mkdir()
    (tmp_path / MADE_WITH).write_text('{"settings": 3}')
    assert agent_of([str(tmp_path)]) == []


@pytest.mark.slow
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


@pytest.mark.slow
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


# --- what it is asked about -------------------------------------------------------------------------


def trained(folder: Path, *arguments: str, seed: int = 0) -> Path:
    """A checkpoint of a run with these settings."""
    (config,) = asked("model=smollm2-135m", *arguments)
    (folder / MADE_WITH).parent.mkdir(parents=True)
    settings = asdict(config) | {"seed": seed}
    (folder / MADE_WITH).write_text(json.dumps({"settings": settings, "data": {}}, default=str))
    return folder


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A file of questions and one of passages, an index, and another of each."""
    found = {name: str(tmp_path / f"{name}.jsonl") for name in ("questions", "corpus", "others")}
    for file in found.values():
        Path(file).write_text("{}\n")
    (tmp_path / "index").mkdir()
    return found | {"index": str(tmp_path / "index")}


PLACED: dict[str, list[str]] = {
    "prebuilt": ["data=hotpotqa", "retrieval=wikipedia"],
    "index": ["data=jsonl", "data.questions={questions}", "retrieval.index={index}", "retrieval.k1=1.5"],
    "url": ["data=jsonl", "data.questions={questions}", "retrieval=http", "retrieval.url=http://box:8000"],
    "corpus": ["data=jsonl", "data.questions={questions}", "data.corpus={corpus}", "retrieval.k1=1.5"],
}
"""Runs by where their passages are."""


@pytest.mark.one_in(9)
@pytest.mark.parametrize("before", PLACED)
@pytest.mark.parametrize("mode", [["ask", "question=who?"], ["eval", "data.eval_questions={questions}"]])
def test_a_corpus_that_is_given_is_searched(
    tmp_path: Path, files: dict[str, str], before: str, mode: list[str]
) -> None:
    here = trained(tmp_path / "here", *(a.format(**files) for a in PLACED[before]))
    more = [a.format(**files) for a in mode[1:]]
    (config,) = asked(f"mode={mode[0]}", f"checkpoint={here}", *more, f"data.corpus={files['others']}")
    assert (config.data.corpus, config.retrieval.place, config.retrieval.backend) == (files["others"], None, "bm25")
    assert config.retrieval.k1 == (1.5 if before in ("index", "corpus") else 0.9), "ranked as the run's was"


@pytest.mark.one_in(4)
@pytest.mark.parametrize("before", PLACED)
@pytest.mark.parametrize(
    ("place", "found"),
    [
        (["retrieval=wikipedia"], "beir-v1.0.0-hotpotqa.flat"),
        (["retrieval.index={index}"], "{index}"),
        (["retrieval=http", "retrieval.url=http://other:1"], "http://other:1"),
    ],
)
def test_another_place_takes_the_corpus_place(
    tmp_path: Path, files: dict[str, str], before: str, place: list[str], found: str
) -> None:
    here = trained(tmp_path / "here", *(a.format(**files) for a in PLACED[before]))
    arguments = ["mode=eval", f"checkpoint={here}", *(a.format(**files) for a in place)]
    (config,) = asked(*arguments)
    assert config.data.corpus is None
    if place != ["retrieval=wikipedia"]:
        assert config.retrieval.place == found.format(**files)
    else:
        assert config.retrieval.prebuilt


def test_another_ranker_ranks_the_same_corpus(tmp_path: Path, files: dict[str, str]) -> None:
    here = trained(tmp_path / "here", *(a.format(**files) for a in PLACED["corpus"]))
    (config,) = asked("mode=eval", f"checkpoint={here}", "retrieval=bm25", "retrieval.b=0.1")
    assert (config.data.corpus, config.retrieval.b, config.retrieval.k1) == (files["corpus"], 0.1, 0.9)


@pytest.mark.slow
def test_a_corpus_beside_another_place_is_refused(files: dict[str, str]) -> None:
    given = ["data=jsonl", f"data.questions={files['questions']}", f"data.corpus={files['corpus']}"]
    for place, key in (
        (["retrieval=wikipedia"], "retrieval.prebuilt=auto"),
        ([f"retrieval.index={files['index']}"], f"retrieval.index={files['index']}"),
        (["retrieval=http", "retrieval.url=http://box:1"], "retrieval.url=http://box:1"),
    ):
        with pytest.raises(UserError) as refused:
            asked("model=smollm2-135m", *given, *place)
        assert str(refused.value) == (
            f"data.corpus={files['corpus']} and {key} both say where passages come from; leave one out (retrieval=bm25 "
            "searches the corpus)"
        )
        asked("model=tiny", *given, *place, "data.experts=auto")  # its tokenizer is made of the corpus


def test_a_run_goes_on_as_it_was_asked_for(tmp_path: Path, files: dict[str, str]) -> None:
    given = ["data=jsonl", f"data.questions={files['questions']}", f"data.corpus={files['corpus']}"]
    given += [f"retrieval.index={files['index']}", "model=smollm2-135m"]
    (config,) = asked(*given, f"resume={tmp_path}")
    assert (config.retrieval.index, config.data.corpus) == (files["index"], files["corpus"])


def test_the_corpus_beside_a_runs_index_is_there_for_another_ranker(tmp_path: Path, files: dict[str, str]) -> None:
    both = ["data=jsonl", f"data.questions={files['questions']}", f"data.corpus={files['corpus']}"]
    (config,) = asked("model=tiny", *both, f"retrieval.index={files['index']}", "data.experts=auto")
    here = tmp_path / "here"
    (here / MADE_WITH).parent.mkdir(parents=True)
    (here / MADE_WITH).write_text(json.dumps({"settings": asdict(config), "data": {}}, default=str))
    (config,) = asked("mode=eval", f"checkpoint={here}")
    assert (config.retrieval.index, config.data.corpus) == (files["index"], None)
    (config,) = asked("mode=eval", f"checkpoint={here}", "retrieval=bm25")
    assert (config.retrieval.index, config.data.corpus) == (None, files["corpus"])


def test_a_ranker_of_ones_own_that_is_gone_is_named(tmp_path: Path, files: dict[str, str]) -> None:
    here = trained(tmp_path / "here", *(a.format(**files) for a in PLACED["corpus"]))
    made = json.loads((here / MADE_WITH).read_text())
    made["settings"]["retrieval"]["backend"] = "mine"
    (here / MADE_WITH).write_text(json.dumps(made))
    with pytest.raises(UserError, match=rf"^checkpoint={here}: .*mine"):
        asked("mode=eval", f"checkpoint={here}")


@pytest.mark.one_in(8)
@pytest.mark.parametrize("gone", ["questions", "corpus"])
def test_what_the_mode_does_not_read_may_be_gone(tmp_path: Path, files: dict[str, str], gone: str) -> None:
    here = trained(tmp_path / "here", *(a.format(**files) for a in PLACED["corpus"]))
    Path(files[gone]).unlink()
    moved = [] if gone == "questions" else [f"data.corpus={files['others']}"]
    for arguments in (["mode=ask", "question=who?"], ["mode=eval", f"data.eval_questions={files['others']}"]):
        check_inputs(*asked(*arguments, f"checkpoint={here}", *moved))
    if gone == "questions":
        with pytest.raises(UserError, match=r"^data\.questions=.*questions\.jsonl: no such file"):
            check_inputs(*asked("mode=eval", f"checkpoint={here}"))


@pytest.mark.slow
def test_what_a_run_held_out_is_divided_by_its_own_seed(tmp_path: Path, files: dict[str, str]) -> None:
    plain = [a.format(**files) for a in PLACED["corpus"]]
    divided = trained(tmp_path / "divided", *plain, "data.dev_share=0.1", seed=3)
    (config,) = asked("mode=eval", f"checkpoint={divided}")
    assert (config.seed, config.data.split_seed) == (0, 3)
    assert {c.data.split_seed for c in asked("-m", "mode=eval", f"checkpoint={divided}", "seed=0,1")} == {3}
    (config,) = asked("mode=calibrate", f"checkpoint={divided}")
    assert config.data.split_seed == 3
    (config,) = asked("mode=eval", f"checkpoint={divided}", "data.split_seed=5")
    assert config.data.split_seed == 5
    other = trained(tmp_path / "other", *plain, "data.dev_share=0.1", seed=4)
    with pytest.raises(UserError, match=r"was trained with another data\.split_seed"):
        asked("-m", "mode=eval", f"checkpoint={divided},{other}")
    both = asked("-m", "mode=eval", f"checkpoint={divided},{other}", f"data.eval_questions={files['others']}")
    assert {c.data.split_seed for c in both} == {None}, "a file is played as a whole"
    undivided = trained(tmp_path / "undivided", *plain, seed=3)
    (config,) = asked("mode=eval", f"checkpoint={undivided}")
    assert config.data.split_seed is None, "all that wasn't trained on is played"
