"""The configuration: every option composes, every mistake gets one line that names it and the fix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from patience import run

import launch
from agent.config import ExitConfig, RewardConfig, SelectivityConfig
from agent.errors import UserError
from agent.inference.infer import Inference
from agent.pool.rules.base import rule_class, rule_names
from agent.pool.search_limits import RULES
from agent.strategies import STRATEGIES
from conf.schema import TRAINING_SAMPLE, CheckpointConfig, EvalConfig, RunConfig, keys, typed
from learner.losses.base import Choices, loss_class
from retrieval_service.backends import backend_names
from retrieval_service.config import RetrievalConfig
from retrieval_service.rankers import settings_of
from tasks.config import DataConfig
from tracking.config import TrackerConfig

ROOT = Path(launch.__file__).parent
CONF = ROOT / "conf"
GROUPS = sorted(folder.name for folder in CONF.iterdir() if any(folder.glob("*.yaml")))
OPTIONS = [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]
NEEDED = {
    ("agent", "tools"): ["model=smollm2-135m", "data=jsonl", "data.questions=questions.jsonl", "data.corpus=c.jsonl"],
    ("data", "jsonl"): ["data.questions=questions.jsonl", "data.corpus=corpus.jsonl", "model=smollm2-135m"],
    **{("data", name): ["data.corpus=c.jsonl", "model=smollm2-135m"] for name in ("hotpotqa", "musique", "2wiki")},
    **{("data", name): ["data.corpus=c.jsonl", "model=smollm2-135m"] for name in ("nq", "triviaqa")},
    **{("data", name): ["data.corpus=c.jsonl", "mode=eval", "checkpoint=x"] for name in ("popqa", "bamboogle")},
    ("exit", "early"): ["mode=eval", "checkpoint=folder"],
    ("experiment", "benchmark"): ["checkpoint=folder"],
    ("experiment", "real_mini"): ["data.questions=questions.jsonl", "data.corpus=corpus.jsonl"],
    ("retrieval", "dense"): ["retrieval.encoder=x"],
    ("retrieval", "hybrid"): ["retrieval.encoder=x"],
    ("retrieval", "http"): ["retrieval.url=http://127.0.0.1:8000"],
    ("selectivity", "query"): ["mode=eval", "checkpoint=folder"],
    ("selectivity", "evidence"): ["mode=eval", "checkpoint=folder"],
    ("model", "folder"): ["model.path=here/folder"],
}
"""What an option can't do without."""


def composed(*overrides: str) -> RunConfig:
    with initialize_config_module("conf", version_base=None):
        return typed(compose("config", overrides=[*overrides, "output_dir=here"]))


# --- what composes ---------------------------------------------------------------------------------


def test_the_groups_are_those_of_the_command_line() -> None:
    wanted = {"agent", "algorithm", "cluster", "data", "group", "model", "pool", "retrieval", "reward", "tracker"}
    assert wanted <= set(GROUPS)
    # Each is a part of the typed configuration; a cost is one of the reward, an experiment or a condition a set of
    # overrides.
    assert set(GROUPS) - {"experiment", "condition", "cost"} <= set(RunConfig.__dataclass_fields__)


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_every_option_becomes_a_typed_configuration(group: str, option: str) -> None:
    (config, *_) = launch.check_overrides([f"{group}={option}", *NEEDED.get((group, option), [])]).configs
    assert type(config) is RunConfig
    part: Any = getattr(config, group, None)
    named = {"cluster": "name", "model": "name", "pool": "name", "group": "strategy", "search_limit": "rule"}
    if group in named:
        assert getattr(part, named[group]) == option


def test_the_agents_are_those_that_their_files_describe() -> None:
    assert composed("agent=tools", "model=qwen0.5b").agent.format == "tools"
    reader = composed("agent=reader").agent
    assert (reader.protocol, reader.tools) == ("search", ["search", "open"])
    assert composed("agent=search_r1").agent.protocol == "search_r1"
    assert composed("agent=autocoa").agent.protocol == "autocoa"


def test_the_default_needs_nothing_that_has_to_be_downloaded() -> None:
    config = composed()
    assert (config.mode, config.cluster.name, config.model.name, config.data.source) == (
        *("train", "local", "tiny"),
        "world",
    )
    assert (config.seed, config.cluster.device, config.model.path) == (0, "cpu", None)
    assert (config.resume, config.checkpoint, config.question, config.debug) == (None, None, None, False)


