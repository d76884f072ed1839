"""What the agent loop costs the engine: tokens per second of rollouts against the engine's own on the same schedule.

    python bench/rollout.py [--quick] [--curve] [--model FOLDER]

A tiny random model, or the pretrained one in FOLDER, in a real vLLM engine on a CPU, and groups of episodes that
follow the built-in world's demonstrations: the engine samples as many tokens as the novice wrote, and the loop then
goes on with the novice's. So turns, searches and observations are those of real episodes. Searches are answered at
once, from the demonstration.

The loop is all that a rollout worker does to play and score its groups. The engine's own speed comes from a replay of
the requests that the loop made, in the engine's thread: same prompts, seeds and numbers of tokens, the next turn of an
episode as soon as its last has ended, and nothing else. The prefix cache is emptied before each round of either.

The loop runs in another thread than the engine, but under the same interpreter lock, and the engine waits for it
before the next turns can join the batch: so the ratio is below 1, by the loop's work per turn over the engine's. It
should be at least 0.85. Rounds alternate in one process, and the ratio is the median of pairs, since the machine may be
busy with other things; the ratio of processor time, which counts both threads, is printed beside it.

``--curve`` measures what the simulator of the whole loop (``bench/pipeline.py``) can't read from a run: how tokens per
second rise with the number of sequences, and what recomputing prefixes after an update costs, in sampled tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from actors.engine import Engine  # noqa: E402
from actors.process import QUIET  # noqa: E402
from agent.config import AgentConfig, RewardConfig  # noqa: E402
from agent.dialogue import Dialogue  # noqa: E402
from agent.environment import Environment  # noqa: E402
from agent.group import Player, play_group  # noqa: E402
from agent.protocol import PROTOCOLS  # noqa: E402
from agent.records import Completion, Passage  # noqa: E402
from agent.rewards.scorer import Scorer  # noqa: E402
from agent.tickets import Ticket  # noqa: E402
from agent.tokens import Tokenizer  # noqa: E402
from conf.topology import EngineConfig  # noqa: E402
from learner.config import ModelConfig  # noqa: E402
from learner.policy import Policy  # noqa: E402
from learner.skeleton import write_skeleton  # noqa: E402
from tasks.config import DataConfig  # noqa: E402
from tasks.demonstrations import Demonstration  # noqa: E402
from tasks.load import load  # noqa: E402
from tasks.novice import demonstrations  # noqa: E402
from tasks.tokenizer import train  # noqa: E402

LIMIT = 0.85


@dataclass(frozen=True, slots=True)
class Load:
    """What is played: groups at once, of so many episodes, with which settings of the agent."""

    groups: int
    group_size: int
    agent: AgentConfig


TINY = Load(
    24,
    8,
    AgentConfig(prompt="plain", chat=False, top_k=2, max_prompt_tokens=64, max_response_tokens=320, temperature=1.0),
)
PRETRAINED = Load(6, 6, AgentConfig(top_k=2, max_prompt_tokens=384, max_response_tokens=1024, temperature=1.0))
"""As in ``conf/experiment/real_mini.yaml``."""


@dataclass(frozen=True, slots=True)
class Request:
    """One turn, as the engine was asked for it, and the tokens that it sampled."""

    context: list[int]
    tokens: int
    seed: int


class Novice:
    """Both ports of the episodes of one question: an engine that writes what the demonstration says, and its searches.

    ``turns[t]`` holds the requests of the t-th turn of all episodes.
    """

    def __init__(self, engine: Engine, dialogue: Dialogue, shown: Demonstration) -> None:
        self._engine = engine
        self._passages: dict[str | None, tuple[Passage, ...]] = {}
        self._at: dict[int, tuple[int, tuple[int, ...]]] = {}  # length of the context -> number of the turn, action
        length = len(dialogue.prompt_ids(shown.question.text))
        for number, move in enumerate(shown.moves):
            action = tuple(dialogue.codec.encode(move.action))
            self._at[length] = number, action
            if move.passages is not None:
                self._passages[dialogue.protocol.parse(move.action).query] = move.passages
                length += len(action) + len(dialogue.observation_ids(move.passages))
        self.turns: list[list[Request]] = [[] for _ in shown.moves]

    async def generate(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop: tuple[str, ...], temperature: float, seed: int
    ) -> Completion:
        number, action = self._at[len(prompt_ids)]
        sampled = await self._engine.generate(
            prompt_ids, max_new_tokens=len(action), stop=(), temperature=temperature, seed=seed
        )
        tokens = len(sampled.token_ids)  # fewer than asked for when a random model happens to write the end token
        self.turns[number].append(Request([*prompt_ids], tokens, seed))
        missing = len(action) - tokens
        return Completion(
            token_ids=action,
            logprobs=sampled.logprobs + (0.0,) * missing,
            versions=sampled.versions + (0,) * missing,
            finish=sampled.finish,
        )

    async def score(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float:
        raise AssertionError("nothing exits early here")

    async def search(self, query: str, k: int) -> tuple[Passage, ...]:
        return self._passages[query]

    async def following(self, document_id: str, k: int) -> tuple[Passage, ...]:
        raise AssertionError("the novice opens no document")


Chain = list[Request]
"""The turns of an episode: each is asked for when the one before has ended."""


class Bench:
    """One engine, and what is played on it."""

    def __init__(self, folder: Path, pretrained: Path | None) -> None:
        protocol = PROTOCOLS["search"]
        self.load = PRETRAINED if pretrained else TINY
        agent = self.load.agent
        model = pretrained or folder / "model"
        if pretrained is None:
            task = load(DataConfig(evidence_match="id"), 0, folder / "cache")
            train(task.tokenizer_text(protocol, agent.top_k), tags=protocol.tags, folder=model, vocab_size=1024)
            write_skeleton(model, ModelConfig(), context=4096)
        self.dialogue = Dialogue.of(Tokenizer(model), agent)
        self.shown = demonstrations(1, self.load.groups, protocol, agent.top_k)
        self.scorer = Scorer(RewardConfig(), protocol)
        self.weights = Policy.from_folder(model, seed=0, dtype="float32").published()
        longest = agent.longest_episode
        self.engine = Engine(str(model), EngineConfig(), device="cpu", dtype="float32", max_model_len=longest, seed=0)

    async def loop(self, round_: int) -> tuple[Clock, list[Chain]]:
        """One round of all groups, by the agent's loop; what it took, and the episodes as the engine saw them."""
        await self.in_engine(self.engine.thread.vllm.forget)
        novices = [Novice(self.engine, self.dialogue, shown) for shown in self.shown]
        clock = Clock.start()
        await asyncio.gather(*(self._group(i, novice, round_) for i, novice in enumerate(novices)))
        clock = clock.stop(sum(r.tokens for n in novices for turn in n.turns for r in turn))
        return clock, [list(chain) for n in novices for chain in zip(*n.turns, strict=True)]

    async def _group(self, number: int, novice: Novice, round_: int) -> None:
        player = Player(
            dialogue=self.dialogue,
            config=self.load.agent,
            generator=novice,
            environment=Environment.of(self.load.agent, novice),
            scorer=self.scorer,
        )
        ticket = Ticket(claim_id=number, query=number, batch=round_, order=number, seed=1000 * round_ + number)
        group = await play_group(player, self.shown[number].question, ticket, size=self.load.group_size, worker="bench")
        assert not group.excluded, group.excluded[0].fault

    async def replay(self, chains: list[Chain], most: int, reset_after: int | None = None) -> Clock:
        """The same requests in the engine's thread, at most ``most`` at a time.

        After ``reset_after`` steps of the engine all prefixes are dropped, as when new weights arrive.
        """
        return await self.in_engine(lambda: self._replay(chains, most, reset_after))

    def _replay(self, chains: list[Chain], most: int, reset_after: int | None) -> Clock:
        engine = self.engine.thread.vllm
        waiting = deque(chains)
        playing: dict[str, tuple[Chain, int]] = {}
        numbers = iter(range(10**9))
        engine.forget()

        def ask(chain: Chain, turn: int) -> None:
            request = chain[turn]
            name = f"replay-{next(numbers)}"
            playing[name] = chain, turn
            engine.add(name, request.context, self._params(request))

        clock, tokens, steps = Clock.start(), 0, 0
        while waiting or playing:
            while waiting and len(playing) < most:
                ask(waiting.popleft(), 0)
            for output in engine.step():
                if output.finished:
                    chain, turn = playing.pop(output.request_id)
                    tokens += len(output.outputs[0].token_ids)
                    if turn + 1 < len(chain):
                        ask(chain, turn + 1)
            steps += 1
            if steps == reset_after:
                engine.forget(running=True)
        return clock.stop(tokens)

    def _params(self, request: Request) -> Any:
        """As ``Engine.generate`` asks for it; but the model's end token doesn't end it."""
        return self.engine.thread.vllm.params(
            temperature=self.load.agent.temperature,
            seed=request.seed,
            max_tokens=request.tokens,
            ignore_eos=True,
            logprobs=0,
            skip_special_tokens=False,
            detokenize=False,
        )

    async def in_engine(self, run: Any) -> Any:
        """The result of ``run``, called in the engine's thread between two of its steps."""
        return await self.engine._command(run)

    async def curve(self, chains: list[Chain]) -> dict[str, Any]:
        """Of n sequences, seconds per token are ``token * (1 + half / n)``, a line in 1/n: see
        ``agent/simulation/pipeline.py``."""
        found = []
        for most in (4, 8, 16, 32, 64, 128):
            some = chains[: max(32, 2 * most)] if most < 128 else chains[:128]
            clock = await self.replay(some, most)
            found.append((most, clock.seconds / clock.tokens))
            print(f"{most:>4} sequences: {clock.tokens / clock.seconds:7,.0f} tok/s", flush=True)
        inverse, seconds = np.array([1 / n for n, _ in found]), np.array([s for _, s in found])
        weights = 1 / seconds  # relative errors count alike
        slope, token = np.polyfit(inverse, seconds, 1, w=weights)
        return {"half": round(float(slope / token), 2), "recompute": round(await self.recompute(chains), 2)}

    async def recompute(self, chains: list[Chain]) -> float:
        """Delay of 64 sequences whose prefixes are dropped once, in tokens that each would have sampled meanwhile."""
        last = [chain[-1] for chain in chains[:64]]
        lengths = {tokens: [[Request(r.context, tokens, r.seed)] for r in last] for tokens in (1, 33)}
        delays = []
        for _ in range(3):
            first, whole = [(await self.replay(lengths[n], 64)).seconds for n in (1, 33)]
            dropped = (await self.replay(lengths[33], 64, reset_after=16)).seconds
            delays.append((dropped - whole) / ((whole - first) / 32))
        return statistics.median(delays)


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds on the wall and of the processor, from ``start`` to ``stop``, and the tokens sampled in between."""

    seconds: float
    processor: float
    tokens: int = 0

    @classmethod
    def start(cls) -> Clock:
        return cls(time.perf_counter(), time.process_time())

    def stop(self, tokens: int) -> Clock:
        return Clock(time.perf_counter() - self.seconds, time.process_time() - self.processor, tokens)


async def measure(folder: Path, pretrained: Path | None, rounds: int, curve: bool) -> None:
    bench = Bench(folder, pretrained)
    await bench.engine.load_weights(bench.weights, 0)
    pairs = []
    for round_ in range(rounds + 1):
        ours, chains = await bench.loop(round_)
        raw = await bench.replay(chains, len(chains))
        assert ours.tokens == raw.tokens
        pairs.append((ours, raw))
    pairs = pairs[1:]  # the first pays for what vLLM sets up once
    ratio = statistics.median(raw.seconds / ours.seconds for ours, raw in pairs)
    processor = statistics.median(raw.processor / ours.processor for ours, raw in pairs)
    speed, baseline = (statistics.median(c.tokens / c.seconds for c in column) for column in zip(*pairs, strict=True))
    print(
        f"{len(chains)} episodes at once, {sum(map(len, chains))} turns, {pairs[0][0].tokens:,} sampled tokens: "
        f"agent loop {speed:,.0f} tok/s, raw engine {baseline:,.0f} tok/s, ratio {ratio:.3f} "
        f"({min(r.seconds / o.seconds for o, r in pairs):.3f} to {max(r.seconds / o.seconds for o, r in pairs):.3f}), "
        f"of processor time {processor:.3f}"
    )
    result = {
        "bench": "rollout",
        "model": pretrained.name if pretrained else "tiny",
        "value": round(speed),
        "unit": "sampled tokens per second",
        "baseline": "raw engine",
        "baseline_value": round(baseline),
        "ratio": round(ratio, 4),
        "processor_ratio": round(processor, 4),
        "limit": LIMIT,
    }
    if curve:
        result |= await bench.curve(chains)
    print(json.dumps(result))
    await bench.engine.close()
    if ratio < LIMIT:
        sys.exit(f"the agent loop leaves {ratio:.2f} of the raw engine's speed, less than {LIMIT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="9 pairs of rounds instead of 41")
    parser.add_argument("--curve", action="store_true", help="also measure the engine's curve for bench/pipeline.py")
    parser.add_argument("--model", type=Path, help="a pretrained model's folder, for 3 pairs of rounds")
    given = parser.parse_args()
    rounds = 3 if given.model else 9 if given.quick else 41
    os.environ.update(QUIET, HF_HUB_OFFLINE="1")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), given.model, rounds, given.curve))


if __name__ == "__main__":
    main()
