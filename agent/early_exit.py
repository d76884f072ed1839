"""Early exit: a short probe answer after each observation, and the end of the episode where it is confident.

    … observation ──► answer tag, forced ──► at most N greedy tokens ──► confidence ≥ threshold: that is the answer
         │                                                           └─ below: forgotten
         └──────────────────────────► the episode's next turn, as if nothing had been asked

A probe leaves the episode's own tokens as they are: it is a branch, and its tokens are counted apart. So one
full episode with all of its probes says how it would have ended at every threshold (``agent/calibration.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.config import ExitConfig
from agent.episode import Generator
from agent.protocol import Dialogue
from agent.records import Turn

CONFIDENCES: dict[str, Callable[[Sequence[float]], float]] = {
    "product": lambda logprobs: math.exp(sum(logprobs)),
    "mean": lambda logprobs: math.exp(sum(logprobs) / len(logprobs)),
}
"""From the log-probabilities of a probe's tokens, the closing tag's included, to a confidence in [0, 1].

The product is the chance that the policy would write exactly this answer, once it answers: a threshold on it
is a threshold on a probability. It falls with the answer's length; the geometric mean doesn't, and is for
answers that are long in themselves.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """One probe answer."""

    searches: int
    """Searches of the episode before it."""
    action_tokens: int
    """Tokens that the episode's own turns had before it."""
    answer: str | None
    """None if the probe didn't close an answer, or an empty one."""
    confidence: float
    """In [0, 1]; 0 without an answer."""
    tokens: int
    """Tokens generated for it; the forced tag isn't."""


class EarlyExit:
    """The ``Watcher`` of one episode, with at most ``context`` tokens of prompt and response.

    With ``config.threshold`` None it records probes and never ends anything.
    """

    def __init__(self, config: ExitConfig, *, dialogue: Dialogue, generator: Generator, context: int) -> None:
        self._config = config
        self._dialogue = dialogue
        self._generator = generator
        self._context = context
        self._forced = dialogue.codec.encode(dialogue.protocol.answer_open)
        self.probes: list[Probe] = []

    async def ends(self, context: Sequence[int], turns: Sequence[Turn]) -> bool:
        """See ``Watcher``. Nothing is probed without new passages, or where there is no room for it."""
        new = turns[-1].searched and turns[-1].repeat is None if turns else self._config.before_first_search
        room = self._context - len(context) - len(self._forced)
        if not new or room < 1:
            return False
        probe = await self._probe(context, turns, min(self._config.max_tokens, room))
        self.probes.append(probe)
        return self._config.threshold is not None and probe.confidence >= self._config.threshold

    async def _probe(self, context: Sequence[int], turns: Sequence[Turn], limit: int) -> Probe:
        protocol = self._dialogue.protocol
        completion = await self._generator.generate(
            [*context, *self._forced], max_new_tokens=limit, stop=(protocol.answer_close,), temperature=0.0, seed=0
        )
        text = protocol.answer_open + self._dialogue.codec.decode(completion.token_ids)
        answer = protocol.parse(text).answer or None
        return Probe(
            searches=sum(turn.searched for turn in turns),
            action_tokens=sum(turn.action_end - turn.action_start for turn in turns),
            answer=answer,
            confidence=0.0 if answer is None else CONFIDENCES[self._config.confidence](completion.logprobs),
            tokens=len(completion.token_ids),
        )
