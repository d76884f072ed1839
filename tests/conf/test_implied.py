"""What any model but the tiny one trains on, unless something else is said."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import launch
from agent.config import AgentConfig
from agent.errors import UserError
from conf.as_trained import MADE_WITH
from conf.schema import RunConfig
from retrieval_service.config import RetrievalConfig
from retrieval_service.wikipedia import HOTPOTQA, WIKI_18
from tasks.config import DataConfig
from tasks.paths import files_of

QWEN = "model=qwen1.5b"
HELD_OUT = "flashrag:hotpotqa/dev"


def asked(*arguments: str) -> RunConfig:
    return launch.check_overrides(list(arguments)).configs[0]


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        launch.check_overrides(list(arguments))
    return str(caught.value)


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "arguments",
    [
        ["cluster=4x3090", QWEN],
        ["model.path=somewhere"],
        ["mode=plan", QWEN],
        ["mode=fetch", QWEN],
        ["mode=eval", "checkpoint=somewhere"],
        ["mode=ask", "checkpoint=somewhere", "question=who?"],
        ["-m", "model=qwen0.5b,qwen1.5b"],
        ["experiment=david_grpo", QWEN, "data.experts=auto"],
    ],
)
def test_a_model_trains_on_hotpotqa_and_searches_wikipedia(arguments: list[str]) -> None:
    config = asked(*arguments)
    assert (config.data.questions, config.data.eval_questions) == ("flashrag:hotpotqa/train", HELD_OUT)
    assert (config.retrieval.prebuilt, config.data.corpus) == (HOTPOTQA.name, None)


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["mode=plan"],
        ["model=tiny", "model.path=somewhere"],
        ["-m", "model=qwen0.5b,tiny"],
        [QWEN, "data=world", "algorithm.warm_start.steps=0"],
        [QWEN, "data.train_questions=20"],
        [QWEN, "data.novice.answers_early=0.5"],
        ["mode=simulate", QWEN],
        ["mode=serve"],
    ],
)
def test_the_tiny_model_and_who_means_the_world_stay_with_it(arguments: list[str]) -> None:
    config = asked(*arguments)
    assert (config.data.source, config.retrieval.prebuilt) == ("world", None)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "arguments",
    [
        ["data.questions=q", "data.corpus=c", "algorithm.warm_start.steps=0"],
        [QWEN, "data.questions=q", "data.corpus=c"],
        ["mode=eval", "checkpoint=somewhere", "data.eval_questions=q", "data.corpus=c"],
        ["mode=index", "data.corpus=c"],
        ["mode=serve", "data.corpus=c"],
    ],
)
def test_who_names_files_of_their_own_means_them(arguments: list[str]) -> None:
    """And not the built-in world, or HotpotQA held out."""
    config = asked(*arguments)
    assert (config.data.source, config.data.corpus) == ("jsonl", "c")
    assert (config.data.questions or config.data.eval_questions or "q") == "q"
    assert config.retrieval.prebuilt is None


@pytest.mark.slow
def test_what_is_said_counts() -> None:
    own = asked(QWEN, "data=jsonl", "data.questions=q", "data.corpus=c")
    assert (own.data.questions, own.retrieval.prebuilt) == ("q", None)
    own = asked(QWEN, "data=jsonl", "data.questions=q", "retrieval=wikipedia")
    assert (own.data.eval_questions, own.retrieval.prebuilt) == (None, WIKI_18.name)
    named = asked(QWEN, "data=musique")
    assert (named.data.questions, named.retrieval.prebuilt) == ("flashrag:musique/train", WIKI_18.name)
    assert asked(QWEN, "data=[hotpotqa,nq]").retrieval.prebuilt == WIKI_18.name
    assert asked(QWEN, "data=hotpotqa", "data.corpus=c").retrieval.prebuilt is None
    assert asked(QWEN, "data.corpus=wiki-18").data.corpus == "wiki-18"
    assert asked(QWEN, "retrieval=http", "retrieval.url=http://127.0.0.1:1").retrieval.prebuilt is None
    assert asked(QWEN, "retrieval.index=folder").data.eval_questions == HELD_OUT
    chosen = asked(QWEN, "retrieval=wikipedia", f"retrieval.prebuilt={WIKI_18.name}")
    assert (chosen.retrieval.prebuilt, chosen.data.eval_questions) == (WIKI_18.name, HELD_OUT)
    assert asked("mode=serve", "retrieval=wikipedia").retrieval.prebuilt == WIKI_18.name


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [QWEN, "retrieval=bm25"],
            "flashrag:hotpotqa/train, flashrag:hotpotqa/dev are questions without passages: set",
        ),
        ([QWEN, "data=jsonl", "data.questions=q"], "data=jsonl needs data.corpus=FILE, or retrieval=wikipedia"),
        (
            ["mode=index", "data=hotpotqa"],
            "mode=index builds the index of data.corpus=FILE, or data.corpus=wiki-18; name",
        ),
        (
            ["data=jsonl", "data.questions=q", "retrieval=wikipedia"],
            "model=tiny is made from scratch, with a tokenizer",
        ),
        (["retrieval.prebuilt=wikipedia"], "retrieval.prebuilt=wikipedia is not known; valid names: auto, "),
        (
            ["retrieval=wikipedia", "retrieval.index=f"],
            "retrieval.prebuilt and retrieval.index both say where passages",
        ),
        (
            ["retrieval=wikipedia", "retrieval.backend=http"],
            "retrieval.prebuilt=auto is an index for retrieval.backend=",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: list[str], message: str) -> None:
    assert refusal(*arguments).startswith(message)


def checkpoint(folder: Path, data: DataConfig, retrieval: RetrievalConfig) -> Path:
    (folder / MADE_WITH).parent.mkdir(parents=True)
    settings = {"seed": 0, "agent": asdict(AgentConfig()), "model": {"dtype": "bfloat16"}}
    settings |= {"data": asdict(data), "retrieval": asdict(retrieval)}
    (folder / MADE_WITH).write_text(json.dumps({"settings": settings, "data": {}}))
    return folder


@pytest.mark.slow
def test_ones_own_files_count_beside_a_checkpoint_of_the_world(tmp_path: Path) -> None:
    """They were passed over, and the world's questions played in their place."""
    world = f"checkpoint={checkpoint(tmp_path / 'world', DataConfig(), RetrievalConfig())}"
    files = ("data.eval_questions=mine", "data.corpus=mine")
    config = asked("mode=eval", world, *files)
    assert (config.data.source, config.data.eval_questions, config.data.corpus) == ("jsonl", "mine", "mine")
    assert asked("mode=ask", world, "data.corpus=mine", "question=who?").data.source == "jsonl"
    other = checkpoint(tmp_path / "other", DataConfig(source="jsonl", questions="q", corpus="c"), RetrievalConfig())
    config = asked("mode=eval", f"checkpoint={other}", "data.eval_questions=mine")
    assert (config.data.eval_questions, config.data.corpus) == ("mine", "c")