def test_what_no_file_mentions_is_the_dataclass_default() -> None:
    config = composed("model=qwen0.5b")
    assert config.data == DataConfig(evidence_match="id")  # of data=world, whose titles are shared
    assert config.retrieval == RetrievalConfig()
    assert config.reward == RewardConfig()
    assert config.tracker == TrackerConfig(wandb=True)
    assert config.evaluation == EvalConfig()
    assert config.checkpoints == CheckpointConfig()


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("none", ()),
        ("wandb", ("wandb",)),
        ("trackio", ("trackio",)),
        ("[wandb,tensorboard]", ("wandb", "tensorboard")),
        ("[trackio, none, wandb]", ("wandb", "trackio")),
    ],
)
def test_trackers_are_chosen_by_name_and_several_together(choice: str, names: tuple[str, ...]) -> None:
    (config,) = launch.check_overrides([f"tracker={choice}"]).configs
    assert config.tracker.names == names


def test_training_evaluates_on_a_sample_and_mode_eval_on_everything() -> None:
    assert composed().evaluation.limit("train") == TRAINING_SAMPLE == 500
    assert composed().evaluation.limit("eval") == 0
    for mode in ("train", "eval"):
        assert composed("evaluation.questions=0").evaluation.limit(mode) == 0
        assert composed("evaluation.questions=7").evaluation.limit(mode) == 7
    assert 3 * composed().data.eval_questions_per_hop <= TRAINING_SAMPLE, "the demo's are played whole"


def test_every_pool_rule_has_a_file_and_becomes_its_own_class() -> None:
    assert rule_names() == sorted(file.stem for file in (CONF / "pool").glob("*.yaml"))
    for name in rule_names():
        assert type(composed(f"pool={name}").pool) is rule_class(name)


def test_every_ranker_has_a_file_and_its_own_settings() -> None:
    files = {file.stem for file in (CONF / "retrieval").glob("*.yaml")}
    assert {*backend_names()} <= files
    for name in backend_names():
        found = composed(f"retrieval={name}", *NEEDED.get(("retrieval", name), [])).retrieval
        assert (found.backend, type(found)) == (name, settings_of(name))
    with pytest.raises(UserError, match=r"^retrieval\.backend=dense has settings of its own: write retrieval=dense"):
        composed("retrieval.backend=dense")


def test_every_budget_rule_has_a_file() -> None:
    assert sorted(RULES) == sorted(file.stem for file in (CONF / "search_limit").glob("*.yaml"))
    assert composed().search_limit.rule == "fixed"
    with pytest.raises(UserError, match=r"search_limit\.most=9 must lie in \[1, agent\.max_searches=5\]"):
        composed("search_limit=adaptive", "search_limit.most=9")


def test_what_saves_at_inference_is_off_until_it_is_asked_for() -> None:
    config = composed()
    assert (config.exit, config.selectivity) == (ExitConfig(), SelectivityConfig())
    assert not config.exit.on
    assert config.evaluation_inference == Inference()
    assert composed("mode=eval", "checkpoint=x", "exit=early").exit.threshold == 0.9
    query, evidence = (
        composed("mode=ask", "checkpoint=x", "question=q", f"selectivity={s}") for s in ("query", "evidence")
    )
    assert query.selectivity == SelectivityConfig(queries=True)
    assert evidence.selectivity == SelectivityConfig(queries=True, evidence=True)


def test_a_training_runs_evaluations_save_only_when_asked() -> None:
    both = composed("exit=early", "selectivity=query", "evaluation.saving=true")
    assert both.evaluation_inference == Inference(exit=both.exit, selectivity=both.selectivity)
    one = composed("selectivity=query", "evaluation.saving=true").evaluation_inference
    assert (one.exit, one.selectivity) == (None, SelectivityConfig(queries=True))


def test_every_group_strategy_has_a_file() -> None:
    assert sorted(STRATEGIES) == sorted(file.stem for file in (CONF / "group").glob("*.yaml"))
    assert composed().group.strategy == "plain"


