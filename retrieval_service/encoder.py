"""Texts as vectors, by a transformers encoder: which files it is, how it wants its texts, how its tokens become one
vector.

What isn't set is taken from the files that sentence-transformers leaves beside a model: ``modules.json``, the pooling's
``config.json``, ``sentence_bert_config.json`` and the prompts in ``config_sentence_transformers.json``. Two families
that keep their prefixes in their model cards alone are known by name. torch and transformers are imported when an
encoder is made.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from agent.collector import without_collector
from agent.errors import Fault, UserError, shortened
from agent.hub import HUB_NAME, kept_in, snapshot
from agent.paths import at_home
from agent.quiet import quietly
from agent.readable import json_of

KEY = "retrieval.encoder"
Vectors = npt.NDArray[np.float32]
POOLINGS = ("mean", "cls", "last")
FETCHED = ["*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/config.json"]
LEFT_OUT = ["onnx/*", "openvino/*"]
_PREFIXES = (
    (re.compile(r"(^|[/_-])e5-(small|base|large)(?!.*instruct)"), "query: ", "passage: "),
    (
        re.compile(r"(^|[/_-])bge-(small|base|large)-en"),
        "Represent this sentence for searching relevant passages: ",
        "",
    ),
)
"""Of a model's name: what goes before queries and passages (arXiv 2212.03533, section 3; arXiv 2309.07597)."""
_AT_ONCE = 64
"""Texts of a batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How an encoder is used: what an index and its queries have to agree on."""

    encoder: str
    """The name or folder that was given."""
    weights: str
    """128-bit BLAKE2b of the files that make the vectors."""
    pooling: str
    normalise: bool
    query_prefix: str
    passage_prefix: str
    max_tokens: int

    @property
    def key(self) -> str:
        """A digest of what the passages' vectors depend on."""
        said = {name: value for name, value in asdict(self).items() if name not in ("encoder", "query_prefix")}
        return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=8).hexdigest()


def encoder_folder(given: str, key: str) -> Path:
    """The folder of the model ``given``: itself, or the hub's snapshot on this machine, fetched if it isn't there.

    Raises ``UserError`` that begins with the setting ``key`` when there is neither.
    """
    folder = at_home(given)
    if folder.is_dir():
        return folder.absolute()
    if not HUB_NAME.fullmatch(given):
        raise UserError(f"{key}={given}: no such folder, and not a hub's name (org/name)")
    return snapshot(given, f"{key}={given}", FETCHED, LEFT_OUT)


def manner_of(folder: Path, given: str, asked: dict[str, Any]) -> Manner:
    """How the encoder in ``folder`` is used: as ``asked`` (the fields of ``Manner``), else as its own files say.

    Raises ``UserError`` that names what is missing.
    """
    said = {**_told(folder, given, asked), **{name: value for name, value in asked.items() if value is not None}}
    if "pooling" not in said:
        raise UserError(
            f"retrieval.encoder={given}: nothing in it says how its tokens become one vector; set retrieval.pooling to "
            f"one of {', '.join(POOLINGS)}"
        )
    # A folder by its whole path: an index that was made by it is opened from others, too.
    name = str(folder) if at_home(given).is_dir() else given
    return Manner(encoder=name, weights=weights_digest(folder, f"retrieval.encoder={given}"), **said)


def encoder_of(
    index: Path, made_with: Mapping[str, Any], given: str | None, asked: Mapping[str, Any], *, named: bool = True
) -> tuple[Manner, Path]:
    """How the encoder that made ``index`` is used, by its manifest, and its folder: the one that is ``given``, if it is
    the same. Of a name on the hub it may be an earlier snapshot: a later one has other files.

    Queries have the prefix that is ``asked`` for. Without one it is that of an index which is ``named``; one that was
    found by its corpus may be of a run that asked for another, since passages don't depend on it, and there it is the
    encoder's own.

    Raises ``UserError`` if it is another, or is ``asked`` to be used in another manner.
    """
    names = Manner.__dataclass_fields__
    made = Manner(**{name: made_with[name] for name in names})
    given = given or made.encoder
    folder = encoder_folder(given, KEY)
    others = ("encoder", "weights") if named else ("encoder", "weights", "query_prefix")
    kept = {name: value for name, value in asdict(made).items() if name not in others}
    wanted = kept | {name: value for name, value in asked.items() if value is not None}
    now = manner_of(folder, given, wanted)
    if now.weights != made.weights and (before := _snapshot_of(given, made.weights)) is not None:
        folder, now = before, manner_of(before, given, wanted)
    if now.key != made.key:
        differing = [name for name in names if getattr(now, name) != getattr(made, name) and name != "encoder"]
        raise UserError(
            f"{index}: was made with {made.encoder}, and {KEY}={given} differs in {', '.join(differing)}; use that "
            "one, or build an index of its own"
        )
    return now, folder