@pytest.mark.parametrize("key", ["questions", "eval_questions", "corpus"])
def test_the_world_takes_no_files(key: str) -> None:
    wanted = f"data.{key} is for data=jsonl; data=world makes its own questions and passages"
    assert refusal("data=world", f"data.{key}=mine") == wanted


def test_a_checkpoint_is_evaluated_on_what_it_was_trained_on(tmp_path: Path) -> None:
    world = checkpoint(tmp_path / "world", DataConfig(), RetrievalConfig())
    assert asked("mode=eval", f"checkpoint={world}").data.source == "world"
    trained = DataConfig(world_seed=7, eval_questions_per_hop=20, evidence_match="id")
    seventh = checkpoint(tmp_path / "seventh", trained, RetrievalConfig())
    assert asked("mode=eval", f"checkpoint={seventh}").data == trained
    found = asked("mode=eval", f"checkpoint={seventh}", "data.eval_questions_per_hop=5").data
    assert found == replace(trained, eval_questions_per_hop=5), "what is said counts, and the world stays"
    assert asked("mode=eval", f"checkpoint={seventh}", "data=world").data == DataConfig(evidence_match="id")
    assert refusal("-m", "mode=eval", f"checkpoint={seventh},{world}").startswith(
        f"checkpoint={world}: was trained with another data.e"
    )


