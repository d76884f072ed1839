from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_module

from actors.plan.lease import MARGIN, longest_batch_s, short_lease
from actors.plan.table import table
from conf.schema import RunConfig, register, typed

register()


def composed(*overrides: str) -> RunConfig:
    with initialize_config_module("conf", version_base=None):
        return typed(compose("config", overrides=[*overrides, "output_dir=here"]))


@pytest.mark.parametrize("cluster", ["4x3090", "2x24gb", "1x24gb", "8xh100"])
@pytest.mark.parametrize("model", ["qwen1.5b", "qwen3-1.7b", "llama1b"])
def test_the_default_lease_lasts_on_every_shipped_cluster(cluster: str, model: str) -> None:
    config = composed(f"cluster={cluster}", f"model={model}")
    assert longest_batch_s(config) > 0
    assert short_lease(config) is None


def test_a_lease_that_ends_within_a_full_batch_is_refused_with_one_that_does_not() -> None:
    config = composed("cluster=1x24gb", "model=qwen1.5b", "pool.lease_s=600")
    said = short_lease(config)
    assert said is not None
    assert said.startswith("pool.lease_s=600: a batch whose responses are all at their limit takes ")
    assert said in table(config)
    (cure,) = [word for word in said.replace(",", "").split() if word.startswith("pool.lease_s=") and ":" not in word]
    assert float(cure.partition("=")[2]) == pytest.approx(MARGIN * longest_batch_s(config), abs=1)
    assert short_lease(composed("cluster=1x24gb", "model=qwen1.5b", cure.replace("=", "=1"))) is None


def test_on_a_cpu_any_lease_will_do() -> None:
    config: Any = composed("pool.lease_s=1")
    assert (longest_batch_s(config), short_lease(config)) == (0.0, None)
