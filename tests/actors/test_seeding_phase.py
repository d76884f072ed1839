"""Expert seeding from the settings to the learner: prepared experts, injected into real groups, trained on.

The learner's actor is used as the plain class that it is; the pool's is the pure pool.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors import learner as learner_module
from actors import publisher as publisher_module
from actors.learner import LearnerActor
from actors.payloads import packed
from actors.prepare import Prepared, prepare
from actors.training import LearnerSettings
from agent.config import AgentConfig, GroupConfig
from agent.dialogue import Dialogue
from agent.errors import UserError
from agent.groups import Group
from agent.pool.query_pool import QueryPool
from agent.pool.rules.epoch import Rule as Epoch
from agent.records import Question, Score, ScoredTrajectory, StopReason, Trajectory, Turn
from agent.tickets import Ticket
from agent.tokens import Tokenizer
from conf.schema import RunConfig
from learner.config import AlgorithmConfig, ModelConfig, OptimizerConfig, SeedingConfig, WarmStartConfig
from tasks.config import DataConfig
from tracking.trajectories import TrajectoryLog

AGENT = AgentConfig(prompt="plain", chat=False, top_k=2, max_prompt_tokens=64, max_response_tokens=320)
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
K = 5


def config(folder: Path, *, seeding: SeedingConfig | None = None, **changed: Any) -> RunConfig:
    settings = {
        "cache_dir": str(folder / "cache"),
        "agent": AGENT,
        "model": ModelConfig(architecture={**SIZES, "intermediate_size": 32}),
        "data": DataConfig(evidence_match="id", train_questions=30, eval_questions_per_hop=2, demonstrations=4),
        "algorithm": AlgorithmConfig(
            optimizer=OptimizerConfig(lr=1e-4),
            seeding=seeding or SeedingConfig(steps=3, lr=1e-2),
            mismatch_limit=0.0,  # the rollouts' log-probabilities are made up here, no engine gave them
        ),
        "pool": Epoch(),
        **changed,
    }
    return RunConfig(**settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seeding")


def learner_settings(run: RunConfig, prepared: Prepared, folder: Path, *, channel: str = "object_store") -> Any:
    """What the learner of ``run`` is told on a CPU."""
    return LearnerSettings(
        model_path=prepared.model_path,
        model=run.model,
        algorithm=run.algorithm,
        agent=run.agent,
        device="cpu",
        colocated=False,
        threads=1,
        weight_channel=channel,
        weight_bucket=2**20,
        weight_timeout_s=60.0,
        meeting_timeout_s=60.0,
        seed=0,
        run_dir=folder,
        log=TrajectoryLog(folder=folder, per_step=0),
    )


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Prepared:
    return prepare(config(folder), folder)


@pytest.fixture
def start(prepared: Prepared, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A learner that has begun its seeding, with other settings if they are given."""
    channel = SimpleNamespace(publish=lambda tensors, version: SimpleNamespace(version=version))
    monkeypatch.setitem(publisher_module.CHANNELS, "object_store", lambda: channel)
    monkeypatch.setattr(learner_module, "log_to", lambda *_: None)
    monkeypatch.setattr(learner_module.ray, "get", lambda value: value)

    def make(**changed: Any) -> Any:
        settings = learner_settings(config(folder, **changed), prepared, folder)
        actor = LearnerActor.__ray_metadata__.modified_class(settings, folder)  # type: ignore[attr-defined]
        actor.start()
        assert actor.begin_seeding(prepared.experts).version == 0
        return actor

    return make


class Pool:
    """A pool's actor without its actor: the rollouts of each question answer at once, with rewards as told."""

    def __init__(self, prepared: Prepared, rewards: dict[str, list[float]]) -> None:
        self._questions = tuple(e.question for e in prepared.experts)
        self._pool = QueryPool(
            [q.id for q in self._questions],
            Epoch(batch_questions=len(self._questions), group_size=K, max_empty_batches=9),
            seed=0,
        )
        self._dialogue = Dialogue.of(Tokenizer(prepared.model_path), AGENT)
        self._rewards = rewards
        self.take = SimpleNamespace(remote=self._take)
        self.drawn: list[set[str]] = []

    def _take(self, version: int) -> Any:
        tickets = self._pool.claim("w", now=0.0, limit=99)
        self.drawn.append({self._questions[t.query].id for t in tickets})
        for ticket in tickets:
            group = self._group(ticket, version)
            assert self._pool.submit(group.outcome(), packed(group))
        batch = self._pool.take(version=version)
        self._pool.release(batch.index)
        return batch

    def _group(self, ticket: Ticket, version: int) -> Group:
        question = self._questions[ticket.query]
        rewards = self._rewards.get(question.id, [0.0] * K)
        members = tuple(
            ScoredTrajectory(
                trajectory=self._trajectory(question, version), score=Score(reward=r, outcome=r, evidence=0.0)
            )
            for r in rewards
        )
        return Group(question=question, ticket=ticket, members=members)

    def _trajectory(self, question: Question, version: int) -> Trajectory:
        ids = self._dialogue.codec.encode("<answer> no</answer>")
        n = len(ids)
        return Trajectory(
            question_id=question.id,
            prompt_ids=np.array(self._dialogue.prompt_ids(question.text)),
            token_ids=np.array(ids),
            action_mask=np.ones(n, np.bool_),
            logprobs=np.full(n, -7.0, np.float32),
            versions=np.full(n, version),
            turns=(Turn(action_start=0, action_end=n, observation_end=n, text="<answer> no</answer>", answer="no"),),
            stop_reason=StopReason.ANSWERED,
        )


