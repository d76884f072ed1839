"""Breaks a run on purpose: Python imports this file first in every process whose PYTHONPATH has its folder.

``BREAK=stale``: the engines keep their first weights and say that they hold the newest. ``BREAK=mask``: the learner's
mask of trained tokens is shifted by one.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def stale(module: ModuleType) -> None:
    thread = module.EngineThread
    load = thread.load

    def kept(self: Any, tensors: Any, version: int) -> None:
        if version == 0:
            return load(self, tensors, version)
        self.hold()
        self._adopt(version)
        return self._resume()

    thread.load = kept


def mask(module: ModuleType) -> None:
    import numpy as np

    sample = module.Sample

    def shifted(**told: Any) -> Any:
        return sample(**told | {"action_mask": np.roll(told["action_mask"], -1)})

    module.Sample = shifted


BROKEN = {"stale": ("actors.engine_thread", stale), "mask": ("learner.batch", mask)}


class Breaker(MetaPathFinder):
    """Finds the one module as always, and breaks it when it has been imported."""

    def __init__(self, name: str, broken: Any) -> None:
        self._name, self._broken = name, broken

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == self._name else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def broken(module: ModuleType) -> None:
                execute(module)
                self._broken(module)

            spec.loader.exec_module = broken  # type: ignore[method-assign]
        return spec


if os.environ.get("BREAK"):
    sys.meta_path.insert(0, Breaker(*BROKEN[os.environ["BREAK"]]))
