"""A teacher, or a model that is evaluated: behind an endpoint it plays episodes as the policy would, in messages.

    user: the prompt ─► assistant: a turn ─► user: the result block ─► assistant: …

The episode loop asks it as it asks an engine. Rejection sampling of whole trajectories, deduplicated by what was
reasoned and not by wording, is that of RFT (Yuan et al. 2023, arXiv 2308.01825); here that is the list of queries.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agent.answers import normalise_query
from agent.config import AgentConfig
from agent.errors import GenerationError, NoRoom, UserError
from agent.formats.tags import tags_of
from agent.protocol import TagProtocol
from agent.records import Completion, Finish, Trajectory
from tasks.making.config import EndpointConfig
from tasks.making.endpoint import Endpoint, EndpointError, Reply
from tasks.making.episodes import CODEC, completion

WORD = 16
"""Tokens that an endpoint may say to show that it answers."""
FEWEST = 32
"""Tokens of a turn that are still asked for as an endpoint's context gets full."""
PATIENCE = 20
"""Questions in a row of which no episode has an end of its own, after which nothing more is asked of an endpoint. One
that a host refuses fails as often as it is asked: it counts once."""
REFUSED = frozenset({401, 403, 404})
"""HTTP codes of an endpoint, a model or a key that are wrong, whatever is asked: unless something was answered before.
Then it is that one request (some hosts refuse a flagged text with 403)."""
MISFIT = frozenset({400, 422})
"""HTTP codes of a request that isn't taken. Where the message names a setting that we send with each (newer models of
OpenAI take ``max_completion_tokens`` alone), none is."""


@dataclass
class Teacher:
    """A ``Generator`` for one episode. Raises ``UserError`` for a wrong address, model or key."""

    endpoint: Endpoint
    protocol: TagProtocol
    config: EndpointConfig
    limits: AgentConfig
    """The policy's, in tokens."""
    tokens: int = 0
    """Generated so far, as far as the endpoint says."""
    _messages: list[dict[str, str]] = field(default_factory=list)
    _seen: int = 0

    async def generate(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop: tuple[str, ...], temperature: float, seed: int
    ) -> Completion:
        """See ``Generator``. What has come since the teacher's last turn is the user's next message."""
        first = not self._messages
        most = self.limits.max_new_tokens_first if first else self.limits.max_new_tokens
        sent = {
            "temperature": temperature,
            "top_p": 1.0,  # else the server's, which may be that of the model's generation_config.json
            "seed": seed % 2**31,
            "stop": list(stop),
            "max_tokens": most,
        }
        self._messages.append({"role": "user", "content": CODEC.decode(prompt_ids[self._seen :]).strip()})
        try:
            reply, asked = await self._asked(sent)
        except EndpointError as error:
            where = f"{self.config.KEY}.url={self.config.url}, {self.config.KEY}.model={self.config.model}: {error}"
            if error.code in REFUSED and not self.endpoint.answered:
                raise UserError(f"{where}; correct them, or the environment variable {self.config.SECRET}") from error
            named = any(re.search(rf"\b{name}\b", str(error)) for name in sent)
            if error.code in MISFIT and named and not error.full and not self.endpoint.answered:
                raise UserError(
                    f"{where}; {', '.join(sent)} are sent with each request: name a model that takes them"
                ) from error
            if error.full and not first:
                raise NoRoom(str(error)) from error
            raise GenerationError(str(error)) from error
        if reply.finish not in ("stop", "length"):
            raise GenerationError(f"{self.config.url}: the model's turn ended with {reply.finish!r}")
        self.tokens += reply.tokens
        finish = Finish(reply.finish)
        text = turn(reply.text, self.protocol, stop, finish, reply.stopped_by)
        self._messages.append({"role": "assistant", "content": text})
        # What ends before the turn's limit, or was asked for less, has come to the end of the endpoint's context.
        fewer = asked < most or 0 < reply.tokens < most
        made = completion(text, finish, full=finish is Finish.LENGTH and fewer)
        self._seen = len(prompt_ids) + len(made.token_ids)
        return made

    async def _asked(self, sent: dict[str, Any]) -> tuple[Reply, int]:
        """The reply, and of how many tokens at most: of half as many, and again, where the context has no room for all
        that a turn may have."""
        while True:
            try:
                return await self.endpoint.chat(self._messages, **sent), sent["max_tokens"]
            except EndpointError as error:
                fewer = sent["max_tokens"] // 2
                if not error.full or fewer < FEWEST:
                    raise
                sent = sent | {"max_tokens": fewer}

    async def score(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float:
        """See ``Generator``; nothing asks for it without an early exit."""
        raise NotImplementedError


def check_answers(config: EndpointConfig, agent: AgentConfig) -> None:
    """Has the endpoint say a word. Raises ``UserError`` for a wrong address, model or key, ``GenerationError`` where
    it doesn't answer."""
    limits, protocol = replace(agent, max_new_tokens_first=WORD), tags_of(agent)

    async def ask() -> None:
        async with config.client() as client:
            await Teacher(client, protocol, config, limits).generate(
                CODEC.encode("Hello."), max_new_tokens=WORD, stop=protocol.stop, temperature=0.0, seed=0
            )

    asyncio.run(ask())


def turn(text: str, protocol: TagProtocol, stop: Sequence[str], finish: Finish, stopped_by: str | None = None) -> str:
    """A reply as one turn of an episode: up to its first closing tag, which most endpoints leave out.

    ``stopped_by`` is that of ``Reply``: a tag that the model didn't close stays open where the endpoint tells.

    >>> from agent.protocol import PROTOCOLS
    >>> turn("I look. <search>Emma", PROTOCOLS["search"], ("</search>", "</answer>"), Finish.STOP)
    'I look. <search>Emma</search>'
    """
    ends = [text.index(tag) + len(tag) for tag in stop if tag in text]
    if ends:
        return text[: min(ends)].strip()
    box = protocol.last_box(text) if protocol.braced_answer and finish is Finish.STOP else None
    if box is not None and all(text.rfind(call.opening) < box[0] for call in protocol.calls):
        return text[: box[1] + 1].strip()
    pairs = [(call.opening, call.closing) for call in protocol.calls]
    pairs += [] if protocol.braced_answer else [(protocol.answer_open, protocol.answer_close)]
    opened = max(pairs, key=lambda pair: text.rfind(pair[0]))
    closed = finish is Finish.STOP and opened[0] in text and stopped_by in (None, opened[1])
    return text.strip() + (opened[1] if closed else "")


def path(trajectory: Trajectory) -> tuple[str, ...]:
    """What tells an episode from others of its question: its queries, normalised."""
    return tuple(normalise_query(query) for turn in trajectory.turns for query in turn.queries)
