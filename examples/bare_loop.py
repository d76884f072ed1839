"""The whole algorithm from top to bottom, in one process and without Ray.

    python examples/bare_loop.py           # half a minute on a CPU
    python examples/bare_loop.py --vllm    # the same, sampled by vLLM

A transformer of 100,000 parameters learns to answer "who taught the teacher of X?", for which it has to search twice.
First it imitates a novice who mostly stops after one search; then GRPO teaches it to search again. A training run
takes the same steps, in Ray actors that work at the same time (docs/dataflow.md).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent.config import AgentConfig, RewardConfig
from agent.dialogue import Dialogue
from agent.environment import Environment
from agent.group import Player, play_group
from agent.groups import Group
from agent.pool.query_pool import QueryPool
from agent.pool.rules.base import rule_class
from agent.protocol import PROTOCOLS
from agent.records import Completion, Finish, Passage, Question
from agent.rewards.scorer import Scorer
from agent.tokens import Tokenizer
from learner import warm_start
from learner.config import AlgorithmConfig, OptimizerConfig, WarmStartConfig
from learner.packing import pack_rows
from learner.policy import Policy
from learner.update import Updater
from tasks.demonstrations import Demonstration, Move, answer_text, encode, search_text
from tasks.tokenizer import train

NAMES = [a + b for a in ("ka", "mi", "to", "re", "su", "lo", "ba", "ne") for b in ("vek", "dun", "mar", "pil")]
TAGS = PROTOCOLS["search"]
AGENT = AgentConfig(
    prompt="plain", chat=False, top_k=1, max_new_tokens_first=8, max_new_tokens=8, max_response_tokens=99, temperature=1
)
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
K = 6  # episodes of one question


class World:
    """Who taught whom: the questions, and the retriever, which finds the one passage about a name."""

    def __init__(self, seed: int) -> None:
        names = random.Random(seed).sample(NAMES, len(NAMES))
        self.teacher = dict(zip(names, names[1:] + names[:1], strict=True))
        self.questions = [
            Question(id=x, text=f"who taught the teacher of {x}?", golden_answers=(self.teacher[self.teacher[x]],))
            for x in names
        ]

    def find(self, name: str) -> tuple[Passage, ...]:
        known = name in self.teacher
        return (Passage(id=name, title="", text=f"the teacher of {name} is {self.teacher[name]}."),) if known else ()

    async def search(self, query: str, k: int) -> tuple[Passage, ...]:
        return self.find(query)

    async def following(self, document_id: str, k: int) -> tuple[Passage, ...]:
        return ()  # a document is one passage here

    def novice(self, question: Question, searches: int) -> Demonstration:
        """An episode to imitate; after one search the novice answers with the first teacher, which is wrong."""
        names = [question.id, self.teacher[question.id], *question.golden_answers]
        moves = [Move(action=search_text(TAGS, name), passages=self.find(name)) for name in names[:searches]]
        return Demonstration(question=question, moves=(*moves, Move(action=answer_text(TAGS, names[searches]))))


class Sampler:
    """An engine at its plainest: one token at a time, from the learner's own weights."""

    def __init__(self, policy: Policy, tokenizer: Tokenizer) -> None:
        self.policy, self.tokenizer, self.version = policy, tokenizer, 0

    async def load_weights(self, tensors: Mapping[str, torch.Tensor], version: int) -> None:
        self.version = version  # the weights are here already

    @torch.no_grad()
    async def generate(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop: tuple[str, ...], temperature: float, seed: int
    ) -> Completion:
        dice, finish = torch.Generator().manual_seed(seed), Finish.LENGTH
        ids: list[int] = []
        logprobs: list[float] = []
        while len(ids) < max_new_tokens and finish is Finish.LENGTH:
            context = np.array([*prompt_ids, *ids], np.int32)
            (row,) = pack_rows([context], [np.zeros(len(context), np.bool_)], len(context))
            table = (self.policy.hidden(row)[-1] @ self.policy.head.T / temperature).log_softmax(-1)
            ids.append(int(torch.multinomial(table.exp(), 1, generator=dice)))
            logprobs.append(table[ids[-1]].item())
            if ids[-1] in self.tokenizer.eos_ids or any(tag in self.tokenizer.decode(ids) for tag in stop):
                finish = Finish.STOP
        versions = [self.version] * len(ids)
        return Completion(token_ids=tuple(ids), logprobs=tuple(logprobs), versions=tuple(versions), finish=finish)


