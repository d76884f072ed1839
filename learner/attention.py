"""Causal attention within each sequence of a packed row, as an attention function of transformers.

Importing this file registers ``slingshot_varlen``. A model built with
``attn_implementation="slingshot_varlen"`` builds no mask (none is registered under that name) and
passes the keyword argument ``layout`` from its forward down to here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from agent.errors import UserError
from learner.packing import PackedRow

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]

ATTENTION = "slingshot_varlen"

UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Arguments by which a model asks for another attention than softmax(QK')V."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layout:
    """The blocks of a row (``PackedRow``), on the host, and what the kernel wants of them on the device."""

    lengths: tuple[int, ...]
    before: tuple[int, ...]
    """For each block the one that is seen before it; -1 for none."""
    queries: torch.Tensor
    """(blocks + 1,) int32: where each block starts, and the end."""
    keys: torch.Tensor
    """The same of what each block sees, with its own tokens last."""
    most_queries: int
    most_keys: int

    @classmethod
    def of(cls, row: PackedRow, device: torch.device) -> Layout:
        """Of ``row``, for tensors on ``device``."""
        seen = row.seen
        keys = torch.from_numpy(np.concatenate([[0], np.cumsum(seen)]).astype(np.int32))
        return cls(
            lengths=tuple(row.lengths.tolist()),
            before=tuple(row.before.tolist()),
            queries=torch.from_numpy(row.cu_seqlens).to(device, non_blocking=True),
            keys=keys.to(device, non_blocking=True),
            most_queries=int(row.lengths.max()),
            most_keys=int(seen.max()),
        )

    @property
    def shares(self) -> bool:
        """Whether any block is seen by another."""
        return any(block >= 0 for block in self.before)

    def gathered(self, x: torch.Tensor) -> torch.Tensor:
        """(N, heads, D) as each block sees it, one after the other: what several see is there several times."""
        if not self.shares:
            return x
        parts = x.split(self.lengths)
        return torch.cat([parts[i] for own, front in enumerate(self.before) for i in (front, own) if i >= 0])


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over one packed row of N tokens.

    ``query`` is (1, H, N, D), ``key`` and ``value`` (1, H_kv, N, D) with H a multiple of H_kv. Returns (1, N, H, D).

    Half precision on CUDA takes FlashAttention's variable-length kernel, whose last query sees all keys of its block;
    everything else (the CPU, and float32, which that kernel doesn't have) takes one SDPA call per run of equal shapes.

    Raises ``UserError`` for a model that wants more than causal softmax attention.
    """
    wanted = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
    if wanted or attention_mask is not None or dropout:
        raise UserError(f"model: attention with {', '.join(wanted) or 'a mask or dropout'} is not supported here")
    if sliding_window is not None and sliding_window < layout.most_keys:
        raise UserError(f"model: sequences of {layout.most_keys} tokens exceed its sliding window of {sliding_window}")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, heads, D)
    group = q.shape[1] // k.shape[1]
    if varlen_attn is not None and q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        out = varlen_attn(
            q,
            layout.gathered(k),
            layout.gathered(v),
            layout.queries,
            layout.keys,
            layout.most_queries,
            layout.most_keys,
            scale=scaling,
            window_size=(-1, 0),
            enable_gqa=group > 1,
        )
        assert isinstance(out, torch.Tensor)
        return out.unsqueeze(0), None
    if q.is_cuda:  # where only kernels that write down all of QK' take grouped heads in float32
        k, v, group = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1), 1
    return _by_equal_shapes(q, layout.gathered(k), layout.gathered(v), layout, scaling, group > 1).unsqueeze(0), None


def _by_equal_shapes(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, scaling: float | None, grouped: bool
) -> torch.Tensor:
    """(N, H, D) attention, neighbouring blocks of one length and as long a front at a time; k and v are gathered.

    ``split`` and ``cat`` are each other's backward, so nothing is copied beyond the result; the
    rows of ``pack_rows`` are sorted by length, which makes the runs long.
    """
    fronts = [layout.lengths[front] if front >= 0 else 0 for front in layout.before]
    runs = [(*shape, len(list(same))) for shape, same in groupby(zip(layout.lengths, fronts, strict=True))]
    own, seen = [n * count for n, _, count in runs], [(n + front) * count for n, front, count in runs]
    parts = []
    for (n, front, count), *qkv in zip(runs, q.split(own), k.split(seen), v.split(seen), strict=True):
        qh, kh, vh = (x.view(count, -1, *x.shape[1:]).transpose(1, 2) for x in qkv)
        mask = torch.ones(n, n + front, dtype=torch.bool, device=q.device).tril(front) if front else None
        out = scaled_dot_product_attention(
            qh, kh, vh, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
        parts.append(out.transpose(1, 2).reshape(count * n, *q.shape[1:]))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


AttentionInterface.register(ATTENTION, packed_attention)
