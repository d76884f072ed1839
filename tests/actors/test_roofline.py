"""The plan's speeds: what a step costs on a card, and what the layouts make of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from plan_box import box
from settings import composed

from actors.plan.architecture import architecture
from actors.plan.fit import changed, problems, smallest_change
from actors.plan.learner import learner_memory
from actors.plan.roofline import Assumptions, step
from learner.config import OptimizerConfig


def test_the_learners_seconds_by_hand() -> None:
    config = box(("agent.max_response_tokens", 4096))
    assumed = Assumptions(response_share=0.5, action_share=0.25, learner_use=0.5)
    learning = step(config, assumed).learning
    model = architecture(config.model)
    tokens, own = 16 * 4 * (1024 + 2048), 2049
    memory = learner_memory(config)
    room = 16 * (1023 + 4 * (own + 1023 / 16))
    rows = math.ceil((room - 1023) / (16384 - 1023))
    computed = 16 * 4 * own + (16 + rows - 1) * 1023
    pairs = 16 * 4 * own * (1023 + own / 2) + (16 + rows - 1) * 1023**2 / 2
    again = 2 * 2 * 1536 * 8960 * computed * (28 - memory.whole)
    layers = 6 * computed * model.layer_parameters + 3.5 * 4 * 28 * 1536 * pairs + again
    head = 4 * 2 * (16 * 4 * 512) * 151_936 * 1536
    update = (2 * memory.states + 2 * memory.weights + memory.gradients) / 936e9
    assert learning.tokens == tokens
    assert learning.seconds == pytest.approx((layers + head) / (0.5 * 71e12) + update)
    assert learning.limit == "computing"


@pytest.mark.parametrize(
    ("changes", "updates", "scored"),
    [
        ({}, 1, 0),
        ({"epochs": 2}, 2, 1),
        ({"minibatch_questions": 8}, 2, 1),
        ({"minibatch_questions": 8, "old_logprobs": "engine"}, 2, 0),
        ({"kl": "k2", "kl_coefficient": 0.1}, 1, 1),
    ],
)
def test_a_pass_that_only_scores_is_counted_where_the_learner_makes_one(
    changes: dict[str, Any], updates: int, scored: int
) -> None:
    plain = box(("agent.max_response_tokens", 1024), ("algorithm.gradient_checkpointing", "layers"))
    config = plain
    for key, value in changes.items():
        config = changed(config, f"algorithm.{key}", value)
    one, learning = step(plain).learning, step(config).learning
    memory = learner_memory(plain)
    update = (2 * memory.own_states + 2 * memory.weights + memory.gradients) / 936e9
    passes = (learning.seconds - updates * update) / (one.seconds - update)
    epochs = changes.get("epochs", 1)
    assert passes == pytest.approx(epochs, rel=1e-6) if not scored else epochs + 0.2 < passes < epochs + 0.35


def test_decoding_by_hand() -> None:
    config = box(("agent.max_response_tokens", 4096), ("cluster.engine.max_num_seqs", 8))
    assumed = Assumptions(response_share=0.5, action_share=0.25, decode_bandwidth=0.5, engine_step_s=0.0)
    rollouts = step(config, assumed).rollouts
    mine = math.ceil(24 * 4 / 3)
    each = (2 * 1_543_714_304 + 8 * (1024 + 1024) * 28_672) / (0.5 * 936e9)
    read = mine * 1536 + mine / 4 * 1024
    prefill = read * 2 * architecture(config.model).layer_parameters / (0.45 * 71e12)
    assert (rollouts.trajectories, rollouts.together) == (96, 8)
    assert rollouts.seconds == pytest.approx(mine * 512 / 8 * each + prefill)
    assert rollouts.limit == "reading weights with 8 sequences at once (cluster.engine.max_num_seqs)"


def test_a_step_takes_the_longer_of_both_when_they_overlap() -> None:
    together, apart = step(box(("pool.max_staleness", 1))), step(box())
    learnt = apart.learning.seconds + apart.learning.publish_s
    assert apart.seconds == apart.rollouts.seconds + learnt
    assert together.seconds == max(together.rollouts.seconds, learnt) < apart.seconds
    assert apart.limit.startswith("learner: computing")


def test_recomputation_costs_a_third_and_adapters_save_no_time() -> None:
    def seconds(*changes: tuple[str, Any]) -> float:
        return step(box(*changes)).learning.seconds

    layers, mlp, none = (seconds(("algorithm.gradient_checkpointing", kind)) for kind in ("layers", "mlp", "none"))
    assert 1.2 < layers / none < 1.34
    assert 1.1 < mlp / none < 1.25
    assert none < seconds() < mlp, "what fits"
    adapted = seconds(("model.lora_rank", 16), ("algorithm.gradient_checkpointing", "layers"))
    assert 0.97 < adapted / layers < 1.0


def test_several_learners_share_the_work_and_add_their_gradients_up() -> None:
    one, two = step(box()).learning, step(box(("cluster.learners", 2))).learning
    memory = learner_memory(box())
    update = (2 * memory.states + 2 * memory.weights + memory.gradients) / 936e9
    ring = 2 * (1 / 2) * memory.gradients / 10e9
    assert two.adding_s == pytest.approx(ring)
    assert two.seconds == pytest.approx((one.seconds - update) / 2 + update + ring)
    assert two.model_use == pytest.approx(one.model_use * one.seconds / (2 * two.seconds))
    assert box(("cluster.learners", 2)).cluster.gpus == 5


def test_learners_that_share_the_states_out_have_the_largest_share_counted() -> None:
    config = box(("cluster.learners", 3), ("algorithm.optimizer", OptimizerConfig(shard=True)))
    memory = learner_memory(config)
    whole = learner_memory(box(("algorithm.optimizer", OptimizerConfig()))).states
    assert memory.states == whole
    assert whole / 3 <= memory.states_here < 1.1 * whole / 3
    assert smallest_change(changed(config, "algorithm.optimizer.shard", False)) == ("algorithm.optimizer.shard=true",)


def test_a_warm_start_has_all_states_on_the_first_card() -> None:
    shared = OptimizerConfig(shard=True)
    config = box(("cluster.learners", 3), ("algorithm.optimizer", shared), ("algorithm.kl", "k2"))
    memory = learner_memory(changed(config, "algorithm.warm_start.steps", 10))
    by_itself = replace(memory, shard=False, warm_start=False, reference="none").phases
    assert memory.phases == {
        **replace(memory, warm_start=False).phases,
        "warm start": max(size for phase, size in by_itself.items() if phase != "score"),
    }
    assert memory.peak_phase == "warm start"
    (problem,) = problems(changed(config, "algorithm.warm_start.steps", 10))
    assert "at its peak (warm start, rows of 16384 tokens)" in problem


@pytest.mark.parametrize(
    ("cluster", "staleness", "most"), [("4x3090", 0, 190), ("4x3090", 1, 170), ("4x3090-shared", 0, 90)]
)
def test_a_step_of_the_four_cards_takes_no_longer_than_was_asked(cluster: str, staleness: int, most: float) -> None:
    config = composed(f"cluster={cluster}", "model=qwen1.5b", f"pool.max_staleness={staleness}")
    assert step(config).seconds <= most
    assert learner_memory(config).exact
