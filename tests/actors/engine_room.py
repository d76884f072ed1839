"""A real vLLM engine over a tiny random model, in a process of its own, and what the tests do with it there.

vLLM sets environment variables, starts threads and opens a process group; none of that may reach the JVM and
Ray tests of the same pytest process. Functions here that take a ``Room`` run in that process: ``RoomProcess.call``
names one, and brings its result back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from patience import HANG_S, Pulse
from scripted_core import PipelinedCore, ScriptedCore
from vllm_resolved import broken

from agent.errors import UserError
from agent.records import Completion, Finish

TAGS = ("<search>", "</search>", "</answer>")
CONTEXT = 512
BUCKET = 2**16
"""Bytes; the tiny model has several of these."""
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 96,
}
SYLLABLES = ("ba", "ko", "mi", "tur", "len", "sha", "vor", "dex", "qui", "nop", "gal", "ri")


# --- the test's side -------------------------------------------------------------------------------


class RoomProcess:
    """The process with the engine. ``call`` runs one function of this module in it."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """On ``cuda`` the model is bfloat16; which card it is on is the environment's to say."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, folder, device), daemon=True)
        self._process.start()
        theirs.close()
        self.before_weights = self._answer()
        """What ``generate`` said before the engine had any weights."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of ``function(room, *arguments)``; its error, with its traceback, as an AssertionError."""
        self._connection.send((function.__name__, arguments))
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.pid is not None
        pulse = Pulse(self._process.pid)
        while not self._connection.poll(1.0):
            assert pulse.beats(), "the engine's process stands still"
        try:
            fine, value = self._connection.recv()
        except EOFError:
            self._process.join(5)
            raise AssertionError(f"the engine's process died with code {self._process.exitcode}") from None
        if not fine:
            raise AssertionError(value)
        return value

    def end(self) -> None:
        self._process.kill()
        self._process.join()


# --- the engine's side -----------------------------------------------------------------------------


@dataclass
class Room:
    """The engine, and the same model in transformers to compare it with."""

    folder: Path
    engine: Any
    policies: dict[int, Any] = field(default_factory=dict)

    def policy(self, seed: int) -> Any:
        """The policy with random weights from ``seed``; it writes readable text and never the end token."""
        if seed not in self.policies:
            self.policies[seed] = _policy(self.folder, seed, {})
        return self.policies[seed]

    async def load(self, seed: int) -> None:
        """Gives the engine the weights of ``seed``, which is the version's number, too."""
        await self.engine.load_weights(self.policy(seed).published(), seed)

    async def generate(self, prompt: Sequence[int], **changed: Any) -> Completion:
        request = {"max_new_tokens": 24, "stop": (), "temperature": 1.0, "seed": 0, **changed}
        return await self.engine.generate(prompt, **request)

    def logprobs(self, seed: int, prompt: Sequence[int], completion: Completion, temperature: float) -> list[float]:
        """What transformers says of each sampled token, given all tokens before it, with the weights of ``seed``.

        Of a greedy token (temperature 0), what it says at temperature 1.
        """
        import torch

        ids = torch.tensor([[*prompt, *completion.token_ids]])
        model = self.policy(seed).model
        model.set_attn_implementation("eager")
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        table = torch.log_softmax(logits.double() / (temperature or 1.0), -1)
        return table.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()

    def gaps(self, seed: int, prompt: Sequence[int], completion: Completion, temperature: float) -> list[float]:
        theirs = self.logprobs(seed, prompt, completion, temperature)
        return [abs(a - b) for a, b in zip(completion.logprobs, theirs, strict=True)]

    @property
    def tokenizer(self) -> Any:
        return self.engine.thread.tokenizer

    def prompt(self, number: int, length: int = 20) -> list[int]:
        """Some readable tokens, different for each ``number``; they share their first ones."""
        ids = _readable(self.tokenizer)
        return [ids[i % 7] for i in range(4)] + [ids[(number * 31 + i * i) % len(ids)] for i in range(length - 4)]


