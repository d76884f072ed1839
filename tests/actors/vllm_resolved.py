"""What vLLM makes of our engine's arguments on an NVIDIA GPU, in a process of its own, without one.

    python vllm_resolved.py MODEL_FOLDER

Puts vLLM's CUDA platform, with a capability of our choice, in the place of the installed one; empty modules stand for
the compiled kernels that the CPU build lacks. Nothing is computed. Prints one JSON object: a resolved configuration for
each case, and what of vLLM's private things isn't there or has other parameters.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

CARDS = {"sm_86": (8, 6, 24), "sm_90": (9, 0, 80)}
"""Capability and GiB."""

SIGNATURES = {
    "vllm.v1.engine.llm_engine:LLMEngine.from_engine_args": ("engine_args",),
    "vllm.v1.engine.llm_engine:LLMEngine.add_request": ("request_id", "prompt", "params"),
    "vllm.v1.engine.llm_engine:LLMEngine.step": (),
    "vllm.v1.engine.llm_engine:LLMEngine.has_unfinished_requests": (),
    "vllm.v1.engine.llm_engine:LLMEngine.abort_request": ("request_ids",),
    "vllm.v1.engine.llm_engine:LLMEngine.reset_prefix_cache": ("reset_running_requests",),
    "vllm.v1.engine.llm_engine:LLMEngine.set_weight_version": ("weight_version",),
    "vllm.v1.engine.llm_engine:LLMEngine.collective_rpc": ("method", "kwargs"),
    "vllm.v1.engine.llm_engine:LLMEngine.sleep": ("level",),
    "vllm.v1.engine.llm_engine:LLMEngine.wake_up": (),
    "vllm.v1.engine.core:EngineCore.pause_scheduler": ("mode", "clear_cache"),
    "vllm.v1.engine.core:EngineCore.resume_scheduler": (),
    "vllm.v1.worker.gpu_worker:Worker.get_model": (),
    "vllm.v1.worker.gpu_worker:Worker.reload_weights": ("args", "kwargs"),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.reload_weights": ("weights_iterator",),
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.reload_weights": ("weights_iterator",),
    "vllm.v1.worker.gpu_worker:Worker.init_weight_transfer_engine": ("init_info",),
    "vllm.v1.worker.gpu_worker:Worker.shutdown_weight_transfer_engine": (),
    "vllm.v1.worker.gpu_worker:Worker.start_weight_update": (),
    "vllm.v1.worker.gpu_worker:Worker.update_weights": ("update_info",),
    "vllm.v1.worker.gpu_worker:Worker.finish_weight_update": (),
    "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm": ("layer", "remove_weight"),
    "vllm.distributed.device_communicators.pynccl_wrapper:NCCLLibrary.ncclGetUniqueId": (),
    "vllm.distributed.device_communicators.pynccl:PyNcclCommunicator.broadcast": ("tensor", "src"),
    "vllm.distributed.device_communicators.pynccl:PyNcclCommunicator.destroy": (),
    "vllm.distributed.weight_transfer.nccl_common:uid_init_process_group": (
        "nccl_unique_id_bytes",
        "rank",
        "world_size",
        "device",
    ),
    "vllm.distributed.weight_transfer.packed_tensor:packed_nccl_broadcast_producer": (
        "iterator",
        "group",
        "src",
        "post_iter_func",
        "buffer_size_bytes",
    ),
    "vllm.distributed.weight_transfer.packed_tensor:packed_nccl_broadcast_consumer": (
        "iterator",
        "group",
        "src",
        "post_unpack_func",
        "buffer_size_bytes",
        "device",
    ),
    "vllm.distributed.weight_transfer.factory:WeightTransferEngineFactory.register_engine": (),
    "vllm.distributed.weight_transfer.nccl_engine:NCCLWeightTransferEngine.init_transfer_engine": ("init_info",),
    "vllm.distributed.weight_transfer.nccl_engine:NCCLWeightTransferEngine.receive_weights": ("update_info",),
    "vllm.distributed.weight_transfer.nccl_engine:NCCLWeightTransferEngine.shutdown": (),
}
"""Each private call, and the parameters that it has to take."""
FIELDS = {
    "vllm.distributed.weight_transfer.nccl_common:NCCLWeightTransferInitInfo": (
        "nccl_unique_id_b64",
        "rank_offset",
        "world_size",
        "packed",
        "packed_buffer_size_bytes",
    ),
    "vllm.distributed.weight_transfer.nccl_engine:NCCLWeightTransferUpdateInfo": ("names", "dtype_names", "shapes"),
    "vllm.outputs:CompletionOutput": ("token_ids", "logprobs", "finish_reason", "weight_versions"),
}
"""Dataclasses of vLLM's, and the fields that we read or fill."""
VARIABLES = ("VLLM_USE_V2_MODEL_RUNNER", "VLLM_USE_FLASHINFER_SAMPLER", "VLLM_ENABLE_V1_MULTIPROCESSING")


