"""vLLM behind the ``Generator`` port, for the event loop of a worker. ``engine_thread.py`` has the engine itself."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.completions import completed, scored
from actors.engine_arguments import engine_arguments, engine_environment
from actors.engine_thread import Command, Counters, EngineThread, Request
from actors.weights import Published
from agent.errors import Fault
from agent.records import Completion
from conf.topology import EngineConfig

if TYPE_CHECKING:
    import torch


class Engine:
    """One vLLM engine over the model folder ``model_path``, started without its weights.

    It serves nothing until ``load_weights`` has given it a version. Raises ``UserError`` if this vLLM isn't for
    ``device``, and what vLLM raises if it can't start. ``generate`` raises ``GenerationError`` for a request that vLLM
    aborts.
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
        self._asleep = False
        self._asked: set[asyncio.Future[Any]] = set()
        """Requests that are in the engine."""
        self._plan = lru_cache(maxsize=4096)(self._make_plan)
        arguments = engine_arguments(
            model_path, config, device=device, dtype=dtype, max_model_len=max_model_len, seed=seed, sleeps=sleeps
        )
        self.thread = EngineThread(arguments, config.threads if device == "cpu" else None, transfers=transfers)

    @property
    def version(self) -> int | None:
        """The policy version that the engine holds, None before the first."""
        return self.thread.version

    @property
    def dead(self) -> str | None:
        """What the engine died of; None while it lives."""
        return self.thread.dead

    @property
    def stats(self) -> Counters:
        """Counters since the engine started."""
        return copy.copy(self.thread.counters)

    @property
    def progress(self) -> int | None:
        """Steps so far, while it has requests; None if it has none, or is held for new weights."""
        return None if self.thread.held or not self._asked else self.thread.counters.steps

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
                self.thread.vllm.params(temperature=0.0, max_tokens=1, logprob_token_ids=[token], detokenize=False),
            )
            for i, token in enumerate(token_ids)
        ]
        return float(sum(await asyncio.gather(*asked)))

    async def load_weights(self, tensors: Mapping[str, np.ndarray | torch.Tensor], version: int) -> None:
        """Swaps in the weights of ``version`` between two engine steps, in Hugging Face names and shapes.

        Requests in the engine recompute their prefix and go on with the new weights; the prefix cache
        of the old version is dropped. If vLLM refuses a tensor, the engine holds half of it and is dead.
        """
        await self._command(lambda: self.thread.load(tensors, version))

    async def hold(self) -> None:
        """Stops sampling and keeps all requests, until the next ``load_weights`` or ``transfer`` has ended."""
        await self._command(self.thread.hold)

    async def join(self, group: bytes, rank: int, world: int, *, bucket: int, timeout_s: float) -> None:
        """Becomes ``rank`` of ``world`` in a group that weights are broadcast in, and leaves the one before.

        All ranks have to come at once. Raises ``Fault`` if they haven't after ``timeout_s``, and what NCCL raises.
        """
        from actors.nccl import in_time, init_info

        info = init_info(group, rank, world, bucket)
        # In a thread of its own, since it may hang there; the engine is held meanwhile.
        what = f"joining the NCCL group as rank {rank}"
        await asyncio.to_thread(in_time, lambda: self.thread.vllm.join(info), timeout_s, what)

    async def transfer(self, published: Published) -> None:
        """Takes the weights of ``published`` from a broadcast, bucket by bucket; otherwise as ``load_weights``."""
        await self._command(lambda: self.thread.transfer(published))

    async def abandon(self) -> None:
        """Leaves the group at once, so that a ``transfer`` that waits for the others ends; the engine dies of it."""
        await asyncio.to_thread(self.thread.vllm.leave)

    async def sleep(self) -> None:
        """Leaves the card to others: the weights go to CPU memory, the KV cache is dropped (vLLM's sleep level 1).

        Nothing may be in the engine: it would be aborted, and the engine dies of that instead. On a CPU nothing moves.
        """
        self._asleep = True
        await self._command(self.thread.fall_asleep)

    async def wake(self) -> None:
        """Brings the same weights back, and an empty KV cache."""
        await self._command(self.thread.vllm.wake)
        self._asleep = False

    async def close(self) -> None:
        """Ends the thread; requests still in the engine fail, later ones raise ``Fault``."""
        await asyncio.to_thread(self.thread.close)

    def _request(self, prompt_ids: Sequence[int], read: Callable[[Any], Any], params: Any) -> asyncio.Future[Any]:
        if self.version is None:
            raise Fault("the engine has no weights yet: load_weights comes first")
        if self._asleep:
            raise Fault("the engine sleeps: wake comes first")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.thread.put(Request(prompt_ids=list(prompt_ids), params=params, future=future, read=read))
        self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        return future

    def _make_plan(self, stop: tuple[str, ...], temperature: float, max_new_tokens: int) -> Any:
        """What requests that differ in the seed alone have in common, to be copied for each.

        To make and check it takes vLLM as long as twenty copies, and its own deep copy of each request's as long as
        seventy. What a copy shares are the stop tokens, to which vLLM adds the model's end token, for all the same.
        """
        stop_ids = self._as_token_ids(stop)
        as_ids: dict[str, Any] = {"stop_token_ids": stop_ids, "detokenize": False}
        as_text: dict[str, Any] = {"stop": list(stop), "include_stop_str_in_output": True}
        return self.thread.vllm.params(
            temperature=temperature,
            seed=0,
            max_tokens=max_new_tokens,
            logprobs=0,
            skip_special_tokens=False,
            skip_clone=True,
            **(as_text if stop_ids is None else as_ids),
        )

    async def _command(self, run: Callable[[], Any]) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.thread.put(Command(run=run, future=future))
        return await future

    def _as_token_ids(self, stop: tuple[str, ...]) -> list[int] | None:
        """Ids of the stop strings if each is one reserved token: then nothing needs to be detokenised."""
        added = self.thread.tokenizer.get_added_vocab()
        return [added[s] for s in stop] if all(s in added for s in stop) else None
