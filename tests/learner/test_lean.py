"""What a layer keeps changes the result of no pass: values to the bit, gradients to rounding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from agent.errors import UserError
from learner import lean
from learner.attention import ATTENTION
from learner.lean import _Norm, keep_less
from learner.packing import PackedRow, pack_rows
from learner.policy import Policy

SIZES: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.1,
}
KINDS: dict[str, Any] = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}
LEVELS = [("layers", 0), ("mlp", 0), ("mlp", 2), ("none", 0)]


def build(kind: str, dtype: torch.dtype = torch.float32, *, tied: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    more: dict[str, Any] = {"tie_word_embeddings": tied, **({"head_dim": 8} if kind == "qwen3" else {})}
    model = AutoModelForCausalLM.from_config(KINDS[kind](**SIZES, **more), attn_implementation=ATTENTION)
    with torch.no_grad():
        for module in model.modules():
            if "RMSNorm" in type(module).__name__:
                module.weight.uniform_(0.5, 1.5)
    model.to(dtype=dtype)
    assert isinstance(model, PreTrainedModel)
    return model


def row(*lengths: int) -> PackedRow:
    rng = np.random.default_rng(1)
    ids = [rng.integers(0, 41, n).astype(np.int32) for n in lengths or (9, 5, 5, 7)]
    (made,) = pack_rows(ids, [np.arange(len(i)) > 2 for i in ids], 1000)
    return made


def result(policy: Policy, *lengths: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities, and all gradients by their names."""
    policy.model.zero_grad()
    values = policy.logprobs(row(*lengths)).values
    (values * torch.linspace(-1, 1, len(values))).sum().backward()
    gradients = {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}
    return values.detach(), {name: g.clone() for name, g in gradients.items()}


class Plain(Policy):
    """A policy whose model is left as transformers made it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()


@pytest.mark.one_in(5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("level", "whole"), LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_that_of_the_plain_model(kind: str, level: str, whole: int, dtype: torch.dtype) -> None:
    values, gradients = result(Policy(build(kind, dtype), gradient_checkpointing=level, whole_layers=whole))
    expected, wanted = result(Plain(build(kind, dtype)))
    assert torch.equal(values, expected)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        apart = (gradient - wanted[name]).float().norm() / wanted[name].float().norm()
        assert apart < (1e-5 if dtype == torch.float32 else 2e-2), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_leaves_what_a_norm_was_given(dtype: torch.dtype) -> None:
    """Others may have kept the same tensor for their own backward."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 32, generator=generator).to(dtype).requires_grad_()
    before, weight = x.detach().clone(), torch.ones(32, dtype=dtype, requires_grad=True)
    _Norm.apply(x, weight, 1e-6).square().sum().backward()
    assert torch.equal(x, before)


def test_names_copies_and_adapters_stay_what_they_are() -> None:
    plain = build("qwen2")
    policy = Policy(build("qwen2"), gradient_checkpointing="mlp", whole_layers=1)
    assert list(policy.model.state_dict()) == list(plain.state_dict())
    twin = policy.frozen_copy()
    before = twin.logprobs(row()).values
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(1.0)
    assert torch.equal(twin.logprobs(row()).values, before), "a copy's feed-forward part has the copy's own norm"
    lora = [Policy(build("qwen2"), gradient_checkpointing=k, lora_rank=2, seed=3) for k in ("mlp", "none")]
    (values, gradients), (expected, wanted) = map(result, lora)
    assert torch.equal(values, expected)
    assert gradients.keys() == wanted.keys()
    assert all("lora" in name for name in gradients)


def test_a_layer_of_another_kind_is_checkpointed_whole() -> None:
    model: Any = AutoModelForCausalLM.from_config(GPTNeoXConfig(**SIZES))
    before = {name: type(module) for name, module in model.named_modules()}
    keep_less(model, "mlp", 1)
    assert model.is_gradient_checkpointing
    assert {name: type(module) for name, module in model.named_modules()} == before


# --- compiled --------------------------------------------------------------------------------------

ROWS = [(9, 5, 5, 7), (31,), (4, 3), (20, 11, 11, 11, 6), (8, 8), (30, 30, 1)]