def _snapshot_of(name: str, weights: str) -> Path | None:
    """The snapshot of the hub's ``name`` on this machine that has these ``weights``: its newest may have others."""
    if at_home(name).is_dir() or not HUB_NAME.fullmatch(name):
        return None
    for folder in sorted((kept_in(name) / "snapshots").glob("*")):
        with suppress(UserError):  # of one that isn't whole
            if weights_digest(folder, name) == weights:
                return folder
    return None


def _called(folder: Path, given: str) -> list[str]:
    """What a model goes by: its hub name, the last part of its folder, and what its configuration says of where it came
    from. The folders above may be called after anything."""
    parts = Path(given).parts
    names = [given] if HUB_NAME.fullmatch(given) else [*parts[-1:], *(p for p in parts if p.startswith("models--"))]
    names.append(str(_json(folder / "config.json", {}).get("_name_or_path", "")))
    return [name.lower().replace("_", "-") for name in names]


def _told(folder: Path, given: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the files beside a model and its name say. A pooling that is ``asked`` for isn't looked for."""
    said: dict[str, Any] = {"normalise": False, "query_prefix": "", "passage_prefix": "", "max_tokens": 256}
    for pattern, query, passage in _PREFIXES:
        if any(pattern.search(name) for name in _called(folder, given)):
            said |= {"query_prefix": query, "passage_prefix": passage, "normalise": True}
    modules = _json(folder / "modules.json", [])
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    for module, kind in zip(modules, kinds, strict=True):
        if kind == "Pooling" and asked.get("pooling") is None:
            file = folder / str(module.get("path", "")) / "config.json"
            if name := _pooling(_json(file, {}), file):
                said["pooling"] = name
        elif kind == "Dense":
            raise UserError(f"retrieval.encoder={given}: has a dense layer after its pooling, which can't be read here")
    if kinds:
        said["normalise"] = "Normalize" in kinds
    prompts = _json(folder / "config_sentence_transformers.json", {}).get("prompts") or {}
    for name in ("query", "passage", "document"):
        if prompts.get(name):
            said[f"{'query' if name == 'query' else 'passage'}_prefix"] = prompts[name]
    longest = _json(folder / "sentence_bert_config.json", {}).get("max_seq_length")
    if kinds and longest is None:  # sentence-transformers leaves it to the tokenizer since 5.4
        longest = _json(folder / "tokenizer_config.json", {}).get("model_max_length")
    if longest:
        said["max_tokens"] = int(min(longest, 512))
    return said


def _pooling(told: Mapping[str, Any], file: Path) -> str | None:
    """The pooling that sentence-transformers wrote down, as one name since 5.4, before as switches; None without one.

    Raises ``UserError`` for one that isn't of ``POOLINGS``, or for several, which it would join.
    """
    names = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
    mode = told.get("pooling_mode")
    if mode is not None:
        modes = [mode] if isinstance(mode, str) else list(mode)
    else:
        modes = [
            key.removeprefix("pooling_mode_") for key, on in told.items() if key.startswith("pooling_mode_") and on
        ]
    found = [next((name for name, old in names.items() if each in (name, old)), str(each)) for each in modes]
    if len(found) > 1 or not {*found} <= {*POOLINGS}:
        raise UserError(f"{file}: pools by {' and '.join(found)}, and one of {', '.join(POOLINGS)} can be read here")
    return found[0] if found else None


def _json(file: Path, otherwise: Any) -> Any:
    """What ``file`` holds; ``otherwise`` without it, or where it is of another type. Raises ``UserError`` if
    damaged."""
    if not file.is_file():
        return otherwise
    try:
        value = json_of(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error})") from error
    return value if isinstance(value, type(otherwise)) else otherwise


def weights_digest(folder: Path, given: str) -> str:
    """128-bit BLAKE2b of configuration, tokenizer and weights. Raises ``UserError`` that begins with ``given``."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise UserError(f"{given}: {folder} needs config.json and weights in safetensors")
    digest = hashlib.blake2b(digest_size=16)
    for file in (folder / "config.json", folder / "tokenizer.json", *weights):
        if file.is_file():
            with open(file, "rb") as data:
                digest.update(hashlib.file_digest(data, lambda: hashlib.blake2b(digest_size=16)).digest())
    return digest.hexdigest()


def device_of(asked: str) -> str:
    """Where to compute. Raises ``UserError`` for what isn't there."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=asked)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"retrieval.device={asked}: not to be had here ({shortened(error, 120)}); set retrieval.device=auto"
        ) from error
    return asked


