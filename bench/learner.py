"""What the learner adds to the arithmetic: its tokens per second against a bare forward, backward and step.

    python bench/learner.py [--quick] [--model FOLDER] [--compile]

Both train the tiny model, with its settings, or the pretrained one in FOLDER, on the same rows of long-tailed episodes,
turn by turn in one process of one thread. Time is the processor's, so that what else runs on the machine doesn't count.
The bare loop has its rows and weights ready, takes the logits of all action tokens at once and torch's own cross
entropy; it knows no ratio, no clip, no entropy and no metric. The ratio of their speeds should be at least 0.85.

Beside it, how full the rows are, for episodes of this size and for those of a 1.5B model (up to 9,216 tokens, five each
for 12 questions an update): of what the fullest row holds, and of ``algorithm.microbatch_tokens``.

With ``--compile`` a third takes its turn, the same learner with ``algorithm.compile=true``: its speed against the plain
learner's, and the wall-clock seconds that it spends on compiling where nothing is cached. What should become quicker is
what is neither a matrix product nor attention nor the head: norms, RoPE, SwiGLU and a residual pass through memory
fewer times. That is much of the tiny model's work, and little of a large one's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from learner.batch import Batch, Sample  # noqa: E402
from learner.config import AlgorithmConfig, ModelConfig, OptimizerConfig  # noqa: E402
from learner.packing import PackedRow, pack_rows, packing_efficiency  # noqa: E402
from learner.policy import Policy  # noqa: E402
from learner.update import Updater  # noqa: E402

LIMIT = 0.85
TINY_TOKENS, LARGE_TOKENS = 4096, 16384


def episodes(rng: np.random.Generator, count: int, prompt: int, passages: int, words: int, longest: int) -> list[Any]:
    """(token_ids, action_mask) of ``count`` episodes: a prompt, turns of about ``words`` and ``passages`` tokens."""
    out = []
    for searches in np.minimum(rng.geometric(0.45, count), 10):
        mask = [False] * int(rng.integers(prompt // 2, prompt))
        for _ in range(searches):
            mask += [True] * (1 + int(rng.lognormal(np.log(words), 0.5)))
            mask += [False] * int(rng.normal(passages, passages / 8))
        mask = [*mask[: longest - 8], *[True] * 8]
        out.append((rng.integers(0, 1000, len(mask)).astype(np.int32), np.array(mask)))
    return out


def batch_of(sequences: list[Any]) -> Batch:
    """One update of questions with eight episodes each, sampled by the current version."""
    samples = [
        Sample(
            question=i // 8,
            token_ids=ids,
            action_mask=mask,
            engine_logprobs=np.full(int(mask.sum()), -6.9),
            versions=np.zeros(int(mask.sum()), np.int32),
            advantage=1.0 if i % 2 else -1.0,
            signal=True,
        )
        for i, (ids, mask) in enumerate(sequences)
    ]
    return Batch(samples=tuple(samples), questions=len(sequences) // 8)


def bare(policy: Policy, optimizer: torch.optim.Optimizer, rows: list[PackedRow]) -> float:
    """Processor seconds of one forward, backward and step over ``rows``."""
    ready = [
        (row, torch.from_numpy(row.sources), torch.from_numpy(row.targets), 1.0 / int(row.selected.sum()))
        for row in rows
    ]
    started = time.process_time()
    for row, sources, targets, weight in ready:
        logits = policy.hidden(row)[sources] @ policy.head.t()
        (weight * cross_entropy(logits, targets, reduction="sum")).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.process_time() - started


def fullness(sequences: list[Any], limit: int) -> tuple[float, float]:
    """Share of the fullest row's length, and of the limit, that the rows hold on average."""
    rows = pack_rows([ids for ids, _ in sequences], [mask for _, mask in sequences], limit)
    return packing_efficiency(rows), sum(len(r.token_ids) for r in rows) / (len(rows) * limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="5 rounds instead of 15; of a model, 2 small ones instead of 3"
    )
    parser.add_argument("--model", help="a pretrained model's folder, for a few large rounds")
    parser.add_argument("--compile", action="store_true", help="the compiled learner, too")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        measure(parser.parse_args(), Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    rounds = (2 if arguments.quick else 3) if arguments.model else 5 if arguments.quick else 15
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    if arguments.model:
        count, longest = (8, 320) if arguments.quick else (16, 1024)
        sequences = episodes(rng, count, prompt=160, passages=240, words=24, longest=longest)
        make = partial(Policy.from_folder, arguments.model, seed=0, dtype="float32")
    else:
        sequences = episodes(rng, 192, prompt=40, passages=60, words=8, longest=384)
        sizes, vocabulary = ModelConfig().architecture or {}, ModelConfig().vocab_size
        make = partial(Policy.build, sizes, vocab_size=vocabulary, seed=0)
    theirs = make()
    batch = batch_of(sequences)
    rate = 1e-6 if arguments.model else 3e-4
    config = AlgorithmConfig(
        microbatch_tokens=TINY_TOKENS, gradient_checkpointing="none", optimizer=OptimizerConfig(lr=rate)
    )
    adamw = torch.optim.AdamW(theirs.parameters(), lr=rate, fused=True)
    learners, first = [], []
    for backend in ("", "inductor")[: 1 + arguments.compile]:
        started = time.perf_counter()
        learners.append(Updater(make(backend=backend), config, rng=rng, fault_folder=folder))
        first.append(time.perf_counter() - started)
    rows = learners[0].pack(batch.samples)
    tokens = sum(len(row.token_ids) for row in rows)
    turns = []
    for step in range(rounds + 1):
        turn = []
        for number, updater in enumerate(learners):
            wall, started = time.perf_counter(), time.process_time()
            report = updater.run(batch, step=step, version=1)  # version 0 sampled nothing here
            turn.append(time.process_time() - started)
            # Once for what is made at load and at the first step; the plain learner has that, too.
            first[number] += time.perf_counter() - wall if step == 0 else 0.0
            assert report.tokens == tokens
            assert report.updates == 1
        turns.append((*turn, bare(theirs, adamw, rows)))
    # The first round pays for what torch sets up once.
    ratio = statistics.median(turn[-1] / turn[0] for turn in turns[1:])
    seconds, baseline = (statistics.median(turn[i] for turn in turns[1:]) for i in (0, -1))
    print(
        f"{tokens:,} tokens in {len(rows)} rows, {report.action_tokens:,} of them actions: learner "
        f"{tokens / seconds:,.0f} tok/s, bare loop {tokens / baseline:,.0f} tok/s, ratio {ratio:.3f}"
    )
    compiled = {}
    if arguments.compile:
        gain, spent = statistics.median(turn[0] / turn[1] for turn in turns[1:]), first[1] - first[0]
        print(f"compiled: {gain:.3f} times as fast, after {spent:.0f} s of compiling")
        compiled = {"compiled": {"ratio": round(gain, 4), "compile_s": round(spent, 1)}}
    packing = packed(rng)
    print(
        json.dumps(
            {
                "bench": "learner",
                "model": Path(arguments.model).name if arguments.model else "tiny",
                "value": round(tokens / seconds),
                "unit": "tokens per processor second",
                "baseline": "bare forward, backward and step",
                "baseline_value": round(tokens / baseline),
                "ratio": round(ratio, 4),
                "limit": LIMIT,
                "packing": packing,
                **compiled,
            }
        )
    )
    if ratio < LIMIT or min(p["of_fullest_row"] for p in packing.values()) < 0.95:
        sys.exit("below the limits: 0.85 of the bare loop, 0.95 of the fullest row")


def packed(rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """How full rows of two kinds of batches are."""
    large = [fullness(episodes(rng, 60, 350, 480, 80, 9216), LARGE_TOKENS) for _ in range(50)]
    small = [fullness(episodes(rng, 192, 40, 60, 8, 384), TINY_TOKENS) for _ in range(50)]
    packing = {}
    for name, limit, found in (("tiny", TINY_TOKENS, small), ("1.5B", LARGE_TOKENS, large)):
        fullest, room = (statistics.mean(column) for column in zip(*found, strict=True))
        worst = min(f for f, _ in found)
        print(f"packing {name}: {fullest:.3f} of the fullest row (worst {worst:.3f}), {room:.3f} of {limit} tokens")
        packing[name] = {"of_fullest_row": round(fullest, 4), "worst": round(worst, 4), "of_limit": round(room, 4)}
    return packing


if __name__ == "__main__":
    main()
