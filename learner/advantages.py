"""Group-relative advantages: what a trajectory's reward says beside its siblings' rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from learner.losses.base import ADVANTAGES

STD_EPSILON = 1e-6
"""Added to the standard deviation (GRPO)."""


def group_advantages(rewards: Sequence[float], method: str) -> npt.NDArray[np.float64]:
    """The (K,) advantages of one group of K rewards.

    - ``std``: (r - mean) / (std + 1e-6) with the sample standard deviation, n - 1 (GRPO).
    - ``mean``: r - mean (Dr. GRPO: the division favours questions that are nearly settled).
    - ``rloo``: r - mean of the *other* rewards (RLOO), which is K / (K - 1) times ``mean``.

    Equal rewards, a single one included, give exactly 0. That is decided on the rewards themselves:
    the rounding residue of a float mean or std is not zero and, divided by 1e-6, would be a signal.

    Raises ``ValueError`` for an unknown method or a reward that isn't finite.

    >>> group_advantages([1, 0, 0, 0, 0], "std").round(2).tolist()
    [1.79, -0.45, -0.45, -0.45, -0.45]
    """
    r = np.asarray(rewards, dtype=np.float64)
    if r.ndim != 1 or not np.isfinite(r).all():
        raise ValueError(f"a group's rewards must be a list of finite numbers, got {rewards}")
    if method not in ADVANTAGES:
        raise ValueError(f"unknown advantage {method!r}")
    if r.size < 2 or (r == r[0]).all():
        return np.zeros_like(r)
    centred = r - r.mean()
    if method == "std":
        return centred / (r.std(ddof=1) + STD_EPSILON)
    if method == "rloo":
        return centred * (r.size / (r.size - 1))
    return centred
