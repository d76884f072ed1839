"""The box of the plan's tests."""

from __future__ import annotations

from typing import Any

from actors.plan.fit import changed
from agent.pool.rules.recycle import Rule as Recycle
from conf.schema import RunConfig
from conf.topology import ClusterConfig
from learner.config import AlgorithmConfig, ModelConfig, OptimizerConfig

SIZES = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
}
"""Of Qwen2.5 1.5B."""


def box(*changes: tuple[str, Any]) -> RunConfig:
    """Qwen2.5 1.5B with 8-bit AdamW on four 24 GiB cards, and ``changes`` by their keys."""
    config = RunConfig(
        pool=Recycle(batch_questions=16, oversample=1.5, group_size=4),
        cluster=ClusterConfig(name="box", device="cuda", rollout_workers=3),
        model=ModelConfig(name="m", path="org/m", dtype="bfloat16", architecture=SIZES),
        algorithm=AlgorithmConfig(optimizer=OptimizerConfig(kind="adamw8bit")),
    )
    for key, value in changes:
        config = changed(config, key, value)
    return config
