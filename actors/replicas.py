"""The retrieval actors of a run: watched, started again by Ray whenever one's process ends, and waited for."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from actors.calls import POLL_S, Died
from actors.health import Health
from agent.errors import Final
from retrieval_service.backend import Identity

FAILED_STARTS = 3
"""Ends in a row of processes whose index was waited for. An index may take long: few such fit into an hour."""


class Replicas:
    """The retrieval actors ``by_name``, whose indexes open from now on. ``lost`` is told of each that died or hung.

    What waits for them goes on waiting over such an end, until ``lost`` raises, which counts them, or the index that is
    waited for was not open in ``FAILED_STARTS`` processes in a row: then that raises ``Final``.
    """

    def __init__(self, by_name: Mapping[str, Any], health: Health, lost: Callable[[Died], None]) -> None:
        self._by_name = by_name
        self._lost = lost
        self._failed: Counter[str] = Counter()
        for name, replica in by_name.items():
            health.watch(name, replica, partial(self._ended, name), restarts=True)
        self._opening = {name: replica.start.remote() for name, replica in by_name.items()}

    def _ended(self, name: str, error: Died) -> None:
        self._lost(error)
        self._failed[name] += name in self._opening
        if self._failed[name] >= FAILED_STARTS:
            raise Final(f"{name} has ended {FAILED_STARTS} times before its index was open: {error}")

    def are_open(self, wait: Callable[[Any, str], Any]) -> None:
        """Waits until all indexes are open; ``wait`` gets an actor's answer."""
        for name, replica in self._by_name.items():
            while name in self._opening:
                try:
                    wait(self._opening[name], name)
                    del self._opening[name], self._failed[name]
                except Died as error:
                    if error.actor != name:  # seen while this was waited for
                        raise
                    time.sleep(POLL_S)
                    self._opening[name] = replica.start.remote()

    def identity(self, wait: Callable[[Any, str], Any]) -> Identity:
        """What is searched. Raises ``Final``, too, if that is asked ``FAILED_STARTS`` times of processes that end."""
        name, replica = next(iter(self._by_name.items()))
        for _ in range(FAILED_STARTS):
            self.are_open(wait)
            try:
                identity: Identity = wait(replica.identity.remote(), name)
                return identity
            except Died as error:
                if error.actor != name:
                    raise
                end = error
                time.sleep(POLL_S)
                self._opening[name] = replica.start.remote()  # from now on its ends are those of a start
        raise Final(f"{name} has ended {FAILED_STARTS} times as it was asked what it searches: {end}")
