"""Episodes of the tag protocols, recorded once: whatever is rebuilt around them, they stay token for token.

A change that is meant to change them changes ``RECORDED`` with it, and says so.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter

import numpy as np
import pytest

from agent.config import AgentConfig, SelectivityConfig
from agent.environment import Environment
from agent.episode import Prefix, play
from agent.errors import GenerationError, RetrievalError
from agent.protocol import PROTOCOLS
from agent.records import Passage, Question, Repeat, StopReason

RECORDED = {
    150: "1e71214cd6bc3b469ad7b102edbce0ce542856dc3daaa0221d940b9b3fa21a08",
    400: "fb9a61655bb7efeaa145204ecf7bbd18cef579e52d1daf51cdc8a747b54a82a2",
}
"""By the number of episodes; the smaller is for every day."""
WORDS = ("Emma", "Austen", "the novel", "a b", "é", "世界", "</sea", "x\ny", "{1}")
TITLES = ("Emma (novel)", "", "A <search>x</search>", "Two\nlines", "<|im_end|>")
QUESTIONS = (
    Question(id="q0", text="Who wrote Emma?", golden_answers=("Jane Austen",), supporting=("Emma (novel)",)),
    Question(id="q1", text="Was <answer>this</answer> <|im_start|> asked?", golden_answers=("yes",)),
)


class Policy:
    """Turns of a random policy, which knows the tags and the queries that it wrote before."""

    def __init__(self, rng, codec, protocol) -> None:
        self._rng, self._codec, self._protocol = rng, codec, protocol

    def __iter__(self):
        while True:
            yield self._turn()

    def _turn(self):
        rng, p = self._rng, self._protocol
        kind, think = rng.random(), rng.choice(("", "So ", "Let me see.\n"))
        if kind < 0.02:
            return GenerationError("the engine is gone")
        if kind < 0.70:
            text = f"{think}{p.search_open}{rng.choice(('', ' '))}{rng.choice(WORDS)}{p.search_close}"
        elif kind < 0.82:
            text = f"{think}{p.answer_open}{rng.choice(WORDS)}{p.answer_close}"
        elif kind < 0.86:
            text = f"{p.search_open} \n{p.search_close}"
        elif kind < 0.90:
            text = f"{think}{p.search_close}"
        elif kind < 0.94:
            text = think + "x" * rng.randrange(1, 200)
        else:
            text = f"{p.result_open}\n{p.result_label} 1: mine\n{p.result_close}{p.search_open}more{p.search_close}"
        return self._codec.one_way_to_write(text + rng.choice(("", "", "\n", "}", "> y")), rng)


def answers(rng):
    while True:
        if rng.random() < 0.03:
            yield RetrievalError("the index is gone")
        else:
            yield [
                Passage(
                    id=f"d{n}", title=rng.choice(TITLES), text=f"{rng.choice(WORDS)} wrote {n}. " * rng.randrange(1, 9)
                )
                for n in rng.sample(range(6), rng.choice((0, 1, 2, 3)))
            ]


class Impatient:
    """A watcher that ends an episode before its fourth turn."""

    async def ends(self, context, turns) -> bool:
        return len(turns) == 3


def repeat(turn) -> str | None:
    found = [call.repeat for call in turn.calls if call.repeat]
    return str(found[0]) if found else None


def facts(t) -> list:
    """Everything that a trajectory records, in plain types."""
    turns = [
        (
            *(turn.action_start, turn.action_end, turn.observation_end, turn.text, turn.query, turn.answer),
            *(turn.document_ids, turn.titles, turn.refused, repeat(turn), turn.searches > 0),
        )
        for turn in t.turns
    ]
    arrays = [np.asarray(getattr(t, name)).tolist() for name in ("prompt_ids", "token_ids", "action_mask", "versions")]
    numbers = [t.searches, t.action_tokens, t.generated_tokens, t.inherited, t.repeats(Repeat.QUERY)]
    return [arrays, [f"{x:.6f}" for x in t.logprobs.tolist()], turns, str(t.stop_reason), t.fault, t.answer, numbers]


@pytest.mark.parametrize("episodes", [150, pytest.param(400, marks=pytest.mark.slow)])
def test_recorded_episodes_are_what_they_were(codec, make_dialogue, make_engine, make_library, episodes):
    digest, met = hashlib.sha256(), Counter()
    last = None
    for number in range(episodes):
        rng = random.Random(number)
        protocol = rng.choice(("search", "autocoa"))
        config = AgentConfig(
            protocol=protocol,
            top_k=rng.choice((1, 2, 3)),
            max_searches=rng.choice((1, 2, 4)),
            max_new_tokens_first=rng.choice((60, 200)),
            max_new_tokens=rng.choice((50, 150)),
            max_response_tokens=rng.choice((200, 600, 1500)),
        )
        look = {"prompt": rng.choice(("plain", "instruct")), "chat": rng.random() < 0.5, "max_passage_chars": 60}
        dialogue = make_dialogue(codec, protocol, **look)
        engine = make_engine(
            codec, Policy(rng, codec, PROTOCOLS[protocol]), dialogue.protocol.stop, rng, number % 3, 0.02
        )
        start, question = None, rng.choice(QUESTIONS)
        if last is not None and last[0] == protocol and rng.random() < 0.5:
            _, question, config, before = last
            kept = 0
            while kept < len(before.turns) and before.turns[kept].searches:
                kept += 1
            start = Prefix(trajectory=before, turns=rng.randrange(kept + 1))
            engine.version = 5
        trajectory = asyncio.run(
            play(
                question,
                dialogue=dialogue,
                config=config,
                generator=engine,
                environment=Environment.of(config, make_library(answers(rng))),
                temperature=0.7,
                seed=number,
                start=start,
                max_searches=rng.choice((None, None, 1, 3)),
                selectivity=rng.choice((None, SelectivityConfig(queries=True, evidence=True))),
                watcher=Impatient() if rng.random() < 0.1 else None,
            )
        )
        last = (protocol, question, config, trajectory)
        met[trajectory.stop_reason] += 1
        met["continued"] += trajectory.inherited > 0
        met["refused"] += any(turn.refused for turn in trajectory.turns)
        for repeat in Repeat:
            met[repeat] += trajectory.repeats(repeat)
        digest.update(repr(facts(trajectory)).encode())
        digest.update(repr([(c.max_new_tokens, c.seed, c.temperature) for c in engine.calls]).encode())
    reasons = set(StopReason) - {StopReason.TOOL_FAILED, StopReason.REWARD_FAILED}
    assert all(met[what] > 0 for what in (*reasons, *Repeat, "continued", "refused")), met
    assert digest.hexdigest() == RECORDED[episodes]
