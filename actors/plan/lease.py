"""Whether a claim's lease lasts for a batch: one that runs out returns groups that are still being played, for ever."""

from __future__ import annotations

from dataclasses import replace

from actors.plan.roofline import ASSUMED, Assumptions, step
from conf.schema import RunConfig

MARGIN = 2.0
"""Times the projected seconds: those leave out the longest episode, searches and the loop."""


def longest_batch_s(config: RunConfig, assumed: Assumptions = ASSUMED) -> float:
    """Projected seconds of a batch whose responses are all at their limit; 0 on a CPU, where nothing is projected."""
    if config.cluster.device == "cpu":
        return 0.0
    return step(config, replace(assumed, response_share=1.0)).rollouts.seconds


def short_lease(config: RunConfig, assumed: Assumptions = ASSUMED) -> str | None:
    """Why ``pool.lease_s`` is too short for ``config``, and what would do; None if it isn't."""
    longest = longest_batch_s(config, assumed)
    if config.pool.lease_s >= MARGIN * longest:
        return None
    return (
        f"pool.lease_s={config.pool.lease_s:g}: a batch whose responses are all at their limit takes {longest:.0f} s "
        f"by the plan, and a claim that isn't back in time is played again; set pool.lease_s={MARGIN * longest:.0f}, "
        "or use more cluster.rollout_workers or a smaller agent.max_response_tokens"
    )