def test_davids_method_in_one_word() -> None:
    config = composed("experiment=david_grpo", "model=qwen1.5b", "cluster=4x3090")
    algorithm, agent, pool, optimizer = config.algorithm, config.agent, config.pool, config.algorithm.optimizer
    assert (config.group.strategy, pool.name, pool.batch_questions, pool.group_size) == ("continuation", "epoch", 24, 5)
    assert (agent.protocol, agent.max_searches, agent.top_k, agent.temperature) == ("autocoa", 10, 3, 0.6)
    assert (agent.max_new_tokens_first, agent.max_new_tokens) == (2048, 1024)
    assert (agent.max_prompt_tokens, agent.max_response_tokens) == (1024, 8192)
    assert (optimizer.betas, optimizer.weight_decay, optimizer.max_grad_norm) == ([0.9, 0.999], 0.01, 1.0)
    assert (algorithm.minibatch_questions, algorithm.choices.aggregation) == (12, "prompt_balanced")
    assert (config.reward.outcome, config.reward.evidence_weight, len(config.reward.gates)) == ("em_soft", 0.5, 5)
    assert (algorithm.seeding.steps, algorithm.seeding.experts, algorithm.of_seeding().optimizer.lr) == (50, 4, 1e-5)
    assert (algorithm.steps, algorithm.kl, algorithm.optimizer.lr, algorithm.choices.clip_high) == (
        215,
        "k2",
        1e-6,
        0.2,
    )
    assert algorithm.of_seeding().kl == "none"


def test_each_algorithm_takes_its_papers_numbers() -> None:
    """The default's are those that the results in docs/ were measured with; ``grpo`` is DeepSeekMath's."""
    default = composed().algorithm
    assert default.choices == Choices(advantage="std", aggregation="prompt_balanced", clip_low=0.2, clip_high=0.28)
    assert (default.loss, default.kl, default.old_logprobs, default.importance_cap) == (
        *("dapo_david", "none", "learner", 2.0),
    )
    for file in (CONF / "algorithm").glob("*.yaml"):
        algorithm = composed(f"algorithm={file.stem}").algorithm
        assert algorithm.loss == file.stem
        assert algorithm.choices == loss_class(file.stem).defaults
    grpo = composed("algorithm=grpo").algorithm
    assert grpo.choices == Choices(advantage="std", aggregation="sequence_mean", clip_low=0.2, clip_high=0.2)
    assert (grpo.kl, grpo.kl_coefficient) == ("k3", 0.04)
    assert composed("algorithm.loss=gspo").algorithm.choices == loss_class("gspo").defaults, "nothing stays behind"


@pytest.mark.parametrize("experiment", ["recycling", "david_mini", "searching_less"])
def test_plain_grpo_is_the_same_in_every_experiment(experiment: str) -> None:
    run = composed(f"experiment={experiment}", "condition=grpo")
    plain = composed("algorithm=grpo").algorithm
    assert (run.algorithm.loss, run.algorithm.choices) == ("grpo", plain.choices)
    assert (run.algorithm.kl, run.algorithm.kl_coefficient) == (plain.kl, plain.kl_coefficient)
    assert (run.pool.name, run.reward.outcome, run.reward.evidence_weight, run.group.strategy) == (
        *("epoch", "em", 0.0, "plain"),
    )


def test_cards_of_24_gib_have_8_bit_moments_and_only_the_tiny_model_keeps_all_activations() -> None:
    for file in (CONF / "cluster").glob("*.yaml"):
        if file.stem == "auto":  # the layout that the plan chooses says it
            continue
        config = composed(f"cluster={file.stem}", "model=qwen1.5b", "algorithm=david")
        small = config.cluster.device == "cuda" and config.cluster.card == "rtx3090"
        assert (config.algorithm.optimizer.kind == "adamw8bit") == small, file.stem
    for file in (CONF / "model").glob("*.yaml"):
        config = composed(f"model={file.stem}", "algorithm=david", *NEEDED.get(("model", file.stem), []))
        assert config.algorithm.gradient_checkpointing == ("auto" if file.stem != "tiny" else "none")
        assert config.algorithm.optimizer.lr == (1e-6 if file.stem != "tiny" else 3e-4)
    kept = composed("model=qwen1.5b", "algorithm.optimizer.kind=adamw", "algorithm.optimizer.offload=true")
    assert kept.algorithm.optimizer.offload


