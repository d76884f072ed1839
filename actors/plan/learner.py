"""The learner's memory, to the byte where it is static, and at its peak.

A step passes through phases, and the peak is the largest of them on top of what always stays:

    stays:    CUDA context, reserve, weights, optimizer states, the KL reference, (from the first microbatch) gradients
    score     no gradients yet: the reference (brought here with algorithm.reference=cpu), one layer, a logits chunk
    head      what is kept of each layer, a logits chunk forward; then backward with the head's gradient
    layers    the same, what is made again of one layer, and what its backward makes
    embedding its gradient; no activations
    update    the optimizer's temporaries; no activations
    warm start  the last four of rank 0 alone: all states, where they are shared out later, and no reference yet

The activations are those of transformers' eager Qwen2, Qwen3 and Llama with variable-length attention, as
``learner/lean.py`` leaves them, and of ``learner/logprobs.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from actors.plan.architecture import BYTES, Architecture, architecture
from actors.plan.cards import GIB, usable_bytes
from actors.plan.engine import engine_memory
from actors.plan.states import muon_bytes, state_bytes
from conf.schema import RunConfig
from learner.packing import shares

CONTEXT = int(0.5 * GIB)
"""CUDA context, loaded kernels and cuBLAS workspaces of one process."""
RESERVE = int(1.0 * GIB)
"""Left for what the allocator can't use of what it holds, and for what is forgotten here."""


