"""A run's numbers as gauges in Ray's dashboard (and in the Prometheus endpoint behind it)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SHOWN = (
    "reward/mean",
    "outcome/mean",
    "search/mean",
    "groups/signal",
    "groups/too_easy",
    "groups/too_hard",
    "pool/available",
    "pool/consumed",
    "pool/recycled_share",
    "rollout/tokens_per_s",
    "rollout/mismatch",
    "learner/loss",
    "learner/idle_s",
    "weights/publish_s",
    "retrieval/qps",
    "version",
)


def gauge_name(metric: str) -> str:
    """What Ray is told; Prometheus, and the board in ``docs/grafana.json``, have it with ``ray_`` before it.

    >>> gauge_name("reward/mean")
    'slingshot_reward_mean'
    """
    return f"slingshot_{metric.replace('/', '_')}"


class RayMetrics:
    """One gauge per shown metric; needs a Ray that has been started."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        self._gauges = {name: Gauge(gauge_name(name), description=name) for name in SHOWN}

    def set(self, row: Mapping[str, Any]) -> None:
        """Shows the numbers of one step."""
        for name, gauge in self._gauges.items():
            value = row.get(name)
            if value is None or isinstance(value, int | float):  # NaN is shown as no value; the last step's stays none
                gauge.set(math.nan if value is None else float(value))
