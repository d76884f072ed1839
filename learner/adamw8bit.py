"""AdamW with 8-bit moments and stochastic rounding: torchao's, made to resume exactly.

8-bit moments (Dettmers et al., arXiv 2110.02861) take 2 bytes a parameter where float32 takes 8: a code per value
and a scale per block of 256. A bfloat16 weight of 0.02 can't hold an update of 1e-6, since the next value is 1e-4
away: rounded to the nearest, nothing would ever move. Two cures:

- an exact master: the weight is the float32 master rounded to the nearest, and the 16 bits that this has left over are
  kept beside it, 2 bytes a parameter. Together they are the master, to the bit.
- rounding up or down by chance, in proportion to the distance: right on average, with noise, and without a master.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchao.optim import AdamW8bit
from torchao.optim.adam import single_param_adam

from learner.config import OptimizerConfig

BLOCK = 256
"""Values that share a scale."""

_SMALLEST = 4096

_MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""Name in torchao's state, and whether the values have a sign."""


def joined(weight: Tensor, rest: Tensor) -> Tensor:
    """The float32 master of a bfloat16 ``weight`` and the int16 ``rest`` of the same shape."""
    return ((weight.view(torch.int16).to(torch.int32) << 16) + rest).view(torch.float32)


def parted(master: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse: ``master`` rounded to bfloat16 (halves away from zero), and what has to be added to its bits."""
    bits = master.view(torch.int32)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)


def takes(parameter: Tensor) -> bool:
    """Whether torchao keeps 8-bit moments of ``parameter``; those of others would have its own type.

    In bfloat16 that is no good: a second moment that moves by a thousandth a step stands still.
    """
    return parameter.numel() >= _SMALLEST and parameter.numel() % BLOCK == 0


class EightBitAdamW(AdamW8bit):
    """8-bit AdamW over parameters that it ``takes``; bfloat16 ones have an exact master, or are rounded stochastically.

    On CUDA torchao compiles one fused kernel for each shape, at the first step. On a CPU its function runs as it is
    written: the same arithmetic, no compiler needed, and temporary arrays that only a small model should ask for.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: OptimizerConfig, *, seed: int) -> None:
        """``seed`` starts the generator of the rounding, which is this optimizer's own."""
        super().__init__(
            parameters,
            lr=config.lr,
            betas=(config.betas[0], config.betas[1]),
            eps=config.eps,
            weight_decay=config.weight_decay,
            block_size=BLOCK,
            bf16_stochastic_round=True,
        )
        self._exact = config.exact_master
        self.rests: dict[nn.Parameter, Tensor] = {}
        """What bfloat16 weights lack of their exact masters; none before the first step."""
        self._device = parameters[0].device
        self._draws = torch.Generator(self._device).manual_seed(seed).get_state()

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def step(self, closure: None = None) -> None:
        """One step. torch's own generators are afterwards what they were before."""
        eager = torch.compiler.set_stance("force_eager") if self._device.type == "cpu" else contextlib.nullcontext()
        with self._own_draws(), eager:
            if self._exact:
                self._step_exactly()
            else:
                super().step()

    @torch.no_grad()
    def _step_exactly(self) -> None:
        """As torchao's step, on the master of one parameter after the other.

        Each shape with each set of betas is compiled, and those of a model and its warm start are more than the 8 after
        which torch gives up; like torchao, which knows that they are few, this lifts the limit.
        """
        step = torch.compile(single_param_adam, fullgraph=True, dynamic=False)
        with torch._dynamo.utils.disable_cache_limit():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_master(step, parameter, group)

    def _step_master(self, step: Any, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        """``step`` is torchao's function for one parameter."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name, signed in _MOMENTS.items():
                state[name] = self._subclass_zeros(parameter, signed, BLOCK)
        state["step"] += 1
        narrow = parameter.dtype == torch.bfloat16
        master = joined(parameter.detach(), self._rest(parameter)) if narrow else parameter.detach()
        moments = [state[name] for name in _MOMENTS]
        rates = [group["lr"], *group["betas"], group["weight_decay"], group["eps"]]
        step(master, parameter.grad, state["step"], *moments, None, *rates, True, False)
        if narrow:
            weight, rest = parted(master)
            parameter.copy_(weight)
            self._rest(parameter).copy_(rest)

    def _rest(self, parameter: nn.Parameter) -> Tensor:
        if parameter not in self.rests:
            self.rests[parameter] = torch.zeros_like(parameter, dtype=torch.int16)
        return self.rests[parameter]

    @contextlib.contextmanager
    def _own_draws(self) -> Iterator[None]:
        """torchao rounds with the device's default generator; for the time of a step that is put into our state."""
        device = self._device
        default = torch.default_generator
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            default = torch.cuda.default_generators[index]
        before = default.get_state()
        default.set_state(self._draws)
        try:
            yield
        finally:
            self._draws = default.get_state()
            default.set_state(before)

    def state_dict(self) -> dict[str, Any]:
        """Codes, scales, step counts and the generator, as plain tensors; live ones, not copies."""
        moments = []
        for parameter in self._parameters:
            state = self.state.get(parameter, {})
            plain = {"step": state["step"]} if state else {}
            for name in _MOMENTS if state else ():
                plain |= {f"{name}.codes": state[name].codes, f"{name}.scale": state[name].scale}
            if parameter in self.rests:
                plain["rest"] = self.rests[parameter]
            moments.append(plain)
        return {"moments": moments, "draws": self._draws}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from what ``state_dict`` gave. Raises ``ValueError`` when it is that of other parameters."""
        parameters, saved = self._parameters, state_dict["moments"]
        shapes = [plain["exp_avg.codes"].shape if plain else None for plain in saved]
        if len(saved) != len(parameters) or any(
            s is not None and s != p.shape for s, p in zip(shapes, parameters, strict=True)
        ):
            raise ValueError("the 8-bit moments are those of other parameters")
        self.state.clear()
        self.rests.clear()
        for parameter, plain in zip(parameters, saved, strict=True):
            if not plain:
                continue
            state = {"step": plain["step"].clone()}
            for name, signed in _MOMENTS.items():
                moment: Any = self._subclass_zeros(parameter, signed, BLOCK)
                moment.codes.copy_(plain[f"{name}.codes"])
                moment.scale.copy_(plain[f"{name}.scale"])
                state[name] = moment
            self.state[parameter] = state
            if self._exact and "rest" in plain:
                self._rest(parameter).copy_(plain["rest"])
        if state_dict["draws"].shape == self._draws.shape:  # a GPU's generator has another state than a CPU's
            self._draws = state_dict["draws"]
