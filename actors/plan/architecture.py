"""A model's tensors from its sizes: Qwen2, Qwen3 and Llama as transformers builds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from agent.errors import UserError
from agent.paths import at_home
from agent.readable import json_of
from learner.config import ModelConfig
from learner.hub import CONFIG, config_file

MOST, MOST_LAYERS = 10**8, 1000
"""Bounds of any size, so that a number that is mistyped is said and not computed with."""
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The sizes of a decoder with grouped-query attention and a gated feed-forward layer."""

    family: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    tied: bool
    """Embedding and LM head are one matrix."""

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.kv_heads * self.head_dim

    @cached_property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(out, in) of a layer's linear maps."""
        return {
            "self_attn.q_proj": (self.query, self.hidden),
            "self_attn.k_proj": (self.key, self.hidden),
            "self_attn.v_proj": (self.key, self.hidden),
            "self_attn.o_proj": (self.hidden, self.query),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    @cached_property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter by its name in Hugging Face's format; a tied head isn't listed again."""
        layer: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in self.matrices.items()}
        if self.family == "qwen2":
            widths = (self.query, self.key, self.key)
            layer |= {f"self_attn.{n}_proj.bias": (w,) for n, w in zip("qkv", widths, strict=True)}
        if self.family == "qwen3":
            layer |= {f"self_attn.{n}_norm.weight": (self.head_dim,) for n in "qk"}
        layer |= {f"{n}_layernorm.weight": (self.hidden,) for n in ("input", "post_attention")}
        whole: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for number in range(self.layers):
            whole |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
        whole["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            whole["lm_head.weight"] = (self.vocabulary, self.hidden)
        return whole

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of values in each tensor."""
        return tuple(math.prod(shape) for shape in self.tensors.values())

    @cached_property
    def parameters(self) -> int:
        return sum(self.counts)

    @property
    def head_parameters(self) -> int:
        """Of the LM head."""
        return self.vocabulary * self.hidden

    @property
    def layer_parameters(self) -> int:
        """Of all layers' linear maps: what a token is multiplied with on its way to the head."""
        return self.layers * sum(math.prod(shape) for shape in self.matrices.values())

    def adapters(self, rank: int) -> tuple[int, ...]:
        """Number of values in each tensor of LoRA adapters of ``rank`` on every linear map of every layer."""
        pairs = [size for out, into in self.matrices.values() for size in (rank * into, out * rank)]
        return tuple(pairs * self.layers)


def architecture(config: ModelConfig) -> Architecture:
    """The model's sizes: of its folder's ``config.json`` where there is one, else those of the configuration.

    A family that isn't known is counted as a Llama. Raises ``UserError`` when a size is missing or not positive, or
    there is nothing to read sizes from.
    """
    if config.path is not None and (file := at_home(config.path) / CONFIG).is_file():
        return _from_json(file)
    if config.architecture is None:
        return _from_json(config_file(str(config.path), f"model.path={config.path}"))
    sizes: dict[str, Any] = dict(config.architecture)
    sizes.setdefault("vocab_size", config.vocab_size)
    return _build(config.family, {"tie_word_embeddings": True, **sizes}, "model.architecture")


def _from_json(file: Path) -> Architecture:
    try:
        found = json_of(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: not JSON ({error}); model.path must be a model's folder") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: no JSON object; model.path must be a model's folder")
    # A configuration without this field means transformers' default, which is not to tie.
    return _build(str(found.get("model_type") or ""), {"tie_word_embeddings": False, **found}, str(file))


def _build(family: str, sizes: Mapping[str, Any], place: str) -> Architecture:
    heads = sizes.get("num_attention_heads")
    known = {"num_key_value_heads": heads, **sizes}
    for name in (*SIZES, "vocab_size"):
        if not isinstance(known.get(name), int) or known[name] < 1:
            raise UserError(f"{place}: {name} is {known.get(name)}, and the plan needs a positive number there")
        if known[name] > (most := MOST_LAYERS if name == "num_hidden_layers" else MOST):
            raise UserError(f"{place}: {name} is {known[name]}, and no model has more than {most:,}")
    per_head = known.get("head_dim") or known["hidden_size"] // known["num_attention_heads"]
    if not isinstance(per_head, int) or per_head < 1 or known["num_attention_heads"] % known["num_key_value_heads"]:
        raise UserError(
            f"{place}: num_attention_heads={known['num_attention_heads']} must be a multiple of num_key_value_heads="
            f"{known['num_key_value_heads']} and no more than hidden_size={known['hidden_size']}"
        )
    made = Architecture(
        family=family,
        vocabulary=known["vocab_size"],
        hidden=known["hidden_size"],
        layers=known["num_hidden_layers"],
        heads=known["num_attention_heads"],
        kv_heads=known["num_key_value_heads"],
        head_dim=per_head,
        intermediate=known["intermediate_size"],
        tied=bool(known["tie_word_embeddings"]),
    )
    return _shared(made)


@lru_cache(maxsize=16)
def _shared(made: Architecture) -> Architecture:
    """The first of equal architectures, whose counts are known already."""
    return made
