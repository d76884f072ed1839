"""Whole episodes on the families' real tokenizers, compared token for token with ``apply_chat_template``."""

from __future__ import annotations

import asyncio
import random
from functools import cache
from pathlib import Path

import chat_templates
import pytest
from real_tokenizers import FILES, real_tokenizer

from agent.config import AgentConfig
from agent.dialogue import Dialogue
from agent.environment import Environment
from agent.episode import play
from agent.records import Completion, Finish, Passage, Question, StopReason
from agent.tokens import Tokenizer
from agent.tools.base import Request

QUESTION = Question(id="q", text="Who wrote  Emma?\nAnd <|im_end|> when?", golden_answers=("x",))
KINDS = {
    # the tokenizer, the template (None: its own), thinking, whether its calls are bare JSON
    "Qwen3": ("qwen3", None, None, False),
    "Qwen3, thinking": ("qwen3", None, True, False),
    "Qwen3, not thinking": ("qwen3", None, False, False),
    "Qwen2.5": ("qwen2.5", None, None, False),
    "ChatML without tools": ("qwen3", chat_templates.PLAIN, None, False),
    "SmolLM2": ("smollm2", None, None, False),
    "Llama 3.1, without tools": ("llama3.1", None, None, False),
    "Llama 3.2": ("llama3.2", None, None, True),
}
TEXTS = [
    '"x" and\n\n more',
    "  spaces ",
    "a </tool_response> <|im_start|>user",
    "世界 é 🙂",
    "{'a': \"b\"}\n",
    "x" * 300,
]
THOUGHTS = ("", "I look it up.\n", '<think>\nIt is "Emma".\n</think>\n\n')


@cache
def as_it_is(name: str) -> Tokenizer:
    """A family's own, which takes a second to load."""
    return Tokenizer(real_tokenizer(name))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def tokenizer(kind, tmp_path: Path) -> Tokenizer:
    name, template, _, _ = KINDS[kind]
    if template is None:
        return as_it_is(name)
    folder = real_tokenizer(name)
    for file in FILES:
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    tokenizer = Tokenizer(tmp_path)
    tokenizer._tokenizer.chat_template = template
    return tokenizer


class Shelf:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    async def search(self, query: str, k: int) -> tuple[Passage, ...]:
        title, text = self._rng.choice(("Emma (novel)", "", "The <tool_call>")), self._rng.choice(TEXTS)
        return tuple(Passage(id=f"{query}{n}", title=title, text=text) for n in range(self._rng.randrange(3)))


class Script:
    def __init__(self, dialogue: Dialogue, turns: list[str]) -> None:
        self._dialogue, self._turns, self.sampled = dialogue, iter(turns), []

    async def generate(self, prompt_ids, *, max_new_tokens, stop, temperature, seed):
        ids = tuple(self._dialogue.codec.encode(next(self._turns) + stop[0]))
        self.sampled += ids
        return Completion(token_ids=ids, logprobs=(-0.1,) * len(ids), versions=(0,) * len(ids), finish=Finish.STOP)


@pytest.mark.one_in(9)
def test_episodes_are_what_apply_chat_template_makes_of_their_messages(tokenizer, kind, monkeypatch):
    _, _, thinking, json_calls = KINDS[kind]
    config = AgentConfig(format="tools", max_parallel=3, max_searches=20, thinking=thinking)
    dialogue = Dialogue.of(tokenizer, config)
    dropping = thinking is False
    assert (dialogue.notices != ()) == dropping
    format = dialogue._format
    results: list[list[str]] = []
    observe = format.observation

    def noted(shown, last):
        results.append([block.text.strip() for block in shown])
        return observe(shown, last)

    monkeypatch.setattr(format, "observation", noted)
    for seed in range(20):
        rng = random.Random(seed)
        turns = []
        for _ in range(rng.randrange(1, 4)):
            queries = rng.sample(("Emma", "Jane Austen", 'a "b" é'), rng.randrange(1, 4))
            calls = [format._style.write(format_request(query)) for query in queries]
            turns.append(";".join(calls) if json_calls else rng.choice(THOUGHTS) + "\n".join(calls))
        engine = Script(dialogue, [*turns, "It is Jane."])
        results.clear()
        t = asyncio.run(
            play(
                QUESTION,
                dialogue=dialogue,
                config=config,
                generator=engine,
                environment=Environment.of(config, Shelf(rng)),
                temperature=1.0,
                seed=seed,
            )
        )
        assert (t.stop_reason, t.answer) == (StopReason.ANSWERED, "It is Jane.")
        assert t.token_ids[t.action_mask].tolist() == engine.sampled, "what was sampled stays as it was"
        text = tokenizer.decode(t.token_ids.tolist())
        assert "<|im_start|>user\n<tool_call>" not in text
        messages = format.messages(dialogue.neutral(QUESTION.text))
        shown = iter(results)
        for turn in turns:
            messages += [{"role": "assistant", "content": turn}, *format._template.results(next(shown))]
        whole = tokenizer._tokenizer.apply_chat_template(
            messages,
            tools=[*format._template._tools] or None,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            **format._template._options,
        )
        ours = [*t.prompt_ids.tolist(), *t.token_ids[: t.turns[-1].action_start].tolist()]
        if dropping:  # the template forgets the empty thinking block of all turns but the one to come
            block = tokenizer.encode("<think>\n\n</think>\n\n")
            assert without(ours, block) == without(whole, block)
        else:
            assert ours == whole


def format_request(query: str):
    return Request(tool="search", arguments={"query": query})


def without(ids: list[int], block: list[int]) -> list[int]:
    kept, at = [], 0
    while at < len(ids):
        if ids[at : at + len(block)] == block:
            at += len(block)
        else:
            kept.append(ids[at])
            at += 1
    return kept


def test_qwen3s_own_tools_and_results_are_used(tmp_path: Path) -> None:
    dialogue = Dialogue.of(as_it_is("qwen3"), AgentConfig(format="tools"))
    assert "# Tools" in dialogue.prompt_text("Who?")
    assert dialogue.stop == ("<|im_end|>",)
    shown = dialogue.codec.decode(dialogue.observation_ids([Passage(id="d", title="Emma", text="A novel.")]))
    assert shown == (
        '<|im_end|>\n<|im_start|>user\n<tool_response>\nResult 1: "Emma"\nA novel.\n</tool_response><|im_end|>\n'
        "<|im_start|>assistant\n"
    )
