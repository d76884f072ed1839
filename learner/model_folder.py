"""Whether a model's folder is whole: its files, and the names, shapes and types of the tensors in them.

Headers alone are read, so that a model of 1.5B parameters takes well under a second. They are compared with the
model that transformers builds from config.json without memory, by transformers' own rules for names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from agent.errors import UserError, shortened
from agent.hub import kept_in
from agent.quiet import quietly
from agent.readable import json_of
from learner.hub import CONFIG, MISSING, is_hub_name, out_of_place
from learner.skeleton import is_skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
JSON = (CONFIG, GENERATION, "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")
TEMPLATES = ("*.jinja", "additional_chat_templates/*.jinja")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
ADAPTER = "adapter_config.json"
MERGE = "the folder holds an adapter: merge it into its base model first"
FLOATS = ("F64", "F32", "F16", "BF16")
COMPARED_ROWS = 16
"""Rows of an embedding and of a head that should be one: two different ones differ in every row."""
_PLAIN = {
    "_attn_implementation": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "transformers_weights": None,
}
"""Fields of config.json that are no matter of the model: how its attention is computed, how transformers answers, and
where it looks for weights. Another program, or an earlier transformers, may have left them there."""
_POINTER = b"version https://git-lfs"


class _Broken(ValueError):
    """What is wrong with a folder: the file's name, the reason and the fix."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    file: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it, ``BF16``."""


def check_folder(folder: Path, given: str) -> int:
    """The number of rows of the model's embedding, when all of the model in ``folder`` is there.

    Raises ``UserError`` that starts with ``given`` (``model.path=…``) and names the first file that is missing or
    wrong, and how to mend it.
    """
    try:
        _check_small(folder)
        tensors = _tensors(folder)
        if (folder / ADAPTER).is_file():  # which of the two is loaded depends on whether peft is installed
            raise _Broken(f"{ADAPTER}: {MERGE}, or take that file away if the model is meant without it")
        model = _described(folder)  # last: it takes seconds to import what builds it
        _compare(model, tensors)
        _compare_tied(folder, model, tensors)
    except (_Broken, OSError) as error:
        raise UserError(f"{given}: {error}") from error
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that a model's weights are in: ``model.safetensors``, or else those that its index names.

    Others in the folder are none of its weights. Raises ``UserError`` when there are none, or one is missing.
    """
    try:
        return _weight_files(folder)
    except _Broken as error:
        raise UserError(f"{folder}: {error}") from error


def to_fetch(path: str | None) -> bool:
    """Whether ``path`` is a hub's name of which this machine lacks the configuration or weights, or has only a part.

    Asks nobody: the hub's client notes of a name which snapshot it took last, and that is the one it loads.
    """
    if path is None or not is_hub_name(path):
        return False
    kept = kept_in(path)
    try:
        folder = kept / "snapshots" / (kept / "refs" / "main").read_text(encoding="utf-8").strip()
        return not ((folder / CONFIG).is_file() and _weight_files(folder))
    except (OSError, ValueError):  # a _Broken, too
        return True


# --- files -----------------------------------------------------------------------------------------


def _check_small(folder: Path) -> None:
    """The files beside the weights: none is garbled, or only a line that says where it is."""
    for pattern in ("*.json", "*.model", "*.txt", "*.tiktoken", *TEMPLATES):
        for file in sorted(folder.glob(pattern)):
            _there(file)
            if pattern in TEMPLATES:
                _template(file)
    if not (folder / CONFIG).is_file():
        mend = "name a folder with a model in Hugging Face format, a run's checkpoints/step-… or your own"
        if (folder / ADAPTER).is_file():
            mend = MERGE
        raise _Broken(f"{CONFIG} is missing{_unfinished(folder)}; {mend}")
    for name in JSON:
        if (folder / name).is_file():
            _json(folder / name)
    if (folder / GENERATION).is_file():
        _check_ids(_json(folder / GENERATION))


def _weight_files(folder: Path) -> tuple[Path, ...]:
    if _there(folder / WEIGHTS):
        return (folder / WEIGHTS,)
    if not _there(folder / INDEX):
        raise _Broken(_no_weights(folder))
    files = tuple(folder / name for name in sorted(set(_index(folder).values())))
    for file in files:
        if not _there(file):
            raise _Broken(f"{file.name} is missing, which {INDEX} names{_unfinished(folder)}; download it again")
    return files


def _there(file: Path) -> bool:
    """Whether there is such a file. Raises ``_Broken`` for what stands in its place."""
    if wrong := out_of_place(file):
        if wrong == MISSING:
            return False
        raise _Broken(f"{file.name} {wrong}; download it again")
    with file.open("rb") as stream:  # a clone without git-lfs has a line of text in the place of each large file
        if stream.read(len(_POINTER)) == _POINTER:
            raise _Broken(f"{file.name} is a git-lfs pointer and not the file; run `git lfs pull` in {file.parent}")
    return True


def _no_weights(folder: Path) -> str:
    """What to say of a folder without ``model.safetensors`` and without an index."""
    if is_skeleton(folder):
        return f"{WEIGHTS} is missing: a run started here from random weights; name one of its checkpoints"
    missing = f"{WEIGHTS} is missing"
    if (folder / ADAPTER).is_file():
        return f"{missing}; {MERGE}"
    # A trainer's folder has other pickles, too (training_args.bin, optimizer.pt), of which no model can be made.
    if pickles := sorted(file.name for file in folder.glob("pytorch_model*.bin")):
        return (
            f"{missing}, and {pickles[0]} is a pickle, which is never loaded here; if you trust it, convert it: "
            'python -c "from transformers import AutoModelForCausalLM as M; M.from_pretrained('
            f"'{folder}', use_safetensors=False).save_pretrained('{folder}')\""
        )
    if parts := sorted(file.name for file in folder.glob("*.safetensors")):
        return f"{missing}, and so is {INDEX}, which would name {parts[0]}{_unfinished(folder)}; download it again"
    return f"{missing} (or {INDEX} and what it names){_unfinished(folder)}; download the weights again"


_HALF = ("incomplete", "part", "aria2", "crdownload")
"""How downloaders name what isn't whole yet."""


