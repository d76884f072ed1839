"""What ``mode=doctor`` measures, each in a process of its own: a device, the ways between devices, engine, learner.

Each function here runs in such a process (``actors/apart.py``) and returns what JSON can hold. Rates are per second,
memory is in GiB.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.plan.learner import learner_memory
from conf.schema import RunConfig

GIB = 2**30
SEED = 20_260_000
"""Of the random weights, so that engine and learner have the same."""
PROMPT, GENERATED = 2, 64
"""Tokens that each sequence of the test of writing begins with, and writes."""
ROWS = (0.25, 0.5, 1.0)
"""The learner's rows, as shares of the longest that it would be given."""


def _median_s(run: Callable[[], Any], done: Callable[[], Any]) -> float:
    """Median seconds of five times ``run``, after one that doesn't count; ``done`` waits for the device."""
    run()
    done()
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        run()
        done()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def device_speed(device: str, threads: int) -> dict[str, Any]:
    """Matrix products, copies within its memory, and copies from and to the CPU's."""
    import torch

    gpu = device == "cuda"
    torch.set_num_threads(threads)
    done = torch.cuda.synchronize if gpu else lambda: None
    size, kind, room = (8192, torch.bfloat16, GIB) if gpu else (1024, torch.float32, GIB // 8)
    a = torch.randn(size, size, device=device, dtype=kind)
    b = torch.randn(size, size, device=device, dtype=kind)
    c = torch.empty_like(a)
    here, there = (torch.empty(room, dtype=torch.uint8, device=device) for _ in range(2))
    found: dict[str, Any] = {
        "name": torch.cuda.get_device_name() if gpu else "CPU",
        "gib": torch.cuda.get_device_properties(0).total_memory / GIB if gpu else None,
        "tflops": 2 * size**3 / _median_s(lambda: torch.mm(a, b, out=c), done) / 1e12,
        "gb_per_s": 2 * room / _median_s(lambda: there.copy_(here), done) / 1e9,
    }
    if gpu:
        host = torch.empty(room, dtype=torch.uint8, pin_memory=True)
        found["from_cpu_gb_per_s"] = room / _median_s(lambda: here.copy_(host, non_blocking=True), done) / 1e9
        found["to_cpu_gb_per_s"] = room / _median_s(lambda: host.copy_(here, non_blocking=True), done) / 1e9
    return found


def peer_copies(count: int) -> list[dict[str, Any]]:
    """Copies between each two of ``count`` GPUs, and whether they go from card to card."""
    import torch

    room, rows = GIB // 4, []
    for one in range(count):
        for other in range(one + 1, count):
            here = torch.empty(room, dtype=torch.uint8, device=f"cuda:{one}")
            there = torch.empty(room, dtype=torch.uint8, device=f"cuda:{other}")

            def done(devices: tuple[int, int] = (one, other)) -> None:
                for device in devices:
                    torch.cuda.synchronize(device)

            seconds = _median_s(lambda here=here, there=there: there.copy_(here), done)  # type: ignore[misc]
            peer = torch.cuda.can_device_access_peer(one, other)
            rows.append({"pair": [one, other], "peer_to_peer": peer, "gb_per_s": room / seconds / 1e9})
    return rows


def broadcast_speed(rank: int, world: int, meeting: Path, device: str) -> float:
    """GB/s of a broadcast from rank 0 to all of ``world``, over NCCL, or gloo without GPUs."""
    import torch
    from torch import distributed

    gpu = device == "cuda"
    if gpu:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if gpu else "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world
    )
    room = GIB // 4 if gpu else GIB // 64
    data = torch.zeros(room, dtype=torch.uint8, device=device)

    def send() -> None:
        distributed.broadcast(data, 0)

    def done() -> None:
        if gpu:
            torch.cuda.synchronize()
        distributed.barrier()

    try:
        return room / _median_s(send, done) / 1e9
    finally:
        distributed.destroy_process_group()


