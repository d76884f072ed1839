"""What an engine is made from: the environment that vLLM reads when it is imported, and the arguments of its engine.

Needs no vllm. What vLLM makes of both on a GPU is pinned by ``tests/actors/test_vllm_contract.py``.
"""

from __future__ import annotations

from typing import Any

from conf.topology import CPU_BLOCK, EngineConfig


def engine_environment(config: EngineConfig, device: str) -> dict[str, str]:
    """Environment variables that a process needs before it imports vLLM."""
    env = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CONFIGURE_LOGGING": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Requests with a seed never use FlashInfer's sampler, and looking for it may fetch and compile kernels.
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        # vLLM would choose by what it finds: without Triton it takes the other runner, which nobody has tried there.
        "VLLM_USE_V2_MODEL_RUNNER": "1" if device == "cuda" else "0",
    }
    if device == "cpu":
        env |= {
            "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(config.threads),
            # vLLM compiles a sum of the sampler's (batched_count_greater_than), whatever enforce_eager says: that takes
            # a C++ compiler, a folder whose files may be executed, and seconds, to save a copy of the logits.
            "TORCHDYNAMO_DISABLE": "1",
        }
    return env


def engine_arguments(
    model_path: str, config: EngineConfig, *, device: str, dtype: str, max_model_len: int, seed: int, sleeps: bool
) -> dict[str, Any]:
    """Arguments of vLLM's ``EngineArgs``. With ``sleeps``, its memory can leave the card in between."""
    cpu = device == "cpu"
    return {
        "model": model_path,
        "load_format": "dummy",  # the first published version brings the weights
        "dtype": dtype,
        "max_model_len": max_model_len,
        "max_num_seqs": config.max_num_seqs,
        # On a CPU no prompt is cut, so that the longest has to fit into one step.
        "max_num_batched_tokens": max(config.max_batched_tokens, max_model_len if cpu else 0),
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enforce_eager": config.enforce_eager or cpu,
        "enable_prefix_caching": True,
        **({"block_size": CPU_BLOCK} if cpu else {}),
        # A seeded request whose prompt is prefilled in parts kills vLLM 0.32 on a CPU: it winds
        # the generator back, which CPU generators can't do.
        "enable_chunked_prefill": not cpu,
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled from
        "distributed_executor_backend": "uni",
        "disable_log_stats": True,
        "enable_sleep_mode": sleeps,
        "seed": seed,
    }
