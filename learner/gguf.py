"""A GGUF file as a model's folder: dequantised once, and kept by the file's checksum."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agent.aside import aside
from agent.errors import Fault, UserError, refused, shortened
from agent.paths import at_home
from agent.quiet import quietly
from learner import manifest
from learner.digests import file_digest
from learner.hub import MISSING, out_of_place

ENDING = ".gguf"
NEEDS = ("gguf", "accelerate")
"""Packages that transformers reads such a file with; they are no part of an installation."""
MAGIC = b"GGUF"
FORMAT = 6
"""Of what is kept; raised when the same file would be read otherwise."""
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf\Z", re.IGNORECASE)
_A_PART = "is one part of several; join them first (llama.cpp's llama-gguf-split --merge)"
_LONGEST_STEM = 150
"""Bytes of a file's name in that of its folder, which has a digest and more behind it."""
_KINDS = ("general.architecture", "general.type", "split.count")
_NEEDED = (
    *(("context_length",), ("embedding_length",), ("block_count",), ("attention.head_count", "ssm.state_size")),
    ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
)
"""Keys of the architecture, one of each group in every file: for a missing one transformers makes up a value."""
_DIVISORS = "rope_freqs.weight"
"""The tensor by which llama.cpp divides the frequencies of positions (RoPE): one number for each pair in a head."""
_LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""How Llama 3.1, 3.2 and 3.3 scale positions, but for the factor: 8, and 32 of the small ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cut:
    """How a byte-level tokenizer cuts a text before it merges, and what else is its model's own."""

    digits: str | None
    """How many digits stay together, as a pattern; None: each is alone, and the rest is cut by GPT-2's pattern."""
    composed: bool = False
    """The text is brought to Unicode's form NFC before."""
    whole_words: bool = False
    """A piece that is a token is taken whole, whatever the merges say."""
    begins: bool = False
    """A text begins with the begin token, unless the file says otherwise."""


_SMOLLM, _QWEN2 = _Cut(digits=None), _Cut(digits=r"\p{N}", composed=True)
_LLAMA3_CUT = _Cut(digits=r"\p{N}{1,3}", whole_words=True, begins=True)
_CUTS = {"smollm": _SMOLLM, "qwen2": _QWEN2, **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3_CUT)}
"""By llama.cpp's name for it, ``tokenizer.ggml.pre``. The values are those of each model's own tokenizer.json: a file
says no more than the name, and transformers takes GPT-2's for one that it doesn't know."""


def is_gguf(path: str | Path) -> bool:
    """Whether ``path`` names a GGUF file, there or not."""
    return str(path).lower().endswith(ENDING)


def unpacked(path: str, given: str, cache: Path, phase: Callable[[str], AbstractContextManager[object]]) -> str:
    """``path``, or of a GGUF file the folder of what is in it, made in a ``phase`` of its own where it isn't there yet.

    Raises as ``dequantised``.
    """
    if not is_gguf(path):
        return path
    with phase("reading the GGUF file"):
        return str(dequantised(path, given, cache))


def kept(file: Path, cache: Path) -> Path:
    """Where ``cache`` keeps the model in ``file``: by its content, and by who read it."""
    name = file.stem.encode(errors="ignore")[:_LONGEST_STEM].decode(errors="ignore")
    return cache / "gguf" / f"{name}-{FORMAT}-{version('transformers')}-{file_digest(file)}"


