"""Learners that train together: each holds the same weights and works through a share of a batch's rows.

    rows ── deal ──► each rank's own ── backward ──► gradients ── add ──► the same sum on every rank ──► the same step

A loss is a sum over tokens whose weights are fixed over the whole minibatch (``learner/batch.py``), so the sum of the
ranks' gradients is the gradient, however the rows were dealt, and a rank without a row adds zeros. Every rank takes the
same optimizer step from the same numbers. Where ``algorithm.optimizer.shard`` spreads the states (as ZeRO-1 does,
Rajbhandari et al., arXiv 1910.02054), each rank steps the tensors that it owns and sends them to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from agent.errors import ActorLost

_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of a float."""
LEARNER = "learner"
"""The actor of rank 0. Learners that have lost one another can't go on: whichever of them says so, this actor counts as
lost, and all are started again."""


class Parted(ActorLost):
    """Another rank did not come to where all have to meet; who, only its actor's end tells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """This learner's place among ``world`` of them. Every method but ``leave`` is a meeting of all ranks."""

    rank: int = 0
    world: int = 1

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over all ranks, the same bits on every one. Raises ``Parted``."""
        self._together(tensors, lambda t: dist.all_reduce(t, dist.ReduceOp.SUM, async_op=True))

    def most(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its largest values over all ranks. Raises ``Parted``."""
        self._together(tensors, lambda t: dist.all_reduce(t, dist.ReduceOp.MAX, async_op=True))

    def spread(self, tensors: Sequence[Tensor], owners: Sequence[int] | None = None) -> None:
        """Replaces each tensor by that of its owner (rank 0 for all, unless told). Raises ``Parted``."""
        sources = iter(owners if owners is not None else [0] * len(tensors))
        self._together(tensors, lambda t: dist.broadcast(t, next(sources), async_op=True))

    def check_equal(self, tensors: Sequence[Tensor], what: str) -> None:
        """Raises ``ActorLost`` if ``tensors`` aren't the same on every rank: nobody knows whose are right.

        Compared are the sums of their bits as whole numbers, which no order of adding up changes: cards and processors
        of two kinds add floats in orders of their own.
        """
        if self.world == 1:
            return
        sums = torch.stack([t.detach().view(_WHOLE[t.element_size()]).sum(dtype=torch.int64) for t in tensors])
        both = torch.stack([sums, -sums])
        self.most([both])
        if not torch.equal(both[0], -both[1]):
            raise ActorLost(LEARNER, f"the {self.world} learners no longer hold the same {what}")

    def agreed(self, value: float, device: torch.device) -> float:
        """The largest ``value`` of all ranks, which may differ in its last bits where the ranks' machines do."""
        if self.world == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=device)
        self.most([tensor])
        return tensor.item()

    def leave(self) -> None:
        """Ends the meetings; ranks that wait in one are told where the connection can tell them (gloo)."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def _together(self, tensors: Iterable[Tensor], start: Callable[[Tensor], Any]) -> None:
        if self.world == 1:
            return
        try:
            for work in [start(tensor) for tensor in tensors]:
                work.wait()
        except RuntimeError as error:  # torch's own errors of a process group are of this kind
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise Parted(
                LEARNER, f"rank {self.rank} of {self.world} learners waited in vain for the others: {error}"
            ) from error


ALONE = Ranks()
"""One learner; nothing is sent anywhere."""


def join(address: str, rank: int, world: int, *, device: str, timeout_s: float) -> Ranks:
    """Meets the other ranks at ``address`` (HOST:PORT, where rank 0 listens), over gloo, or NCCL on GPUs.

    Raises ``Parted`` if they don't all come within ``timeout_s``, as does every later meeting.
    """
    if world == 1:
        return ALONE
    try:
        dist.init_process_group(
            "gloo" if device == "cpu" else "nccl",
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=timeout_s),
        )
    except (RuntimeError, OSError) as error:
        raise Parted(
            LEARNER, f"rank {rank} of {world} learners could not join the others at {address}: {error}"
        ) from error
    return Ranks(rank=rank, world=world)
