"""The retrieval actors of a run: watched, started again by Ray whenever one's process ends, and waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from actors.calls import POLL_S, Died
from actors.health import Health
from retrieval_service.backend import Identity


class Replicas:
    """The retrieval actors ``by_name``, whose indexes open from now on. ``lost`` is told of each that died or hung.

    What waits for them goes on waiting over such an end, until ``lost`` raises: it counts them.
    """

    def __init__(self, by_name: Mapping[str, Any], health: Health, lost: Callable[[Died], None]) -> None:
        self._by_name = by_name
        for name, replica in by_name.items():
            health.watch(name, replica, lost, restarts=True)
        self._opening = {name: replica.start.remote() for name, replica in by_name.items()}

    def are_open(self, wait: Callable[[Any, str], Any]) -> None:
        """Waits until all indexes are open; ``wait`` gets an actor's answer."""
        for name, replica in self._by_name.items():
            while name in self._opening:
                try:
                    wait(self._opening[name], name)
                    del self._opening[name]
                except Died as error:
                    if error.actor != name:  # seen while this was waited for
                        raise
                    time.sleep(POLL_S)
                    self._opening[name] = replica.start.remote()

    def identity(self, wait: Callable[[Any, str], Any]) -> Identity:
        """What is searched."""
        name, replica = next(iter(self._by_name.items()))
        while True:
            try:
                identity: Identity = wait(replica.identity.remote(), name)
                return identity
            except Died as error:
                if error.actor != name:
                    raise
                time.sleep(POLL_S)
