"""A GGUF file as a model's folder: dequantised once, and kept by the file's checksum."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stderr
from pathlib import Path
from typing import Any

from agent.errors import UserError, shortened
from agent.paths import at_home
from agent.quiet import quietly
from learner.digests import file_digest

ENDING = ".gguf"
NEEDS = ("gguf", "accelerate")
"""Packages that transformers reads such a file with; they are no part of an installation."""
MAGIC = b"GGUF"
FORMAT = 3
"""Of what is kept; raised when the same file would be read otherwise."""
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf\Z", re.IGNORECASE)


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


def dequantised(path: str | Path, given: str, cache: Path) -> Path:
    """The folder, under ``cache``, of the model in a GGUF file: float32 weights, configuration and tokenizer.

    Its weights are those that the file's blocks stand for, so what quantising lost stays lost. It is made at the first
    call for a file with this content, in seconds to minutes, whole or not at all. Raises ``UserError`` that starts
    with ``given`` (``model.path=…``) when the file is none, holds no model that transformers can read, lacks tensors of
    it, is one part of several, or a package for it is missing.
    """
    file = at_home(path).absolute()
    if not file.is_file():
        raise UserError(f"{given}: no such file")
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{given}: is no GGUF file; it doesn't begin with {MAGIC.decode()}")
    if _PART.search(file.name):
        raise UserError(f"{given}: is one part of several; join them first (llama.cpp's llama-gguf-split --merge)")
    folder = cache / "gguf" / f"{file.stem}-{FORMAT}-{file_digest(file)}"
    if folder.is_dir():
        return folder
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise UserError(f"{given}: GGUF is read with {' and '.join(NEEDS)}; pip install {' '.join(missing)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as aside:
        made = Path(aside) / "model"
        try:
            with quietly(), redirect_stderr(io.StringIO()):  # where the conversion draws a bar of its own
                _check_positions(file)
                _convert(file, made)
        except Exception as error:  # the tokenizers' own is no more than that
            raise UserError(f"{given}: holds no model that transformers can read ({shortened(error)})") from error
        if not folder.is_dir():  # another process may have been faster
            shutil.move(made, folder)
    return folder


def _check_positions(file: Path) -> None:
    """Raises ``ValueError`` for scaled positions (RoPE): transformers reads none from GGUF, and would compute another
    model. llama.cpp has Llama 3's as a tensor, others' as a setting.
    """
    from gguf import GGUFReader

    reader = GGUFReader(file)
    kinds = [field for name, field in reader.fields.items() if name.endswith(".rope.scaling.type")]
    scaled = any(str(field.contents()) != "none" for field in kinds)
    if scaled or any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        raise ValueError("its positions are scaled (RoPE), which transformers reads from the model's own folder alone")


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False).save_pretrained(
        folder
    )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
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