def found(place: str) -> Any:
    module, _, path = place.partition(":")
    thing: Any = importlib.import_module(module)
    for name in path.split("."):
        thing = getattr(thing, name)
    return thing


def broken() -> list[str]:
    """A line for each private thing that isn't as we use it."""
    lines = []
    for place, wanted in {**SIGNATURES, **FIELDS}.items():
        try:
            thing = found(place)
        except (ImportError, AttributeError) as error:
            lines.append(f"{place}: {error}")
            continue
        has = {f.name for f in dataclasses.fields(thing)} if place in FIELDS else {*inspect.signature(thing).parameters}
        lines += [f"{place} takes no {name}" for name in wanted if name not in has]
    envs = found("vllm.envs:environment_variables")
    return lines + [f"vLLM reads no {name}" for name in VARIABLES if name not in envs]


def fake_cuda() -> Any:
    """vLLM's CUDA platform in the installed one's place; its ``major``, ``minor`` and ``gib`` may be set."""
    for name in ("vllm._C_stable_libtorch", "vllm.vllm_flash_attn._vllm_fa2_C", "vllm.vllm_flash_attn._vllm_fa3_C"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)
    import vllm.platforms
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    class Fake(CudaPlatformBase):
        major, minor, gib = 0, 0, 0

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(cls.major, cls.minor)

        @classmethod
        def has_device_capability(cls, capability: Any, device_id: int = 0) -> bool:
            wanted = capability if isinstance(capability, tuple) else divmod(capability, 10)
            return (cls.major, cls.minor) >= wanted

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "a card"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return cls.gib << 30

        @classmethod
        def device_count(cls) -> int:
            return 1

        def is_cumem_allocator_available(self) -> bool:
            return True

    vllm.platforms.current_platform = Fake()
    return Fake


def case(folder: str, sleeps: bool, without_triton: bool = False) -> dict[str, Any]:
    """What vLLM makes of the arguments of an engine on the faked card."""
    import vllm.config.vllm
    from vllm import EngineArgs
    from vllm.config import set_current_vllm_config
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.attention.selector import get_attn_backend

    from actors.engine_arguments import engine_arguments
    from actors.vllm_adapter import resolved
    from conf.topology import EngineConfig

    vllm.config.vllm.HAS_TRITON = not without_triton
    settings = EngineConfig(gpu_memory_utilization=0.88)
    arguments = engine_arguments(
        folder, settings, device="cuda", dtype="bfloat16", max_model_len=9216, seed=0, sleeps=sleeps
    )
    config = EngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)
    with set_current_vllm_config(config):
        attention = get_attn_backend(config.model_config.get_head_size(), config.model_config.dtype, "auto")
    return {**dataclasses.asdict(resolved(config)), "attention": attention.get_name()}


def main(folder: str) -> None:
    import vllm.platforms

    from actors.engine_arguments import engine_environment
    from conf.topology import EngineConfig

    os.environ.update(engine_environment(EngineConfig(), "cuda"))
    own = vllm.platforms.current_platform
    platform = fake_cuda()
    cases = {}
    for name, (platform.major, platform.minor, platform.gib) in CARDS.items():
        cases[name] = case(folder, sleeps=False)
        cases[f"{name} asleep"] = case(folder, sleeps=True)
    del os.environ["VLLM_USE_V2_MODEL_RUNNER"]
    cases["left alone, without Triton"] = case(folder, sleeps=False, without_triton=True)
    vllm.platforms.current_platform = own  # the workers call compiled kernels when they are imported for CUDA
    print(json.dumps({"broken": broken(), "cases": cases}))


if __name__ == "__main__":
    main(sys.argv[1])