def _serve(connection: Any, folder: Path, device: str) -> None:
    """The process's main function: makes the room, then answers calls until the pipe closes."""
    from actors.process import QUIET

    os.environ.update(QUIET, HF_HUB_OFFLINE="1")
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        room = _make_room(folder, device)
        connection.send((True, loop.run_until_complete(_refusal(room.generate([1, 2, 3])))))
    except BaseException:
        connection.send((False, traceback.format_exc()))
        return
    with contextlib.suppress(EOFError):
        while True:
            name, arguments = connection.recv()
            try:
                result = globals()[name](room, *arguments)
                if asyncio.iscoroutine(result):
                    result = loop.run_until_complete(result)
                connection.send((True, result))
            except BaseException:
                connection.send((False, traceback.format_exc()))


def _make_room(folder: Path, device: str) -> Room:
    import torch

    from actors.engine import Engine
    from conf.topology import EngineConfig
    from learner.config import ModelConfig
    from learner.skeleton import write_skeleton
    from tasks.tokenizer import train

    torch.set_num_threads(1)
    words = (f"{a}{b}{c}" for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES)
    train((" ".join(words),), tags=TAGS, folder=folder, vocab_size=520)
    write_skeleton(folder, ModelConfig(architecture=SIZES), context=CONTEXT)
    config = EngineConfig(max_num_seqs=16, gpu_memory_utilization=0.3)
    dtype = "float32" if device == "cpu" else "bfloat16"
    engine = Engine(str(folder), config, device=device, dtype=dtype, max_model_len=CONTEXT, seed=0, transfers=True)
    return Room(folder, engine)


def _policy(folder: Path, seed: int, twins: dict[int, int]) -> Any:
    """Random weights whose every tensor differs from another seed's, with far from uniform output.

    Only readable tokens are ever sampled: one hidden dimension is the same at every token, and the embedding
    of all others (which is the head, too) points away from it. A token in ``twins`` is as likely as its twin.
    """
    import torch

    from agent.tokens import Tokenizer
    from learner.policy import Policy

    policy = Policy.from_folder(folder, seed=seed, dtype="float32")
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.ndim == 1:  # norms and biases
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter[0] = 0.0
        embedding = policy.model.get_input_embeddings().weight
        assert policy.head is embedding, "the tiny model ties its embeddings"
        embedding *= 3.0
        embedding[:, 0] = 3.0
        quiet = sorted(set(range(len(embedding))) - set(_readable(Tokenizer(folder)._tokenizer)))
        embedding[quiet] = 0.0
        embedding[quiet, 0] = -3.0
        for token, twin in twins.items():
            embedding[token] = embedding[twin]
    return policy


def _readable(tokenizer: Any) -> list[int]:
    """Tokens of two or more letters: a text of them is the same whether decoded at once or bit by bit."""
    reserved = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
    texts = {i: tokenizer.decode([i]) for i in range(len(tokenizer)) if i not in reserved}
    return [i for i, text in texts.items() if len(text) > 1 and text.isascii() and text.strip() == text]


async def _refusal(call: Coroutine[Any, Any, Any]) -> str:
    """The error that ``call`` raises, as ``Type: text``, or ``no error``."""
    try:
        await asyncio.wait_for(call, HANG_S)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


# --- what the tests do with it ---------------------------------------------------------------------