OWN = DataConfig(
    source="jsonl",
    questions="['a','b,c']",
    corpus="it's",
    shares=[1.0, 0.5],
    evidence_match="id",
    passage_words=60,
    overlap_words=10,
)


def test_one_of_ones_own_files_is_evaluated_on_them(tmp_path: Path) -> None:
    own = checkpoint(tmp_path / "own", OWN, RetrievalConfig(k1=1.2))
    config = asked("mode=eval", f"checkpoint={own}")
    assert (config.data, config.retrieval.k1) == (replace(OWN, split_seed=0), 1.2)
    config = asked("mode=eval", f"checkpoint={own}", "retrieval=wikipedia", "data.eval_questions=q")
    assert (config.data.eval_questions, config.retrieval.k1) == ("q", 0.9)
    assert config.retrieval.prebuilt == WIKI_18.name
    assert asked("mode=eval", f"checkpoint={own}", "data=hotpotqa").retrieval.prebuilt == HOTPOTQA.name
    world = checkpoint(tmp_path / "world", DataConfig(), RetrievalConfig())
    assert refusal("-m", "mode=eval", f"checkpoint={own},{world}").startswith(
        f"checkpoint={world}: was trained with another data"
    )


@pytest.mark.slow
def test_a_run_that_searched_by_vectors_is_evaluated_by_them(tmp_path: Path) -> None:
    lists = ("retrieval.vectors=ivf", "retrieval.probes=7")
    vectors = asked("retrieval=dense", "retrieval.encoder=x", *lists, QWEN, "data.corpus=c").retrieval
    dense = checkpoint(tmp_path / "dense", OWN, vectors)
    found = asked("mode=eval", f"checkpoint={dense}").retrieval
    assert (found.backend, getattr(found, "encoder", None), getattr(found, "probes", None)) == ("dense", "x", 7)


@pytest.mark.slow
def test_wikipedia_by_vectors_is_built_of_wiki_18() -> None:
    config = asked(QWEN, "retrieval=wikipedia-dense")
    assert (config.data.eval_questions, config.data.corpus) == (HELD_OUT, "wiki-18")
    assert (config.retrieval.backend, getattr(config.retrieval, "encoder", None)) == ("dense", "intfloat/e5-base-v2")
    for mode in ("index", "serve"):
        config = asked(f"mode={mode}", "retrieval=wikipedia-dense")
        assert (config.data.source, config.data.corpus) == ("jsonl", "wiki-18")
    assert asked("mode=index", "retrieval=wikipedia-dense", "data=jsonl", "data.corpus=c").data.corpus == "c"
    assert asked("mode=serve", "retrieval=wikipedia-dense", "retrieval.index=i").data.source == "world"


