"""GGUF files as models; that a real one is read right is in tests/e2e/test_real_models.py."""

from __future__ import annotations

import importlib.util
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from agent.errors import UserError
from agent.tokens import Tokenizer
from learner import gguf
from learner.gguf import dequantised, is_gguf, kept, unpacked

WORDS = ["20", "ab", "aba", "ĠĠ"]
MERGES = ["2 0", "a b", "Ġ Ġ"]
"""None makes ``aba``: it is a token only where a piece is looked up whole."""
needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="pip install accelerate gguf")


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


@needs_gguf
def test_a_damaged_file_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(UserError, match=r"^model\.path=it: holds no model that transformers can read"):
        dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path / "cache")
    assert not [*(tmp_path / "cache" / "gguf").iterdir()]


def test_a_part_of_several_is_named(tmp_path: Path) -> None:
    (tmp_path / "x-00001-of-00002.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"^model\.path=it: is one part of several; join them first"):
        dequantised(tmp_path / "x-00001-of-00002.gguf", "model.path=it", tmp_path)


def small_gguf(
    path: Path, *, without: str = "", scaled: str = "", family: str = "qwen2", head: int = 0, **said: int | bool | str
) -> None:
    """A model of two layers and a width of 64, but for the tensors whose name begins with ``without``.

    Its positions are ``scaled`` by a ``tensor`` or by a ``setting``. ``head`` is what the file says of a head's size; 0
    says nothing, and it is 16. ``said`` are ``pre`` and ``add_bos_token`` of its tokenizer, and further keys of its
    model.
    """
    import gguf as files  # type: ignore[import-not-found]

    width, between, letters = 64, 128, list(bytes_to_unicode().values())
    texts = [*letters, *WORDS, "<|endoftext|>", "<|im_end|>"]
    writer = files.GGUFWriter(path, family)
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(between)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    if pre := said.pop("pre", "qwen2"):
        writer.add_tokenizer_pre(pre)
    if "add_bos_token" in said:
        writer.add_add_bos_token(said.pop("add_bos_token"))
    if head:
        writer.add_key_length(head)
        writer.add_value_length(head)
    for key, value in said.items():
        writer.add_uint32(f"{family}.{key.replace('__', '.')}", value)
    writer.add_token_list(texts)
    writer.add_token_types([1] * (len(letters) + len(WORDS)) + [3, 3])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(len(texts) - 2)
    writer.add_eos_token_id(len(texts) - 1)
    query, key = (head or 16) * 4, (head or 16) * 2
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(texts), width), "output_norm.weight": (width,)}
    for layer in range(2):
        own = {"attn_norm.weight": (width,), "ffn_norm.weight": (width,), "attn_output.weight": (width, query)}
        own |= {"attn_q.weight": (query, width), "ffn_down.weight": (width, between)}
        own |= {f"attn_{name}.weight": (key, width) for name in "kv"}
        if family == "qwen2":
            own |= {"attn_q.bias": (query,)} | {f"attn_{name}.bias": (key,) for name in "kv"}
        if family == "qwen3":
            own |= {f"attn_{name}_norm.weight": (head or 16,) for name in "qk"}
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


@needs_gguf
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


@needs_gguf
@pytest.mark.parametrize("scaled", ["tensor", "setting"])
def test_scaled_positions_are_refused(tmp_path: Path, scaled: str) -> None:
    """transformers reads neither, and would go on with another model."""
    small_gguf(tmp_path / "x.gguf", scaled=scaled)
    with pytest.raises(UserError, match=r"^model\.path=it: .*its positions are scaled \(RoPE\)"):
        dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path / "cache")


