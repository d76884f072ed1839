"""A model's folder before it has weights: its configuration, for a policy that is built from scratch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import UserError, nearest
from learner.config import ModelConfig

if TYPE_CHECKING:
    from transformers import Qwen2Config

MARKER = "untrained.txt"
"""The file by which a run knows the folder that it wrote itself: from no other may it take random weights."""


def qwen2_config(sizes: Mapping[str, int], **settings: Any) -> Qwen2Config:
    """The configuration of a Qwen2 of these sizes, embeddings tied unless ``sizes`` says otherwise.

    ``settings`` are further fields, which ``sizes`` may override. Raises ``UserError`` for a size that Qwen2
    doesn't have: transformers itself would keep a misspelt one and build another model.
    """
    from transformers import Qwen2Config

    valid = set(inspect.signature(Qwen2Config).parameters) - {"kwargs", "args", "self"}
    for name in sizes:
        if name not in valid:
            raise UserError(f"model.architecture.{name} is not a Qwen2 size; {nearest(name, valid)}")
    return Qwen2Config(**{"tie_word_embeddings": True, "bos_token_id": None, **settings, **sizes})


def write_skeleton(folder: Path, config: ModelConfig, *, context: int) -> None:
    """Writes ``config.json`` of a Qwen2 with ``config.architecture``'s sizes beside the tokenizer in ``folder``.

    The learner builds its policy from this file and the engine starts from it, so that both agree. ``MARKER`` comes
    last, when the folder is whole.
    ``context`` is the longest sequence, in tokens. Raises ``UserError`` for a size that Qwen2 doesn't have.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    qwen2_config(
        config.architecture or {},
        vocab_size=len(tokenizer),
        max_position_embeddings=context,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=config.dtype,
        architectures=["Qwen2ForCausalLM"],
    ).save_pretrained(folder)
    (folder / MARKER).write_text("No weights: a run started here from random ones. Its checkpoints hold the trained.\n")


def is_skeleton(folder: Path) -> bool:
    """Whether ``write_skeleton`` wrote ``folder``: a model without weights, to be built at random."""
    return (folder / MARKER).is_file() and not any(folder.glob("*.safetensors"))
