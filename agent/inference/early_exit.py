"""Early exit: a short probe answer after each observation, and the end of the episode where it is confident.

    … observation ──► answer tag, forced ──► at most N greedy tokens ──► confidence ≥ threshold: that is the answer
         │                                                           └─ below: forgotten
         └──────────────────────────► the episode's next turn, as if nothing had been asked

Where a thought is open it is closed first: an answer within one is none. A probe leaves the episode's own tokens as
they are: it is a branch, and its tokens are counted apart. So one full episode with all of its probes says how it would
have ended at every threshold (``calibration.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.confidences import CONFIDENCES
from agent.config import ExitConfig
from agent.dialogue import Dialogue
from agent.episode import Generator
from agent.inference.scaling import Scale
from agent.records import Turn


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
    """In [0, 1], scaled where there is a scale; 0 without an answer."""
    tokens: int
    """Tokens generated for it; the forced tag, and what closes a thought before it, aren't."""
    opening: float = 1.0
    """The most that ``confidence`` can be: the chance that the policy answers at all at this point, where ``decision``
    asked for it, scaled as it is."""
    opening_tokens: int = 0
    """Tokens generated to learn ``opening``."""

    def cost(self, threshold: float = 0.0) -> int:
        """Tokens generated for it at ``threshold``: an opening below it leaves nothing to ask."""
        return self.opening_tokens + (self.tokens if self.opening >= threshold else 0)


class EarlyExit:
    """The ``Watcher`` of one episode, with at most ``context`` tokens of prompt and response.

    With ``config.threshold`` None it records probes and never ends anything. ``scale`` says what confidences are
    worth; without one they are taken as they are.
    """

    def __init__(
        self,
        config: ExitConfig,
        *,
        dialogue: Dialogue,
        generator: Generator,
        context: int,
        scale: Scale | None = None,
    ) -> None:
        self._config = config
        self._scale = scale
        self._dialogue = dialogue
        self._generator = generator
        self._context = context
        self.probes: list[Probe] = []

    async def ends(self, context: Sequence[int], turns: Sequence[Turn]) -> bool:
        """See ``Watcher``. It probes after a turn with a call that was answered by more than a notice that it repeats,
        and where there is room for it."""
        new = any(call.repeat is None for call in turns[-1].answered) if turns else self._config.before_first_search
        forced = self._dialogue.answer_ids(turns)
        room = self._context - len(context) - len(forced)
        if not new or room < 1:
            return False
        probe = await self._probe(context, turns, forced, min(self._config.max_tokens, room))
        self.probes.append(probe)
        return self._config.threshold is not None and probe.confidence >= self._config.threshold

    async def _probe(self, context: Sequence[int], turns: Sequence[Turn], forced: Sequence[int], limit: int) -> Probe:
        config, protocol = self._config, self._dialogue.protocol
        searches = sum(turn.searches for turn in turns)
        probe = Probe(
            searches=searches,
            action_tokens=sum(turn.action_end - turn.action_start for turn in turns),
            answer=None,
            confidence=0.0,
            tokens=0,
        )
        chance = 1.0
        if config.confidence == "decision":
            chance = math.exp(await self._generator.score(context, forced))
            probe = replace(probe, opening=self._worth(searches, chance), opening_tokens=len(forced))
            if config.threshold is not None and probe.opening < config.threshold:
                return probe
        end = self._dialogue.end
        stop = (protocol.answer_close, end) if end else (protocol.answer_close,)
        completion = await self._generator.generate(
            [*context, *forced], max_new_tokens=limit, stop=stop, temperature=0.0, seed=0
        )
        text = protocol.answer_open + self._dialogue.codec.decode(completion.token_ids)
        answer = protocol.parse(text).answer or None
        sure = 0.0 if answer is None else chance * CONFIDENCES[config.confidence](completion.logprobs)
        return replace(probe, answer=answer, confidence=self._worth(searches, sure), tokens=len(completion.token_ids))

    def _worth(self, searches: int, confidence: float) -> float:
        return confidence if self._scale is None else self._scale(searches, confidence)
