"""What one learner step reports; no torch, so that whoever writes metrics can import it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateReport:
    """What one learner step did. Means are over tokens unless said otherwise."""

    updates: int
    """Optimizer steps taken; 0 when nothing was trainable: then nothing at all has changed."""
    skipped: int
    """Optimizer steps left out because the loss or the gradient wasn't finite."""
    loss: float
    """Mean over the attempted updates, 0 without any; NaN or infinite if one of those was skipped for it."""
    kl: float
    """Mean of the configured estimator, nats per token; 0 without a KL term."""
    clip_share: float
    """Share of the tokens whose gradient the clip removed."""
    ratio_mean: float
    """Of a token's probability now to that by its old log-probability (``algorithm.old_logprobs``)."""
    importance_mean: float
    """π(learner, before the step) / π(engine), at most ``algorithm.importance_cap``; 1 where none is applied."""
    importance_max: float
    """The largest of these."""
    grad_norm: float
    """Before clipping, mean over the updates that were taken; 0 without any."""
    lr: float
    entropy: float
    """Nats per trained token; NaN when nothing was trained."""
    mismatch: float
    """Mean |learner - engine| over tokens sampled by the current version; NaN when there are none."""
    mismatch_max: float
    mismatch_shifted: float
    """Of the tokens that differ by over 0.01 nats, the share whose engine value fits the token before or after; NaN
    when there are none."""
    action_tokens: int
    """Action tokens of the sequences that carried a loss, each epoch counted."""
    tokens: int
    """All tokens of those sequences."""
    shared_tokens: int
    """Of those, what the forward and backward passes didn't work through: beginnings that sequences have in common."""
    sequences: int
    expert_sequences: int
    """Of those, trajectories that no engine sampled."""
    microbatches: int
    packing_efficiency: float
    """Tokens over what the microbatches would hold if all of an update were as full as its fullest; NaN without any."""
    seconds: float
