"""Settings as a command line gives them."""

from __future__ import annotations

import copy
from functools import cache

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from conf.schema import RunConfig, register, typed

register()


def composed(*overrides: str) -> RunConfig:
    """The configuration of a run with these settings, in a folder named ``here``."""
    return typed(_made(overrides))


def dictionary(*overrides: str) -> DictConfig:
    """The same as Hydra gives it to a job."""
    return copy.deepcopy(_made(overrides))


@cache  # Hydra takes .15 s for each
def _made(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_module("conf", version_base=None):
        return compose("config", overrides=[*overrides, "output_dir=here"])