def expert_logprob(actor: Any) -> float:
    """Mean log-probability of the experts' action tokens under the policy."""
    from learner.batch import make_batch

    experts = actor._seeding.experts.values()
    score = Score(reward=1.0, outcome=1.0, evidence=1.0)
    ticket = Ticket(claim_id=0, query=0, batch=0, order=0, seed=0)
    groups = [
        Group(
            question=Question(id=e.question_id, text="?", golden_answers=("x",)),
            ticket=ticket,
            members=(ScoredTrajectory(trajectory=e, score=score),),
        )
        for e in experts
    ]
    samples = make_batch(groups, "std").samples
    return float(np.concatenate(actor._training.seeding.score(actor._training.policy, samples)).mean())


def test_the_beginning_of_the_seeding_is_a_phase_in_which_a_learner_may_hang(start: Any, prepared: Prepared) -> None:
    actor, seen = start(), []
    actor._training.begin_seeding = lambda: seen.append(actor._beats.under_way("start"))
    actor.begin_seeding(prepared.experts)
    assert seen == [True]


def test_every_step_takes_all_questions_and_learns_from_the_experts(start: Any, prepared: Prepared) -> None:
    actor = start()
    pool = Pool(prepared, {})
    before = expert_logprob(actor)
    reports = [actor.seed(pool) for _ in range(3)]
    assert pool.drawn == [{e.question.id for e in prepared.experts}] * 3
    assert len(pool.drawn[0]) == 4
    assert [r.version for r in reports] == [1, 2, 3] == [r.published.version for r in reports]
    assert [r.batch for r in reports] == [0, 1, 2]
    for report in reports:
        assert report.metrics["learner/expert_sequences"] == 4
        assert report.metrics["learner/lr"] == 1e-2
        assert report.metrics["reward/mean"] == 0.0, "the metrics tell what the policy did"
        assert report.metrics["groups/too_hard"] == 4
        assert report.metrics["rollout/trajectories"] == 4 * K
    assert expert_logprob(actor) > before + 0.1


def test_an_expert_is_injected_only_where_no_rollout_is_perfect(start: Any, prepared: Prepared) -> None:
    solved, mixed = (e.question.id for e in prepared.experts[:2])
    rewards = {solved: [1.0] * K, mixed: [0.0, 1.0, 0.0, 0.0, 0.0]}
    report = start().seed(Pool(prepared, rewards))
    assert report.metrics["learner/expert_sequences"] == 2
    assert report.metrics["learner/sequences"] == 3 * K, "equal rewards train nothing"


def test_a_step_without_anything_to_learn_publishes_nothing(start: Any, prepared: Prepared) -> None:
    report = start().seed(Pool(prepared, {e.question.id: [1.0] * K for e in prepared.experts}))
    assert (report.version, report.published) == (0, None)


def test_the_main_run_begins_anew_from_the_seeded_policy(start: Any, prepared: Prepared) -> None:
    actor = start(
        algorithm=AlgorithmConfig(
            kl="k2",
            optimizer=OptimizerConfig(lr=1e-4),
            seeding=SeedingConfig(steps=1, lr=1e-2),
            mismatch_limit=0.0,
        )
    )
    assert actor._training.seeding.reference is None
    report = actor.seed(Pool(prepared, {}))
    seeded = {name: tensor.clone() for name, tensor in actor._training.policy.published().items()}
    published = actor.begin(None)
    assert published.version == report.version == 1, "the same weights keep their version"
    assert actor._seeding is None
    assert actor._training.updater.config.optimizer.lr == 1e-4
    assert actor._training.updater.schedule(0) == 1.0
    reference = dict(actor._training.reference.published())
    assert seeded.keys() == reference.keys()
    assert all(torch.equal(seeded[name], reference[name]) for name in seeded), "it is the warm start's checkpoint"


