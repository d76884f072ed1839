"""Keys of other programs, misspelt ones, and files of settings that are wrong: one line each."""

from __future__ import annotations

from pathlib import Path

import pytest
from conf_runs import Command
from hydra import compose, initialize_config_module

import launch
from agent.errors import UserError
from agent.pool.rules.base import rule_names
from conf import named_data, peers
from conf.help import groups
from conf.hints import LISTING, hint
from conf.tree import keys


def settings(*overrides: str) -> list[str]:
    with initialize_config_module("conf", version_base=None):
        return keys(compose("config", overrides=[*overrides, "output_dir=here"]))


def refusal(*arguments: str) -> str:
    """The one line with which a command line is refused."""
    with pytest.raises(UserError) as error:
        launch.check_overrides(list(arguments))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_list_that_is_written_without_brackets() -> None:
    wanted = "reward.gates=no_answer: is one value and not a list, which is written reward.gates=[a,b]"
    assert refusal("reward.gates=no_answer,no_search") == refusal("reward.gates=no_answer") == wanted
    assert refusal("-m", "data.shares=.7,.3").endswith("is written data.shares=[a,b]")


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("part", "more"), [("algorithm", []), ("algorithm.seeding", ["algorithm.seeding.steps=1"])])
def test_a_coefficient_of_no_kl_term_is_refused(part: str, more: list[str]) -> None:
    given = [*more, f"{part}.kl_coefficient=0.04"]
    wanted = f"{part}.kl_coefficient=0.04: there is no KL term; set {part}.kl=k1, k2 or k3, too"
    assert refusal(*given) == wanted
    assert refusal("-m", *given, "seed=0,1") == f"{wanted}; no job of the sweep has a use for it"
    for kl in ("k3", "none"):
        launch.check_overrides([*given, f"{part}.kl={kl}"])
    launch.check_overrides(["algorithm=grpo", "algorithm.kl_coefficient=0.04"])
    launch.check_overrides(["-m", "algorithm=dapo_david,grpo", "algorithm.kl_coefficient=0.04"])
    launch.check_overrides(["-m", *given, f"{part}.kl=none,k2"])


OWN = ["data=jsonl", "data.questions=q", "data.corpus=c", "model=smollm2-135m"]
BIG = ["cluster=4x3090", "model=qwen1.5b"]