def dequantised(path: str | Path, given: str, cache: Path) -> Path:
    """The folder, under ``cache``, of the model in a GGUF file: float32 weights, configuration and tokenizer.

    Its weights are those that the file's blocks stand for, so what quantising lost stays lost. It is made at the first
    call for a file with this content, in seconds to minutes, whole or not at all, and again where it has been damaged
    since. Raises ``UserError`` that starts with ``given`` (``model.path=…``) when the file is none, holds no model that
    transformers can read, lacks tensors of it, is one part of several, or a package for it is missing.
    """
    file = at_home(path).absolute()
    try:
        if wrong := out_of_place(file):
            raise UserError(f"{given}: {'no such file' if wrong == MISSING else wrong}")
        with file.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise UserError(f"{given}: is no GGUF file; it doesn't begin with {MAGIC.decode()}")
    except OSError as error:
        raise UserError(f"{given}: can't be read ({error.strerror})") from error
    if _PART.search(file.name):
        raise UserError(f"{given}: {_A_PART}")
    folder = kept(file, cache)
    if _is_whole(folder):
        return folder
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise UserError(f"{given}: GGUF is read with {' and '.join(NEEDS)}; pip install {' '.join(missing)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with aside(folder) as there:
        made = there / "model"
        try:
            with quietly(), redirect_stderr(io.StringIO()):  # where the conversion draws a bar of its own
                _convert(file, made)
            manifest.write(made, manifest.Manifest(step=0, number=0, files=manifest.listed(made)))
        except Exception as error:  # the tokenizers' own is no more than that
            if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:  # of the machine
                raise Fault(
                    f"{given}: can't be made a folder in {folder.parent} ({refused(error) or 'out of memory'})"
                ) from error
            raise UserError(f"{given}: holds no model that transformers can read ({shortened(error)})") from error
        if not _is_whole(folder):  # another process may have been faster
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether ``folder`` is there and holds what was written into it."""
    try:
        manifest.check(folder)
    except UserError:
        return False
    return True


def _facts(file: Path) -> dict[str, Any]:
    """What the file says, by key, without its lists; of its tensors ``_DIVISORS``, if it has it.

    Raises ``ValueError`` for a file that is cut short, and as ``_check_whole`` and ``_check_positions``.
    """
    from gguf import GGUFReader, GGUFValueType

    try:
        reader = GGUFReader(file)
    except Exception as error:  # of a dozen kinds
        raise ValueError(f"it is cut short, damaged or too new: {shortened(error)}; download it again") from error
    _check_whole(reader)
    _check_positions(reader)
    facts = {n: field.contents() for n, field in reader.fields.items() if GGUFValueType.ARRAY not in field.types}
    return facts | {tensor.name: tensor.data.copy() for tensor in reader.tensors if tensor.name == _DIVISORS}


def _check_whole(reader: Any) -> None:
    """Raises ``ValueError`` for what is no model or a part of one, or doesn't say how it is built."""
    said = {name: field.contents() for name, field in reader.fields.items() if name in _KINDS}
    if (kind := said.get("general.type", "model")) != "model":
        raise ValueError(f"it is no model, but of type {kind} (general.type)")
    if said.get("split.count", 1) > 1:
        raise ValueError(f"it {_A_PART}")
    family = said.get("general.architecture")
    for keys in _NEEDED if family is not None else ():
        if not any(f"{family}.{key}" in reader.fields for key in keys):
            raise ValueError(f"it doesn't say its {family}.{keys[0]}; download another")


def _check_positions(reader: Any) -> None:
    """Raises ``ValueError`` for positions (RoPE) that are scaled otherwise than by ``_DIVISORS``: transformers reads
    none from GGUF, and would compute another model. llama.cpp has Phi's as tensors, others' as settings.
    """
    said = {name.partition(".rope.")[2]: field.contents() for name, field in reader.fields.items() if ".rope." in name}
    factor = said.get("scaling.factor", said.get("scale_linear", 1.0))
    kind = said.get("scaling.type", "none" if factor in (0.0, 1.0) else "linear")  # as llama.cpp takes it
    if kind != "none" or any(tensor.name.startswith("rope_factors_") for tensor in reader.tensors):
        raise ValueError("its positions are scaled (RoPE), which transformers reads from the model's own folder alone")


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    facts = _facts(file)
    _tokenizer(file, facts).save_pretrained(folder)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        config=_configuration(file, facts),
        dtype=torch.float32,
        trust_remote_code=False,
        output_loading_info=True,
    )
    read, how = loaded
    if lacking := sorted(map(str, (*how["missing_keys"], *how["mismatched_keys"]))):  # they are random numbers now
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ValueError(f"it lacks {', '.join(lacking[:3])}{more}")
    config = read.config
    config.dtype = torch.float32
    if hasattr(config, "quantization_config"):  # it says what the file was; what is read is float32, and is saved so
        del config.quantization_config
    whole = type(read)(config)  # what was read refuses to be saved, as a quantised model
    whole.load_state_dict(read.state_dict())
    whole.save_pretrained(folder)


