"""Episodes as text: the episode loop over a codec of characters, and what it played as a row of an experts' file.

The loop, the tools and the blocks are those of every episode (``agent/episode.py``). The row is read back as
``data.experts`` will read it, and must give the same episode, character for character.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from agent.config import AgentConfig
from agent.dialogue import Dialogue
from agent.environment import Environment
from agent.episode import Generator, play
from agent.errors import UserError
from agent.records import Completion, Finish, Question, Trajectory
from agent.settings import MOST
from agent.tools.base import Searcher
from tasks.characters import Characters
from tasks.demonstrations import Demonstration, as_trajectory
from tasks.experts import moves_of
from tasks.files import question_of
from tasks.making.config import PLAYED

UNLIMITED = MOST
"""Characters; the limits of ``agent`` are in tokens, and checked where there is a tokenizer."""
CODEC = Characters()


def completion(text: str, finish: Finish = Finish.STOP, *, full: bool = False) -> Completion:
    """``text`` as an engine would return it; ``full`` is that of ``Completion``."""
    ids = tuple(CODEC.encode(text))
    return Completion(token_ids=ids, logprobs=(0.0,) * len(ids), versions=(0,) * len(ids), finish=finish, full=full)


@dataclass
class Script:
    """A ``Generator`` that plays ``turns`` one after the other, whatever comes back."""

    turns: Sequence[str]
    _next: int = 0

    async def generate(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop: tuple[str, ...], temperature: float, seed: int
    ) -> Completion:
        """See ``Generator``."""
        self._next += 1
        return completion(self.turns[self._next - 1])

    async def score(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float:
        """See ``Generator``; nothing asks for it without an early exit."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """An episode as a row, and as it will be read."""

    row: dict[str, Any]
    demonstration: Demonstration


class Stage:
    """Where experts play: the environment of ``agent`` over ``searcher``, in the tags of its protocol.

    A file of experts is in tags whatever ``agent.format`` is, with one search in a turn and no other tool.
    """

    def __init__(self, agent: AgentConfig, searcher: Searcher, *, prompt: str = "instruct") -> None:
        self.agent = replace(
            agent,
            **PLAYED,
            prompt=prompt,
            chat=False,
            max_prompt_tokens=UNLIMITED,
            max_response_tokens=UNLIMITED,
            max_new_tokens_first=UNLIMITED,
            max_new_tokens=UNLIMITED,
        )
        self.searcher = searcher
        self.dialogue = Dialogue.of(CODEC, self.agent)
        self.protocol = self.dialogue.protocol
        self._environment = Environment.of(self.agent, searcher)

    async def play(
        self, question: Question, generator: Generator, *, seed: int = 0, temperature: float = 0.0
    ) -> Trajectory:
        """One episode, whose ids are characters."""
        return await play(
            question,
            dialogue=self.dialogue,
            config=self.agent,
            generator=generator,
            environment=self._environment,
            temperature=temperature,
            seed=seed,
        )

    def written(self, question: Question, trajectory: Trajectory) -> Written:
        """An answered episode as a row. Raises ``UserError`` where the row would be read as another episode."""
        row: dict[str, Any] = {
            "id": question.id,
            "question": question.text,
            "golden_answers": list(question.needed or question.golden_answers),
            "metadata": {f"supporting_{question.evidence_match}s": list(question.supporting)},
            "trajectory": CODEC.decode(trajectory.token_ids.tolist()),
            "document_ids": [list(turn.document_ids) for turn in trajectory.turns[:-1]],
        }
        if question.kind:
            row["metadata"]["type"] = question.kind
        if question.needed:
            row["metadata"]["answers_mean"] = "all"
        where = f"question {question.id}"
        read = json.loads(json.dumps(row))
        again = question_of(read, where, question.id, question.evidence_match)
        demonstration = Demonstration(question=again, moves=moves_of(read, again, self.protocol, where))
        end = "\n" if self.dialogue.lacks_end else ""
        shown = as_trajectory(demonstration, self.dialogue, end_ids=CODEC.encode(end))
        if again != question or CODEC.decode(shown.token_ids.tolist()) != row["trajectory"] + end:
            raise UserError(f"{where}: its episode is another one when it is read from a file")
        return Written(row=row, demonstration=demonstration)