@pytest.mark.one_in(10)
@pytest.mark.parametrize(
    ("idle", "more", "why"),
    [
        ("algorithm.reference=cpu", [], "there is no KL term, and so no reference; "),
        ("algorithm.whole_layers=5", BIG, "it is part of algorithm.gradient_checkpointing=mlp"),
        ("algorithm.optimizer.exact_master=true", [], "exact masters are for bfloat16 weights under "),
        ("algorithm.optimizer.exact_master=true", ["algorithm.optimizer.kind=adamw8bit"], "exact masters are for "),
        ("algorithm.optimizer.exact_master=true", [*BIG, "algorithm.optimizer.kind=adamw"], "exact masters are for "),
        ("algorithm.optimizer.shard=true", [], "one learner has all states; "),
        ("algorithm.optimizer.shard=true", BIG, "one learner has all states; "),
        ("algorithm.optimizer.float32_gradients=true", [], "gradients of float32 weights, "),
        ("algorithm.optimizer.float32_gradients=true", [*BIG, "model.lora_rank=8"], "gradients of float32 weights, "),
        *((f"data.{name}", OWN, "it is of data=world, ") for name in ("train_questions=9", "eval_questions_per_hop=9")),
        *((f"data.{name}", OWN, "it is of data=world, ") for name in ("demonstrations=9", "novice.double_checks=1")),
        ("data.world_seed=1", ["data=hotpotqa"], "it is of data=world, "),
        *((f"data.{name}", [], "it is of data=jsonl; ") for name in ("split_seed=1", "require_evidence=true")),
        ("data.eval_share=0.1", [], "it is of data=jsonl; "),
        ("data.eval_share=0.1", [*OWN, "data.eval_questions=e"], "data.eval_questions are what is held out; "),
        ("data.eval_share=0.1", ["data=hotpotqa"], "data.eval_questions are what is held out; "),
        ("experts.count=9", [*OWN, "data.experts=e"], "experts are made with data.experts=auto, or by mode=experts"),
        ("experts.teacher.url=http://x/v1", [], "experts are made with data.experts=auto, or by mode=experts"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(idle: str, more: list[str], why: str) -> None:
    assert refusal(*more, idle).startswith(f"{idle}: {why}")
    assert refusal(*more, "mode=plan", idle).startswith(f"{idle}: {why}")


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("idle", "mode", "why"),
    [
        ("evaluation.samples=8", [], "samples is of mode=eval; "),
        ("evaluation.temperature=0.6", ["mode=ask", "question=who?", "checkpoint=x"], "temperature is of mode=eval; "),
        ("evaluation.endpoint.url=nonsense", [], "a model behind an endpoint is played by mode=eval"),
        ("evaluation.endpoint.model=m", ["mode=calibrate", "checkpoint=x"], "a model behind an endpoint is played by "),
        (
            "evaluation.questions=9",
            ["mode=ask", "question=who?", "checkpoint=x"],
            "it is for mode=train, eval and calibrate; ",
        ),
        ("exit.risk=0.05", ["mode=eval", "checkpoint=x", "exit=early"], "risk is of mode=calibrate, which "),
        ("exit.delta=0.1", ["mode=ask", "question=who?", "checkpoint=x"], "delta is of mode=calibrate, which "),
        ("exit.fit_share=0", [], "fit_share is of mode=calibrate, which "),
    ],
)
def test_what_another_mode_reads_is_refused(idle: str, mode: list[str], why: str) -> None:
    assert refusal(*mode, idle).startswith(f"{idle}: {why}")


def test_what_holds_anyway_may_be_said() -> None:
    launch.check_overrides(["evaluation.samples=1", "evaluation.temperature=0", "evaluation.endpoint.url=null"])
    launch.check_overrides(["exit.risk=0.01"])


@pytest.mark.slow
def test_a_setting_with_what_it_needs_is_taken() -> None:
    for needed in (
        ["algorithm.reference=cpu", "algorithm.seeding.kl=k3", "algorithm.seeding.steps=1"],
        [*BIG, "algorithm.whole_layers=5", "algorithm.gradient_checkpointing=mlp"],
        [*BIG, "algorithm.whole_layers=0"],
        ["-m", *BIG, "algorithm.whole_layers=5", "algorithm.gradient_checkpointing=mlp,layers"],
        [*BIG, "algorithm.optimizer.exact_master=true"],
        ["algorithm.optimizer.exact_master=false", "algorithm.optimizer.kind=adamw"],
        ["algorithm.importance_cap=5"],
        ["cluster=4x3090-shared", "model=qwen1.5b", "algorithm.optimizer.shard=true"],
        ["cluster=auto", "model=qwen1.5b", "algorithm.optimizer.shard=true"],
        [*BIG, "algorithm.optimizer.float32_gradients=true"],
        ["algorithm=gspo", "algorithm.old_logprobs=engine"],
        [*BIG, "algorithm=grpo", "algorithm.old_logprobs=engine"],
        [*BIG, "algorithm=gspo", "algorithm.old_logprobs=engine", "algorithm.clip_low=.1", "algorithm.clip_high=.1"],
        ["data.split_seed=null", "data.require_evidence=false"],
        ["model=qwen0.5b", "data.split_seed=1", "data.require_evidence=true"],
        [*OWN, "data.eval_share=0.1"],
        ["mode=experts", *OWN, "experts.count=9"],
    ):
        launch.check_overrides(needed)


def test_a_clip_range_that_rounding_fills_is_refused() -> None:
    """Ratios that should be 1 would be clipped, and nothing learnt from whole sequences."""
    said = refusal(*BIG, "algorithm=gspo", "algorithm.old_logprobs=engine")
    assert "algorithm.old_logprobs=engine: in bfloat16 engine and learner differ by up to 0.02 nats a token" in said
    assert "algorithm.loss=gspo clips at 0.0003; set algorithm.old_logprobs=learner" in said


def test_a_cap_of_no_weight_is_refused(tmp_path: Path) -> None:
    """An experiment of one's own has the setting that rules it out."""
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm" / "mine.yaml").write_text("old_logprobs: engine\n")
    mine = [f"--config-dir={tmp_path}", "algorithm=mine"]
    assert refusal(*mine, "algorithm.importance_cap=5").startswith("algorithm.importance_cap=5: there is no weight to")
    launch.check_overrides([*mine, "algorithm.importance_cap=0"])
    launch.check_overrides([*mine, "algorithm.importance_cap=5", "algorithm.old_logprobs=engine"])


@pytest.mark.parametrize("value", ["Qwen/Qwen2.5-0.5B", "./home", "~/home", "/abs/model", "file.gguf"])
def test_a_path_of_a_model_is_no_choice(value: str) -> None:
    assert refusal(f"model={value}") == f"model={value}: is no choice of model; did you mean model.path={value}?"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("retrieval.topk=5", "retrieval.topk is not a setting; here it is agent.top_k"),
        ("retrieval.k=5", "retrieval.k is not a setting; here it is agent.top_k"),
        ("agent.max_turns=4", "agent.max_turns is not a setting; here it is agent.max_searches"),
        ("algorithm.gamma=1", "algorithm.gamma is not a setting; "),
        ("reward.outcome=mine.rewards.judge", "reward.outcome=mine.rewards.judge is not known; valid names: "),
        ("algorithm.loss=mine.losses.L", "algorithm.loss=mine.losses.L is not known; "),
    ],
)
def test_what_may_have_been_meant(given: str, said: str) -> None:
    found = refusal(given)
    assert found.startswith(said)
    assert "did you mean 'algorithm'" not in found
    assert found.endswith("; code of your own is named package.module:name") == ("mine." in given)