def test_the_seeding_has_its_own_rate_and_kl_term(start: Any, prepared: Prepared) -> None:
    seeding = SeedingConfig(steps=2, lr=1e-3, kl="k2", kl_coefficient=0.5)
    algorithm = AlgorithmConfig(steps=9, clip_high=0.28, optimizer=OptimizerConfig(lr=1e-6), seeding=seeding)
    own = algorithm.of_seeding()
    assert (own.steps, own.optimizer.lr, own.kl, own.kl_coefficient, own.clip_high) == (2, 1e-3, "k2", 0.5, 0.28)
    actor = start(seeding=seeding)
    assert actor._training.seeding.reference is not None
    actor.seed(Pool(prepared, {}))
    assert actor.seed(Pool(prepared, {})).metrics["learner/kl"] > 0


# --- settings --------------------------------------------------------------------------------------


def test_the_worlds_experts_are_prepared(prepared: Prepared) -> None:
    assert len({e.question.id for e in prepared.experts}) == 4
    assert {e.question for e in prepared.experts} <= set(prepared.task.train)


@pytest.mark.slow
def test_no_seeding_no_experts(folder: Path) -> None:
    assert prepare(config(folder, seeding=SeedingConfig()), folder).experts == ()


@pytest.mark.slow
def test_an_expert_that_does_not_fit_is_refused_before_anything_starts(folder: Path) -> None:
    with pytest.raises(UserError, match=r"searches, more than agent\.max_searches=1; raise the limit"):
        prepare(config(folder, agent=AgentConfig(**{**vars(AGENT), "max_searches": 1})), folder)


def own_data(folder: Path, *, experts: str | None = None) -> DataConfig:
    def write(name: str, row: dict[str, Any], count: int = 1) -> str:
        path = folder / name
        rows = [{key: value.replace("#", str(i)) for key, value in row.items()} for i in range(count)]
        path.write_text("".join(json.dumps({**row, "id": f"{name}{i}"}) + "\n" for i, row in enumerate(rows)))
        return str(path)

    return DataConfig(
        source="jsonl",
        questions=write("ask.jsonl", {"question": "who is #?", "answer": "x"}, 4),
        corpus=write("corpus.jsonl", {"contents": '"t"\nx'}),
        experts=experts and write("experts.jsonl", {"question": "who wrote it?", "answer": "x", "trajectory": experts}),
    )


@pytest.mark.parametrize(
    ("experts", "algorithm", "message"),
    [
        (
            None,
            AlgorithmConfig(seeding=SeedingConfig(steps=2)),
            r"seeding\.steps=2 needs expert trajectories: data\.ex",
        ),
        ("<answer>x</answer>", AlgorithmConfig(), r"data\.experts is given, but nothing uses it; set algorithm\.seed"),
    ],
)
def test_experts_and_what_uses_them_go_together(
    tmp_path: Path, experts: str | None, algorithm: AlgorithmConfig, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        config(tmp_path, data=own_data(tmp_path, experts=experts), algorithm=algorithm)


@pytest.mark.parametrize(
    "algorithm",
    [AlgorithmConfig(seeding=SeedingConfig(steps=1, experts=1)), AlgorithmConfig(warm_start=WarmStartConfig(steps=1))],
    ids=["seeding", "supervised"],
)
def test_a_file_of_experts_is_read_before_anything_starts(tmp_path: Path, algorithm: AlgorithmConfig) -> None:
    good = config(tmp_path, data=own_data(tmp_path, experts="<answer>x</answer>"), algorithm=algorithm)
    made = prepare(good, tmp_path)
    assert len(made.experts) == (1 if algorithm.seeding.steps else 0)
    key = made.warm_start_key
    own_data(tmp_path, experts="It is <answer>x</answer>")
    changed = prepare(good, tmp_path).warm_start_key
    assert (changed != key) == bool(algorithm.warm_start.steps), "the file's content decides what is warm-started"
    own_data(tmp_path, experts="<answer>x")
    with pytest.raises(UserError, match=r"experts\.jsonl, line 1, id 'experts\.jsonl0': the answer"):
        prepare(good, tmp_path)


def test_a_continuation_needs_supporting_documents(tmp_path: Path) -> None:
    continued = config(
        tmp_path, data=own_data(tmp_path), algorithm=AlgorithmConfig(), group=GroupConfig(strategy="continuation")
    )
    with pytest.raises(UserError, match="no training question names any"):
        prepare(continued, tmp_path)


@pytest.mark.parametrize(
    "changed", [{"steps": -1}, {"experts": 0}, {"lr": 0.0}, {"kl": "k9"}], ids=lambda c: next(iter(c))
)
def test_wrong_settings_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^algorithm\.seeding"):
        SeedingConfig(**changed)