@dataclass(frozen=True, kw_only=True)
class LearnerMemory:
    """What the learner needs, in bytes. ``row`` is the longest packed row (a microbatch) in tokens."""

    model: Architecture
    size: int
    """Bytes of a weight."""
    row: int
    chunk: int
    """Most tokens whose logits exist at once."""
    optimizer: str
    offload: bool
    reference: str
    """``none``, ``device`` or ``cpu``."""
    checkpointing: str
    """``layers``, ``mlp`` or ``none``."""
    lora_rank: int
    whole: int = 0
    """With ``mlp``, layers that keep the projections of their feed-forward part."""
    exact: bool = False
    """8-bit AdamW with exact masters."""
    wide: bool = False
    """Gradients in float32."""
    on_gpu: bool = True
    world: int = 1
    """Learners, of which this is the one that holds most."""
    shard: bool = False
    """Each has the optimizer states of its share of the weights alone."""
    warm_start: bool = False
    """A supervised one, which rank 0 makes by itself."""
    muon: bool = False
    """It steps the hidden matrices by Muon."""

    # --- what stays ------------------------------------------------------------------------------

    @property
    def context(self) -> int:
        return CONTEXT if self.on_gpu else 0

    @property
    def reserve(self) -> int:
        return RESERVE if self.on_gpu else 0

    @cached_property
    def trained(self) -> tuple[int, ...]:
        """Number of values in each trained tensor."""
        return self.model.adapters(self.lora_rank) if self.lora_rank else self.model.counts

    @property
    def trained_size(self) -> int:
        """Bytes of a trained value: adapters are float32."""
        return 4 if self.lora_rank else self.size

    @property
    def weights(self) -> int:
        adapters = 4 * sum(self.trained) if self.lora_rank else 0
        return self.model.parameters * self.size + adapters

    @property
    def gradients(self) -> int:
        return sum(self.trained) * (4 if self.wide else self.trained_size)

    def _counted(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """Of each trained tensor of so many values: moments, scales and tables, its master."""
        # Two float32 moments, a float32 master beside each weight that is narrower or elsewhere, torch's step count.
        each = 8 + (4 if self.trained_size < 4 or self.offload else 0)
        rest = 2 if self.exact and self.trained_size < 4 else 0
        return state_bytes(values, each, self.optimizer == "adamw8bit", rest)

    @property
    def _states(self) -> tuple[int, ...]:
        return self._counted(self.trained)

    @property
    def states(self) -> int:
        """The optimizer's, wherever they are, of all learners together if they share them out."""
        return sum(self._states)

    @property
    def own_states(self) -> int:
        """Those of one learner."""
        if not self.shard or self.world == 1:
            return self.states
        owners = shares(self.trained, self.world)
        return max(sum(s for s, o in zip(self._states, owners, strict=True) if o == rank) for rank in range(self.world))

    @property
    def states_here(self) -> int:
        return 0 if self.offload else self.own_states

    @property
    def reference_weights(self) -> int:
        return 0 if self.reference == "none" else self.model.parameters * self.size

    @property
    def reference_here(self) -> int:
        return self.reference_weights if self.reference == "device" else 0

    @property
    def static(self) -> int:
        """Weights, gradients, states and reference on this device."""
        return self.weights + self.gradients + self.states_here + self.reference_here

    @property
    def at_rest(self) -> int:
        """Between two steps, with the allocator's cache emptied: no gradients, no activations."""
        return self.context + self.static - self.gradients

    @property
    def host(self) -> int:
        """Bytes of CPU memory: states and reference that were moved there, and float32 gradients for those states."""
        moved = self.own_states + 4 * sum(self.trained) if self.offload else 0
        return moved + (self.reference_weights if self.reference == "cpu" else 0)

    # --- activations -----------------------------------------------------------------------------

    @property
    def _norm(self) -> int:
        """Bytes per token that an RMSNorm of the residual stream keeps beside its input: a factor, and its result."""
        return 4 + self.size * self.model.hidden

    @property
    def kept_attention(self) -> int:
        """Bytes per token that a layer keeps beside its input for attention, and as its feed-forward part's input."""
        m, b = self.model, self.size
        # In float32 on a GPU keys and values are written down for each query head (``learner/attention.py``).
        keys = m.query if self.on_gpu and b == 4 else m.key
        attention = b * (2 * m.query + 2 * keys) + 4 * m.heads  # q, k, v, result; the softmax's normaliser
        if m.family == "qwen3":
            attention += b * (m.query + m.key) + 4 * (m.heads + m.kv_heads)  # the inputs of the norms of q and k
        return self._norm + attention + b * m.hidden

    @property
    def kept_mlp(self) -> int:
        """Bytes per token that the feed-forward part keeps beside its input."""
        return self._norm + 4 * self.size * self.model.intermediate  # gate, silu(gate), up, their product

    @property
    def kept_projections(self) -> int:
        """Of that, what can't be made again without a matrix product."""
        return self._norm + 2 * self.size * self.model.intermediate

    @property
    def inputs(self) -> int:
        """Bytes of all layers' inputs, of the rotary tables and of the ids."""
        m, b = self.model, self.size
        return self.row * (m.layers * m.hidden * b + 2 * m.head_dim * b + 16)

    @property
    def kept(self) -> int:
        """Bytes between forward and backward: the layers' inputs, and what else the checkpointing leaves."""
        layers, whole = self.model.layers, min(self.whole, self.model.layers)
        each = {
            "layers": 0,
            "mlp": layers * self.kept_attention + whole * self.kept_projections,
            "none": layers * (self.kept_attention + self.kept_mlp),
        }[self.checkpointing]
        return self.inputs + self.row * each + self._merged_kept

    @property
    def _merged_kept(self) -> int:
        """Bytes of merged weights that wait for backward; those of the feed-forward parts are made again with them."""
        if self.checkpointing == "layers":
            return 0
        merged = self.model.layers * self.merged_layer
        return merged if self.checkpointing == "none" or not self.lora_rank else merged - self._merged_again

    @property
    def _merged_again(self) -> int:
        m = self.model
        again = m.layers - min(self.whole, m.layers)
        return self.size * m.hidden * m.intermediate * (3 * again + min(self.whole, m.layers))

    @property
    def merged_layer(self) -> int:
        """A layer's weights with its adapters added (``learner/lora.py``), which its backward keeps."""
        return self.size * self.model.layer_parameters // self.model.layers if self.lora_rank else 0

    @property
    def merging(self) -> int:
        """Three float32 arrays of the largest matrix: the product of its adapters, scaled, and added to it."""
        return 12 * max(out * into for out, into in self.model.matrices.values()) if self.lora_rank else 0

    @property
    def last_norm(self) -> int:
        """Bytes that the norm before the head keeps, its input included; gone when the layers' backward begins."""
        return self.row * (self._norm + self.size * self.model.hidden)

    @property
    def _logits(self) -> int:
        """(chunk, V) entries."""
        return min(self.chunk, self.row) * self.model.vocabulary

    @property
    def _narrow(self) -> int:
        """Bytes of a value in the weights' type beside a float32 one of it; 0 where that is the same."""
        return self.size if self.size < 4 else 0

    @property
    def logits_forward(self) -> int:
        """The last chunk's float32 logits and their exponentials, while this one's logits are made."""
        chunk = (8 + 4 + self._narrow) * self._logits
        return chunk + min(self.chunk, self.row) * self.model.hidden * self.size

    @property
    def logits_backward(self) -> int:
        """A slice's logits and their gradient; its product with the hidden states; these and their gradient."""
        making = (4 + self._narrow) * self._logits
        share = min(self.chunk, self.row) / max(self.chunk, self.row)
        product = 0 if self.lora_rank else int(self._narrow * self.model.head_parameters * share)
        tokens = self.row * self.model.hidden * (2 * self.size + 4 + self._narrow)
        return making + product + tokens

    @property
    def layer_backward(self) -> int:
        """What is made again of one layer, and the gradients in its feed-forward part, where they are widest."""
        m, b = self.model, self.size
        again = {
            "layers": self.row * (self.kept_attention + self.kept_mlp) + self.merged_layer,
            "mlp": self.row * (self.kept_mlp - (self.kept_projections if self.whole else 0))
            + (3 * b * m.hidden * m.intermediate if self.lora_rank else 0),
            "none": 0,
        }[self.checkpointing]
        # Gradients of silu(gate), up and the product while the product itself is gone; four of the residual stream.
        gradients = self.row * b * (2 * m.intermediate + 4 * m.hidden)
        return again + gradients + self.merging

    @property
    def embedding_backward(self) -> int:
        """The embedding's gradient before it is added to what is there, in float32 if that is."""
        if self.lora_rank:
            return 0
        return self.model.head_parameters * (self.size + (4 if self.wide and self._narrow else 0))

    @property
    def forward_without_gradients(self) -> int:
        """One layer's widest moment (silu(gate), up, product, two residuals) or the logits after it."""
        m, b = self.model, self.size
        layer = self.row * b * (3 * m.intermediate + 4 * m.hidden)
        return max(layer + self.merging, self.last_norm + self.logits_forward)

    @property
    def update(self) -> int:
        """Temporaries of an optimizer step."""
        if self.offload:
            return 0
        if self.optimizer == "adamw8bit":
            # float32 weight, gradient and moments of one tensor, as if nothing is fused; its master, taken apart.
            return (20 if self.exact else 16) * max(self.trained)
        # The float32 masters have gradients of their own; each takes the place of the weight's, one after the other.
        narrow = self.trained_size
        return (4 - narrow) * sum(self.trained) + narrow * max(self.trained) if narrow < 4 and not self.wide else 0

    @property
    def _matrices(self) -> tuple[int, ...]:
        """Number of values in each of what Muon steps, where it does and they are on this device."""
        if not self.muon or self.offload:
            return ()
        if self.lora_rank:
            return self.trained
        return tuple(math.prod(shape) for shape in self.model.matrices.values()) * self.model.layers

    # --- the peak --------------------------------------------------------------------------------

    @cached_property
    def phases(self) -> dict[str, int]:
        """Bytes on the device in each phase of a step."""
        base = self.context + self.reserve
        fetched = self.reference_weights if self.reference == "cpu" else 0
        kept = base + self.static + self.kept
        found = {
            "score": base + self.static - self.gradients + fetched + self.forward_without_gradients,
            "head": kept + self.last_norm + max(self.logits_forward, self.logits_backward),
            "layers": kept + self.layer_backward,
            "embedding": base + self.static + self.embedding_backward,
            "update": base + self.static + self.update,
        }
        if self.warm_start and (self.muon or (self.shard and self.world > 1)):
            more = (0 if self.offload else self.states - self.own_states) - self.reference_here
            stays, step = muon_bytes(self._matrices, self._counted(self._matrices), self.trained_size, wide=self.wide)
            most = max(size for phase, size in found.items() if phase != "score")
            found["warm start"] = more + stays + max(most, base + self.static + step)
        return found

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda phase: self.phases[phase])