def beginner(folder: Path, seed: int) -> tuple[Policy, Tokenizer, Dialogue]:
    """The policy that the training starts from: it has imitated the novice in a hundred other worlds."""
    rng, worlds = random.Random(seed), [World(seed + 1 + i) for i in range(100)]
    text = [f"Question: {q.text} Result 1: {world.find(q.id)[0].text}" for world in worlds for q in world.questions]
    tokenizer = Tokenizer(train(text, tags=TAGS.tags, folder=folder, vocab_size=400))
    dialogue = Dialogue.of(tokenizer, AGENT)
    policy = Policy.build({**SIZES, "intermediate_size": 128}, vocab_size=400, seed=seed)
    episodes = [world.novice(q, searches=rng.choice((1, 1, 1, 2))) for world in worlds for q in world.questions]
    encoded = [encode(episode, dialogue) for episode in episodes]
    shown = [warm_start.Demonstration(token_ids=ids, action_mask=mask) for ids, mask in encoded]
    settings = WarmStartConfig(steps=200, batch_size=16, lr=5e-3, muon_lr=0.03, warmup_steps=10)
    losses = warm_start.warm_start(policy, shown, settings, rng=np.random.default_rng(seed))
    print(f"imitation: loss {losses[0]:.2f} at first, {losses[-1]:.2f} in the end", flush=True)
    return policy, tokenizer, dialogue


async def main(folder: Path, steps: int, seed: int, vllm: bool) -> None:
    world = World(seed)
    policy, tokenizer, dialogue = beginner(folder, seed)
    engine: Any = start_vllm(policy, folder, seed) if vllm else Sampler(policy, tokenizer)
    scorer = Scorer(RewardConfig(), TAGS)
    tools = Environment.of(AGENT, world)
    player = Player(dialogue=dialogue, config=AGENT, generator=engine, environment=tools, scorer=scorer)
    rule = rule_class("recycle")(batch_questions=8, group_size=K)
    pool: QueryPool[Group] = QueryPool([q.id for q in world.questions], rule, seed=seed)
    algorithm = AlgorithmConfig(steps=steps, optimizer=OptimizerConfig(lr=1e-3, betas=[0.9, 0.95]))
    updater = Updater(policy, algorithm, rng=np.random.default_rng(seed), fault_folder=folder)
    version = 0
    await engine.load_weights(policy.published(), version)

    for step in range(steps):
        while not pool.ready:
            # Claim: the pool draws questions for this batch. Play: K episodes of each, scored. Submit: the pool notes
            # what they say of the question.
            tickets = pool.claim("worker", now=time.monotonic(), limit=8)
            playing = [play_group(player, world.questions[t.query], t, size=K, worker="worker") for t in tickets]
            for group in await asyncio.gather(*playing):
                pool.submit(group.outcome(), group)
        # Take: the whole batch. The rule accepts the groups whose rewards differ; in the others no episode was better
        # than another. `played` are all that were submitted; a payload is such a group itself.
        batch = pool.take(version=version)
        # Update: advantages, packed rows, clipped policy-gradient loss, AdamW.
        report = updater.update([accepted.payload for accepted in batch.accepted], step=step, version=version)
        if report.updates:
            # Publish: the engine gets the new weights; tokens sampled from now on are labelled with the new version.
            version += 1
            await engine.load_weights(policy.published(), version)
        # Release: the next batch may be drawn. What was trained on comes back when too few others are left for a batch.
        pool.release(batch.index)

        played = [member for group in batch.payloads for member in group.members]
        reward = np.mean([member.score.reward for member in played])
        searches = np.mean([member.trajectory.searches for member in played])
        print(
            f"step {step + 1:2}/{steps}  reward {reward:.3f}  searches {searches:.2f}  "
            f"trained on {len(batch.accepted)} of {len(batch.played)} groups",
            flush=True,
        )
    best = max(played, key=lambda member: member.score.reward).trajectory
    print(tokenizer.decode([*best.prompt_ids.tolist(), *best.token_ids.tolist()]))


def start_vllm(policy: Policy, folder: Path, seed: int) -> Any:
    from actors.engine import Engine
    from conf.topology import EngineConfig

    policy.save(folder)  # beside the tokenizer: a folder that vLLM can read
    return Engine(str(folder), EngineConfig(), device="cpu", dtype="float32", max_model_len=256, seed=seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vllm", action="store_true", help="sample with vLLM, which takes a minute to start")
    asked = parser.parse_args()
    if asked.steps < 1:
        parser.error("--steps must be at least 1")
    if asked.seed < 0:
        parser.error("--seed must be at least 0")
    torch.set_num_threads(1)  # a model this small is slower with more
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder), **vars(asked)))