async def scores(room: Room, seed: int) -> list[tuple[float, float]]:
    """What the engine and transformers say of ten texts of four tokens, one of them the likeliest, the others chance.

    Other requests sample meanwhile.
    """
    await room.load(seed)
    others = [asyncio.ensure_future(room.generate(room.prompt(20 + i), max_new_tokens=60)) for i in range(4)]
    likely = await room.generate(room.prompt(0), temperature=0.0, max_new_tokens=4)
    texts = [list(likely.token_ids), *(room.prompt(10 + i)[-4:] for i in range(9))]
    found = await asyncio.gather(*(room.engine.score(room.prompt(0), text) for text in texts))
    given = [Completion(token_ids=tuple(t), logprobs=(0,) * 4, versions=(seed,) * 4, finish=Finish.STOP) for t in texts]
    theirs = [sum(room.logprobs(seed, room.prompt(0), text, 1.0)) for text in given]
    for number, other in enumerate(others):
        completion = await other
        gaps = room.gaps(seed, room.prompt(20 + number), completion, 1.0)
        assert max(gaps) < 2e-4, "scoring has changed what is said of what others sample"
    return list(zip(found, theirs, strict=True))


async def gaps_after_update(room: Room, seed: int, temperature: float) -> tuple[list[int], list[float]]:
    """Loads the weights of ``seed`` and samples; versions of the tokens, and each token's gap to transformers."""
    await room.load(seed)
    prompts = [room.prompt(n) for n in range(6)]
    done = await asyncio.gather(
        *(room.generate(p, seed=n, temperature=temperature) for n, p in enumerate(prompts)),
    )
    gaps = [g for p, c in zip(prompts, done, strict=True) for g in room.gaps(seed, p, c, temperature)]
    return [v for c in done for v in c.versions], gaps


async def learner_gaps(room: Room, seed: int, device: str, dtype: str) -> list[float]:
    """Each sampled token's gap to the learner's own log-probability, from one packed row in ``dtype`` on ``device``."""
    import numpy as np
    import torch

    from learner.packing import pack_rows
    from learner.policy import Policy

    await room.load(seed)
    prompts = [room.prompt(n, length=20 + n) for n in range(6)]
    done = await asyncio.gather(*(room.generate(p, seed=n, max_new_tokens=60) for n, p in enumerate(prompts)))
    policy = Policy.from_folder(room.folder, seed=seed, dtype=dtype, device=device)
    with torch.no_grad():
        for ours, theirs in zip(policy.model.parameters(), room.policy(seed).model.parameters(), strict=True):
            ours.copy_(theirs)
        ids = [np.array([*p, *c.token_ids], np.int32) for p, c in zip(prompts, done, strict=True)]
        masks = [np.arange(len(i)) >= len(p) for i, p in zip(ids, prompts, strict=True)]
        (row,) = pack_rows(ids, masks, sum(map(len, ids)))
        values = policy.logprobs(row).values.float().tolist()
    sampled = [logprob for member in row.members for logprob in done[member].logprobs]
    return [abs(a - b) for a, b in zip(sampled, values, strict=True)]


async def gaps_without_cure(room: Room, seed: int) -> list[float]:
    """The gaps after an update that leaves vLLM's prepacked head as it was."""
    import vllm.model_executor.layers.utils as utils

    head = room.engine.thread.vllm._model.lm_head
    cure = utils.dispatch_cpu_unquantized_gemm
    utils.dispatch_cpu_unquantized_gemm = lambda layer, **how: None if layer is head else cure(layer, **how)
    try:
        return (await gaps_after_update(room, seed, 1.0))[1]
    finally:
        utils.dispatch_cpu_unquantized_gemm = cure


async def update_in_flight(
    room: Room, length: int = 400
) -> list[tuple[list[int], dict[int, list[float]], list[float]]]:
    """Requests of ``length`` across two updates: for each, its versions, its gaps by version, and its stale gaps.

    A token's stale gap is the distance to what the version before the token's own says of it.
    """
    seeds = (21, 22, 23)
    for seed in seeds:  # not while the requests are under way
        room.policy(seed)
    await room.load(seeds[0])
    prompts = [room.prompt(n) for n in (0, 1, 2, 3, 0, 0)]
    long = [asyncio.ensure_future(room.generate(p, seed=n, max_new_tokens=length)) for n, p in enumerate(prompts)]
    for seed in seeds[1:]:
        # A short request that comes later and ends tells that the long ones are on their way.
        await room.generate(room.prompt(9), seed=seed, max_new_tokens=20)
        assert not any(task.done() for task in long), "too fast: the update finds nothing in flight"
        await room.load(seed)
    rows = []
    for prompt, completion in zip(prompts, await asyncio.gather(*long), strict=True):
        table = {s: room.gaps(s, prompt, completion, 1.0) for s in seeds}
        fresh = {s: [g for v, g in zip(completion.versions, table[s], strict=True) if v == s] for s in seeds}
        stale = [table[v - 1][i] for i, v in enumerate(completion.versions) if v > seeds[0]]
        rows.append((list(completion.versions), fresh, stale))
    return rows


