"""Graphics cards: what they hold and what they do at best.

Sources: NVIDIA's architecture whitepapers and data sheets: GA102 V2.0 (RTX 3090, A6000: BF16 tensor throughput with
FP32 accumulation, dense), Ada (RTX 4090, L40S), Blackwell RTX (RTX 5090), A100, H100 and H200 (SXM). Rates are peaks;
``roofline`` says what share of them it counts on.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.errors import one_of
from conf.topology import ClusterConfig

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One kind of GPU."""

    gib: float
    """Memory by its name; what CUDA then has for programs is ``USABLE`` of it."""
    tflops: float
    """Peak of bfloat16 matrix products that add up in float32, without sparsity, in 1e12 per second."""
    bandwidth: float
    """Of its memory, in 1e9 bytes per second."""
    pcie: float
    """To and from the CPU in practice, in 1e9 bytes per second: about 80 % of x16's 31.5 (gen 4) or 63 (gen 5)."""


CARDS = {
    "rtx3090": Card(gib=24, tflops=71, bandwidth=936, pcie=25),
    "rtx4090": Card(gib=24, tflops=165, bandwidth=1008, pcie=25),
    "rtx5090": Card(gib=32, tflops=209, bandwidth=1792, pcie=50),
    "a6000": Card(gib=48, tflops=155, bandwidth=768, pcie=25),
    "l40s": Card(gib=48, tflops=362, bandwidth=864, pcie=25),
    "a100-40": Card(gib=40, tflops=312, bandwidth=1555, pcie=25),
    "a100-80": Card(gib=80, tflops=312, bandwidth=2039, pcie=25),
    "h100": Card(gib=80, tflops=989, bandwidth=3350, pcie=50),
    "h200": Card(gib=141, tflops=989, bandwidth=4800, pcie=50),
}
"""By the name that ``cluster.card`` takes."""

USABLE = 0.985
"""Share of a card's memory that CUDA reports: 23.7 of an RTX 3090's 24 GiB."""


def card(name: str) -> Card:
    """The card that ``cluster.card`` names. Raises ``UserError`` for one that isn't known."""
    one_of(name, CARDS, "cluster.card")
    return CARDS[name]


def nominal_gib(config: ClusterConfig) -> float:
    """Memory of each GPU by its name."""
    return config.gpu_memory_gib or card(config.card).gib


def usable_bytes(config: ClusterConfig) -> int:
    """What CUDA has of each GPU, at least a byte; 0 without one."""
    return max(1, int(USABLE * nominal_gib(config) * GIB)) if config.device == "cuda" else 0