def test_an_override_reaches_its_place_with_its_type() -> None:
    config = composed(
        *("seed=7", "pool.oversample=2", "algorithm.optimizer.betas=[0.5,0.75]", "agent.chat=true"),
        *("reward.gates=[no_answer]", "cluster.address=null", "model.architecture.hidden_size=64"),
    )
    pool: Any = config.pool
    assert (config.seed, pool.oversample, type(pool.oversample)) == (7, 2.0, float)
    assert (config.algorithm.optimizer.betas, config.agent.chat) == ([0.5, 0.75], True)
    assert (config.reward.gates, config.cluster.address) == (["no_answer"], None)
    assert config.model.architecture["hidden_size"] == 64


def test_the_four_cards_hold_a_learner_and_three_engines() -> None:
    config = composed("cluster=4x3090", "model=qwen1.5b")
    assert (config.cluster.gpus, config.cluster.rollout_workers, config.cluster.device) == (4, 3, "cuda")
    assert config.algorithm.optimizer.kind == "adamw8bit"
    assert config.pool.max_staleness == 1, "what a machine wants comes after what the pool is"
    assert composed("cluster=4x3090", "pool=dynamic", "pool.max_staleness=0").pool.max_staleness == 0


@pytest.mark.parametrize(
    ("cluster", "gpus"),
    [
        *(("local", 0), ("2x24gb", 2), ("1x24gb", 1), ("8xh100", 8), ("ray", 4)),
        *(("4x3090-shared", 4), ("4x3090-2learners", 4)),
    ],
)
def test_each_cluster_says_how_many_gpus_it_takes(cluster: str, gpus: int) -> None:
    assert composed(f"cluster={cluster}").cluster.gpus == gpus


def test_every_setting_can_be_named_on_the_command_line() -> None:
    with initialize_config_module("conf", version_base=None):
        names = keys(compose("config", overrides=["output_dir=here"]))
    assert len(names) == len(set(names))
    assert {"seed", "pool.oversample", "algorithm.optimizer.lr", "model.architecture.hidden_size"} <= set(names)


# --- what doesn't ----------------------------------------------------------------------------------