async def held(room: Room) -> tuple[int, int, list[list[int]]]:
    """Requests before and after the engine stops, and then new weights.

    How many had ended before those, how many vLLM had been given, and the versions of each one's tokens.
    """
    room.policy(22)
    await room.load(21)
    playing = [asyncio.ensure_future(room.generate(room.prompt(n), seed=n, max_new_tokens=150)) for n in range(3)]
    await room.generate(room.prompt(9), max_new_tokens=20)
    await room.engine.hold()
    playing += [asyncio.ensure_future(room.generate(room.prompt(n), seed=n, max_new_tokens=5)) for n in (4, 5)]
    await asyncio.sleep(0)  # the two requests are in the inbox
    await room.engine.hold()  # a command: when it is done, what came before it is in the engine
    ended, given = sum(task.done() for task in playing), len(room.engine.thread.pending)
    await room.load(22)
    return ended, given, [list(c.versions) for c in await asyncio.gather(*playing)]


async def broadcast(room: Room, bucket: int, damaged: bool) -> tuple[list[int], list[Any], str]:
    """Weights by vLLM's packed broadcast, in mid-completion, with a queue in NCCL's place.

    The sizes of what was sent at once; for each of three requests its versions and its gaps by version; and what the
    engine says of the broadcast. ``damaged`` flips a bit on the way.
    """
    import queue
    from unittest import mock

    import torch
    import vllm.distributed.weight_transfer.nccl_engine as theirs

    import actors.nccl as ours
    from actors.nccl import Sender
    from actors.weights import NcclChannel

    wire: queue.Queue[torch.Tensor] = queue.Queue()
    sizes: list[int] = []
    on = threading.local()

    class Stream:
        """Of CUDA, as far as it matters here: what it has waited for."""

        def __init__(self) -> None:
            self.waited: list[Stream] = []

        def record_event(self) -> Stream:
            return self

        def wait_event(self, event: Stream) -> None:
            self.waited.append(event)

        def synchronize(self) -> None: ...

    main = Stream()

    def current() -> Stream:
        return getattr(on, "stream", main)

    @contextlib.contextmanager
    def inside(stream: Stream) -> Iterator[None]:
        on.stream = stream
        yield
        on.stream = main

    class End:
        """One rank's end of the wire, with a communicator's ``broadcast``."""

        disabled = False

        def __init__(self, rank: int) -> None:
            self.rank = rank
            self.received: list[Stream] = []
            """The stream of each bucket."""

        def broadcast(self, tensor: torch.Tensor, src: int) -> None:
            assert (src, tensor.dtype, tensor.ndim) == (0, torch.uint8, 1)
            if self.rank == src:
                assert main in current().waited, "it may be packed before it is made"
                current().waited.clear()
                sizes.append(len(tensor))
                wire.put(tensor.clone())
                return
            for earlier, later in pairwise(self.received[-2:]):
                assert earlier in later.waited, "it may read of a bucket whose memory is given out again"
                later.waited.clear()
            self.received.append(current())
            sent = wire.get(timeout=HANG_S)
            if damaged and len(wire.queue) == 0:
                sent[-1] ^= 1
            tensor.copy_(sent)

        def destroy(self) -> None: ...

    def opened(group: bytes, rank: int, world: int, device: int) -> End:
        assert (group, rank, world, device) == (b"g" * 128, 0, 2, 0)
        return End(rank)

    def joined(info: Any, parallel: Any) -> End:
        assert (info.nccl_unique_id_bytes, info.rank_offset, info.world_size) == (b"g" * 128, 1, 2)
        assert (info.packed, info.packed_buffer_size_bytes) == (True, bucket)
        return End(info.rank_offset)

    with (
        mock.patch.object(ours, "uid_init_process_group", opened),
        mock.patch.object(theirs, "worker_init_process_group", joined),
        mock.patch.object(ours.packed_tensor, "_get_streams", lambda device, n: tuple(Stream() for _ in range(n))),
        mock.patch.object(torch.cuda, "stream", inside),
        mock.patch.object(torch.cuda, "current_stream", current),
        mock.patch.object(torch.accelerator, "current_device_index", return_value=0),
        mock.patch.object(torch.accelerator, "synchronize"),
    ):
        await room.load(21)
        sender = Sender(b"g" * 128, 2, bucket=bucket, timeout_s=HANG_S)
        await room.engine.join(b"g" * 128, 1, 2, bucket=bucket, timeout_s=HANG_S)
        prompts, policy = [room.prompt(n) for n in range(3)], room.policy(22)
        playing = [asyncio.ensure_future(room.generate(p, seed=n, max_new_tokens=200)) for n, p in enumerate(prompts)]
        await room.generate(room.prompt(9), max_new_tokens=20)
        assert not any(task.done() for task in playing), "too fast: the broadcast finds nothing in flight"
        published = NcclChannel().publish(policy.current(), 22, None)
        await room.engine.hold()
        sending = asyncio.ensure_future(asyncio.to_thread(sender.send, policy.current()))
        said = await _refusal(room.engine.transfer(published))
        await sending
        done = await asyncio.gather(*playing, return_exceptions=True)
    rows: list[Any] = []
    for prompt, completion in zip(prompts, done, strict=True):
        if isinstance(completion, BaseException):
            rows.append(str(completion))
            continue
        table = {s: room.gaps(s, prompt, completion, 1.0) for s in (21, 22)}
        fresh = {s: [g for v, g in zip(completion.versions, table[s], strict=True) if v == s] for s in table}
        rows.append((list(completion.versions), fresh))
    return sizes, rows, said


