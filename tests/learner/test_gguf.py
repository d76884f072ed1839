"""GGUF files as models; that a real one is read right is in tests/e2e/test_real_models.py."""

from __future__ import annotations

import importlib.util
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from agent.errors import UserError
from learner import gguf
from learner.digests import file_digest
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


def test_a_part_of_several_is_named(tmp_path: Path) -> None:
    (tmp_path / "x-00001-of-00002.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"^model\.path=it: is one part of several; join them first"):
        dequantised(tmp_path / "x-00001-of-00002.gguf", "model.path=it", tmp_path)


def small_gguf(path: Path, *, without: str = "", scaled: str = "") -> None:
    """A Qwen2 of two layers, but for the tensors whose name begins with ``without``; its positions ``scaled`` by a
    ``tensor`` or by a ``setting``."""
    import gguf as files  # type: ignore[import-not-found]

    width, between, letters = 64, 128, [chr(256 + i) if i < 33 else chr(i) for i in range(127)]
    texts = [*letters, "th", "<|endoftext|>", "<|im_end|>"]
    writer = files.GGUFWriter(path, "qwen2")
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(between)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(texts)
    writer.add_token_types([1] * (len(letters) + 1) + [3, 3])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(len(texts) - 1)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(texts), width), "output_norm.weight": (width,)}
    for layer in range(2):
        own = {"attn_norm.weight": (width,), "ffn_norm.weight": (width,), "attn_output.weight": (width, width)}
        own |= {"attn_q.weight": (width, width), "attn_q.bias": (width,), "ffn_down.weight": (width, between)}
        own |= {f"attn_{name}.weight": (width // 2, width) for name in "kv"}
        own |= {f"attn_{name}.bias": (width // 2,) for name in "kv"}
        own |= {f"ffn_{name}.weight": (between, width) for name in ("gate", "up")}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in own.items()}
    if scaled == "tensor":
        shapes["rope_freqs.weight"] = (8,)
    elif scaled:
        writer.add_rope_scaling_type(files.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        if not without or not name.startswith(without):
            writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="pip install accelerate gguf")
@pytest.mark.parametrize(
    ("without", "lacks"),
    [
        ("blk.1.ffn_up", r"it lacks model\.layers\.1\.mlp\.up_proj\.weight\)"),
        ("blk.1", r"it lacks model\.layers\.1\..* and 9 more"),
        ("token_embd", r"it lacks .*model\.embed_tokens\.weight"),
    ],
)
def test_what_a_file_lacks_is_never_filled_with_random_numbers(tmp_path: Path, without: str, lacks: str) -> None:
    small_gguf(tmp_path / "x.gguf")
    assert (dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path / "cache") / "model.safetensors").is_file()
    small_gguf(tmp_path / "y.gguf", without=without)
    with pytest.raises(UserError, match=lacks):
        dequantised(tmp_path / "y.gguf", "model.path=it", tmp_path / "cache")
    content = (tmp_path / "x.gguf").read_bytes()
    (tmp_path / "z.gguf").write_bytes(content[:1000])  # within its header
    with pytest.raises(UserError, match="holds no model that transformers can read"):
        dequantised(tmp_path / "z.gguf", "model.path=it", tmp_path / "cache")


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="pip install accelerate gguf")
@pytest.mark.parametrize("scaled", ["tensor", "setting"])
def test_scaled_positions_are_refused(tmp_path: Path, scaled: str) -> None:
    """transformers reads neither, and would go on with another model."""
    small_gguf(tmp_path / "x.gguf", scaled=scaled)
    with pytest.raises(UserError, match=r"^model\.path=it: .*its positions are scaled \(RoPE\)"):
        dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path / "cache")


def test_a_folder_made_before_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the file's content, whatever it is called, and without the packages."""
    (tmp_path / "x.gguf").write_bytes(b"GGUF one")
    monkeypatch.setattr(gguf, "NEEDS", ("no_such_package",))
    made = tmp_path / "cache" / "gguf" / f"x-{gguf.FORMAT}-{file_digest(tmp_path / 'x.gguf')}"
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
