"""GGUF files as models; that a real one is read right is in tests/e2e/test_real_models.py."""

from __future__ import annotations

import importlib.util
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.errors import UserError
from learner import gguf
from learner.gguf import dequantised, is_gguf, unpacked


def test_a_file_is_told_by_its_ending() -> None:
    assert is_gguf("~/models/Model-Q4.GGUF")
    assert not is_gguf("org/model-GGUF")


def test_what_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model\.path=it: no such file$"):
        dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"version https://git-lfs")
    with pytest.raises(UserError, match=r"^model\.path=it: is no GGUF file; it doesn't begin with GGUF$"):
        dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF, or so it says")
    monkeypatch.setattr(gguf, "NEEDS", ("no_such_package_a", "no_such_package_b"))
    with pytest.raises(UserError, match=r"^model\.path=it: .*pip install no_such_package_a no_such_package_b$"):
        dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path / "cache")


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="pip install accelerate gguf")
def test_a_damaged_file_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(UserError, match=r"^model\.path=it: holds no model that transformers can read"):
        dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path / "cache")
    assert not [*(tmp_path / "cache" / "gguf").iterdir()]


def test_a_folder_made_before_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the file's content, whatever it is called, and without the packages."""
    (tmp_path / "x.gguf").write_bytes(b"GGUF one")
    monkeypatch.setattr(gguf, "NEEDS", ("no_such_package",))
    made = tmp_path / "cache" / "gguf" / f"x-{gguf._digest(tmp_path / 'x.gguf')}"
    made.mkdir(parents=True)
    said: list[str] = []

    @contextmanager
    def phase(title: str):
        said.append(title)
        yield

    assert unpacked(str(tmp_path / "x.gguf"), "model.path=it", tmp_path / "cache", phase) == str(made)
    assert unpacked("org/name", "model.path=it", tmp_path / "cache", phase) == "org/name"
    assert said == ["reading the GGUF file"]
    (tmp_path / "x.gguf").write_bytes(b"GGUF two")
    with pytest.raises(UserError, match="pip install no_such_package"):
        unpacked(str(tmp_path / "x.gguf"), "model.path=it", tmp_path / "cache", phase)
