"""AdamW (and Muon) with gradient clipping, where its states lie and in what precision, and the schedules."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agent.errors import UserError
from learner.config import OptimizerConfig
from learner.muon import Muon
from learner.packing import shares
from learner.ranks import ALONE, Ranks

_SETTINGS = ("betas", "eps", "weight_decay", "momentum")
"""Keys of a group of parameters that come from the configuration and that no step changes."""


def schedule_factor(schedule: str, step: int, steps: int, warmup_steps: int) -> float:
    """What the learning rate is multiplied with at ``step`` (from 0) of ``steps``.

    The warm-up rises as 1/W, 2/W, ..., 1 over its W steps. Then ``constant`` stays at 1, and
    ``linear`` and ``cosine`` start from 1 and would reach 0 at ``steps``, one after the last.

    >>> [schedule_factor("linear", step, 6, 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"unknown schedule {schedule!r}")


class ClippedAdamW:
    """AdamW over the given parameters: ``clip`` the gradient, then ``step`` or ``drop`` it.

    bfloat16 has 8 bits of mantissa: an update of 1e-6 to a weight of 0.02 would round to nothing. What is done about
    it is ``config.kind``:

    - ``adamw``: a bfloat16 parameter gets a float32 master that is updated and copied back, 14 bytes a parameter with
      the moments and weights, and 4 more for the gradient while the step is taken; float32 parameters are their own
      masters. With ``config.offload`` masters, moments and the step itself are the host's, 12 bytes a parameter there
      and 4 for the gradient. Both cross the bus once a step. (torchao's ``CPUOffloadOptimizer`` copies a gradient in
      backward, before it can be clipped, and needs a GPU; this is the same on a CPU, to the bit.)
    - ``adamw8bit``: moments of 8 bits, with an exact master in 16 bits more or with stochastic rounding
      (``adamw8bit.py``), 6 or 4 bytes a parameter with the weights. What is too small for it (norms and biases) has a
      master as above.

    The ``matrices`` among the parameters, if any, are Muon's (learning rate ``muon_lr``) in place of AdamW's.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        config: OptimizerConfig,
        *,
        matrices: Collection[nn.Parameter] = (),
        muon_lr: float = 0.0,
        rng: np.random.Generator | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """``adamw8bit`` draws one number from ``rng``, to seed its rounding. ``ValueError`` if there is none.

        With ``config.shard`` each of ``ranks`` has the states of its share of the parameters.
        """
        self.config = config
        self.ranks = ranks
        self.parameters = [p for p in parameters if p.requires_grad]
        for parameter in self.parameters:  # an optimizer before this one may have set it otherwise
            wide = torch.promote_types(parameter.dtype, torch.float32)
            parameter.grad_dtype = wide if config.float32_gradients else parameter.dtype
        sizes = [p.numel() for p in self.parameters]
        self.owners = shares(sizes, ranks.world) if config.shard else [ranks.rank] * len(sizes)
        for_muon = {id(p) for p in matrices}
        coarse = self._coarse(for_muon)
        self.masters = [
            p if id(p) in coarse else _master(p, offload=config.offload, own=owner == ranks.rank)
            for p, owner in zip(self.parameters, self.owners, strict=True)
        ]
        split: tuple[list[Tensor], list[Tensor]] = ([], [])
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if id(parameter) not in coarse:
                split[id(parameter) in for_muon].append(master)
        self._rates: list[tuple[torch.optim.Optimizer, float]] = []
        if split[False]:
            adamw = torch.optim.AdamW(
                split[False],
                lr=config.lr,
                betas=(config.betas[0], config.betas[1]),
                eps=config.eps,
                weight_decay=config.weight_decay,
                fused=True,
            )
            self._rates.append((adamw, config.lr))
        if split[True]:
            muon = Muon(split[True], lr=muon_lr, weight_decay=config.weight_decay)
            self._rates.append((muon, muon_lr))
        if coarse:
            from learner.adamw8bit import EightBitAdamW

            if rng is None:
                raise ValueError("adamw8bit rounds by chance: it needs a generator")
            taken = [p for p in self.parameters if id(p) in coarse]
            self._rates.append((EightBitAdamW(taken, config, seed=int(rng.integers(2**62))), config.lr))

    def _coarse(self, for_muon: Collection[int]) -> set[int]:
        """Ids of the parameters that are updated in place, with 8-bit moments."""
        if self.config.kind != "adamw8bit":
            return set()
        from learner.adamw8bit import takes

        return {id(p) for p in self.parameters if takes(p) and id(p) not in for_muon}

    def _pairs(self) -> list[tuple[nn.Parameter, Tensor]]:
        return [(p, m) for p, m in zip(self.parameters, self.masters, strict=True) if p is not m]

    @property
    def _others(self) -> list[nn.Parameter]:
        """What other ranks step."""
        return [p for p, owner in zip(self.parameters, self.owners, strict=True) if owner != self.ranks.rank]

    @torch.no_grad()
    def add_up(self) -> None:
        """Makes the gradient that of all ranks, those without one adding zeros; nothing for one learner."""
        if self.ranks.world > 1:
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype or parameter.dtype)
            self.ranks.add(p.grad for p in self.parameters if p.grad is not None)

    @torch.no_grad()
    def clip(self) -> float:
        """Clips the gradient to ``max_grad_norm`` (0: no clipping); its norm before that, maybe not finite.

        Gradients of parameters that have masters go over to those here, those that other ranks step are gone.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = _norm(gradients)
        if gradients:
            norm = self.ranks.agreed(norm, gradients[0].device)
        scale = min(1.0, self.config.max_grad_norm / (norm + 1e-6)) if self.config.max_grad_norm else 1.0
        for parameter in self._others:
            parameter.grad = None
        for parameter, master in self._pairs():
            gradient, parameter.grad = parameter.grad, None
            master.grad = None if gradient is None else gradient.to(master.device, master.dtype)
            del gradient  # before the next one is widened
        if scale < 1.0:
            for master in self.masters:
                if master.grad is not None:
                    master.grad.mul_(scale)
        return norm

    def step(self, factor: float) -> None:
        """Updates the parameters from the clipped gradient, which is gone afterwards.

        ``factor`` scales the learning rates (``schedule_factor``).
        """
        for optimizer, lr in self._rates:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):  # torchao's: its kernels are compiled for a tensor
                    group["lr"].fill_(lr * factor)
                else:
                    group["lr"] = lr * factor
            optimizer.step()
        with torch.no_grad():
            for parameter, master in self._pairs():
                if master.numel():
                    parameter.copy_(master)
            if self.config.shard:
                self.ranks.spread([p.data for p in self.parameters], self.owners)
        self.drop()

    def drop(self) -> None:
        """Forgets the gradient; neither parameters nor moments change."""
        for tensor in (*self.parameters, *self.masters):
            tensor.grad = None

    def state(self) -> dict[str, Any]:
        """Moments, masters and the rounding's generator, for ``torch.save``. The tensors are live ones, not copies.

        With ``config.shard`` this rank's part of them, for ``merged``.
        """
        return {
            "optimizers": [optimizer.state_dict() for optimizer, _ in self._rates],
            "masters": [m for _, m in self._pairs()],
        }

    def load_state(self, state: dict[str, Any]) -> str:
        """Continues from a (merged) state that was read from a file; its tensors are taken over, not copied.

        Betas, decay and the like are those of this optimizer: who changes them means them. Returns what is kept of the
        weights otherwise than before, as one memory or another has room for it; "" if nothing is.
        Raises ``UserError`` when the state is that of other settings.
        """
        pairs = self._pairs()
        if len(pairs) != len(state["masters"]) or len(self._rates) != len(state["optimizers"]):
            raise UserError(
                f"the saved optimizer has {len(state['masters'])} masters and {len(state['optimizers'])} parts, this "
                f"one {len(pairs)} and {len(self._rates)}; resume with the algorithm.optimizer, model.dtype and "
                "model.lora_rank that the checkpoint was made with"
            )
        for (optimizer, _), saved in zip(self._rates, state["optimizers"], strict=True):
            if ("moments" in saved) != (eight_bit := "moments" in optimizer.state_dict()):
                made_with = "adamw" if eight_bit else "adamw8bit"
                raise UserError(f"the saved optimizer is another one; resume with algorithm.optimizer.kind={made_with}")
            asked = [{k: v for k, v in group.items() if k in _SETTINGS} for group in optimizer.param_groups]
            optimizer.load_state_dict(self._own_part(optimizer, saved))
            for group, settings in zip(optimizer.param_groups, asked, strict=True):
                group.update(settings)
        with torch.no_grad():
            for (_, master), saved in zip(pairs, state["masters"], strict=True):
                if master.numel():
                    master.copy_(saved)
        return self._kept_otherwise(state)

    def _kept_otherwise(self, state: dict[str, Any]) -> str:
        exact = any("rest" in moment for saved in state["optimizers"] for moment in saved.get("moments", ()))
        key = "algorithm.optimizer.exact_master"
        if exact and not self.config.exact_master:
            return f"the checkpoint's exact masters are left out ({key}=false): weights are rounded stochastically"
        begun = any(moment for saved in state["optimizers"] for moment in saved.get("moments", ()))
        narrow = any(parameter.dtype == torch.bfloat16 for parameter in self.parameters)
        if begun and narrow and self.config.exact_master and not exact:
            return f"the checkpoint has no exact masters ({key}=true): they begin as its rounded weights"
        return ""

    def _own_part(self, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        """Of an optimizer's saved state, what belongs to the parameters that this rank steps."""
        own = {
            id(tensor)
            for pair, owner in zip(zip(self.parameters, self.masters, strict=True), self.owners, strict=True)
            for tensor in pair
            if owner == self.ranks.rank
        }
        kept = [id(p) in own for group in optimizer.param_groups for p in group["params"]]
        if "moments" in saved:
            moments, draws = saved["moments"], saved["draws"]
            if isinstance(draws, list):  # of each rank; where every rank steps every tensor, all have to draw alike
                draws = draws[self.ranks.rank if self.config.shard and len(draws) == self.ranks.world else 0]
            kept_here = [m if i >= len(kept) or kept[i] else {} for i, m in enumerate(moments)]
            return {**saved, "moments": kept_here, "draws": draws}
        return {**saved, "state": {i: s for i, s in saved["state"].items() if i >= len(kept) or kept[i]}}


def merged(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The whole state from the parts that the ranks of a sharded optimizer have, rank 0's first.

    Each rank's rounding has drawn for its own share: as many ranks go on exactly, of another number all with rank 0's.
    """
    first, *_ = states
    optimizers = []
    for parts in zip(*(state["optimizers"] for state in states), strict=True):
        if "moments" in parts[0]:
            moments: list[dict[str, Any]] = [
                next((m for m in each if m), {}) for each in zip(*(p["moments"] for p in parts), strict=True)
            ]
            optimizers.append({**parts[0], "moments": moments, "draws": [p["draws"] for p in parts]})
        else:
            optimizers.append({**parts[0], "state": {i: s for part in parts for i, s in part["state"].items()}})
    masters = [max(each, key=Tensor.numel) for each in zip(*(state["masters"] for state in states), strict=True)]
    return {**first, "optimizers": optimizers, "masters": masters}


def _master(parameter: nn.Parameter, *, offload: bool, own: bool = True) -> Tensor:
    """The float32 (or wider) tensor that is updated for ``parameter``: itself, if it is that already.

    Of one that another rank steps, an empty one.
    """
    wide = torch.promote_types(parameter.dtype, torch.float32)
    if wide == parameter.dtype and not offload:
        return parameter
    if not own:
        return parameter.new_empty(0, dtype=wide)
    return parameter.detach().to("cpu" if offload else parameter.device, wide, copy=True).requires_grad_()


def _norm(gradients: Sequence[Tensor]) -> float:
    """The 2-norm of all gradients together, summed in float32 or wider."""
    if not gradients:
        return 0.0
    norms = [torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in gradients]
    return float(torch.linalg.vector_norm(torch.stack(norms)))