def batches(texts: Sequence[str], at_once: int) -> Iterator[list[int]]:
    """The numbers of all ``texts`` in lists of ``at_once``, shortest text first: so little of a batch is padding."""
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    for start in range(0, len(order), at_once):
        yield order[start : start + at_once]


def loaded(kind: str, folder: Path, given: str) -> tuple[Any, Any, list[str]]:
    """The tokenizer and the model in ``folder``, as transformers' class ``kind``, and the weights that its files lack:
    they would be made up at random, anew in each process.

    Raises ``UserError`` that begins with ``given`` for what can't be loaded, or takes one text at a time.
    """
    with without_collector():
        import transformers

    try:
        with quietly():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model, report = getattr(transformers, kind).from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # safetensors' own, and what torch raises for sizes that differ
        raise UserError(f"{given}: can't be loaded ({shortened(error)})") from error
    if tokenizer.pad_token is None:
        raise UserError(f"{given}: its tokenizer has no pad token, which texts of several lengths need")
    return tokenizer, model.eval(), sorted(report["missing_keys"])


def most_tokens(model: Any, tokenizer: Any, wanted: int) -> int:
    """How many of the ``wanted`` tokens ``model`` has positions for; a text's others are cut off."""
    positions = getattr(model.config, "max_position_embeddings", None) or wanted
    # RoBERTa's positions begin behind its padding's: its tokenizer alone says how many there are.
    return min(wanted, int(positions), int(tokenizer.model_max_length))


class TextModel:
    """A model of texts, as transformers' class ``kind``. For one thread; torch works on ``threads`` processors from
    then on.

    Raises ``UserError`` for a folder without a usable model.
    """

    kind: ClassVar[str]
    unused: ClassVar[tuple[str, ...]] = ()
    """How the names of weights begin that have no part in what is made here."""
    hint: ClassVar[str] = ""
    """What to do where the files lack weights."""

    def __init__(self, folder: Path, manner: Manner, *, threads: int, device: str = "auto") -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._manner = manner
        self.device = device_of(device)
        given = f"{KEY}={manner.encoder}"
        self._tokenizer, model, lacking = loaded(self.kind, folder, given)
        if missing := [name for name in lacking if not name.startswith(self.unused)]:
            raise UserError(f"{given}: its files lack {missing[0]}, which a {type(model).__name__} has{self.hint}")
        half = self.device.startswith("cuda")
        self._model = model.to(self.device, torch.float16 if half else torch.float32)
        self._max_tokens = most_tokens(model, self._tokenizer, manner.max_tokens)

    def _tokenized(self, texts: list[str]) -> Any:
        return self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self.device)


class Encoder(TextModel):
    """A model that makes vectors."""

    kind = "AutoModel"
    unused = ("pooler.",)

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return int(self._model.config.hidden_size)

    def queries(self, texts: Sequence[str]) -> Vectors:
        """(len(texts), size) vectors of search queries. Raises ``Fault`` for one that isn't finite."""
        return self._encode([self._manner.query_prefix + text for text in texts])

    def passages(self, texts: Sequence[str]) -> Vectors:
        """(len(texts), size) vectors of passages' contents. Raises ``Fault`` for one that isn't finite."""
        return self._encode([self._manner.passage_prefix + text for text in texts])

    def _encode(self, texts: Sequence[str]) -> Vectors:
        found = np.empty((len(texts), self.size), np.float32)
        with self._torch.inference_mode():
            for batch in batches(texts, _AT_ONCE):
                found[batch] = self._batch([texts[at] for at in batch])
        if not np.isfinite(found).all():
            at = int(np.isfinite(found).all(axis=1).argmin())
            raise Fault(f"retrieval.encoder={self._manner.encoder} makes no finite vector of {texts[at][:100]!r}")
        return found

    def _batch(self, texts: list[str]) -> Vectors:
        torch = self._torch
        encoded = self._tokenized(texts)
        hidden = self._model(**encoded).last_hidden_state.float()
        mask = encoded["attention_mask"].unsqueeze(-1)
        if self._manner.pooling == "cls":
            vectors = hidden[:, 0]
        elif self._manner.pooling == "last":
            # The last token that is no padding, whichever side that is on.
            last = (mask[:, :, 0] * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
            vectors = hidden[torch.arange(len(texts), device=last.device), last]
        else:
            vectors = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        if self._manner.normalise:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return np.asarray(vectors.cpu().numpy(), np.float32)
