"""The configuration: every option composes to what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from settings import composed

import launch
from agent.config import ExitConfig, RewardConfig, SelectivityConfig
from agent.errors import UserError
from agent.inference.infer import Inference
from agent.pool.rules.base import rule_class, rule_names
from agent.pool.search_limits import RULES
from agent.strategies import STRATEGIES
from conf.evaluation import TRAINING_SAMPLE, EvalConfig
from conf.schema import CheckpointConfig, RunConfig
from conf.tree import keys
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
    **{
        ("data", name): ["data.corpus=c.jsonl", "mode=eval", "checkpoint=x"]
        for name in ("popqa", "bamboogle", "bamtwoogle", "antileak", "benchmark")
    },
    ("exit", "early"): ["mode=eval", "checkpoint=folder"],
    ("experiment", "benchmark"): ["checkpoint=folder"],
    ("experiment", "real_mini"): ["data.questions=questions.jsonl", "data.corpus=corpus.jsonl"],
    ("retrieval", "dense"): ["retrieval.encoder=x"],
    ("retrieval", "hybrid"): ["retrieval.encoder=x"],
    ("retrieval", "splade"): ["retrieval.encoder=x"],
    ("retrieval", "http"): ["retrieval.url=http://127.0.0.1:8000"],
    ("selectivity", "query"): ["mode=eval", "checkpoint=folder"],
    ("selectivity", "evidence"): ["mode=eval", "checkpoint=folder"],
    ("model", "folder"): ["model.path=here/folder"],
}
"""What an option can't do without."""


# --- what composes ---------------------------------------------------------------------------------


def test_the_groups_are_those_of_the_command_line() -> None:
    wanted = {"agent", "algorithm", "cluster", "data", "group", "model", "pool", "retrieval", "reward", "tracker"}
    assert wanted <= set(GROUPS)
    # Each is a part of the typed configuration; a cost is one of the reward, an experiment or a condition a set of
    # overrides.
    assert set(GROUPS) - {"experiment", "condition", "cost"} <= set(RunConfig.__dataclass_fields__)


@pytest.mark.one_in(20)
@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_every_option_becomes_a_typed_configuration(group: str, option: str) -> None:
    needed = ["mode=simulate"] if group == "simulation" else NEEDED.get((group, option), [])
    (config, *_) = launch.check_overrides([f"{group}={option}", *needed]).configs
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
        pytest.param("none", (), marks=pytest.mark.slow),
        ("wandb", ("wandb",)),
        pytest.param("trackio", ("trackio",), marks=pytest.mark.slow),
        pytest.param("[wandb,tensorboard]", ("wandb", "tensorboard"), marks=pytest.mark.slow),
        ("[trackio, none, wandb]", ("wandb", "trackio")),
    ],
)
def test_trackers_are_chosen_by_name_and_several_together(choice: str, names: tuple[str, ...]) -> None:
    (config,) = launch.check_overrides([f"tracker={choice}"]).configs
    assert config.tracker.names == names


@pytest.mark.slow
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
    grpo = composed("algorithm=grpo").algorithm
    assert grpo.choices == Choices(advantage="std", aggregation="sequence_mean", clip_low=0.2, clip_high=0.2)
    assert (grpo.kl, grpo.kl_coefficient) == ("k3", 0.04)
    assert composed("algorithm.loss=gspo").algorithm.choices == loss_class("gspo").defaults, "nothing stays behind"


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", sorted(file.stem for file in (CONF / "algorithm").glob("*.yaml")))
def test_each_algorithm_takes_its_losss_defaults(name: str) -> None:
    algorithm = composed(f"algorithm={name}").algorithm
    assert algorithm.loss == name
    assert algorithm.choices == loss_class(name).defaults


@pytest.mark.one_in(3)
@pytest.mark.parametrize("experiment", ["david_mini", "recycling", "searching_less"])
def test_plain_grpo_is_the_same_in_every_experiment(experiment: str) -> None:
    run = composed(f"experiment={experiment}", "condition=grpo")
    plain = composed("algorithm=grpo").algorithm
    assert (run.algorithm.loss, run.algorithm.choices) == ("grpo", plain.choices)
    assert (run.algorithm.kl, run.algorithm.kl_coefficient) == (plain.kl, plain.kl_coefficient)
    assert (run.pool.name, run.reward.outcome, run.reward.evidence_weight, run.group.strategy) == (
        *("epoch", "em", 0.0, "plain"),
    )


@pytest.mark.slow
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


@pytest.mark.one_in(3)
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
