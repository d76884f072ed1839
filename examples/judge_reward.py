"""A reward of one's own: a language model behind an OpenAI-compatible endpoint says whether an answer is right.

    PYTHONPATH=examples JUDGE_URL=http://127.0.0.1:8000/v1 JUDGE_MODEL=NAME \
        python launch.py reward.outcome=judge_reward:judge

JUDGE_KEY is the key, where the endpoint wants one. A judge that can't be reached, or says neither yes nor no, is a
fault: the trajectory is left out and counted as ``reward_failed``, and never gets an outcome of 0.
"""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from agent.errors import UserError
from agent.records import Question, Trajectory
from tasks.making.endpoint import Endpoint

PROMPT = """Question: {question}
Right answers: {golden}
Given answer: {answer}

Does the given answer say the same as one of the right answers? Reply with yes or no."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """Asks an endpoint. Called as an outcome is: ``await judge(question, trajectory)``."""

    url: str
    """Up to and without ``/chat/completions``."""
    model: str
    key: str = ""
    timeout_s: float = 30.0
    """For one try."""
    tries: int = 3
    pause_s: float = 1.0
    """Before the second try; each later one waits twice as long."""
    _endpoints: WeakKeyDictionary[asyncio.AbstractEventLoop, Endpoint] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )
    """The open one of each event loop: to open another for each answer would take the worker's time."""

    @classmethod
    def from_environment(cls) -> Judge:
        """Raises ``UserError`` if JUDGE_URL or JUDGE_MODEL isn't set."""
        for name in ("JUDGE_URL", "JUDGE_MODEL"):
            if not os.environ.get(name):
                raise UserError(
                    f"the environment has no {name}; set JUDGE_URL=http://HOST:PORT/v1 and JUDGE_MODEL=NAME"
                )
        return cls(
            url=os.environ["JUDGE_URL"].rstrip("/"),
            model=os.environ["JUDGE_MODEL"],
            key=os.environ.get("JUDGE_KEY", ""),
        )

    async def __call__(self, question: Question, trajectory: Trajectory) -> float:
        """1 for yes, 0 for no and for no answer at all. Raises what keeps the judge from saying either."""
        if trajectory.answer is None:
            return 0.0
        golden = " | ".join(question.golden_answers)
        said = await self._ask(PROMPT.format(question=question.text, golden=golden, answer=trajectory.answer))
        said = said.rpartition("</think>")[2]  # of a judge that thinks first
        word = re.match(r"\W*(yes|no)\b", said, re.IGNORECASE)
        if word is None:
            raise ValueError(f"the judge said neither yes nor no but {said[:80]!r}")
        return float(word[1].lower() == "yes")

    async def _ask(self, prompt: str) -> str:
        """The reply. Raises ``EndpointError`` for none."""
        loop = asyncio.get_running_loop()
        if loop not in self._endpoints:
            endpoint = Endpoint(
                self.url, self.model, key=self.key, timeout_s=self.timeout_s, tries=self.tries, pause_s=self.pause_s
            )
            self._endpoints[loop] = await endpoint.__aenter__()
        return (await self._endpoints[loop].chat([{"role": "user", "content": prompt}], temperature=0)).text


judge = Judge.from_environment()