def test_a_glob_is_of_the_choices_that_there_are() -> None:
    found = launch.check_overrides(["-m", "pool=glob(*)", "retrieval=glob(b*)"]).sweep
    assert found is not None
    assert [job.overrides for job in found.plan.jobs] == [{"pool": pool} for pool in rule_names()]
    wanted = f"pool=glob(x*): matches no choice of pool: {', '.join(rule_names())}"
    assert refusal("-m", "pool=glob(x*)") == wanted
    assert refusal("-m", "seed=glob(*)") == "seed=glob(*): matches no choice of seed: it is no group"


# --- names of other programs -----------------------------------------------------------------------


def test_what_a_peers_setting_is_called_here_exists() -> None:
    valid = {*settings(), *groups(), "resume"}
    for names in peers.NAMES.values():
        for theirs, ours in names.items():
            for word in ours.partition(" (")[0].replace(" and ", " or ").split(" or "):
                assert word.partition("=")[0] in valid, (theirs, ours)


def test_no_name_of_theirs_is_one_of_ours() -> None:
    ours = {*settings(), *settings("pool=epoch"), *settings("pool=adaptive"), *groups()}
    assert not ours & {name for names in peers.NAMES.values() for name in names}
    assert not [key for key in ours if peers.family(f"{key}.x")]


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("trainer.total_training_steps=9", "trainer.total_training_steps is verl's name; here it is algorithm.steps"),
        ("trainer.total_epochs=3", "trainer.total_epochs is verl's name; here it is algorithm.steps (steps of "),
        ("algorithm.adv_estimator=grpo", "algorithm.adv_estimator is verl's name; here it is algorithm.advantage"),
        ("data.train_files=[a=b]", "data.train_files is verl's name; here it is data.questions"),
        ("actor_rollout_ref.model.path=Q/x", "actor_rollout_ref.model.path is verl's name; here it is model.path"),
        ("actor_rollout_ref.rollout.n=5", "actor_rollout_ref.rollout.n is verl's name; here it is pool.group_size"),
        ("data.train_batch_size=8", "data.train_batch_size is verl's name; here it is pool.batch_questions"),
        ("data.max_prompt_length=8", "data.max_prompt_length is verl's name; here it is agent.max_prompt_tokens"),
        ("+trainer.total_epochs=3", "trainer.total_epochs is verl's name; "),
        ("retriever.url=http://x:1/", "retriever.url is Search-R1's name; here it is retrieval.url ("),
        ("retriever.topk=3", "retriever.topk is Search-R1's name; here it is agent.top_k"),
        ("max_turns=4", "max_turns is Search-R1's name; here it is agent.max_searches"),
        ("generator.n_samples_per_prompt=5", "generator.n_samples_per_prompt is SkyRL's name; here it is pool.group_s"),
        ("num_generations=8", "num_generations is TRL's name; here it is pool.group_size"),
        ("n_samples_per_prompt=8", "n_samples_per_prompt is OpenRLHF's name; here it is pool.group_size"),
        ("lr=1e-6", "lr is not a setting; here it is algorithm.optimizer.lr"),
        ("batch_size=8", "batch_size is not a setting; here it is pool.batch_questions"),
        ("temperature=1", "temperature is not a setting; here it is agent.temperature"),
        ("critic.optim.lr=1", f"critic.optim.lr is a name of verl's, and nothing here corresponds to it; {LISTING}"),
        ("+trainer.val_only=false", "trainer.val_only is a name of verl's or SkyRL's, and nothing here corresponds"),
    ],
)
def test_a_peers_key_is_answered_with_ours(given: str, answer: str) -> None:
    assert refusal(given).startswith(answer)


