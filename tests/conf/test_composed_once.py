"""What tests remember of Hydra's compositions (``tests/composed_once.py``) is what Hydra makes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from composed_once import remember
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from omegaconf import OmegaConf

from conf.composing import opened


@pytest.fixture(scope="module", autouse=True)
def _composed_once() -> None:
    """Here each test says whether it remembers."""


@pytest.fixture
def remembered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        remember(patch)
        yield


def made(*lines: str, folder: Path | None = None) -> tuple[str, object]:
    """The settings and Hydra's own as text, and the type of the pool's."""
    with opened(None, None if folder is None else str(folder), ()) as composer:
        composed = composer.compose(lines)
        return OmegaConf.to_yaml(composed), OmegaConf.get_type(composed, "pool")


LINES = ("pool=epoch", "algorithm=grpo", "seed=3", "algorithm.kl_coefficient=0.1", "+model.architecture.rope_theta=1")


def test_what_is_remembered_is_what_hydra_makes() -> None:
    others = (*LINES[:3], "pool.group_size=8", "++cluster.address=here")
    one, other = made(*LINES), made(*others)
    assert one != other
    with pytest.MonkeyPatch.context() as patch:
        remember(patch)
        assert [made(*LINES), made(*others), made(*LINES)] == [one, other, one]


@pytest.mark.usefixtures("remembered")
def test_what_is_given_out_is_a_copy() -> None:
    with opened(None, None, ()) as composer:
        composed = composer.compose(["seed=3"])
        composed.seed, composed.model.name = 4, "another"
        assert (composer.compose(["seed=3"]).seed, composer.compose(["seed=3"]).model.name) == (3, "tiny")
    line = OverridesParser.create().parse_override("seed=choice(1,2)")
    assert isinstance(line._value, ChoiceSweep)
    line._value.list.append(3)
    assert [*OverridesParser.create().parse_override("seed=choice(1,2)").sweep_string_iterator()] == ["1", "2"]


@pytest.mark.usefixtures("remembered")
def test_a_tests_own_files_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    for seed in (5, 6):
        (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\nseed: {seed}\n")
        assert f"\nseed: {seed}\n" in made("experiment=mine", folder=tmp_path)[0]