async def join(room: Room, group: bytes, timeout_s: float) -> None:
    """Becomes the one engine of a broadcast's group."""
    await room.engine.join(group, 1, 2, bucket=BUCKET, timeout_s=timeout_s)


def weights(room: Room, seed: int) -> dict[str, Any]:
    """The published weights of ``seed``."""
    published: dict[str, Any] = room.policy(seed).published()
    return published


async def over_nccl(room: Room, published: Any) -> list[tuple[list[int], dict[int, list[float]], list[float]]]:
    """A broadcast of version 22 in mid-completion: three requests' versions, gaps by version, and stale gaps."""
    await room.load(21)
    prompts = [room.prompt(n) for n in range(3)]
    playing = [asyncio.ensure_future(room.generate(p, seed=n, max_new_tokens=400)) for n, p in enumerate(prompts)]
    await room.generate(room.prompt(9), max_new_tokens=20)
    await room.engine.hold()
    await room.engine.transfer(published)
    rows = []
    for prompt, completion in zip(prompts, await asyncio.gather(*playing), strict=True):
        table = {s: room.gaps(s, prompt, completion, 1.0) for s in (21, 22)}
        fresh = {s: [g for v, g in zip(completion.versions, table[s], strict=True) if v == s] for s in table}
        stale = [table[21][i] for i, v in enumerate(completion.versions) if v == 22]
        rows.append((list(completion.versions), fresh, stale))
    return rows


async def free_run(room: Room, request: dict[str, Any]) -> tuple[Completion, list[str]]:
    """A completion that nothing stopped, and the text of each of its tokens."""
    await room.load(31)
    completion = await room.generate(room.prompt(1), **request)
    return completion, [room.tokenizer.decode([i]) for i in completion.token_ids]


