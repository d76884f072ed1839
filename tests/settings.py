"""Settings as a command line gives them."""

from __future__ import annotations

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from conf.schema import RunConfig, register, typed

register()


def composed(*overrides: str) -> RunConfig:
    """The configuration of a run with these settings, in a folder named ``here``."""
    return typed(dictionary(*overrides))


def dictionary(*overrides: str) -> DictConfig:
    """The same as Hydra gives it to a job."""
    with initialize_config_module("conf", version_base=None):
        return compose("config", overrides=[*overrides, "output_dir=here"])
