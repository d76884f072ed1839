"""Whether a model computes on packed rows what it would compute on each sequence alone; others are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agent.errors import UserError
from learner.attention import ATTENTION
from learner.lacking import lacking
from learner.packing import PackedRow, pack_rows


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Raises ``UserError`` for what a model's configuration says can't be computed on packed rows."""
    config, name = model.config, type(model).__name__
    if (why := lacking(config.to_dict())) is not None:
        raise UserError(f"model {name}: {why}")
    if config._attn_implementation != ATTENTION:
        raise UserError(f"model {name}: built with attention {config._attn_implementation}, needs {ATTENTION}")
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise UserError(f"model {name}: needs a language-model head without a bias")


@contextmanager
def _plain_attention(model: PreTrainedModel) -> Iterator[None]:
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(ATTENTION)


@torch.no_grad()
def check_against_model(model: PreTrainedModel, hidden: Callable[[PackedRow], Tensor], head: Tensor) -> None:
    """Short sequences in a row, two of which begin alike, must give what the model itself says of each alone.

    ``hidden`` computes a row's (N, d) last hidden states with ``model``, and ``head`` is its (V, d) output matrix.
    Catches what no list of names can: a rescaled head, a state that leaks from one packed sequence
    into the next, an attention that doesn't pass through ``slingshot_varlen``.
    """
    probes = [np.arange(n, dtype=np.int32) * 7919 % head.shape[0] for n in (6, 4, 25, 23)]
    probes[3][-3:] += 1 - 2 * (probes[3][-3:] > 0)  # it leaves the way of the one before
    selected = [np.arange(len(p)) > min(20, len(p) - 2) for p in probes]
    (row,) = pack_rows(probes, selected, limit=64, families=[0, 1, 2, 2])
    places = dict(zip(row.members, row.places(), strict=True))
    computed = hidden(row)
    ours = torch.cat([computed[torch.from_numpy(places[i])] for i in range(len(probes))]) @ head.t()
    with _plain_attention(model):
        texts = [torch.from_numpy(p.astype(np.int64)).to(model.device)[None] for p in probes]
        alone = [model(input_ids=ids, use_cache=False).logits[0] for ids in texts]
    theirs = torch.cat(alone)
    if not (theirs.isfinite().all() and ours.isfinite().all()):
        raise UserError(
            f"model {type(model).__name__}: its logits are no numbers; its config.json or its weights are damaged: "
            "download them again"
        )
    tolerance = 1e-3 if ours.dtype in (torch.float32, torch.float64) else 5e-2
    if not (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1.0):
        raise UserError(f"model {type(model).__name__}: its logits on a packed row differ from its own forward pass")