async def complete(room: Room, requests: list[dict[str, Any]]) -> list[Completion]:
    """The completions of ``requests``, all at once, with the weights of seed 31."""
    await room.load(31)
    return list(await asyncio.gather(*(room.generate(r.pop("prompt", room.prompt(1)), **r) for r in requests)))


async def shared_prefix(room: Room) -> list[tuple[int, int]]:
    """Prompt and cached tokens of a long prompt, of eight continuations of it, and of one after an update."""
    await room.load(31)
    prefix = room.prompt(40, length=300)

    async def counted(prompts: list[list[int]]) -> tuple[int, int]:
        before = room.engine.stats
        await asyncio.gather(*(room.generate(p, max_new_tokens=4) for p in prompts))
        after = room.engine.stats
        return after.prompt_tokens - before.prompt_tokens, after.cached_tokens - before.cached_tokens

    found = [await counted([prefix]), await counted([[*prefix, *room.prompt(n, length=10)] for n in range(8)])]
    await room.load(32)
    return [*found, await counted([prefix])]


SOMETIMES = 80
"""Most tokens of a completion of ``sometimes``."""


async def sometimes(room: Room, tokens: list[int], **request: Any) -> list[Completion]:
    """Eight completions of a policy that now and then writes one of ``tokens``."""

    async def play(length: int) -> list[Completion]:
        return list(
            await asyncio.gather(
                *(room.generate(room.prompt(n), seed=n, max_new_tokens=length, **request) for n in range(8))
            )
        )

    await room.load(32)
    common = Counter(t for c in await play(40) for t in c.token_ids).most_common(len(tokens))
    twins = dict(zip(tokens, (twin for twin, _ in common), strict=True))
    await room.engine.load_weights(_policy(room.folder, 32, twins).published(), 33)
    return await play(SOMETIMES)


async def with_tags(room: Room, stop: tuple[str, ...]) -> list[tuple[Completion, str]]:
    """Completions of a policy that writes closing tags, with their texts."""
    done = await sometimes(room, room.tokenizer.convert_tokens_to_ids(TAGS[1:]), stop=stop)
    return [(c, room.tokenizer.decode(c.token_ids, skip_special_tokens=False)) for c in done]


async def with_end_token(room: Room) -> tuple[int, list[Completion]]:
    """The end token, and completions of a policy that writes it."""
    end = room.tokenizer.eos_token_id
    return end, await sometimes(room, [end])


async def refused(room: Room, prompts: list[list[int]]) -> tuple[list[str], list[int]]:
    """What each of ``prompts`` gets that vLLM can't serve, and the lengths that good requests beside them got."""
    await room.load(31)
    good = [asyncio.ensure_future(room.generate(room.prompt(n), seed=n, max_new_tokens=40)) for n in range(3)]
    refusals = [await _refusal(room.generate(p)) for p in prompts]
    good += [asyncio.ensure_future(room.generate(room.prompt(4), seed=4, max_new_tokens=40))]
    return refusals, [len(c.token_ids) for c in await asyncio.gather(*good)]


async def crowd(room: Room, count: int) -> list[tuple[int, int, float]]:
    """``count`` requests at once, more than the engine decodes together: wanted and got lengths, mean gap."""
    await room.load(34)
    wanted = [5 + 7 * n % 30 for n in range(count)]
    prompts = [room.prompt(n, 6 + n % 30) for n in range(count)]
    done = await asyncio.gather(
        *(room.generate(p, seed=n, max_new_tokens=w) for n, (p, w) in enumerate(zip(prompts, wanted, strict=True)))
    )
    gaps = [room.gaps(34, p, c, 1.0) for p, c in zip(prompts, done, strict=True)]
    return [(w, len(c.token_ids), sum(g) / len(g)) for w, c, g in zip(wanted, done, gaps, strict=True)]


