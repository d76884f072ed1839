"""Bytes of an optimizer's states, tensor by tensor."""

from __future__ import annotations

from functools import lru_cache

BLOCK = 256
"""Values that share a scale in 8-bit optimizer states (torchao)."""
SMALLEST_QUANTISED = 4096
"""Tensors of fewer values, or not a multiple of ``BLOCK``, have float32 moments and masters as without 8 bits."""
CODEBOOK = 256 * 4
"""Bytes of the table of 8-bit values that each quantised moment carries (torchao)."""
AT_ONCE = 1 << 24
"""Values that Muon orthogonalises together (``learner.muon.AT_ONCE``, which brings torch)."""
COPIES = 6
"""Of these, in float32, that exist at once: updates, what they are made of, and a step of Newton-Schulz."""


def quantised(values: int) -> bool:
    """Whether a tensor of so many values has 8-bit moments."""
    return values >= SMALLEST_QUANTISED and values % BLOCK == 0


@lru_cache(maxsize=64)
def state_bytes(values: tuple[int, ...], each: int, coarse: bool, rest: int) -> tuple[int, ...]:
    """Of each tensor of so many ``values``: ``each`` a value, or coarse moments and ``rest`` a value."""
    return tuple(2 * _moment8(n) + rest * n if coarse and quantised(n) else each * n + 4 for n in values)


def _moment8(values: int) -> int:
    return values + 4 * (values // BLOCK) + CODEBOOK


def muon_bytes(matrices: tuple[int, ...], counted: tuple[int, ...], size: int, *, wide: bool) -> tuple[int, int]:
    """What Muon takes for ``matrices`` of so many values, ``size`` bytes each: what stays beyond the states that are
    ``counted`` for them, a float32 master and the momentum; and while it steps, its masters' gradients and what is
    orthogonalised together. With ``wide`` gradients are in float32 already.
    """
    if not matrices:
        return 0, 0
    narrow = size < 4
    stays = max(0, (8 if narrow else 4) * sum(matrices) - sum(counted))
    gradients = (4 - size) * sum(matrices) if narrow and not wide else 0
    return stays, gradients + COPIES * 4 * max(AT_ONCE, *matrices)
