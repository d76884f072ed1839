"""GGUF files as models; that a real one is read right is in tests/e2e/test_real_models.py."""

from __future__ import annotations

import errno
import importlib.util
import math
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from agent.aside import aside
from agent.errors import Fault, UserError
from agent.tokens import Tokenizer
from learner import gguf, manifest
from learner.gguf import dequantised, is_gguf, kept, unpacked

WORDS = ["20", "ab", "aba", "ĠĠ"]
MERGES = ["2 0", "a b", "Ġ Ġ"]
"""None makes ``aba``: it is a token only where a piece is looked up whole."""
PIECES = ["▁a", "ab", "▁ab", "▁▁", "▁", "a", "b"]
"""SentencePiece's."""
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


def test_what_stands_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").mkdir()
    (tmp_path / "y.gguf").symlink_to("nowhere")
    for name, wrong in (("x", "is a folder, and a file is needed"), ("y", "is a link to a file that is missing")):
        with pytest.raises(UserError, match=rf"^model\.path=it: {wrong}$"):
            dequantised(tmp_path / f"{name}.gguf", "model.path=it", tmp_path / "cache")


@pytest.mark.parametrize("stem", ["x" * 250, "\u6a21" * 83])
def test_a_long_name_is_cut_in_that_of_the_folder(tmp_path: Path, stem: str) -> None:
    (tmp_path / f"{stem}.gguf").write_bytes(b"GGUF")
    made = kept(tmp_path / f"{stem}.gguf", tmp_path / "cache")
    assert made.name.startswith(stem[:50])
    made.parent.mkdir(parents=True)
    with aside(made) as there:
        there.rename(made)


@needs_gguf
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError()])
def test_a_machine_without_room_is_no_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def full(file: Path, folder: Path) -> None:
        raise error

    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf, "_convert", full)
    with pytest.raises(Fault, match=r"^model\.path=it: can't be made a folder in .*/cache/gguf \("):
        dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path / "cache")