async def cancelled_callers(room: Room) -> tuple[list[int], int, list[str]]:
    """Every other one of ten requests is cancelled in flight: lengths of the others, and of one that follows.

    And what the event loop had to complain of. An engine whose only caller has gone can fall asleep.
    """
    complaints: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
    await room.load(31)
    tasks = [asyncio.ensure_future(room.generate(room.prompt(n), seed=n, max_new_tokens=100)) for n in range(10)]
    await room.generate(room.prompt(9), max_new_tokens=5)
    assert not any(t.done() for t in tasks)
    for task in tasks[::2]:
        task.cancel()
    done = await asyncio.gather(*tasks[1::2])
    after = await room.generate(room.prompt(3), max_new_tokens=7)
    left = asyncio.ensure_future(room.generate(room.prompt(0), max_new_tokens=100))
    await room.generate(room.prompt(1), max_new_tokens=3)
    assert not left.done()
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    await room.engine.sleep()  # which it can't with a request in it
    await room.engine.wake()
    loop.set_exception_handler(None)
    return [len(c.token_ids) for c in done], len(after.token_ids), complaints


def loop_ends_in_flight(room: Room) -> int:
    """A caller's event loop ends while its request is in the engine; the length of the next caller's completion."""

    async def leave() -> None:
        task = asyncio.ensure_future(room.generate(room.prompt(0), max_new_tokens=60))
        await room.generate(room.prompt(1), max_new_tokens=3)
        assert not task.done()

    async def follow() -> Completion:
        await room.load(31)
        return await room.generate(room.prompt(2), max_new_tokens=80)

    for scenario in (room.load(31), leave()):
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            task = loop.create_task(scenario)
            loop.run_until_complete(task)
            for left in asyncio.all_tasks(loop):
                left._log_destroy_pending = False  # left behind on purpose
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        return len(loop.run_until_complete(follow()).token_ids)


async def sleep_and_wake(room: Room) -> tuple[str, list[int], list[int], int | None]:
    """What a request gets while the engine sleeps; a completion before and after; the version after."""
    await room.load(31)
    before = await room.generate(room.prompt(5), seed=5)
    await room.engine.sleep()
    meanwhile = await _refusal(room.generate(room.prompt(5), seed=5))
    await room.engine.wake()
    after = await room.generate(room.prompt(5), seed=5)
    return meanwhile, list(before.token_ids), list(after.token_ids), room.engine.version


async def close_in_flight(room: Room) -> tuple[list[str], list[str]]:
    """Closes the engine, for good: what those who waited got, and what those who come later get."""
    await room.load(31)
    waiting = [asyncio.ensure_future(_refusal(room.generate(room.prompt(n), max_new_tokens=400))) for n in range(3)]
    await room.generate(room.prompt(9), max_new_tokens=2)
    await room.engine.close()
    later = [await _refusal(room.generate(room.prompt(0))), await _refusal(room.load(31))]
    await room.engine.close()
    return list(await asyncio.gather(*waiting)), later


# --- what we take from vLLM -------------------------------------------------------------------------


def compiled(room: Room) -> int:
    """How many functions torch has compiled so far."""
    from torch._dynamo.utils import counters

    return sum(counters["frames"].values())


def private_things(room: Room) -> list[str]:
    """See ``vllm_resolved.broken``."""
    return broken()


def other_devices(room: Room) -> list[str]:
    """What is said of a device that isn't that of the installed vLLM, by an engine and by the check."""
    from actors.vllm_adapter import Vllm, check_device

    check_device("cpu", "cpu")
    calls = (
        lambda: Vllm({}, device="cuda"),
        lambda: check_device("cpu", "cuda"),
        lambda: check_device("cuda", ""),
    )
    said = []
    for call in calls:
        try:
            call()
        except UserError as error:
            said.append(str(error))
    return said


