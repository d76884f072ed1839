"""Settings that are refused: each gets one line that names it and what would be right."""

from __future__ import annotations

import pytest

import launch
from agent.errors import UserError

ASK, EVAL = ("mode=ask", "checkpoint=x", "question=who"), ("mode=eval", "checkpoint=x")
OPEN_ALONE = "agent.tools=['open'] has no tool called 'search', and "
TRAINED = ("tracker.trajectories_per_step=-1", "evaluation.every=0", "checkpoints.every=3", "data.demonstrations=9")
MISTAKES = [
    # keys
    (["sed=1"], "sed is not a setting; did you mean 'seed'?"),
    (["pool.group_siz=3"], "pool.group_siz is not a setting; did you mean 'pool.group_size'?"),
    (["algorithm.optimiser.lr=1"], "algorithm.optimiser.lr is not a setting; did you mean 'algorithm.optimizer.lr'?"),
    (["+foo.bar=1"], "foo is not a setting; "),
    (["+pool.group_siz=3"], "pool.group_siz is not a setting; did you mean 'pool.group_size'?"),
    (["++pool.group_siz=3"], "pool.group_siz is not a setting; did you mean 'pool.group_size'?"),
    (
        ["pool=epoch", "pool.oversample=2"],
        "pool.oversample is a setting of pool=adaptive, pool=dynamic and pool=recycle alone; choose one ",
    ),
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
    (["seed=null"], "seed=null: null is no value for it; leave it out, or give one"),
    (["algorithm.optimizer=null"], "algorithm.optimizer=null: null is no value for it; leave it out, or give one"),
    (["algorithm.optimizer.betas=[null,0.9]"], "algorithm.optimizer.betas[0]: null is no value for it; leave it out, "),
    ([f"algorithm.optimizer.lr={10**400}"], f"algorithm.optimizer.lr={10**400}: int too large"),
    (["cluster.engine=3"], "cluster.engine=3: "),
    (["algorithm.optimizer.betas=0.9"], "algorithm.optimizer.betas=0.9: "),
    (["seed=1", "pool.group_size=x", "debug=true"], "pool.group_size=x: Value 'x' "),
    # values
    (["mode=trian"], "mode=trian is not known; did you mean 'train'?"),
    (["pool.group_size=1"], "pool.group_size=1 must lie in [2, 255]"),
    (["pool.oversample=0.5"], "pool.oversample=0.5 must be at least 1"),
    (["pool.max_staleness=-1"], "pool.max_staleness=-1 must be at least 0"),
    (["algorithm.optimizer.lr=0"], "algorithm.optimizer.lr=0.0 must be above 0"),
    (["algorithm.optimizer.lr=1e6"], "algorithm.optimizer.lr=1000000.0 must be above 0 and at most 1"),
    (["algorithm.kl=k9"], "algorithm.kl=k9 is not known; "),
    (["agent.temperature=0"], "agent.temperature=0.0 must be at least 0.01"),
    (["agent.temperature=60"], "agent.temperature=60.0 must be at least 0.01 and at most 10"),
    (["agent.protocol=serach"], "agent.protocol=serach is not known; did you mean 'search'?"),
    (["agent.prompt=instruct", "agent.tools=[open]"], "agent.prompt=instruct tells of a search, and agent.tools "),
    (["agent.prompt=plane"], "agent.prompt=plane is not known; did you mean 'plain'?"),
    (["group.strategy=plane"], "group.strategy=plane is not known; did you mean 'plain'?"),
    (["search_limit=adaptiv"], "search_limit=adaptiv: no such search_limit; did you mean 'adaptive'?"),
    (["search_limit=anneal", "search_limit.end=9"], "search_limit.end=9 must lie in [1, agent.max_searches=5]"),
    (["mode=eval", "checkpoint=x", "exit.threshold=2"], "exit.threshold=2.0 must lie in (0, 1]"),
    (["mode=eval", "checkpoint=x", "exit=early", "exit.calibration=c.json"], "exit.threshold and exit.calibration "),
    (
        ["mode=eval", "checkpoint=x", "exit.calibration=c.json", "evaluation.temperature=0.6"],
        "exit.calibration=c.json holds for greedy episodes, as mode=calibrate plays them: set ",
    ),
    (["exit=early"], "exit and selectivity are for mode=eval and mode=ask; "),
    (["selectivity=query"], "exit and selectivity are for mode=eval and mode=ask; "),
    (["evaluation.saving=true"], "evaluation.saving=true needs something to use"),
    (["exit.calibration=c.json", "evaluation.saving=true"], "exit.calibration holds for one checkpoint"),
    (["mode=calibrate", "checkpoint=x", "exit=early", "data.dev_questions=q"], "mode=calibrate finds the threshold: "),
    (["data.dev_share=0.1"], "data.dev_share and data.dev_questions are for data=jsonl"),
    (["group=continuatoin"], "group=continuatoin: no such group; did you mean 'continuation'?"),
    (["reward.search_cost=-1"], "reward.search_cost=-1.0 must lie in [0, 1]"),
    (
        ["algorithm.seeding.steps=3", "algorithm.rollout_budget=96"],
        "algorithm.rollout_budget=96 is used up by the expert seeding, which plays 96 trajectories; raise it, or lower",
    ),
    (["algorithm.seeding.kl=k9", "algorithm.seeding.steps=1"], "algorithm.seeding.kl=k9 is not known; "),
    (["algorithm.seeding.lr=0", "algorithm.seeding.steps=1"], "algorithm.seeding.lr=0.0 must be above 0"),
    (["data.experts=e.jsonl"], "data.experts: data=world makes its own expert trajectories"),
    (["reward.outcome=f2"], "reward.outcome=f2 is not known; "),
    (["reward.gates=[no_anwser]"], "reward.gates=no_anwser is not known; did you mean 'no_answer'?"),
    (
        ["agent.tools=[open]", "agent.prompt=plain", "reward=david"],
        OPEN_ALONE + "the gate no_search of reward.gates counts searches; ",
    ),
    (["agent.tools=[open]", "agent.prompt=plain", "cost=search"], OPEN_ALONE + "reward.search_cost counts searches; "),
    (
        ["agent.tools=[open]", "agent.prompt=plain", "search_limit=anneal", "search_limit.start=1"],
        OPEN_ALONE + "search_limit.rule=anneal counts searches; ",
    ),
    (
        ["mode=eval", "checkpoint=x", "agent.tools=[open]", "agent.prompt=plain", "selectivity=query"],
        OPEN_ALONE + "selectivity counts searches; give the tool that retrieves this name (Tool.name), or leave it out",
    ),
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
    (
        ["data=jsonl", "data.questions=q", "data.corpus=c", "model=smollm2-135m", "data.eval_share=1"],
        "data.eval_share=1.0 must lie in (0, 1)",
    ),
    # what is missing
    (["data=jsonl"], "data=jsonl needs data.questions=FILE and data.corpus=FILE"),
    (["data=jsonl", "data.corpus=c", "model=smollm2-135m"], "data=jsonl needs data.questions=FILE"),
    (
        ["data=jsonl", "data.eval_questions=q", "data.corpus=c"],
        "q is for evaluation alone (mode=eval); mode=train needs ",
    ),
    (
        ["data=popqa", "model=smollm2-135m"],
        "flashrag:popqa/test is for evaluation alone (mode=eval); mode=train needs qu",
    ),
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
    (["checkpoint=somewhere"], "checkpoint=somewhere is for mode=eval, ask, calibrate and fetch; resume=FOLDER goes"),
    (["mode=plan", "checkpoint=org/name"], "checkpoint=org/name is for mode=eval, ask, calibrate and fetch; "),
    (
        ["model=[tiny]"],
        "model=[tiny]: one choice is needed, such as model=NAME; several values are a sweep, -m model=A,B",
    ),
    (["cluster=auto", "cluster.device=cpu"], "cluster=auto cluster.device=cpu: cluster=auto divides GPUs; "),
    (["~cluster"], "~cluster: one choice is needed, such as cluster=NAME"),
    (["retrieval=[bm25,dense]"], "retrieval=[bm25,dense]: one choice is needed"),
    (["algorithm=[gspo,grpo]"], "algorithm=[gspo,grpo]: one choice is needed, such as algorithm=NAME; several values"),
    (["reward=[david,em]"], "reward=[david,em]: one choice is needed"),
    (["pool=[epoch,recycle]"], "pool=[epoch,recycle]: one choice is needed, such as pool=NAME; several values are a s"),
    (["model.path=qwen0.5b"], "model.path=qwen0.5b: there is no such folder; did you mean model=qwen0.5b?"),
    (["cluster=4x3090", "cluster.cards=2"], "cluster.cards=2: it is for cluster=auto; elsewhere cluster.learners and"),
    (["question=Who?"], "question=Who?: it is for mode=ask; leave it out"),
    # what a mode doesn't read
    (["mode=simulate", "tracker=wandb"], "tracker=wandb: it is for mode=train and eval; leave it out"),
    (["mode=ask", "checkpoint=x", "question=who", "tracker=[none,trackio]"], "tracker=[none,trackio]: it is for mode="),
    (["mode=index", "data.corpus=c", "tracker.wandb=true"], "tracker.wandb=true: it is for mode=train and eval; "),
    ([*EVAL, "resume_allow_changes=true"], "resume_allow_changes=true: it is for mode=train; leave it out"),
    ([*ASK, "evaluation.max_fault_share=0.5"], "evaluation.max_fault_share=0.5: it is for mode=train, eval and calib"),
    (["mode=serve", "tracker.project=mine"], "tracker.project=mine: it is for mode=train and eval; leave it out"),
    (["mode=serve", "checkpoints.every=3"], "checkpoints.every=3: it is for mode=train; leave it out"),
    (["mode=simulate", "evaluation.every=3"], "evaluation.every=3: it is for mode=train; leave it out"),
    (["mode=serve", "experts.count=9"], "experts.count=9: it is for mode=train and experts; leave it out"),
    (["mode=serve", "evaluation.samples=3"], "evaluation.samples=3: samples is of mode=eval; "),
    (["mode=index", "exit.threshold=0.9"], "exit.threshold=0.9: it is for mode=train, eval, calibrate and ask; "),
    (["mode=serve", "exit=early"], "exit=early: it is for mode=train, eval, calibrate and ask; leave it out"),
    (["mode=view", "run=x", "selectivity=query"], "selectivity=query: it is for mode=train, eval, calibrate and ask; "),
    (["simulation.queries=5"], "simulation.queries=5: it is for mode=simulate; leave it out"),
    (["report.title=mine"], "report.title=mine: it is of a sweep's report; run several jobs, with -m, or leave it out"),
    (["mode=simulate", "checkpoint=x"], "checkpoint=x is for mode=eval, ask, calibrate and fetch; "),
    (["mode=doctor", "checkpoint=x"], "checkpoint=x is for mode=eval, ask, calibrate and fetch; "),
    (["mode=experts", "checkpoint=x"], "checkpoint=x is for mode=eval, ask, calibrate and fetch; "),
    (["mode=index", "data.corpus=c", "checkpoint=x"], "checkpoint=x is for mode=eval, ask, calibrate and fetch; "),
    (["mode=index", "data.corpus=c", "resume=auto"], "resume=auto: it is for mode=train, eval and calibrate; "),
    (["mode=simulate", "run=x"], "run=x: it is for mode=view and compare; leave it out"),
    (["simulation=easy"], "simulation=easy: it is for mode=simulate; leave it out"),
    (["mode=index", "data.corpus=c", "retrieval=wikipedia"], "mode=index builds an index, and wikipedia-dpr-100w is"),
    (["mode=index", "data.corpus=c", "retrieval.index=i"], "mode=index builds an index, and i is one already"),
    (["mode=index", "data=jsonl", "retrieval.index=i"], "mode=index builds the index of data.corpus=FILE, or"),
    (
        ["data=jsonl", "data.questions=q", "data.corpus=c", "algorithm.seeding.steps=5"],
        "algorithm.seeding.steps=5 needs expert trajectories: data.experts=FILE or auto",
    ),
    (["mode=eval"], "mode=eval needs checkpoint=FOLDER"),
    (
        ["mode=eval", "checkpoint=x", "resume=auto"],
        "mode=eval resume=auto: goes on with resume=if_any output_dir=FOLDER",
    ),
    (["mode=eval", "checkpoint=x", "evaluation.samples=4"], "evaluation.samples=4 needs evaluation.temperature above "),
    (["mode=compare", "run=x"], "mode=compare needs run=FOLDER and compare=FOLDER"),
    (["mode=compare", "compare=x"], "mode=compare needs run=FOLDER and compare=FOLDER"),
    (["mode=calibrate"], "mode=calibrate needs checkpoint=FOLDER"),
    (["mode=ask", "checkpoint=x"], 'mode=ask needs question="…"'),
    (["mode=ask", "checkpoint=x", "question=' '"], 'mode=ask needs question="…"'),
    # what is no override
    (["seed"], "seed: not key=value"),
    (["=1"], "=1: not key=value"),
    (["seed=[1"], "seed=[1: can't be read; a value with any of "),
    (["--seed=1"], "--seed=1: no such flag; a setting has no dashes: seed=1"),
    # sweeps, value by value
    (["-m", "seed=1,2,x"], "seed=x: Value 'x' "),
    (["-m", "pool=epoch,recycl"], "pool=recycl: no such pool; did you mean 'recycle'?"),
    (["-m", "algorithm.kl=k1,k9"], "algorithm.kl=k9 is not known; "),
    (["-m", "seed=1,2", "agent.temperature=1,0"], "agent.temperature=0.0 must be at least 0.01"),
    (["-m", "sed=1,2"], "sed is not a setting; did you mean 'seed'?"),
    (["-m", "pool=recycle,epoch", "pool.oversample=2"], "pool.oversample is a setting of pool=adaptive, "),
    (["seed=1,2"], "seed=1,2: several values are a job each and need -m; "),
]


@pytest.mark.one_in(12)
@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_a_mistake_gets_one_line_that_names_it(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        launch.check_overrides(arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.one_in(9)
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
        # No tracker may be said everywhere, and a run's command is planned as it is.
        ["mode=simulate", "tracker=none"],
        ["mode=plan", "tracker=wandb", "tracker.project=mine", "resume=auto"],
        # What was trained is played by the same command, with another mode behind it.
        [*TRAINED, *EVAL],
        [*TRAINED, *ASK],
        [*TRAINED, "mode=calibrate", "checkpoint=x"],
        ["--cfg", "job"],
        ["+model.architecture.rope_theta=1000"],
        ["seed=1", "seed=2"],
    ],
    ids=" ".join,
)
def test_what_is_right_passes(arguments: list[str]) -> None:
    launch.check_overrides(arguments)
