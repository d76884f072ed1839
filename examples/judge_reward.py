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
from dataclasses import dataclass

import httpx

from agent.errors import UserError
from agent.records import Question, Trajectory

PROMPT = """Question: {question}
Right answers: {golden}
Given answer: {answer}

Does the given answer say the same as one of the right answers? Reply with yes or no."""
PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP codes of trouble that may pass."""


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
        word = re.match(r"\W*(yes|no)\b", said, re.IGNORECASE)
        if word is None:
            raise ValueError(f"the judge said neither yes nor no but {said[:80]!r}")
        return float(word[1].lower() == "yes")

    async def _ask(self, prompt: str) -> str:
        """The reply. Raises ``httpx.HTTPError``, or ``ValueError`` for an answer that isn't the protocol's."""
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        async with httpx.AsyncClient(timeout=self.timeout_s, headers=headers) as client:
            for attempt in range(self.tries):
                last = attempt == self.tries - 1
                try:
                    response = await client.post(f"{self.url}/chat/completions", json=body)
                    if last or response.status_code not in PASSING:
                        return _text(response)
                except httpx.TransportError:
                    if last:
                        raise
                await asyncio.sleep(self.pause_s * 2**attempt)
        raise AssertionError("unreachable")


def _text(response: httpx.Response) -> str:
    response.raise_for_status()
    try:
        return str(response.json()["choices"][0]["message"]["content"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"the judge's reply is no chat completion: {response.text[:80]!r}") from error


judge = Judge.from_environment()
