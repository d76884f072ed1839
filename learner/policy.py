"""The policy: a causal language model of transformers that computes on packed rows."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2ForCausalLM,
)

from agent.errors import UserError, shortened
from agent.readable import json_of
from learner import lora
from learner.attention import ATTENTION, Layout
from learner.config import AlgorithmConfig
from learner.exactness import check_against_model, refuse_unsupported
from learner.hub import local_folder
from learner.lean import keep_less
from learner.logprobs import selected_logprobs
from learner.model_folder import GENERATION, TOKEN_IDS, check_folder, config_of
from learner.packing import PackedRow, seen_again
from learner.skeleton import is_skeleton, qwen2_config

ALIGNMENT = 64
"""Bytes; what torch's own allocations start at a multiple of."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenLogprobs:
    """What a forward pass says of the A selected tokens of a row."""

    values: Tensor
    """(A,) log-probabilities, float32 or wider."""
    entropy: Tensor | None
    """(A,) nats, without gradient; None unless asked for."""


class Policy:
    """A model in Hugging Face format, with dropout off, that sees only packed rows.

    ``device`` is where its parameters are and where results come out.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        gradient_checkpointing: str = "none",
        whole_layers: int = 0,
        backend: str = "",
        lora_rank: int = 0,
        seed: int = 0,
    ) -> None:
        """Takes ``model`` over; ``learner/lean.py`` says what ``gradient_checkpointing`` and ``backend`` may be.

        With a ``lora_rank`` only low-rank adapters are trained, which begin from ``seed``.

        Raises ``UserError`` if rows or its head can't be computed exactly here.
        """
        self.model = model
        self._seed = seed
        refuse_unsupported(model)
        for module in model.modules():
            # Old and new log-probabilities have to be those of one function of the weights.
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "attention_dropout"):
                setattr(module, "attention_dropout", 0.0)  # noqa: B010 (mypy takes a module's attributes for tensors)
        model.eval()
        keep_less(model, gradient_checkpointing, whole_layers, backend)
        if lora_rank:
            lora.adapt(model, lora_rank, seed)
        check_against_model(self.model, self.hidden, self.head)

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        seed: int,
        dtype: str,
        device: str = "cpu",
        gradient_checkpointing: str = "none",
        whole_layers: int = 0,
        backend: str = "",
        lora_rank: int = 0,
    ) -> Policy:
        """The model at ``path``, a folder or a hub name; a run's own skeleton gets random weights from ``seed``.

        Raises ``UserError`` when there is no whole model there.
        """
        kind = DTYPES[dtype]
        if is_skeleton(Path(path)):
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed % 2**63)
                model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, trust_remote_code=False)
            model = _move(model, device, kind)
        else:
            model = _loaded(path, device, kind)
        return cls(
            model,
            gradient_checkpointing=gradient_checkpointing,
            whole_layers=whole_layers,
            backend=backend,
            lora_rank=lora_rank,
            seed=seed,
        )

    @classmethod
    def build(
        cls,
        architecture: Mapping[str, int],
        *,
        vocab_size: int,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        gradient_checkpointing: str = "none",
        whole_layers: int = 0,
        backend: str = "",
        lora_rank: int = 0,
    ) -> Policy:
        """A Qwen2 of the given sizes (``qwen2_config``) with random weights from ``seed``."""
        config = qwen2_config(architecture, vocab_size=vocab_size, attn_implementation=ATTENTION)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _move(Qwen2ForCausalLM(config), device, dtype)
        return cls(
            model,
            gradient_checkpointing=gradient_checkpointing,
            whole_layers=whole_layers,
            backend=backend,
            lora_rank=lora_rank,
            seed=seed,
        )

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def head(self) -> Tensor:
        """(V, d) weight of the LM head."""
        return self.model.get_output_embeddings().weight

    @property
    def adapted(self) -> bool:
        """Whether low-rank adapters are all that is trained."""
        return any(True for _ in lora.layers(self.model))

    @property
    def seen_again(self) -> float:
        """See ``packing.seen_again``."""
        config = self.model.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return seen_again(config.hidden_size, head * config.num_attention_heads, head * groups)

    def hidden(self, row: PackedRow) -> Tensor:
        """(N, d) last hidden states of a packed row; positions restart in each sequence."""
        return self.model.base_model(**self._inputs(row)).last_hidden_state[0]

    def logprobs(
        self, row: PackedRow, *, temperature: float = 1.0, chunk: int = 4096, entropy: bool = False
    ) -> TokenLogprobs:
        """Log-probabilities of the row's A selected tokens under softmax(logits / temperature).

        At most ``chunk`` tokens' logits exist at once.
        """
        values, entropies = selected_logprobs(
            self.hidden(row),
            self.head,
            self.to_device(row.sources),
            self.to_device(row.targets),
            temperature=temperature,
            chunk=chunk,
            entropy=entropy,
            into_grad=True,
        )
        return TokenLogprobs(values=values, entropy=entropies)

    def to_device(self, array: np.ndarray) -> Tensor:
        """``array`` as a tensor beside the parameters."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def _inputs(self, row: PackedRow) -> dict[str, object]:
        layout = Layout.of(row, self.device)
        return {
            "input_ids": self.to_device(row.token_ids.astype(np.int64))[None],
            "position_ids": self.to_device(row.positions)[None],
            "use_cache": False,
            "layout": layout,
        }

    def parameters(self) -> list[nn.Parameter]:
        """Trainable parameters, each once (tied ones too)."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The 2-D parameters that are neither embeddings nor LM head: what Muon is for."""
        outer = {id(self.model.get_input_embeddings().weight), id(self.head)}
        return [p for p in self.parameters() if p.ndim == 2 and id(p) not in outer]

    def current(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors for the engines: Hugging Face names, model dtype, where they are and as they change.

        Adapters are merged, each when it comes. A tensor that two names share (tied embeddings) comes once, under the
        first name.
        """
        return lora.merged_weights(self.model, _each_once(lora.plain_weights(self.model)))

    def published(self) -> dict[str, Tensor]:
        """``current`` as contiguous copies on the CPU, which stay as they are."""
        return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in self.current()}

    def weights(self) -> dict[str, Tensor]:
        """What ``save`` writes: the weights under Hugging Face's names, merged ones on the CPU, all others live."""
        plain = lora.plain_weights(self.model)
        return {
            name: tensor.detach() if tensor is plain[name] else tensor.to("cpu")
            for name, tensor in lora.merged_weights(self.model, plain)
        }

    def save(self, path: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Writes ``weights``, those of now if none are given, and the configuration in Hugging Face format.

        The tokenizer is the caller's.
        """
        self.model.save_pretrained(path, state_dict=self.weights() if weights is None else weights)

    def load_weights(self, path: Path) -> None:
        """Takes the weights of a folder that ``save`` wrote; adapters begin anew.

        Raises ``UserError`` when the weights are another model's.
        """
        tensors = {k: v for file in sorted(path.glob("*.safetensors")) for k, v in load_file(file).items()}
        wanted = _each_once(lora.plain_weights(self.model))
        for name in sorted(wanted.keys() | tensors.keys()):
            if name not in wanted or name not in tensors or wanted[name].shape != tensors[name].shape:
                raise UserError(f"{path}: these are the weights of another model; {name} differs")
        self.model.load_state_dict(tensors, strict=False)  # strict would miss the second name of a tied tensor
        lora.begin(self.model, self._seed)

    def fold(self) -> None:
        """Moves what adapters have learnt into the weights, and lets them begin anew: as if saved and loaded."""
        lora.fold(self.model, self._seed)

    def adapters(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the merged weights; empty without adapters. Live tensors, not copies."""
        return lora.adapter_state(self.model)

    def load_adapters(self, state: dict[str, Tensor]) -> None:
        """Continues from what ``adapters`` gave. Raises ``UserError`` when they are of another model or rank."""
        try:
            lora.load_adapter_state(self.model, state)
        except ValueError as error:
            raise UserError(f"{error}; resume with the model.lora_rank that the checkpoint was made with") from error

    def frozen_copy(self, *, host: bool = False) -> Policy:
        """A copy without gradients and adapters, as the reference of a KL term; in ``host`` memory if asked."""
        twin = object.__new__(Policy)
        twin.model, twin._seed = copy.deepcopy(self.model).eval(), self._seed
        lora.unwrap(twin.model)
        twin.model.requires_grad_(False)
        if host and self.device.type != "cpu":
            for tensor in (*twin.model.parameters(), *twin.model.buffers()):
                tensor.data = tensor.data.to("cpu").pin_memory()
        return twin

    def reference_for(self, algorithm: AlgorithmConfig) -> Policy | None:
        """The frozen copy for the KL term of ``algorithm``, where that has it kept; None without a KL term."""
        return None if algorithm.kl == "none" else self.frozen_copy(host=algorithm.reference == "cpu")

    @contextmanager
    def lent_to(self, device: torch.device | str) -> Iterator[None]:
        """Computes on ``device`` while the context lasts. What lies elsewhere is copied there, and not copied back."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        home = [tensor.data for tensor in tensors]
        try:
            for tensor in tensors:
                tensor.data = tensor.data.to(device, non_blocking=True)
            yield
        finally:
            for tensor, data in zip(tensors, home, strict=True):
                tensor.data = data


def _each_once(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without gradient, a tensor that several names share under the first of them alone."""
    first: dict[int, str] = {}
    for name, tensor in weights.items():
        first.setdefault(id(tensor), name)
    return {name: weights[name].detach() for name in first.values()}


def _loaded(path: str | Path, device: str, dtype: torch.dtype) -> PreTrainedModel:
    given = f"model.path={path}"
    folder = local_folder(path, given)
    check_folder(folder, given)  # transformers itself fills what is missing with random numbers
    try:
        config = config_of(folder)
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            config=config,
            generation_config=_generation(folder, config),
            dtype=dtype,
            attn_implementation=ATTENTION,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{given}: no causal language model could be loaded ({shortened(error)})") from error
    _check_values(model, given)
    return _move(model, device, dtype)


def _generation(folder: Path, config: PreTrainedConfig) -> GenerationConfig:
    """What the folder says of how texts are generated; the ids of its tokens alone where transformers can't read all of
    it, or refuses to write it again. Our own settings are ``agent``'s."""
    if not (folder / GENERATION).is_file():
        asked = GenerationConfig.from_model_config(config)
        told: dict[str, Any] = asked.to_dict()
    else:
        told = json_of((folder / GENERATION).read_text(encoding="utf-8"))
    try:
        asked = GenerationConfig.from_dict(told)
        asked.validate(strict=True)
    except Exception:  # what a wrong field raises depends on the field
        return GenerationConfig(**{name: told[name] for name in TOKEN_IDS if told.get(name) not in (None, -1)})
    return asked


def _check_values(model: PreTrainedModel, given: str) -> None:
    """Raises ``UserError`` for weights that no training leaves behind: of files made large and never filled."""
    again = "the weights are damaged; download them again"
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"{given}: {name} has values that are no numbers; {again}")
    filled: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # biases and norms of zeros are made, and single matrices of new layers
            part = _part(name)
            filled[part] = filled.get(part, False) or bool(parameter.any())
    for part, values in filled.items():
        if not values:
            raise UserError(f"{given}: {part} is zeros throughout; {again}")


def _part(name: str) -> str:
    """Of which layer a parameter is, ``model.layers.1``; itself outside of them."""
    found = re.match(r".*?\.\d+(?=\.)", name)
    return found[0] if found else name


def _move(model: PreTrainedModel, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """``model`` on ``device``, its parameters as ``dtype``.

    Buffers stay as transformers has made them. RoPE's inverse frequencies are one, in float32 whatever the weights are,
    for engines and transformers alike: rounded to bfloat16, a position far into a text is another one.
    """
    nn.Module.to(model, device=device)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
        # A tensor mapped from a file starts where the file has it, and a CPU's matrix product may take another path
        # there, with other last digits: a resumed run would not be the uninterrupted one.
        if parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()
    return model