def _configuration(file: Path, facts: Mapping[str, Any]) -> Any:
    """The model's configuration, with the size of a head and the scaled positions that the file means.

    transformers reads the size of few architectures, and takes 128 for every Qwen3. Raises ``ValueError`` for heads
    that it can't have: keys and values of two sizes, or positions in a part of a head; for a window of its attention
    that isn't read; and as ``_scale_positions``.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)

    def size(key: str, otherwise: int) -> int:
        return int(facts.get(f"{facts['general.architecture']}.{key}", otherwise))

    divided = config.hidden_size // config.num_attention_heads
    head = size("attention.key_length", divided)
    if (values := size("attention.value_length", divided)) != head:
        raise ValueError(f"its heads have keys of {head} numbers and values of {values}, and they have to be as long")
    if (turned := size("rope.dimension_count", head)) != head:
        raise ValueError(f"its positions (RoPE) turn {turned} of a head's {head} numbers, and they have to turn all")
    if (window := size("attention.sliding_window", 0)) not in (0, getattr(config, "sliding_window", None)):
        raise ValueError(
            f"its attention has a window of {window} tokens, which transformers reads from the model's own folder alone"
        )
    if (getattr(config, "head_dim", None) or divided) != head:
        config.head_dim = head
    if _DIVISORS in facts:
        _scale_positions(config, facts[_DIVISORS])
    return config


def _scale_positions(config: Any, divisors: Any) -> None:
    """Puts into ``config`` the scaling that ``divisors``, an array of half a head's length, were made by.

    Raises ``ValueError`` if it isn't ``_LLAMA3`` with some factor.
    """
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    given, plain = torch.from_numpy(divisors), config.rope_parameters

    def frequencies(factor: float) -> torch.Tensor:
        config.rope_parameters = {**plain, **_LLAMA3, "factor": factor}
        return ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]

    whole, divided = frequencies(1.0), frequencies(float(given.max()))  # the slowest are divided by all of the factor
    if given.shape != whole.shape or not torch.allclose(whole / divided, given.to(whole.dtype), rtol=1e-4):
        raise ValueError(
            f"its positions are scaled (RoPE, {_DIVISORS}) otherwise than Llama 3's; name the model's own folder"
        )


def _tokenizer(file: Path, facts: Mapping[str, Any]) -> Any:
    """The tokenizer that the file describes. Raises ``ValueError`` for one that isn't in ``_CUTS``.

    SentencePiece's is as transformers makes it, but for the begin and end token and the space before a text.
    """
    from tokenizers import decoders, normalizers, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind, name = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre")
    cut = _CUTS.get(str(name)) if kind == "gpt2" else None
    if kind == "gpt2" and cut is None:
        said = "nothing says how its tokenizer cuts a text" if name is None else f"its tokenizer cuts a text as {name}"
        raise ValueError(f"{said} (tokenizer.ggml.pre), and {', '.join(_CUTS)} are known; name the model's own folder")
    begins = facts.get("tokenizer.ggml.add_bos_token", kind == "llama" if cut is None else cut.begins)
    # An architecture's own class would put its own way of cutting in the place of the file's when it is loaded again.
    made_by: Any = AutoTokenizer if cut is None else PreTrainedTokenizerFast
    tokenizer = made_by.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        trust_remote_code=False,
        add_bos_token=bool(begins),
        add_eos_token=bool(facts.get("tokenizer.ggml.add_eos_token", False)),
    )
    fast = tokenizer.backend_tokenizer
    if kind == "llama" and not facts.get("tokenizer.ggml.add_space_prefix", True):
        fast.normalizer = None  # Phi's puts the space there
        fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        fast.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    if cut is not None:
        fast.pre_tokenizer = _pre_tokenizer(cut)
        fast.normalizer = normalizers.NFC() if cut.composed else None
        fast.model.ignore_merges = cut.whole_words
    return tokenizer


def _pre_tokenizer(cut: _Cut) -> Any:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if cut.digits is None:
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    pattern = Split(Regex(f"{words}|{cut.digits}|{rest}"), behavior="isolated")
    return Sequence([pattern, ByteLevel(add_prefix_space=False, use_regex=False)])