def test_the_benchmark_is_of_the_papers_sets_over_their_wikipedia() -> None:
    config = asked("experiment=benchmark", "checkpoint=folder")
    assert (config.mode, config.retrieval.prebuilt, config.model.name) == ("eval", WIKI_18.name, "folder")
    files = files_of(config.data.eval_questions or "", "data.eval_questions")
    seven = ["hotpotqa", "2wikimultihopqa", "musique", "bamboogle", "nq", "popqa", "triviaqa"]
    wanted = [*seven, "bamtwoogle", "antileak"]
    assert [file.partition(":")[2].split("/")[0] for file in files] == wanted
    assert config.data.named == files
    for other, played in (("data=popqa", "flashrag:popqa/test"), ("data.eval_questions=own.jsonl", "own.jsonl")):
        config = asked("experiment=benchmark", "checkpoint=folder", other)
        assert (config.mode, config.data.eval_questions) == ("eval", played)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (
            ["data=world,hotpotqa"],
            "data=world,hotpotqa: data=hotpotqa implies retrieval=wikipedia, data=world implies nothing else; ",
        ),
        pytest.param(
            ["data=hotpotqa,jsonl", QWEN, "data.corpus=null"],
            "data=hotpotqa,jsonl: data=jsonl implies nothing else, data=hotpotqa implies retrieval=wikipedia; ",
            marks=pytest.mark.slow,
        ),
        (
            ["retrieval=wikipedia,wikipedia-dense", QWEN],
            "retrieval=wikipedia,wikipedia-dense: retrieval=wikipedia-dense implies data.corpus=wiki-18 data=",
        ),
    ],
)
def test_what_a_sweep_varies_implies_the_same_for_all_its_jobs(sweep: list[str], message: str) -> None:
    assert refusal("-m", *sweep).startswith(message)


def test_a_sweep_over_named_sets_searches_wikipedia_in_each_job() -> None:
    configs = launch.check_overrides(["-m", "data=nq,popqa", QWEN, "mode=eval", "checkpoint=folder"]).configs
    assert [config.data.eval_questions for config in configs] == ["flashrag:nq/test", "flashrag:popqa/test"]
    assert {config.retrieval.prebuilt for config in configs} == {WIKI_18.name}


@pytest.mark.slow
def test_the_plan_leaves_a_staleness_that_is_given() -> None:
    assert asked("cluster=auto", QWEN).cluster.auto_keeps == []
    given = ("pool.max_staleness=0", "cluster.engine.gpu_memory_utilization=0.5", "seed=3")
    kept = ["cluster.engine.gpu_memory_utilization", "pool.max_staleness"]
    assert asked("cluster=auto", QWEN, *given).cluster.auto_keeps == kept
    assert asked("cluster=4x3090", QWEN, *given).cluster.auto_keeps == []


@pytest.mark.slow
def test_the_plan_leaves_what_a_file_of_ones_own_gives(tmp_path: Path) -> None:
    """An experiment's or a condition's file says what one could say on the command line, a sweep's parameters too."""
    for name, text in {
        "experiment/base": "defaults: [{override /cluster: auto}]\npool: {max_staleness: 0}\n",
        "experiment/mine": "defaults: [base]\nseed: 3\n",
        "experiment/sweep": "hydra: {mode: MULTIRUN, sweeper: {params: {condition: 'a,b', algorithm.steps: 1}}}\n",
        "condition/a": "seed: 1\n",
        "condition/b": "cluster: {engine: {gpu_memory_utilization: 0.5}}\n",
    }.items():
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"# @package _global_\n{text}")
    search = f"hydra.searchpath=[{tmp_path}]"

    def keeps(*arguments: str) -> list[str]:
        return launch.check_overrides([search, QWEN, "mode=plan", *arguments]).configs[0].cluster.auto_keeps

    assert keeps("experiment=mine") == ["pool.max_staleness"]
    assert keeps("experiment=mine", "cluster=4x3090") == []
    assert keeps("cluster=auto", "condition=b") == ["cluster.engine.gpu_memory_utilization"]
    assert keeps("experiment=sweep", "cluster=auto", "pool.group_size=4") == [
        "algorithm.steps",
        "cluster.engine.gpu_memory_utilization",
        "pool.group_size",
    ]


@pytest.mark.slow
def test_only_the_plan_is_left_the_number_of_learners() -> None:
    assert asked("cluster=auto", QWEN).cluster.learners == 0
    assert refusal("cluster=4x3090", QWEN, "cluster.learners=0") == (
        "cluster.learners=0 leaves the number to cluster=auto; give one that is at least 1"
    )