def unloaded(room: Room, tied: bool) -> list[str]:
    """What vLLM still says of layers that no weights came for."""
    from actors.vllm_adapter import RELOADING, UNLOADED, expect_unloaded

    logger = logging.getLogger(RELOADING)
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear, before = Ear(), [*logger.filters]
    logger.addHandler(ear)
    try:
        expect_unloaded(tied=not tied)
        expect_unloaded(tied=tied)
        for layer in ("ParallelLMHead", "RotaryEmbedding", "Llama3RotaryEmbedding", "RMSNorm"):
            logger.warning(UNLOADED, layer)
    finally:
        logger.removeHandler(ear)
        logger.filters[:] = before
    return heard


# --- over a scripted core, for what real vLLM doesn't do on demand ----------------------------------


PLAIN: dict[str, Any] = {"stop": (), "temperature": 1.0, "seed": 0}


async def pipelined(room: Room, drained: bool) -> tuple[list[int], list[int], int]:
    """A completion across three updates by an engine that samples ahead: what sampled each token, and its label.

    And how many updates found a batch in flight. Without ``drained``, the engine takes no notice of such.
    """
    import torch
    from vllm.v1.engine.llm_engine import LLMEngine

    from actors.engine import Engine
    from conf.topology import EngineConfig

    real, core = LLMEngine.from_engine_args, PipelinedCore()
    LLMEngine.from_engine_args = lambda *_, **__: core
    try:
        engine = Engine(str(room.folder), EngineConfig(), device="cpu", dtype="float32", max_model_len=8, seed=0)
    finally:
        LLMEngine.from_engine_args = real
    if not drained:
        blind: Any = engine.thread
        blind.hold = lambda: core.pause_scheduler(mode="keep", clear_cache=False)
    await engine.load_weights({"good": torch.zeros(1)}, 1)
    playing = asyncio.ensure_future(engine.generate([1], max_new_tokens=100_000, **PLAIN))
    for version in (2, 3, 4):
        ids = []
        while not ids or ids[-1] != version - 1:  # until the newest weights have sampled something
            await asyncio.sleep(0)
            ids = next((p[1] for p in [*core.playing.values()]), [])
            assert not playing.done(), "too fast: the update finds nothing in flight"
        await engine.load_weights({"good": torch.zeros(1)}, version)
    completion = await playing
    await engine.close()
    return list(completion.token_ids), list(completion.versions), core.stale


async def scripted(room: Room, script: list[Any]) -> list[str]:
    """What each of four requests gets in turn over a core that follows ``script``.

    ``sleep in flight`` in it sends the engine to sleep with a request in it, and ends there: what both get.
    ``bad weights`` in it stands for an update with weights that vLLM refuses, and what that gets.
    """
    import torch
    from vllm.v1.engine.llm_engine import LLMEngine

    from actors.engine import Engine
    from conf.topology import EngineConfig

    real = LLMEngine.from_engine_args
    steps = iter([s for s in script if s not in ("bad weights", "sleep in flight")])
    LLMEngine.from_engine_args = lambda *_, **__: ScriptedCore(steps)
    try:
        engine = Engine(str(room.folder), EngineConfig(), device="cpu", dtype="float32", max_model_len=8, seed=0)
    finally:
        LLMEngine.from_engine_args = real
    await engine.load_weights({"good": torch.zeros(1)}, 1)
    answers = []
    for number in range(4):
        if script[number : number + 1] == ["sleep in flight"]:
            playing = asyncio.ensure_future(_refusal(engine.generate([1], max_new_tokens=1, **PLAIN)))
            await asyncio.sleep(0)  # the request is in the inbox, before the command
            answers += [await _refusal(engine.sleep()), await playing]
            break
        if script[number : number + 1] == ["bad weights"]:
            answers.append(await _refusal(engine.load_weights({"good": torch.zeros(1), "bad": torch.zeros(1)}, 2)))
        else:
            request = engine.generate([1], max_new_tokens=1, stop=(), temperature=1.0, seed=number)
            answers.append(await _refusal(request))
    await engine.close()
    return answers
