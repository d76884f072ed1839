"""The learner's end of weight publication: the version number, copies in the object store, broadcasts.

``actors/broadcast.py`` directs a broadcast from the supervisor's side.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import ray

from actors.weights import CHANNELS, NcclChannel, Published
from agent.errors import Fault

if TYPE_CHECKING:
    from actors.nccl import Sender
    from learner.policy import Policy


class Publisher:
    """Publishes ``policy`` through ``channel``. Whoever changes weights or version holds ``steady`` meanwhile."""

    def __init__(self, policy: Policy, channel: str, *, bucket: int, timeout_s: float) -> None:
        """``bucket`` is a broadcast's, in bytes."""
        self.version = 0
        self.steady = threading.Lock()
        """Held while weights and version don't belong together, or are being sent."""
        self._policy = policy
        self._channel = channel
        self._bucket, self._timeout_s = bucket, timeout_s
        self._sender: Sender | None = None
        self._copy: Published | None = None

    def publish(self) -> Published:
        """The weights of now, as ``version``."""
        self._copy = None
        if self._channel == "nccl":
            me = ray.get_runtime_context().current_actor
            return NcclChannel().publish(self._policy.current(), self.version, me)
        return self._stored()

    def copy(self) -> Published:
        """The newest version in the object store, for engines that come too late for its broadcast."""
        with self.steady:
            if self._copy is None:
                self._copy = self._stored()
            return self._copy

    def offer(self) -> bytes:
        """The id of a new group of learner and engines, which everybody then joins."""
        from actors.nccl import unique_id

        self.leave()
        return unique_id()

    def join(self, group: bytes, world: int) -> None:
        """Opens the group with all its engines. Raises ``Fault`` if one is missing, and what NCCL raises."""
        from actors.nccl import Sender

        self._sender = Sender(group, world, bucket=self._bucket, timeout_s=self._timeout_s)

    def send(self, version: int) -> None:
        """Broadcasts the weights, which are those of ``version``. Raises ``Fault`` if the broadcast is abandoned."""
        assert version == self.version, "the weights have changed since they were published"
        assert self._sender is not None, "join comes first"
        sender = self._sender
        with self.steady:
            sender.send(self._policy.current())
        if self._sender is not sender:
            raise Fault(f"the broadcast of version {version} was abandoned")

    def leave(self) -> None:
        """Closes the group, if there is one."""
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.abandon()

    def fall_back(self) -> None:
        """Publishes through the object store from now on."""
        self.leave()
        self._channel = "object_store"

    def _stored(self) -> Published:
        """The weights of now, in the object store."""
        published: Published = CHANNELS["object_store"]().publish(self._policy.published(), self.version)
        return published