def _unfinished(folder: Path) -> str:
    """A half-finished download, where something is missing."""
    half = [file for suffix in _HALF for file in folder.glob(f"*.{suffix}")]
    half += [*(folder / ".cache" / "huggingface").rglob("*.incomplete")]
    if folder.parent.name == "snapshots":  # of the hub's cache, whose files are links into another folder
        half += (folder.parent.parent / "blobs").glob("*.incomplete")
    return f" (a download was not finished: {half[0].name})" if half else ""


def _json(file: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        content = json_of(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _Broken(f"{file.name} can't be read ({error}); download it again") from error
    if not isinstance(content, dict):
        raise _Broken(f"{file.name} holds no JSON object; download it again")
    return content


def _template(file: Path) -> None:
    """A chat template that is empty would be taken for none at all."""
    try:
        text = file.read_text(encoding="utf-8")
    except ValueError as error:
        raise _Broken(f"{file.name} can't be read ({error}); download it again") from error
    if not text.strip():
        raise _Broken(f"{file.name} is empty; download it again, or take it away if the model has no chat template")


def _check_ids(generation: Mapping[str, Any]) -> None:
    """An engine stops on these."""
    for name in TOKEN_IDS:
        value = generation.get(name)
        for each in value if isinstance(value, list) else [value]:
            if each is not None and type(each) is not int:
                raise _Broken(f"{GENERATION}: {name} is {value!r}, and it has to be a token's id; download it again")


def _index(folder: Path) -> dict[str, str]:
    """File by tensor."""
    named = _json(folder / INDEX).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise _Broken(f"{INDEX} has no weight_map; download it again")
    for name, file in named.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise _Broken(f"{INDEX} puts {name} into {file}, which is no file of this folder; download it again")
    return named


# --- what is in them -------------------------------------------------------------------------------


def _tensors(folder: Path) -> dict[str, _Tensor]:
    """What the headers say, by the tensors' names in the files."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, _Tensor] = {}
    files = _weight_files(folder)
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                    if name in found:
                        raise _Broken(f"{name} is both in {found[name].file} and in {file.name}; download them again")
                    part = opened.get_slice(name)
                    found[name] = _Tensor(file.name, tuple(part.get_shape()), str(part.get_dtype()))
        except (SafetensorError, OSError) as error:  # the sizes in the header and that of the file are compared
            raise _Broken(
                f"{file.name} is no whole safetensors file ({error}; {file.stat().st_size} bytes); download it again"
            ) from error
    if not found:
        raise _Broken(f"{files[0].name} holds no tensors; download it again")
    if files != (folder / WEIGHTS,):
        for name, shard in _index(folder).items():
            if name not in found or found[name].file != shard:
                raise _Broken(f"{shard} doesn't hold {name}, which {INDEX} puts there; download both again")
    return found


def config_of(folder: Path) -> PreTrainedConfig:
    """The model's configuration, without what it says of how transformers is to compute and to answer.

    Raises what transformers raises for one that is wrong.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for name, plain in _PLAIN.items():
        if getattr(config, name, plain) != plain:
            setattr(config, name, plain)
    return config


def _described(folder: Path) -> PreTrainedModel:
    """The model of ``config.json``, without memory for its tensors."""
    with quietly():
        import torch
        from transformers import AutoModelForCausalLM

        try:
            config = config_of(folder)
            with torch.device("meta"):
                model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except Exception as error:  # what a wrong field raises depends on the field and on the model
            raise _Broken(f"{CONFIG} describes no causal language model ({shortened(error)})") from error
    if getattr(config, "quantization_config", None) is not None:
        raise _Broken(f"{CONFIG} says that the weights are quantised; name the folder of the model before that")
    kind = type(model).__name__
    if not _named(config, kind):
        raise _Broken(
            f"{CONFIG} has architectures={config.architectures}, by which an engine loads the weights, and by "
            f'model_type={config.model_type} they are a {kind}\'s; if they are, set "architectures": ["{kind}"] there'
        )
    return model


def _named(config: Any, kind: str) -> bool:
    """Whether ``architectures`` names a ``kind``, or what has it and pictures or sounds beside it."""
    first = config.architectures[0] if isinstance(config.architectures, list) and config.architectures else None
    several = config.get_text_config(decoder=True) is not config
    return first == kind or (several and str(first).endswith("ForConditionalGeneration"))


def _compare(model: PreTrainedModel, tensors: Mapping[str, _Tensor]) -> None:
    """Raises ``_Broken`` for the first tensor that is missing, or that isn't the model's."""
    wanted = model.state_dict()
    names, converted = _renamed(model, tensors)
    missing = wanted.keys() - names.keys() - converted - _tied(model).keys()
    strange = {name for name in names if name not in wanted}
    info: Any = SimpleNamespace(missing_keys=missing, unexpected_keys=strange)
    model._adjust_missing_and_unexpected_keys(info)  # what transformers' own loader forgives
    kind, files = type(model).__name__, " and ".join(sorted({t.file for t in tensors.values()}))
    for name in wanted:
        if name in info.missing_keys:
            tied = f"; if its head is its embedding, {CONFIG} needs tie_word_embeddings=true"
            mend = tied if name.endswith("lm_head.weight") else "; download them again"
            raise _Broken(f"{files}: {name}{_more(info.missing_keys)} of the {kind} in {CONFIG} is missing{mend}")
    for name in names:
        if name in info.unexpected_keys:
            raise _Broken(
                f"{names[name].file}: {name}{_more(info.unexpected_keys)} is not of the {kind} that {CONFIG} "
                "describes; the two are of different models"
            )
    for name, tensor in names.items():
        if name not in wanted:
            continue
        if tensor.dtype not in FLOATS:
            raise _Broken(
                f"{tensor.file}: {name} has type {tensor.dtype}; name a folder with floating-point weights "
                f"({', '.join(FLOATS)})"
            )
        if tensor.shape != tuple(wanted[name].shape):
            raise _Broken(
                f"{tensor.file}: {name} has shape {list(tensor.shape)}, and by {CONFIG} it has "
                f"{list(wanted[name].shape)}; the two are of different models"
            )


def _renamed(model: PreTrainedModel, tensors: Mapping[str, _Tensor]) -> tuple[dict[str, _Tensor], set[str]]:
    """The tensors by the model's own names; apart, the names of those that are made from several."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    own, found, made = model.state_dict(), {}, set()
    for name, tensor in tensors.items():
        new, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, own)
        if pattern is None:
            found[new] = tensor
        else:
            made.add(new)
    return found, made


def _tied(model: PreTrainedModel) -> dict[str, str]:
    """Names of the tensors that are another one: target to source."""
    return dict(model.all_tied_weights_keys)


def _compare_tied(folder: Path, model: PreTrainedModel, tensors: Mapping[str, _Tensor]) -> None:
    """A head that is in the files and should be the embedding has to be equal to it.

    transformers would take such a head as one of its own, and vLLM would leave it out.
    """
    import torch
    from safetensors import safe_open

    for target, source in _tied(model).items():
        if target not in tensors or source not in tensors:
            continue
        rows = sorted({i * (tensors[target].shape[0] - 1) // (COMPARED_ROWS - 1) for i in range(COMPARED_ROWS)})
        some = []
        for name in (target, source):
            with safe_open(folder / tensors[name].file, "pt") as opened:
                part = opened.get_slice(name)
                some.append(torch.cat([part[row : row + 1] for row in rows]).float())
        if not torch.equal(*some):
            raise _Broken(
                f"{tensors[target].file}: {target} differs from {source}, and by {CONFIG} they are one; set "
                "tie_word_embeddings=false there if the model has a head of its own"
            )


def _more(names: set[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