def test_a_command_that_was_pasted_is_answered_at_once() -> None:
    line = refusal("data.train_files=a.parquet", "seed=1", "trainer.total_epochs=15", "max_turns=2", "+critic.x=1")
    assert line.count(" name; here it is ") == 3


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--learning_rate", "1e-6"], "--learning_rate is TRL's name; here it is algorithm.optimizer.lr=1e-6"),
        (["--learning-rate=1e-6"], "--learning_rate is TRL's name; here it is algorithm.optimizer.lr=1e-6"),
        (["--num_generations", "8", "seed=1"], "--num_generations is TRL's name; here it is pool.group_size=8"),
        (["--per_device_train_batch_size", "8"], "--per_device_train_batch_size is TRL's name; here it is pool.batch_"),
        (["--model_name_or_path", "x"], "--model_name_or_path is TRL's name; here it is model.path=x"),
        (["--pretrain", "x"], "--pretrain is OpenRLHF's name; here it is model.path=x"),
        (["--model", "tiny"], "--model: no such flag; a setting has no dashes: model=tiny"),
        (["-model", "tiny"], "-model: no such flag; a setting has no dashes: model=tiny"),
        (["--pool.group_size=4"], "--pool.group_size=4: no such flag; a setting has no dashes: pool.group_size=4"),
        (["--pool.group-size", "4"], "--pool.group-size: no such flag; a setting has no dashes: pool.group_size=4"),
        (["--debug"], "--debug: no such flag; a setting has no dashes: debug=…"),
        (["--multirum"], "--multirum: no such flag; did you mean --multirun?"),
        (["--qwert", "3"], f"--qwert: no such flag, and no setting either; {LISTING}"),
        (["seed=1", "-x"], f"-x: no such flag, and no setting either; {LISTING}"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_flag_that_is_none_gets_one_line(arguments: list[str], answer: str) -> None:
    assert refusal(*arguments).startswith(answer)


# --- misspelt --------------------------------------------------------------------------------------


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("sed", "did you mean 'seed'?"),
        ("agent.max_serches", "did you mean 'agent.max_searches'?"),
        ("agnet.max_searches", "did you mean 'agent.max_searches'?"),
        ("max_searches", "did you mean 'agent.max_searches'?"),
        ("optimizer.lr", "did you mean 'algorithm.optimizer.lr'?"),
        ("algorithm.optimiser.lr", "did you mean 'algorithm.optimizer.lr'?"),
        ("qwert", LISTING),
        ("tracking.total", LISTING),
        ("foo.bar.baz", LISTING),
        ("xpool", "did you mean 'pool'?"),
        ("group_size", "did you mean 'pool.group_size'?"),
        ("questions", "did you mean 'data.questions' or 'evaluation.questions'?"),
        ("device", "did you mean 'cluster.device' or 'retrieval.device'?"),
        ("algorithm.weight_decay", "did you mean 'algorithm.optimizer.weight_decay'?"),
        ("cluster.gpu_memory_utilization", "did you mean 'cluster.engine.gpu_memory_utilization'?"),
        ("agent.temp", "did you mean 'agent.temperature'?"),
        ("pool.size", "did you mean 'pool.group_size'?"),
        ("checkpoints.rule", "valid names: best, every, every_minutes, keep; elsewhere there is 'search_limit.rule'"),
        ("checkpoints.path", "valid names: best, every, every_minutes, keep; elsewhere there is 'model.path'"),
    ],
)
def test_a_hint_is_given_only_where_it_is_likely(key: str, meant: str) -> None:
    assert hint(key, settings()) == meant


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["modle=tiny"], "modle is not a setting; did you mean model=tiny?"),
        (["train"], "train: not key=value; did you mean mode=train?"),
        (["4x3090"], "4x3090: not key=value; did you mean cluster=4x3090?"),
        (
            ["adaptive"],
            "adaptive: not key=value; did you mean condition=adaptive or pool=adaptive or search_limit=",
        ),
        (["+foo=3"], f"foo is not a setting; {LISTING}"),
        (["seed=${nosuch}"], "seed: Interpolation key 'nosuch' not found"),
        (["pool.lease_s=inf"], "pool.lease_s=inf must be a finite number, and below 2^63"),
        (["mode=simulate", "simulation.drift=nan"], "simulation.drift=nan must be a finite number, and below 2^63"),
        (["algorithm.optimizer.betas=[0.9,inf]"], "algorithm.optimizer.betas=inf must be a finite number, and below"),
        (["seed=99999999999999999999"], "seed=99999999999999999999 must be a finite number, and below 2^63"),
        (["hydra.run.dri=x"], "hydra.run.dri is not a setting of Hydra's; did you mean 'hydra.run.dir'?"),
        (["hydra.mode=FOO"], "hydra.mode=FOO: Invalid value 'FOO', expected one of [RUN, MULTIRUN]"),
        (["hydra.run.dir=null"], "hydra.run.dir=null: field 'hydra.run.dir' is not Optional"),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib: no such hydra/launcher; valid names: basic"),
        (["hydra.job.chdir=true"], "hydra.job.chdir=true: paths are relative to the folder that you start in; "),
        (["algorithm={lr:1e-5}"], "algorithm={lr:1e-5}: algorithm.lr is not a setting; did you mean 'algorithm.seed"),
        (["-m", "seed=0,1,"], "seed=0,1,: a comma has no value beside it; leave it out"),
        (["-m", "pool=,epoch"], "pool=,epoch: a comma has no value beside it; leave it out"),
        (["pool.cooldown=4"], "pool.cooldown is a setting of pool=adaptive alone; choose that, too, or leave it out"),
        (
            ["retrieval.weights=[1,2]"],
            "retrieval.weights is a setting of retrieval=hybrid alone; choose that, too, or leave it out",
        ),
        (
            ["algorithm.optimizer=adamw"],
            "algorithm.optimizer=adamw: stands for several settings; write algorithm.optimizer.NAME=VALUE, NAME",
        ),
        (
            ["experts=auto"],
            "experts=auto: stands for several settings; write experts.NAME=VALUE, NAME one of answer_thoughts, ",
        ),
        (["cluster.device=gpu"], "cluster.device=gpu is not known; valid names: cpu, cuda"),
        (["data=squad"], "data=squad: no such data; valid names: 2wiki, antileak, "),
        (
            ["mode=plan", "cluster.deadlines={ping:3,answr:4}"],
            "cluster.deadlines={ping:3,answr:4}: cluster.deadlines.answr is not a setting; did you mean 'cluster.deadl",
        ),
        (["hydra.searchpath=x"], "hydra.searchpath=x: hydra.searchpath must be a list of strings"),
        (["hydra.searchpath=[/nowhere]"], "hydra.searchpath: /nowhere: no such folder"),
        (["hydra.searchpath=[pkg://nowhere]"], "hydra.searchpath=[pkg://nowhere]: provider=hydra.searchpath, path=now"),
        (["-m", "seed=1,2", "output_dir=x"], "output_dir=x: each job of a sweep has a folder of its own; "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_named(arguments: list[str], line: str) -> None:
    assert refusal(*arguments).startswith(line)


def test_a_value_of_a_part_may_be_meant_for_a_setting_of_its_name() -> None:
    assert refusal("experts=auto").endswith("; or did you mean data.experts=auto?")


# --- files of one's own ----------------------------------------------------------------------------

FILES = {
    "broken.yaml": ("seed: [1\n", "line 2: is not YAML ("),
    "bytes.yaml": (b"seed: 1\n# caf\xe9\n", "bytes.yaml, line 2: is not UTF-8; save it as UTF-8"),
    "typo.yaml": ("# @package _global_\nsed: 5\n", "experiment=typo: does not go with the other choices: In 'experi"),
    "defaults.yaml": ("defaults: 3\n", "experiment=defaults: does not go with the other choices: Invalid defaults"),
    "place.yaml": (
        "# @package [x\nseed: 1\n",
        "experiment=place: does not go with the other choices: Hydra can't read",
    ),
    "entry.yaml": (
        "defaults:\n  - o @verride /pool: recycle\n",
        "experiment=entry: does not go with the other choices: Hydra can't read",
    ),
    "deep.yaml": ("[" * 3000, "deep.yaml: is nested too deeply to be read"),
    "list.yaml": (
        "# @package _global_\nalgorithm: {optimizer: {betas: '${oc.env:HOME}[0.9]'}}\n",
        "algorithm.optimizer.betas=${oc.env:HOME}[0.9] must be a list",
    ),
    "tree.yaml": (
        "# @package _global_\nalgorithm: ${seed}\n",
        "experiment=tree: does not go with the other choices: In ",
    ),
    "value.yaml": ("# @package _global_\nseed: ${nosuch}\n", "seed: Interpolation key 'nosuch' not found"),
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of settings of one's own."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    for name, (content, _) in FILES.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "good.yaml").write_text("# @package _global_\nseed: 5\n")
    (folder.parent / "own.yaml").write_text("defaults:\n  - config\n  - _self_\nseed: 7\n")
    return folder.parent


@pytest.mark.parametrize("by", ["--config-dir", "hydra.searchpath"])
def test_files_of_ones_own_are_used(mine: Path, by: str) -> None:
    where = ["--config-dir", "mine"] if by == "--config-dir" else [f"hydra.searchpath=[file://{mine}]"]
    (config,) = launch.check_overrides([*where, "mode=plan", "experiment=good"]).configs
    assert config.seed == 5
    assert refusal(*where, "experiment=goood") == "experiment=goood: no such experiment; did you mean 'good'?"
    assert refusal(*where, "experiment=good", "sed=1") == "sed is not a setting; did you mean 'seed'?"


def test_a_configuration_of_ones_own_is_used(mine: Path, command: Command) -> None:
    own = ["--config-dir", str(mine), "--config-name", "own"]
    (config,) = launch.check_overrides([*own, "mode=plan"]).configs
    assert config.seed == 7
    code, out, err = command(*own, "--cfg", "job", "--resolve", "output_dir=x")
    assert (code, err) == (0, "")
    assert "seed: 7" in out


@pytest.mark.one_in(10)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("by", ["--config-dir", "hydra.searchpath"])
def test_a_file_that_is_wrong_gets_one_line(mine: Path, name: str, by: str) -> None:
    where = ["--config-dir", "mine"] if by == "--config-dir" else [f"hydra.searchpath=[file://{mine}]"]
    line = refusal(*where, "mode=plan", f"experiment={Path(name).stem}")
    assert FILES[name][1] in line
    if name in ("broken.yaml", "bytes.yaml", "deep.yaml"):
        assert line.startswith(str(mine / "experiment" / name))


def test_a_configuration_of_ones_own_that_is_not_utf_8_is_named(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mine / "experiment" / "bytes.yaml").unlink()
    (mine / "own.yaml").write_bytes(b"# caf\xe9\ndefaults: [config, _self_]\n")
    line = refusal("--config-dir", str(mine), "--config-name", "own")
    assert line == f"{mine / 'own.yaml'}, line 1: is not UTF-8; save it as UTF-8"
    (mine / "hotpotqa.yaml").write_bytes(b"# caf\xe9\n")
    monkeypatch.setattr(named_data, "_DATA", mine)
    line = refusal("data=[hotpotqa,musique]")
    assert line.startswith(f"{mine / 'hotpotqa.yaml'}: is not YAML in UTF-8 ('utf-8' codec can't decode byte 0xe9")