def learner_memory(config: RunConfig) -> LearnerMemory:
    """The learner of ``config``. A trajectory longer than ``algorithm.microbatch_tokens`` is a row by itself.

    What ``algorithm`` leaves open is chosen for what its card has room for beside all else: exact masters first, then
    the least that has to be computed again, then float32 gradients.
    """
    algorithm, optimizer = config.algorithm, config.algorithm.optimizer
    size, lora = BYTES[config.model.dtype], config.model.lora_rank
    memory = LearnerMemory(
        model=architecture(config.model),
        size=size,
        row=max(algorithm.microbatch_tokens, config.agent.longest_episode),
        chunk=algorithm.logits_chunk,
        optimizer=optimizer.kind,
        offload=optimizer.offload,
        reference=algorithm.reference if algorithm.needs_reference else "none",
        checkpointing="layers" if algorithm.gradient_checkpointing == "auto" else algorithm.gradient_checkpointing,
        lora_rank=lora,
        whole=algorithm.whole_layers,
        exact=bool(optimizer.exact_master),
        wide=bool(optimizer.float32_gradients),
        on_gpu=config.cluster.device == "cuda",
        world=max(1, config.cluster.learners),
        shard=optimizer.shard,
        warm_start=algorithm.warm_start.steps > 0,
        muon=algorithm.warm_start.muon_lr > 0,
    )
    narrow = size < 4 and not lora
    if optimizer.exact_master is None and narrow and optimizer.kind == "adamw8bit":
        memory = _if_it_fits(config, memory, replace(memory, exact=True))
    if algorithm.gradient_checkpointing == "auto" and memory.on_gpu:
        low, high = -1, memory.model.layers
        while low < high:  # the most layers that fit; -1: attention isn't kept either
            middle = (low + high + 1) // 2
            tried = replace(memory, checkpointing="mlp", whole=middle)
            if _if_it_fits(config, memory, tried) is tried:
                low = middle
            else:
                high = middle - 1
        memory = replace(memory, checkpointing="mlp", whole=low) if low >= 0 else memory
        memory = _if_it_fits(config, memory, replace(memory, checkpointing="none", whole=0))
    if optimizer.float32_gradients is None and narrow:
        memory = _if_it_fits(config, memory, replace(memory, wide=True))
    return memory


def _if_it_fits(config: RunConfig, now: LearnerMemory, wanted: LearnerMemory) -> LearnerMemory:
    """``wanted`` if a card of ``config`` has room for it, else ``now``.

    Beside a colocated engine that sleeps, and at rest beside one that plays.
    """
    cluster = config.cluster
    limit = usable_bytes(cluster)
    if not limit:
        return wanted
    engine = engine_memory(config, limit) if cluster.colocated else None
    peak = wanted.peak + (engine.asleep if engine else 0)
    rest = wanted.at_rest + RESERVE + engine.playing if engine else 0
    return wanted if max(peak, rest) <= limit else now
