"""The environment of an episode: the tools, and what they give for the calls of one turn.

requests of a turn ──► their tools, concurrently ──► a result each, in order, or the end of the episode
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

from agent.config import AgentConfig
from agent.errors import RetrievalError, ToolError, UserError, shortened
from agent.own import AWAITED_BREAKS, is_cancelled, told
from agent.records import Passage, Repeat, StopReason
from agent.tools.base import Request, Result, Searcher, Situation, Tool
from agent.tools.catalogue import tool_classes
from agent.visible import printable


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """What the environment gives for one turn: a result for each request, in their order."""

    results: tuple[Result, ...]
    stop: StopReason | None = None
    """Ends the episode: nothing is shown."""
    fault: str = ""
    """What broke, when ``stop`` is a fault."""


class Environment:
    """The tools of a run. It keeps nothing of an episode, so all episodes share one."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}

    @classmethod
    def of(cls, config: AgentConfig, searcher: Searcher) -> Environment:
        """With the tools of ``config.tools``. Raises ``UserError`` that names it for one that isn't there or can't be
        made."""
        tools = zip(config.tools, tool_classes(config.tools), strict=True)
        return cls([_made(name, tool, config, searcher) for name, tool in tools])

    async def respond(self, requests: Sequence[Request], situation: Situation) -> Response:
        """Answers the requests of one turn, all at once.

        A fault of one is a fault of the turn: nothing of the turn is evidence then. Otherwise the episode ends if a
        result says so.
        """
        results: list[Result] = []
        fault: ToolError | None = None
        for outcome in await asyncio.gather(
            *(self._answer(requests, number, situation) for number in range(len(requests))), return_exceptions=True
        ):
            if isinstance(outcome, Result):
                results.append(outcome)
            elif isinstance(outcome, ToolError):
                fault = fault or outcome
            else:
                raise outcome
        if fault is not None:
            reason = StopReason.RETRIEVAL_FAILED if isinstance(fault, RetrievalError) else StopReason.TOOL_FAILED
            return Response(results=(Result(),) * len(requests), stop=reason, fault=str(fault))
        stop = next((result.stop for result in results if result.stop is not None), None)
        return Response(results=tuple(r.unseen() for r in results) if stop else tuple(results), stop=stop)

    async def _answer(self, requests: Sequence[Request], number: int, situation: Situation) -> Result:
        # Copies: a tool of the user's own may change what it is given, and what was asked is on record.
        *earlier, request = (replace(each, arguments=dict(each.arguments)) for each in requests[: number + 1])
        before = tuple(other for other in earlier if other.tool == request.tool)
        result: object
        if request.tool not in self._tools:  # the shipped formats find that malformed
            raise ToolError(f"agent.format: a call of '{request.tool}', and agent.tools has {', '.join(self._tools)}")
        try:
            standing = replace(situation, turns=tuple(situation.turns), before=before)
            result = await self._tools[request.tool].call(request, standing)
        except ToolError:
            raise
        except AWAITED_BREAKS as error:  # whatever a tool of the user's own raises costs its trajectory alone
            if is_cancelled(error):
                raise
            what = f"{type(error).__name__}: {shortened(error)}"
            raise ToolError(f"agent.tools: {request.tool} raised {what}") from error
        return _checked(result, f"agent.tools: {request.tool} returned")


def _checked(result: object, where: str) -> Result:
    """``result``, which may be of a tool of the user's own, in texts that tokenizers and files take.

    Raises ``ToolError`` that starts with ``where`` if it is none.
    """
    if not isinstance(result, Result):
        raise ToolError(f"{where} a {type(result).__name__}, and no agent.tools.base.Result")
    passages = result.passages
    if not isinstance(passages, Sequence) or not all(isinstance(passage, Passage) for passage in passages):
        raise ToolError(f"{where} a Result whose passages are no agent.records.Passage")
    stop: object = result.stop
    if not (stop is None or isinstance(stop, StopReason)) or stop in (StopReason.EARLY_EXIT, StopReason.ANSWERED):
        raise ToolError(f"{where} a Result whose stop is {stop!r}, and no reason of a tool's")
    if isinstance(stop, StopReason) and stop.is_fault:  # nothing would say what broke
        raise ToolError(f"{where} a Result whose stop is {stop!r}; where something broke, it has to raise ToolError")
    if not (result.repeat is None or isinstance(result.repeat, Repeat)) or not isinstance(result.refused, bool):
        raise ToolError(f"{where} a Result whose repeat is {result.repeat!r} and refused {result.refused!r}")
    said = "" if result.text is None else result.text
    texts = [result.notice, said, *(text for p in passages for text in (p.id, p.title, p.text))]
    for text in texts:
        if not isinstance(text, str):
            raise ToolError(f"{where} a Result with a {type(text).__name__} in the place of a text")
    # A page's parser gives texts that keep the page: no record is to hold, or to send, that.
    if all(type(text) is str and text == printable(text) for text in texts):
        return result
    return replace(
        result,
        notice=printable(result.notice),
        text=None if result.text is None else printable(said),
        passages=tuple(
            replace(p, id=printable(p.id), title=printable(p.title), text=printable(p.text)) for p in passages
        ),
    )


def _made(name: str, tool: type[Tool], config: AgentConfig, searcher: Searcher) -> Tool:
    where = f"agent.tools={name}"
    try:
        with told(f"{where}: __init__()"):
            return tool(copy(config), searcher)  # it may set its own numbers, and only these
    except UserError as error:
        if str(error).startswith(where):
            raise
        raise UserError(f"{where}: {error}") from error
