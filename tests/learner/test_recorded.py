"""What two steps made of fixed batches when each case was first recorded: a change of the code's shape changes none.

In float64, so that another machine's last digits don't matter. A case that is new is recorded by what the test says
it got, after ``test_update.py`` has compared its settings with the plain reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import MIXED, as_expert, group, random_groups, tiny_policy

from agent.groups import Group
from learner.config import AlgorithmConfig, OptimizerConfig
from learner.update import Updater

SHARED: dict[str, Any] = {
    "clip_low": 0.2,
    "clip_high": 0.28,
    "kl_coefficient": 0.3,
    "logits_chunk": 7,
    "mismatch_limit": 0.0,
    "minibatch_questions": 3,
    "microbatch_tokens": 25,
    "epochs": 2,
    "optimizer": OptimizerConfig(lr=2e-2, max_grad_norm=0.5, eps=1e-3, weight_decay=0.1),
}
RECORDED: list[tuple[dict[str, Any], list[float]]] = [
    (
        {"aggregation": "prompt_balanced", "advantage": "std"},
        [
            -0.24838548323349063,
            1.431356996122564,
            0.0,
            0.24242424242424243,
            1.0508036972759915,
            0.8751363273959984,
            2.0,
            -9.45631189714301,
        ],
    ),
    (
        {"aggregation": "prompt_balanced", "advantage": "std", "clip_high": 0.2, "kl": "k2"},
        [
            -0.15840220154996326,
            0.6911548662108901,
            0.48560554788906035,
            0.23484848484848486,
            1.1417904248473556,
            0.777950342776852,
            2.0,
            -4.346233481100337,
        ],
    ),
    (
        {"aggregation": "token_mean", "advantage": "std"},
        [
            -0.6868881048233342,
            1.2036889692449753,
            0.0,
            0.25757575757575757,
            1.1021518285375784,
            0.847779665132944,
            2.0,
            -9.289600433307935,
        ],
    ),
    (
        {"aggregation": "sequence_mean", "advantage": "std", "clip_high": 0.2, "kl": "k3"},
        [
            -0.2027751567547755,
            0.8780261367999311,
            0.39120306284677403,
            0.23484848484848486,
            1.1329472891970882,
            0.9034657062035625,
            2.0,
            -5.754527753927494,
        ],
    ),
    (
        {"aggregation": "constant_length", "advantage": "mean", "clip_high": 0.2, "constant_length": 16},
        [
            -0.15496871273450125,
            0.30804201298633693,
            0.0,
            0.26515151515151514,
            1.0774139322987133,
            0.8742596767479311,
            2.0,
            -8.43249333884773,
        ],
    ),
    (
        {"aggregation": "token_mean", "advantage": "rloo", "kl": "k1"},
        [
            -0.6500789587364182,
            1.0143838068681255,
            -0.7119482751523603,
            0.2878787878787879,
            1.091311535142715,
            0.49910865978315505,
            2.0,
            -3.6748256001794566,
        ],
    ),
    (
        {"aggregation": "prompt_balanced", "advantage": "std", "kl": "k2", "kl_zero_variance": True},
        [
            -0.13704903764489754,
            0.9275225568437542,
            0.46404562941863275,
            0.23484848484848486,
            1.1084776399047322,
            0.7878462751862453,
            2.0,
            -8.084363233128691,
        ],
    ),
    (
        {"aggregation": "prompt_balanced", "advantage": "std", "importance_cap": 0.0},
        [
            -0.04431712163120632,
            1.1773034331797727,
            0.0,
            0.3106060606060606,
            1.0164738041865011,
            1.0,
            1.0,
            -6.923618184611017,
        ],
    ),
    (
        {"aggregation": "token_mean", "advantage": "std", "importance_cap": 1.1},
        [
            -0.4938134341968281,
            0.8601837413500758,
            0.0,
            0.2878787878787879,
            1.1030867471342811,
            0.7046109492690639,
            1.1,
            -8.432585435453557,
        ],
    ),
    (
        {"aggregation": "prompt_balanced", "advantage": "std", "old_logprobs": "engine"},
        [
            -0.10445593263425909,
            0.4992541060512279,
            0.0,
            0.5984848484848485,
            1.2547480936657789,
            1.0,
            1.0,
            -8.440377591311197,
        ],
    ),
]


def batch() -> list[Group]:
    """Five groups, three of them with signal; an expert's trajectory is in the first."""
    first, *others = random_groups(4, MIXED)
    members = [m.trajectory for m in first.members]
    return [group("q0", [as_expert(members[0]), *members[1:]], first.rewards), *others]


def measured(changes: dict[str, Any], tmp: Path) -> list[float]:
    """Of the second step: loss, gradient norm, KL, clip share, ratio, importance (mean and maximum); and the sum of
    the parameters after it, each times another factor."""
    policy, anchor = tiny_policy(0, torch.float64), tiny_policy(1, torch.float64).frozen_copy()
    config = AlgorithmConfig(**{**SHARED, **changes})
    learner = Updater(policy, config, rng=np.random.default_rng(3), fault_folder=tmp, temperature=0.8, reference=anchor)
    for step in range(2):
        r = learner.update(batch(), step=step, version=step)
    weights = torch.cat([p.detach().flatten() for p in policy.model.parameters()])
    mixed = float(weights @ torch.cos(torch.arange(len(weights), dtype=torch.float64)))
    return [r.loss, r.grad_norm, r.kl, r.clip_share, r.ratio_mean, r.importance_mean, r.importance_max, mixed]


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("changes", "recorded"),
    RECORDED,
    ids=lambda v: "-".join(map(str, v.values())) if isinstance(v, dict) else "",
)
def test_two_steps_are_what_they_were(changes: dict[str, Any], recorded: list[float], tmp_path: Path) -> None:
    assert measured(changes, tmp_path) == pytest.approx(recorded, rel=1e-9, abs=1e-12)