def engine_speed(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Start, weights, reading, writing, sleep; and what it sampled, for the learner to look at."""
    return asyncio.run(_engine(config, folder))


async def _engine(config: RunConfig, folder: Path) -> dict[str, Any]:
    from actors.engine import Engine
    from actors.weights import checksum, pack, unpack
    from learner.policy import Policy

    cluster, agent = config.cluster, config.agent
    sleeps = cluster.colocated or cluster.device == "cpu"
    policy = Policy.from_folder(folder, seed=SEED, dtype=config.model.dtype)
    tensors = policy.published()
    del policy
    started = time.perf_counter()
    engine = await asyncio.to_thread(
        Engine,
        str(folder),
        cluster.engine,
        device=cluster.device,
        dtype=config.model.dtype,
        max_model_len=agent.longest_episode,
        seed=0,
        sleeps=cluster.colocated,
    )
    found: dict[str, Any] = {"start_s": time.perf_counter() - started}

    started = time.perf_counter()
    buffer, specs = pack(tensors)  # as the object store's channel does it
    checksum(buffer)
    await engine.load_weights(unpack(buffer, specs), 1)
    found["publication_s"] = time.perf_counter() - started

    vocabulary = next(iter(tensors.values())).shape[0]
    random = np.random.default_rng(0)

    async def play(count: int, prompt: int, tokens: int) -> tuple[float, list[Any], list[list[int]]]:
        prompts = [random.integers(0, vocabulary, prompt).tolist() for _ in range(count)]
        started = time.perf_counter()
        done = await asyncio.gather(
            *(
                engine.generate(p, max_new_tokens=tokens, stop=(), temperature=1.0, seed=n)
                for n, p in enumerate(prompts)
            )
        )
        return time.perf_counter() - started, done, prompts

    # So few that reading the weights, and not computing, is what a step takes: the plan knows the other from reading.
    together = min(cluster.engine.max_num_seqs, 32 if cluster.device == "cuda" else 16)
    long = min(agent.max_prompt_tokens, agent.longest_episode - GENERATED)
    await play(2, 16, 8)  # kernels are compiled on their first call
    seconds, done, _ = await play(together, long, 1)
    found["prefill_tokens_per_s"] = len(done) * long / seconds
    seconds, done, prompts = await play(together, PROMPT, GENERATED)
    found["decode_tokens_per_s"] = sum(len(c.token_ids) for c in done) / seconds
    found["decode_together"] = together
    found["sampled"] = [
        {"prompt": prompts[n], "tokens": list(done[n].token_ids), "logprobs": list(done[n].logprobs)}
        for n in range(min(16, together))
    ]
    if sleeps:
        started = time.perf_counter()
        await engine.sleep()
        found["sleep_s"] = time.perf_counter() - started
        started = time.perf_counter()
        await engine.wake()
        found["wake_s"] = time.perf_counter() - started
    await engine.close()
    return found


def learner_speed(config: RunConfig, folder: Path, sampled: list[dict[str, Any]]) -> dict[str, Any]:
    """Tokens per second and peak memory at three row lengths, and the gap to what the engine said of ``sampled``.

    ``config`` is that of ``actors/plan/measured.py``'s ``alone``.
    """
    import torch

    from learner.dry_run import NOBODYS, worst_batch
    from learner.policy import Policy
    from learner.update import Updater

    gpu = config.cluster.device == "cuda"
    torch.set_num_threads(config.cluster.learner_threads)
    algorithm = config.algorithm
    policy = Policy.from_folder(
        folder,
        seed=SEED,
        dtype=config.model.dtype,
        device=config.cluster.device,
        gradient_checkpointing=algorithm.gradient_checkpointing,
        whole_layers=algorithm.whole_layers,
        backend=algorithm.backend,
        lora_rank=config.model.lora_rank,
    )
    gap = _gap(policy, sampled)
    updater = Updater(
        policy,
        algorithm,
        rng=np.random.default_rng(0),
        fault_folder=folder,
        temperature=1.0,
        reference=policy.reference_for(algorithm),
    )
    updater.run(worst_batch(4, 4, policy.head.shape[0]), step=0, version=NOBODYS)
    rows = []
    for row, sequence in learner_rows(config):
        batch = worst_batch(row, sequence, policy.head.shape[0])
        updater.config = replace(algorithm, microbatch_tokens=row)  # else the two rows may be one
        updater.run(batch, step=0, version=NOBODYS)  # once for the allocator, and for what is compiled
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        report = updater.run(batch, step=0, version=NOBODYS)
        peak = torch.cuda.max_memory_allocated() / GIB if gpu else None
        speed = report.tokens / report.seconds
        rows.append({"row": row, "sequence": sequence, "tokens_per_s": speed, "peak_gib": peak})
    return {"rows": rows, "gap": gap, "compiled": algorithm.compile}


def learner_rows(config: RunConfig) -> list[tuple[int, int]]:
    """Tokens of a row, and of each of the equal sequences that fill it; none is longer than an episode."""
    longest = learner_memory(config).row if config.cluster.device == "cuda" else min(512, learner_memory(config).row)
    found = []
    for share in ROWS:
        count = math.ceil(share * longest / config.agent.longest_episode)
        sequence = int(share * longest) // count
        found.append((count * sequence, sequence))
    return found


def _gap(policy: Any, sampled: list[dict[str, Any]]) -> dict[str, float]:
    """Absolute differences, in nats, between the log-probabilities of engine and learner, token by token."""
    import torch

    from learner.packing import pack_rows

    ids = [np.array([*s["prompt"], *s["tokens"]], np.int32) for s in sampled]
    masks = [np.arange(len(i)) >= len(s["prompt"]) for i, s in zip(ids, sampled, strict=True)]
    (row,) = pack_rows(ids, masks, sum(map(len, ids)))
    with torch.no_grad():
        values = policy.logprobs(row).values.float().cpu().numpy()
    theirs = np.array([logprob for member in row.members for logprob in sampled[member]["logprobs"]])
    gaps = np.abs(values - theirs)
    found = {name: float(np.quantile(gaps, q)) for name, q in (("median", 0.5), ("p90", 0.9), ("p99", 0.99))}
    return {"mean": float(gaps.mean()), **found, "max": float(gaps.max()), "tokens": len(gaps)}
