"""Weights that are kept between runs: what is damaged is made again, never loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learner_cases import tiny_policy

from learner.weight_cache import keep, load_cached


def test_what_is_kept_comes_back_and_the_first_stays(tmp_path: Path) -> None:
    kept, other = tiny_policy(1), tiny_policy(2)
    assert not load_cached(other, tmp_path / "c" / "x")
    keep(kept, tmp_path / "c" / "x")
    keep(other, tmp_path / "c" / "x")
    assert load_cached(other, tmp_path / "c" / "x")
    assert torch.equal(other.head, kept.head)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["x"]


@pytest.mark.parametrize("damage", ["values", "cut", "no manifest"])
def test_what_is_damaged_is_said_and_removed(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "x"
    keep(tiny_policy(1), folder)
    file = folder / "model.safetensors"
    if damage == "values":
        file.write_bytes(file.read_bytes()[:-400] + b"\xff" * 400)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        (folder / "manifest.json").unlink()
    policy = tiny_policy(2)
    before = policy.published()
    assert not load_cached(policy, folder)
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.published().items())
    assert not folder.exists()
    said = capsys.readouterr().out
    assert said.startswith("[slingshot] the cached weights can't be used, and are made again")
    assert ("manifest.json is missing" if damage == "no manifest" else "model.safetensors is damaged") in said
