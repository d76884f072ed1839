"""The learners of ranks 1, 2, …: each mirrors what rank 0, the learner's actor, does.

    rank 0:   take ─► put the groups ─► update ─────────────► publish, save
    rank i:                  └────────► update (its rows) ──┘   one sum of the gradients

A rank that dies or hangs leaves the others waiting where all meet (``learner/ranks.py``). They give up within
``cluster.deadlines.update``, and rank 0 says who it was that didn't come: all ranks are then begun anew.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import ray

from actors.calls import Died, get
from actors.process import log_to
from actors.pulse import HEALTH, Beats, Pulse
from actors.training import LearnerSettings, Training
from agent.collector import without_collector
from agent.errors import ActorLost, Fault

SETTLED_S = 10.0
"""How long the other ranks have to end their calls once one has: those that live give up together."""


@ray.remote(concurrency_groups={HEALTH: 1})  # type: ignore[call-overload]  # its stubs don't know it
class FollowerActor:
    """A learner of rank 1 or above: does what rank 0 tells it."""

    def __init__(self, settings: LearnerSettings, rank: int, world: int, log_dir: Path) -> None:
        log_to(log_dir, name(rank))
        self._settings, self._rank, self._world = settings, rank, world
        self._beats = Beats()

    def join(self, address: str) -> None:
        """Meets the other ranks, before anything else."""
        with without_collector():
            from learner.ranks import join

        settings = self._settings
        ranks = join(address, self._rank, self._world, device=settings.device, timeout_s=settings.meeting_timeout_s)
        self._training = Training(settings, ranks, lambda progress: None, lambda: self._beats.did("update"))

    @ray.method(concurrency_group=HEALTH)
    def ping(self) -> Pulse:
        """See ``actors/health.py``."""
        return self._beats.pulse()

    def mirror(self, method: str, *arguments: Any) -> Any:
        """The same call as rank 0's of its ``Training``; what only rank 0 needs is not sent back."""
        with self._beats.phase("start" if method == "start" else "update"):
            result = getattr(self._training, method)(*arguments)
        self._training.leave_card()
        return result if method == "optimizer_state" else None


def name(rank: int) -> str:
    """Of a learner in logs and messages."""
    return f"learner-{rank}" if rank else "learner"


class Followers:
    """The other ranks as rank 0 sees them; none with one learner."""

    def __init__(self, actors: Sequence[Any], log_dir: Path) -> None:
        self._actors = list(actors)
        self._log_dir = log_dir

    @property
    def world(self) -> int:
        """Number of ranks."""
        return 1 + len(self._actors)

    @contextmanager
    def joining(self) -> Iterator[str]:
        """Within the context the others join at the address that it gives: a free port of this node.

        Raises ``Fault`` where they can't meet: another try would meet the same network.
        """
        address = _free_port() if self._actors else ""
        try:
            with self._together([actor.join.remote(address) for actor in self._actors]):
                yield address
        except ActorLost as lost:
            raise Fault(str(lost)) from lost

    @contextmanager
    def mirroring(self, method: str, *arguments: Any) -> Iterator[None]:
        """The others do the same as rank 0 within the context.

        Raises ``Fault`` that names the rank which died or broke, and ``ActorLost`` of one that did not come, whatever
        rank 0 itself met; ``Parted`` where all have waited in vain, which is a loss of the learners, too.
        """
        with self._together([actor.mirror.remote(method, *arguments) for actor in self._actors]):
            yield

    def optimizer_states(self) -> list[dict[str, Any]]:
        """The other ranks' parts of a sharded optimizer's state."""
        refs = [actor.mirror.remote("optimizer_state") for actor in self._actors]
        return [get(ref, name(rank), self._log_dir) for rank, ref in enumerate(refs, start=1)]

    @contextmanager
    def _together(self, refs: list[Any]) -> Iterator[None]:
        try:
            yield
        except Exception as own:
            if refs:
                self._name(refs, own)
            raise
        for rank, ref in enumerate(refs, start=1):
            get(ref, name(rank), self._log_dir)

    def _name(self, refs: list[Any], own: Exception) -> None:
        """Raises what tells more of why rank 0 failed than ``own``, which it met; returns if nothing does."""
        from learner.ranks import Parted

        if not isinstance(own, Parted):
            return
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=SETTLED_S)
        for rank, ref in enumerate(refs, start=1):
            if ref in done and not _raises(ref, Parted):
                try:
                    get(ref, name(rank), self._log_dir)
                except Died as died:
                    raise Fault(f"the learners' gradients could not be added up: {died}") from own
        if late := [name(rank) for rank, ref in enumerate(refs, start=1) if ref not in done]:
            # Its pings are answered, and the deadline of its phase may be far off: nothing else says that it is lost.
            raise ActorLost(
                late[0],
                f"{', '.join(late)} did not come to where the learners add up their gradients within "
                "cluster.deadlines.update",
            ) from own


def _raises(ref: Any, kind: type[Exception]) -> bool:
    """Whether a call that is done has raised that."""
    try:
        ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        return isinstance(error.cause, kind)
    except ray.exceptions.RayError:
        return False
    return False


def _free_port() -> str:
    with closing(socket.socket()) as free:
        free.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"