MISTAKES = [
    # keys
    (["sed=1"], "sed is not a setting; did you mean 'seed'?"),
    (["pool.group_siz=3"], "pool.group_siz is not a setting; did you mean 'pool.group_size'?"),
    (["algorithm.optimiser.lr=1"], "algorithm.optimiser.lr is not a setting; did you mean 'algorithm.optimizer.lr'?"),
    (["+foo.bar=1"], "foo is not a setting; "),
    (["+pool.group_siz=3"], "pool.group_siz is not a setting; did you mean 'pool.group_size'?"),
    (["++pool.group_siz=3"], "pool.group_siz is not a setting; did you mean 'pool.group_size'?"),
    (["pool=epoch", "pool.oversample=2"], "pool.oversample is not a setting; valid names: batch_questions, "),
    (
        ["model.architecture.hidden_siz=3"],
        "model.architecture.hidden_siz is not a setting; did you mean 'model.architecture.hidden_size'?",
    ),
    (["cluster.engine.thread=3"], "cluster.engine.thread is not a setting; did you mean 'cluster.engine.threads'?"),
    (["+seed=3"], "+seed=3: "),
    # options of groups
    (["model=qwen15b"], "model=qwen15b: no such model; did you mean 'qwen1.5b'?"),
    (["cluster=4x4090"], "cluster=4x4090: no such cluster; did you mean '4x3090'?"),
    (["tracker=mlflow"], "tracker=mlflow: no such tracker; valid names: none, tensorboard, trackio, wandb"),
    (["tracker=[wandb,tensorbord]"], "tracker=[wandb,tensorbord]: no such tracker; did you mean 'tensorboard'?"),
    (["cluster=null"], "cluster=null: no such cluster; "),
    (["+pool=epoch"], "+pool=epoch: there is a pool already; write pool=epoch to choose another"),
    # types
    (["seed=abc"], "seed=abc: Value 'abc' of type 'str' could not be converted to Integer"),
    (["pool.group_size=1.5"], "pool.group_size=1.5: Value '1.5' of type 'float' could not be converted to Integer"),
    (["debug=maybe"], "debug=maybe: "),
    (["seed=null"], "seed=null: "),
    (["cluster.engine=3"], "cluster.engine=3: "),
    (["algorithm.optimizer.betas=0.9"], "algorithm.optimizer.betas=0.9: "),
    (["seed=1", "pool.group_size=x", "debug=true"], "pool.group_size=x: Value 'x' "),
    # values
    (["mode=trian"], "mode=trian is not known; did you mean 'train'?"),
    (["pool.group_size=1"], "pool.group_size=1 must lie in [2, 255]"),
    (["pool.oversample=0.5"], "pool.oversample=0.5 must be at least 1"),
    (["pool.max_staleness=-1"], "pool.max_staleness=-1 must be at least 0"),
    (["algorithm.optimizer.lr=0"], "algorithm.optimizer.lr=0.0 must be above 0"),
    (["algorithm.kl=k9"], "algorithm.kl=k9 is not known; "),
    (["agent.temperature=0"], "agent.temperature=0.0 must be above 0"),
    (["agent.protocol=serach"], "agent.protocol=serach is not known; did you mean 'search'?"),
    (["agent.prompt=plane"], "agent.prompt=plane is not known; did you mean 'plain'?"),
    (["group.strategy=plane"], "group.strategy=plane is not known; did you mean 'plain'?"),
    (["search_limit=adaptiv"], "search_limit=adaptiv: no such search_limit; did you mean 'adaptive'?"),
    (["search_limit=anneal", "search_limit.end=9"], "search_limit.end=9 must lie in [1, agent.max_searches=5]"),
    (["mode=eval", "checkpoint=x", "exit.threshold=2"], "exit.threshold=2.0 must lie in (0, 1]"),
    (["mode=eval", "checkpoint=x", "exit=early", "exit.calibration=c.json"], "exit.threshold and exit.calibration "),
    (["exit=early"], "exit and selectivity are for mode=eval and mode=ask; "),
    (["selectivity=query"], "exit and selectivity are for mode=eval and mode=ask; "),
    (["evaluation.saving=true"], "evaluation.saving=true needs something to use"),
    (["exit.calibration=c.json", "evaluation.saving=true"], "exit.calibration holds for one checkpoint"),
    (["mode=calibrate", "checkpoint=x", "exit=early", "data.dev_questions=q"], "mode=calibrate finds the threshold: "),
    (["data.dev_share=0.1"], "data.dev_share and data.dev_questions are for data=jsonl"),
    (["group=continuatoin"], "group=continuatoin: no such group; did you mean 'continuation'?"),
    (["reward.search_cost=-1"], "reward.search_cost=-1.0 must lie in [0, 1]"),
    (["algorithm.seeding.kl=k9"], "algorithm.seeding.kl=k9 is not known; "),
    (["algorithm.seeding.lr=0"], "algorithm.seeding.lr=0.0 must be above 0"),
    (["data.experts=e.jsonl"], "data.experts: data=world makes its own expert trajectories"),
    (["reward.outcome=f2"], "reward.outcome=f2 is not known; "),
    (["reward.gates=[no_anwser]"], "reward.gates=no_anwser is not known; did you mean 'no_answer'?"),
    (["data.evidence_match=url"], "data.evidence_match=url is not known; "),
    (["reward.evidence_match=id"], "reward.evidence_match is not a setting; here it is data.evidence_match"),
    (["retrieval.heap=lots"], "retrieval.heap=lots: must be at least 64m"),
    (["cluster.engine.gpu_memory_utilization=1.5"], "cluster.engine.gpu_memory_utilization=1.5 must lie in (0, 1]"),
    (["cluster.colocated=true"], "cluster.colocated=true shares each GPU between a learner and an engine"),
    (["cluster=1x24gb", "pool.max_staleness=1"], "cluster.colocated=true needs pool.max_staleness=0"),
    (["cluster.object_store_mib=-1"], "cluster.object_store_mib=-1 must be at least 0"),
    (["model.lora_rank=-1"], "model.lora_rank=-1 must be at least 0"),
    (["model.family=qwen4"], "model.family=qwen4 is not known; "),
    (["algorithm.optimizer.kind=adamw4bit"], "algorithm.optimizer.kind=adamw4bit is not known; "),
    (["algorithm.reference=gpu"], "algorithm.reference=gpu is not known; "),
    (
        ["algorithm.optimizer.offload=true", "algorithm.optimizer.kind=adamw8bit"],
        "algorithm.optimizer.offload=true keeps float32 states in host memory",
    ),
    (["algorithm.rollout_budget=-1"], "algorithm.rollout_budget=-1 must lie in [0, 9223372036854775807]"),
    (["evaluation.every=-1"], "evaluation.every=-1 must be at least 0"),
    (["checkpoints.keep=-1"], "checkpoints.keep=-1 must be at least 0"),
    (["tracker.wandb_mode=of"], "tracker.wandb_mode=of is not known; "),
    (["tracker.trajectories_per_step=-2"], "tracker.trajectories_per_step=-2 must be at least -1"),
    (["data.eval_share=1"], "data.eval_share=1.0 must lie in (0, 1)"),
    # what is missing
    (["data=jsonl"], "data=jsonl needs data.questions=FILE and data.corpus=FILE"),
    (["data=jsonl", "data.corpus=c", "model=smollm2-135m"], "data=jsonl needs data.questions=FILE"),
    (["data=jsonl", "data.eval_questions=q", "data.corpus=c"], "data=jsonl needs data.questions=FILE"),
    (["mode=index", "data=jsonl", "data.questions=q"], "mode=index builds the index of data.corpus=FILE, or"),
    (
        ["mode=eval", "data=jsonl", "data.corpus=c", "checkpoint=x"],
        "mode=eval data=jsonl needs data.eval_questions=FILE",
    ),
    (["mode=calibrate", "data=jsonl", "data.corpus=c", "checkpoint=x"], "there are no development questions; "),
    (
        ["mode=calibrate", "data=jsonl", "data.corpus=c", "checkpoint=x", "data.dev_share=0.1"],
        "data.dev_share=0.1 is a share of data.questions=FILE, which is missing",
    ),
    (
        ["data=jsonl", "data.questions=q", "data.corpus=c"],
        "model=tiny is made from scratch, and data=jsonl brings nothing that it could learn to write from: "
        "take a pretrained model (model=smollm2-135m, ",
    ),
    (
        ["-m", "data=jsonl", "data.questions=q", "data.corpus=c", "model=smollm2-135m,tiny"],
        "model=tiny is made from scratch",
    ),
    (
        ["data=jsonl", "data.questions=q", "data.corpus=c", "model=tiny", "model.path=folder"],
        "algorithm.warm_start.steps=200 needs expert trajectories: data.experts=FILE or auto; or set ",
    ),
    (["data=jsonl", "data.questions=q.jsonl"], "data=jsonl needs data.corpus=FILE"),
    (["mode=index", "data=jsonl", "retrieval.index=i"], "mode=index builds the index of data.corpus=FILE, or"),
    (
        ["data=jsonl", "data.questions=q", "data.corpus=c", "algorithm.seeding.steps=5"],
        "algorithm.seeding.steps=5 needs expert trajectories: data.experts=FILE or auto",
    ),
    (["mode=eval"], "mode=eval needs checkpoint=FOLDER"),
    (
        ["mode=eval", "checkpoint=x", "resume=auto"],
        "mode=eval resume=auto: an evaluation goes on with resume=if_any output_dir=FOLDER",
    ),
    (["mode=eval", "checkpoint=x", "evaluation.samples=4"], "evaluation.samples=4 needs evaluation.temperature above "),
    (["mode=compare", "run=x"], "mode=compare needs run=FOLDER and compare=FOLDER"),
    (["mode=compare", "compare=x"], "mode=compare needs run=FOLDER and compare=FOLDER"),
    (["mode=calibrate"], "mode=calibrate needs checkpoint=FOLDER"),
    (["mode=ask", "checkpoint=x"], 'mode=ask needs question="…"'),
    # what is no override
    (["seed"], "seed: not key=value"),
    (["=1"], "=1: not key=value"),
    (["seed=[1"], "seed=[1: can't be read; a value with any of "),
    (["--seed=1"], "--seed=1: no such flag; a setting has no dashes: seed=1"),
    # sweeps, value by value
    (["-m", "seed=1,2,x"], "seed=x: Value 'x' "),
    (["-m", "pool=epoch,recycl"], "pool=recycl: no such pool; did you mean 'recycle'?"),
    (["-m", "algorithm.kl=k1,k9"], "algorithm.kl=k9 is not known; "),
    (["-m", "seed=1,2", "agent.temperature=1,0"], "agent.temperature=0.0 must be above 0"),
    (["-m", "sed=1,2"], "sed is not a setting; did you mean 'seed'?"),
    (["-m", "pool=recycle,epoch", "pool.oversample=2"], "pool.oversample is not a setting; "),
    (["seed=1,2"], "seed=1,2: several values are a job each and need -m; "),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_a_mistake_gets_one_line_that_names_it(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        launch.check_overrides(arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-m", "seed=1,2", "pool=epoch,recycle"],
        ["seed=1", "-m", "mode=plan"],
        ["-m", "seed=range(1,4)", "model=choice(tiny,qwen0.5b)"],
        ["-m", "mode=eval", "checkpoint=one,two"],  # neither is complete without the other
        ["-m", "data=jsonl", "data.questions=a,b", "data.corpus=c", "model=smollm2-135m"],
        # The model that is made from scratch, on purpose: with the user's experts, from random weights, or resumed.
        ["data=jsonl", "data.questions=q", "data.corpus=c", "data.experts=e"],
        ["data=jsonl", "data.questions=q", "data.corpus=c", "algorithm.warm_start.steps=0"],
        ["data=jsonl", "data.questions=q", "data.corpus=c", "resume=auto"],
        # What only plays needs the files that it plays.
        ["mode=index", "data=jsonl", "data.corpus=c"],
        ["data=jsonl", "data.questions=q", "retrieval.index=i", "model=smollm2-135m"],
        ["mode=serve", "data=jsonl", "retrieval=http", "retrieval.url=http://127.0.0.1:8000"],
        ["mode=ask", "data=jsonl", "data.corpus=c", "checkpoint=x", "question=who"],
        ["mode=eval", "data=jsonl", "data.corpus=c", "checkpoint=x", "data.eval_questions=q"],
        ["mode=eval", "data=jsonl", "data.corpus=c", "checkpoint=x", "data.questions=q"],
        ["mode=calibrate", "data=jsonl", "data.corpus=c", "checkpoint=x", "data.dev_questions=q"],
        ["hydra.run.dir=elsewhere", "seed=2"],
        ["--cfg", "job"],
        ["+model.architecture.rope_theta=1000"],
        ["seed=1", "seed=2"],
    ],
    ids=" ".join,
)
def test_what_is_right_passes(arguments: list[str]) -> None:
    launch.check_overrides(arguments)


# --- from an error to an exit code -------------------------------------------------------------------


def exit_of(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``launch.py`` with these arguments, in this process."""
    monkeypatch.setattr(sys, "argv", ["launch.py", *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as main does, for longer
    code = 0
    try:
        launch.main()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else -1
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs ``mode=plan`` with a plan that raises what it is given, and further arguments."""
    monkeypatch.chdir(tmp_path)

    def run(error: BaseException | None, *arguments: str) -> tuple[int, str, str]:
        def mode(config: RunConfig, run_dir: Path, console: Any) -> None:
            run.config, run.folder = config, run_dir  # type: ignore[attr-defined]
            if error is not None:
                raise error

        monkeypatch.setitem(launch.MODES, "plan", mode)
        return exit_of(["mode=plan", *arguments], monkeypatch, capsys)

    return run


def test_success_is_0_and_the_run_has_a_folder_of_its_own(leave: Any, tmp_path: Path) -> None:
    assert leave(None, "seed=5") == (0, "", "")
    assert leave.folder.is_absolute()
    assert leave.folder.parent.parent == tmp_path / "outputs"
    assert (leave.folder / ".hydra" / "overrides.yaml").read_text() == "- mode=plan\n- seed=5\n"
    assert leave.config.seed == 5


def test_a_users_mistake_is_2_and_one_line(leave: Any) -> None:
    assert leave(UserError("corpus.jsonl: line 3: bad")) == (2, "", "slingshot: corpus.jsonl: line 3: bad\n")


def test_a_fault_is_1(leave: Any) -> None:
    from agent.errors import Fault

    assert leave(Fault("rollout-0 died; resume with x")) == (1, "", "slingshot: fault: rollout-0 died; resume with x\n")


def test_ctrl_c_is_130(leave: Any) -> None:
    assert leave(KeyboardInterrupt()) == (130, "", "slingshot: stopped\n")


@pytest.mark.parametrize("wrong", ["seed=5", "sed=5"])
def test_debug_shows_the_traceback_before_the_line(leave: Any, wrong: str) -> None:
    code, _, err = leave(UserError("bad"), "debug=true", wrong)
    assert code == 2
    assert err.startswith("Traceback (most recent call last)")
    assert err.splitlines()[-1].startswith("slingshot: ")


@pytest.mark.parametrize("argument", ["hydra.foo=1", "hydra/launcher=nowhere"])
def test_hydras_own_errors_are_one_line_too(leave: Any, argument: str) -> None:
    code, _, err = leave(None, argument)
    assert code == 2
    assert err.startswith("slingshot: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "question",
    ["Who wrote Emma?", "Where was Emma's author born, and when?", 'What is (x=3) in "y": [a] or {b}?', "größer 世界?"],
)
def test_a_question_may_have_any_punctuation(leave: Any, question: str) -> None:
    assert leave(None, f"question={question}")[0] == 0
    assert leave.config.question == question


# --- the command itself ------------------------------------------------------------------------------


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python launch.py`` in ``folder`` on a machine without a GPU."""
    return run(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        cwd=folder,
        env={**os.environ, "PATH": str(folder), "OMP_NUM_THREADS": "1"},  # no nvidia-smi
    )


def test_a_machine_without_the_gpus_is_told_so(tmp_path: Path) -> None:
    done = command(tmp_path, "cluster=4x3090", "model=qwen1.5b")
    assert (done.returncode, done.stdout) == (2, "")
    first = done.stderr.splitlines()[0]
    for part in ("needs 4 CUDA GPUs of 24 GiB", "this machine has none", "mode=plan"):
        assert part in first


def test_what_does_not_fit_is_refused_before_the_machine_is_looked_at(tmp_path: Path) -> None:
    done = command(tmp_path, "cluster=4x3090", "model=qwen1.5b", "algorithm.optimizer.kind=adamw")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    for part in ("the learner needs 27.8 GiB at its peak", "algorithm.optimizer.kind=adamw8bit makes it fit"):
        assert part in done.stderr


def test_a_plan_needs_no_gpu(tmp_path: Path) -> None:
    done = command(tmp_path, "mode=plan", "cluster=4x3090", "model=qwen1.5b")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("cluster=4x3090 model=qwen1.5b: 1,543,714,304 parameters in bfloat16, 4 x rtx3090 ")
    assert {"GPU 0: learner", "GPU 1 to 3: rollout-0 to rollout-2, each"} <= set(lines)


def test_a_sweep_runs_a_job_per_value_wherever_the_flag_stands(tmp_path: Path) -> None:
    done = command(tmp_path, "seed=1", "-m", "mode=plan", "pool=epoch,recycle")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("cluster=local model=tiny") == 2
    jobs = sorted(file.parent.parent for file in tmp_path.glob("multirun/*/*/*/.hydra/overrides.yaml"))
    assert [job.name for job in jobs] == ["pool=epoch", "pool=recycle"]
    for job, rule in zip(jobs, ("epoch", "recycle"), strict=True):
        assert (job / ".hydra" / "overrides.yaml").read_text() == f"- seed=1\n- mode=plan\n- pool={rule}\n"


def test_a_typing_error_exits_2_with_one_line(tmp_path: Path) -> None:
    done = command(tmp_path, "pool.group_siz=4")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "slingshot: pool.group_siz is not a setting; did you mean 'pool.group_size'?\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["conf.schema", "launch"])
def test_the_settings_import_nothing_heavy(module: str) -> None:
    heavy = ("torch", "ray", "vllm", "transformers", "pyserini", "jnius", "wandb", "datasets")
    code = f"import sys, {module}; print(sorted(set({heavy!r}) & set(sys.modules)))"
    done = run([sys.executable, "-c", code], cwd=ROOT)
    assert (done.stdout, done.stderr) == ("[]\n", "")
