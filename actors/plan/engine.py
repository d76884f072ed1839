"""A rollout worker's memory: vLLM's weights, what its start-up profile sets aside, and the KV cache."""

from __future__ import annotations

from dataclasses import dataclass

from actors.plan.architecture import BYTES, Architecture, architecture
from actors.plan.cards import GIB
from conf.schema import RunConfig

CONTEXT = int(0.5 * GIB)
"""CUDA context and kernels of the engine's process."""
GRAPHS = int(0.75 * GIB)
"""CUDA graphs for the batch sizes that vLLM captures; none with ``enforce_eager``."""
BLOCK_TOKENS = 16
"""Tokens in a block of the KV cache."""


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """What one engine takes, in bytes."""

    model: Architecture
    size: int
    """Bytes of a weight and of an entry of the KV cache."""
    share: int
    """All that vLLM may take; 0 on a CPU, where the KV cache is set by itself."""
    kv_cache_set: int
    sequences: int
    """Most that are decoded together."""
    batched: int
    """Most tokens in one step."""
    episode: int
    """Tokens of the longest trajectory, prompt included."""
    graphs: bool
    bucket: int = 0
    """Bytes in a bucket of a broadcast; 0 where weights come another way."""

    @property
    def weights(self) -> int:
        return self.model.parameters * self.size

    @property
    def kv_per_token(self) -> int:
        """Keys and values of all layers."""
        return 2 * self.model.layers * self.model.key * self.size

    @property
    def activations(self) -> int:
        """The widest layer of a full prefill step, or the float32 logits and probabilities of all sequences."""
        layer = self.batched * self.size * (3 * self.model.intermediate + 4 * self.model.hidden)
        return max(layer, 12 * self.sequences * self.model.vocabulary)

    @property
    def overhead(self) -> int:
        """CUDA graphs, which count against vLLM's share."""
        return GRAPHS if self.share and self.graphs else 0

    @property
    def context(self) -> int:
        """Beside vLLM's share: what it may take it measures from when its context is made."""
        return CONTEXT if self.share else 0

    @property
    def playing(self) -> int:
        """What it takes of a GPU while it is awake."""
        return self.share + self.context

    @property
    def kv_cache(self) -> int:
        """What is left for it; negative if the other parts are too large already."""
        if not self.share:
            return self.kv_cache_set
        return self.share - self.weights - self.activations - self.overhead

    @property
    def kv_tokens(self) -> int:
        """Tokens that the cache holds, in whole blocks."""
        return max(0, self.kv_cache // (self.kv_per_token * BLOCK_TOKENS)) * BLOCK_TOKENS

    @property
    def full_episodes(self) -> int:
        """Trajectories of the longest kind that fit at once."""
        return self.kv_tokens // (-(-self.episode // BLOCK_TOKENS) * BLOCK_TOKENS)

    @property
    def total(self) -> int:
        return self.share or self.weights + self.kv_cache_set

    @property
    def broadcast(self) -> int:
        """Two buckets on their way, beside vLLM's share; each ends with the tensor that passes its size."""
        largest = (self.model.vocabulary + self.model.intermediate) * self.model.hidden * self.size
        return 2 * self.bucket + largest if self.bucket else 0

    @property
    def asleep(self) -> int:
        """What stays on the card while vLLM sleeps: all but weights and KV cache."""
        return self.context + self.overhead


def engine_memory(config: RunConfig, card_bytes: int) -> EngineMemory:
    """An engine of ``config`` on a card of ``card_bytes``; 0 for a CPU."""
    engine = config.cluster.engine
    return EngineMemory(
        model=architecture(config.model),
        size=BYTES[config.model.dtype],
        share=int(engine.gpu_memory_utilization * card_bytes),
        kv_cache_set=engine.kv_cache_gib * GIB,
        sequences=engine.max_num_seqs,
        batched=engine.max_batched_tokens,
        episode=config.agent.longest_episode,
        graphs=not engine.enforce_eager,
        bucket=config.cluster.weight_bucket_mib * 2**20 if config.cluster.channel[0] == "nccl" else 0,
    )