def test_a_part_of_several_is_named(tmp_path: Path) -> None:
    (tmp_path / "x-00001-of-00002.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"^model\.path=it: is one part of several; join them first"):
        dequantised(tmp_path / "x-00001-of-00002.gguf", "model.path=it", tmp_path)


def byte_level(writer: Any, pre: str) -> int:
    """Writes a tokenizer that cuts a text as ``pre``, and returns how many tokens it has."""
    letters = list(bytes_to_unicode().values())
    texts = [*letters, *WORDS, "<|endoftext|>", "<|im_end|>"]
    writer.add_tokenizer_model("gpt2")
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(texts)
    writer.add_token_types([1] * (len(letters) + len(WORDS)) + [3, 3])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(len(texts) - 2)
    writer.add_eos_token_id(len(texts) - 1)
    return len(texts)


def sentence_piece(writer: Any) -> int:
    """Writes such a tokenizer, and returns how many tokens it has."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([0.0] * 259 + [-float(rank) for rank in range(len(PIECES))])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(PIECES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    return len(texts)


def small_gguf(
    path: Path,
    *,
    without: str = "",
    family: str = "qwen2",
    head: int = 0,
    pre: str | None = "qwen2",
    divisors: Sequence[float] = (),
    longrope: bool = False,
    left_out: str = "",
    **said: int | bool | float | str,
) -> None:
    """A model of two layers and a width of 64, but for the tensors whose name begins with ``without``.

    ``head`` is what the file says of a head's size; 0 says nothing, and it is 16. Its tokenizer is byte-level and cuts
    a text as ``pre``, or is SentencePiece's for None. Its positions are scaled by the tensor ``divisors``, or by that
    of ``longrope``. ``said`` are further keys: of its tokenizer the booleans, of its model the others, and as they
    are those with a point. The key ``left_out`` is not written.
    """
    import gguf as files  # type: ignore[import-not-found]

    width, between = 64, 128
    writer = files.GGUFWriter(path, family)
    writer.add_context_length(16384)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(between)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    tokens = sentence_piece(writer) if pre is None else byte_level(writer, pre)
    if head:
        writer.add_key_length(head)
        writer.add_value_length(head)
    for key, value in said.items():
        name = f"{'tokenizer.ggml' if isinstance(value, bool) else family}.{key.replace('__', '.')}"
        name = key if "." in key else name
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](name, value)
    query, key = (head or 16) * 4, (head or 16) * 2
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (tokens, width), "output_norm.weight": (width,)}
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
    if longrope:
        shapes["rope_factors_long.weight"] = (8,)
    if divisors:
        writer.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        if not without or not name.startswith(without):
            writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32))
    for written in writer.kv_data:
        written.pop(left_out, None)
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
    with pytest.raises(UserError, match=r"holds no model that .* read \(it is cut short, damaged or too new: "):
        dequantised(tmp_path / "z.gguf", "model.path=it", tmp_path / "cache")
    (tmp_path / "z.gguf").write_bytes(content[:-1000])  # within its last tensor
    with pytest.raises(UserError, match=r"\(it is cut short, damaged or too new: .*; download it again\)$"):
        dequantised(tmp_path / "z.gguf", "model.path=it", tmp_path / "cache")


def llama3_divisors(factor: float, low: float = 1.0) -> list[float]:
    """As llama.cpp writes them into a file whose heads have 16 numbers."""
    divisors = []
    for pair in range(8):
        wavelength = 2 * math.pi * 10_000.0 ** (pair / 8)
        smooth = (8192 / wavelength - low) / (4.0 - low)  # 0 at the low frequency, 1 at the high one
        divisors.append(1 / ((1 - min(1.0, max(0.0, smooth))) / factor + min(1.0, max(0.0, smooth))))
    return divisors


@needs_gguf
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3s_scaled_positions_are_read(tmp_path: Path, factor: float) -> None:
    """transformers reads them from config.json alone, and would go on with another model."""
    divisors = llama3_divisors(factor)
    assert len({*divisors}) == 3  # some frequencies stay, one is between, some are divided by the factor
    small_gguf(tmp_path / "x.gguf", family="llama", pre="llama-bpe", divisors=divisors)
    made = dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path / "cache")
    model = AutoModelForCausalLM.from_pretrained(made)
    assert model.config.rope_parameters == {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain = [10_000.0 ** (-pair / 8) for pair in range(8)]
    assert (model.model.rotary_emb.inv_freq.numpy() * divisors).tolist() == pytest.approx(plain, rel=1e-5)


@needs_gguf
@pytest.mark.parametrize(
    ("scaled", "how"),
    [
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}, r"\(RoPE\), which transformers reads from"),
        ({"rope__scaling__factor": 4.0}, r"\(RoPE\), which"),  # llama.cpp takes it as linear
        ({"rope__scale_linear": 4.0}, r"\(RoPE\), which"),
        ({"longrope": True}, r"\(RoPE\), which"),
        ({"divisors": llama3_divisors(8.0, low=2.0)}, r"\(RoPE, rope_freqs\.weight\) otherwise than Llama 3's"),
        ({"divisors": llama3_divisors(8.0)[:4]}, r"\(RoPE, rope_freqs\.weight\) otherwise"),
        ({"divisors": [math.nan] * 8}, r"\(RoPE, rope_freqs\.weight\) otherwise"),
    ],
)
def test_otherwise_scaled_positions_are_refused(tmp_path: Path, scaled: dict[str, Any], how: str) -> None:
    """transformers reads none of them, and would go on with another model."""
    small_gguf(tmp_path / "x.gguf", family="llama", pre="llama-bpe", **scaled)
    with pytest.raises(UserError, match=rf"^model\.path=it: .*its positions are scaled {how}"):
        dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path / "cache")


@needs_gguf
@pytest.mark.parametrize("said", [{"rope__scaling__factor": 1.0}, {"rope__scaling__type": "none"}])
def test_positions_that_are_said_to_be_unscaled(tmp_path: Path, said: dict[str, Any]) -> None:
    small_gguf(tmp_path / "x.gguf", **said)
    config = gguf._configuration(tmp_path / "x.gguf", gguf._facts(tmp_path / "x.gguf"))
    assert config.rope_parameters["rope_type"] == "default"


@needs_gguf
@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize("space", [None, True, False])
def test_sentence_pieces_begin_as_the_file_says(tmp_path: Path, family: str, space: bool | None) -> None:
    """transformers puts a space before every text."""
    said = {} if space is None else {"add_space_prefix": space}
    small_gguf(tmp_path / "x.gguf", family=family, pre=None, **said)
    gguf._tokenizer(tmp_path / "x.gguf", gguf._facts(tmp_path / "x.gguf")).save_pretrained(tmp_path / "kept")
    tokenizer = Tokenizer(tmp_path / "kept")
    ids = tokenizer.encode("ab  a")
    assert tokenizer._tokenizer.convert_ids_to_tokens(ids)[0] == ("ab" if space is False else "▁ab")
    assert tokenizer.decode(ids) == "ab  a"
    if space is False:
        assert tokenizer.decode(tokenizer.encode(" ab")) == " ab"
    assert tokenizer.beginning == (1,)


@needs_gguf
@pytest.mark.parametrize("pre", [None, "qwen2"])
def test_the_end_token_is_added_where_the_file_says_so(tmp_path: Path, pre: str | None) -> None:
    for ends in (False, True):
        small_gguf(tmp_path / "x.gguf", family="llama", pre=pre, add_eos_token=ends)
        gguf._tokenizer(tmp_path / "x.gguf", gguf._facts(tmp_path / "x.gguf")).save_pretrained(tmp_path / f"{ends}")
        tokenizer = Tokenizer(tmp_path / f"{ends}")
        assert (tokenizer._tokenizer("ab")["input_ids"][-1] in tokenizer.eos_ids) == ends
        assert tokenizer.beginning == ((1,) if pre is None else ())  # and nothing of the end


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
    ("key", "value", "why"),
    [
        ("general.type", "adapter", r"it is no model, but of type adapter \(general\.type\)"),
        ("split.count", 2, r"it is one part of several; join them first"),
        ("attention__sliding_window", 64, r"its attention has a window of 64 tokens, which transformers reads from"),
        *(
            ("left_out", f"qwen2.{name}", rf"it doesn't say its qwen2\.{name}; download another")
            for name in ("context_length", "attention.head_count", "attention.layer_norm_rms_epsilon")
        ),
    ],
)
def test_what_would_be_taken_for_another_model_is_refused(tmp_path: Path, key: str, value: Any, why: str) -> None:
    """transformers has a value of its own for what a file doesn't say, and doesn't look at all that it says."""
    small_gguf(tmp_path / "x.gguf", **{key: value})
    with pytest.raises(UserError, match=rf"^model\.path=it: holds no model .*\({why}"):
        dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path / "cache")


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


def small_folder(folder: Path) -> None:
    """Stands for a model's."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(100))


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "emptied"])
def test_a_folder_that_was_damaged_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf, "NEEDS", ())
    monkeypatch.setattr(gguf, "_convert", lambda file, folder: small_folder(folder))
    made = dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path / "cache")
    weights = made / "model.safetensors"
    match damage:
        case "cut":
            weights.write_bytes(bytes(99))
        case "changed":
            weights.write_bytes(bytes(50) + b"x" + bytes(49))
        case "gone":
            (made / "config.json").unlink()
        case "emptied":
            for file in made.iterdir():
                file.unlink()
    assert dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path / "cache") == made
    assert weights.read_bytes() == bytes(100)
    assert (made / "config.json").read_text() == "{}"
    monkeypatch.setattr(gguf, "_convert", None)
    assert dequantised(tmp_path / "x.gguf", "model.path=it", tmp_path / "cache") == made, "it is whole again"


def test_a_folder_made_before_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the file's content, whatever it is called, and without the packages."""
    (tmp_path / "x.gguf").write_bytes(b"GGUF one")
    monkeypatch.setattr(gguf, "NEEDS", ("no_such_package",))
    made = kept(tmp_path / "x.gguf", tmp_path / "cache")
    small_folder(made)
    manifest.write(made, manifest.Manifest(step=0, number=0, files=manifest.listed(made)))
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