def kept(policy: Policy) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights included."""
    tensors = []
    with saved_tensors_hooks(lambda tensor: tensors.append(tensor) or tensor, lambda tensor: tensor):
        policy.logprobs(row(60, 60))
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """What torch.compile counts, with nothing compiled before, and nothing for a try."""
    monkeypatch.setattr(lean, "check_compiles", lambda backend, device: None)
    torch._dynamo.reset()
    counters.clear()
    yield counters["stats"]
    torch._dynamo.reset()


def check_compiled(compiled: Policy, plain: Policy, compiler: Counter[str], rows: Sequence[Any] = ROWS) -> None:
    """Rows of several lengths have the plain model's results, and nothing is compiled for one that the first wasn't."""
    graphs = []
    for lengths in rows:
        (values, gradients), (expected, wanted) = result(compiled, *lengths), result(plain, *lengths)
        assert torch.allclose(values, expected, rtol=0, atol=1e-5)
        assert gradients.keys() == wanted.keys()
        for name, gradient in gradients.items():
            assert (gradient - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name
        with torch.no_grad():
            assert torch.allclose(compiled.logprobs(row(*lengths)).values, expected, rtol=0, atol=1e-5)
        graphs.append(compiler["unique_graphs"])
    assert graphs[0] == graphs[-1] <= 6, "a part for rows with gradients, and one without"
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "level", "whole", "tied", "backend"),
    [("qwen3", "none", 0, True, "aot_eager"), ("qwen2", "mlp", 2, False, "eager")],
)
def test_compiled_layers_give_the_plain_result_for_rows_of_all_lengths(
    compiler: Counter[str], kind: str, level: str, whole: int, tied: bool, backend: str
) -> None:
    compiled = Policy(build(kind, tied=tied), gradient_checkpointing=level, whole_layers=whole, backend=backend)
    plain = Plain(build(kind, tied=tied))
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
    check_compiled(compiled, plain, compiler)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("level", "whole"), LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_inductor_compiles_gives_the_plain_result(
    compiler: Counter[str], kind: str, level: str, whole: int, tied: bool
) -> None:
    compiled, lean = (
        Policy(build(kind, tied=tied), gradient_checkpointing=level, whole_layers=whole, backend=backend)
        for backend in ("inductor", "")
    )
    check_compiled(compiled, Plain(build(kind, tied=tied)), compiler)
    assert kept(compiled) <= kept(lean), "the plan counts with what the latter keeps"


@pytest.mark.slow
def test_compiled_adapters_and_copies_are_what_they_were(compiler: Counter[str]) -> None:
    lora, plain = [Policy(build("qwen2"), lora_rank=2, seed=3, backend=backend) for backend in ("eager", "")]
    check_compiled(lora, plain, compiler, ROWS[:2])
    graphs = compiler["unique_graphs"]
    twin, expected = lora.frozen_copy(), plain.logprobs(row()).values
    with torch.no_grad():
        for parameter in lora.model.parameters():
            parameter.add_(1.0)
        for lengths in (ROWS[2], ROWS[0]):
            with twin.lent_to("cpu"):
                values = twin.logprobs(row(*lengths)).values
    assert torch.allclose(values, expected, rtol=0, atol=1e-5)
    assert compiler["unique_graphs"] <= graphs + 2, "once for weights without adapters"


def test_a_model_that_nothing_is_compiled_of_is_refused() -> None:
    with pytest.raises(UserError, match=r"^algorithm\.compile=true: no layer of GPTNeoXForCausalLM is of a kind"):
        keep_less(AutoModelForCausalLM.from_config(GPTNeoXConfig(**SIZES)), "none", backend="eager")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            CppCompileError(["g++"], "In file x.h:\nx.cpp:1:10: fatal error: cmath: No such file\nmore"),
            "x.cpp:1:10: fat",
        ),
        (InvalidCxxCompiler(), "No working C++ compiler found in "),
    ],
)
def test_a_compiler_that_fails_is_named_before_the_first_step(raised: Exception, said: str) -> None:
    def failing(graph: Any, inputs: Any) -> Any:
        raise raised

    with pytest.raises(UserError) as error:
        Policy(build("qwen2"), backend=failing)  # type: ignore[arg-type]
    assert str(error.value).startswith("algorithm.compile=true: nothing can be compiled on ")
    assert f", where the learner is: {said}" in str(error.value)
    assert "\n" not in str(error.value)