@needs_gguf
@pytest.mark.parametrize(
    ("pre", "add_bos_token", "tokens", "begins"),
    [
        ("smollm", None, ["x", "ĠĠ", "2", "0", "Ġ", "ab", "a", "e", "Ì", "ģ"], False),
        ("smollm", True, ["x", "ĠĠ", "2", "0", "Ġ", "ab", "a", "e", "Ì", "ģ"], True),
        ("qwen2", False, ["x", "Ġ", "Ġ", "2", "0", "Ġ", "ab", "a", "Ã", "©"], False),
        ("llama-bpe", None, ["x", "Ġ", "Ġ", "20", "Ġ", "ab", "a", "e", "Ì", "ģ"], True),
        ("llama-bpe", False, ["x", "Ġ", "Ġ", "20", "Ġ", "ab", "a", "e", "Ì", "ģ"], False),
    ],
)
def test_the_tokenizer_is_the_one_that_the_file_describes(
    tmp_path: Path, pre: str, add_bos_token: bool | None, tokens: list[str], begins: bool
) -> None:
    """transformers takes GPT-2's way of cutting a text where it doesn't know the file's, and adds no begin token."""
    said = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
    file, folder = tmp_path / "x.gguf", tmp_path / "kept"
    small_gguf(file, family="qwen3" if pre == "qwen2" else "llama", pre=pre, **said)
    for part in (gguf._tokenizer, gguf._configuration):
        part(file, gguf._facts(file)).save_pretrained(folder)
    tokenizer = Tokenizer(folder)  # as it is read again
    vocabulary = tokenizer._tokenizer
    assert vocabulary.convert_ids_to_tokens(tokenizer.encode("x  20 abae\u0301")) == tokens
    whole = vocabulary.convert_ids_to_tokens(tokenizer.encode("aba"))
    assert whole == (["aba"] if pre == "llama-bpe" else ["ab", "a"])
    assert tokenizer.beginning == ((vocabulary.bos_token_id,) if begins else ())


@needs_gguf
@pytest.mark.parametrize(
    ("pre", "said"),
    [
        ("tekken", r"its tokenizer cuts a text as tekken \(tokenizer\.ggml\.pre\), and smollm, qwen2, .* are known"),
        ("", r"nothing says how its tokenizer cuts a text \(tokenizer\.ggml\.pre\).*name the model's own folder"),
    ],
)
def test_an_unknown_tokenizer_is_refused(tmp_path: Path, pre: str, said: str) -> None:
    small_gguf(tmp_path / "x.gguf", pre=pre)
    with pytest.raises(UserError, match=rf"^model\.path=it: .*{said}"):
        dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path / "cache")


@needs_gguf
@pytest.mark.parametrize(("family", "head"), [("qwen3", 32), ("qwen3", 0), ("qwen2", 32), ("llama", 32)])
def test_heads_have_the_files_size(tmp_path: Path, family: str, head: int) -> None:
    """transformers takes 128 for every Qwen3, and a share of the width for a Qwen2."""
    small_gguf(tmp_path / "x.gguf", family=family, head=head)
    made = dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path / "cache")
    model = AutoModelForCausalLM.from_pretrained(made)
    assert model.model.layers[0].self_attn.head_dim == (head or 16)
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (4 * (head or 16), 64)


@needs_gguf
@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("rope__dimension_count", r"its positions \(RoPE\) turn 8 of a head's 16 numbers"),
        ("attention__value_length", "its heads have keys of 16 numbers and values of 8"),
    ],
)
def test_heads_that_transformers_cant_have_are_refused(tmp_path: Path, key: str, said: str) -> None:
    small_gguf(tmp_path / "x.gguf", **{key: 8})
    with pytest.raises(UserError, match=rf"^model\.path=it: .*{said}"):
        dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path / "cache")


def test_another_transformers_reads_a_file_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    before = kept(tmp_path / "x.gguf", tmp_path)
    monkeypatch.setattr(gguf, "version", lambda package: f"another {package}")
    assert kept(tmp_path / "x.gguf", tmp_path) != before


def test_a_folder_made_before_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the file's content, whatever it is called, and without the packages."""
    (tmp_path / "x.gguf").write_bytes(b"GGUF one")
    monkeypatch.setattr(gguf, "NEEDS", ("no_such_package",))
    made = kept(tmp_path / "x.gguf", tmp_path / "cache")
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
