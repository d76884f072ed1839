"""The open tool: reads on in a document that a search has found, for corpora of long documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from agent.answers import normalise_title
from agent.records import Call, Passage, document_name
from agent.tools.base import Request, Result, Situation, Tool

UNKNOWN_NOTICE = "No document of this name was found yet. Name one by its title, or by the number of its result."
END_NOTICE = "The document ends here."
LIMIT_NOTICE = "No more documents can be opened."
LIMIT = 10
"""Calls that an episode may make, those that opened nothing among them; a further one is answered with a notice."""


class Open(Tool):
    """Shows the ``agent.top_k`` passages that follow the last one shown of a document.

    A document is named by its title, or by the number of a passage in the last results. Only what the environment has
    shown can be opened, so an id or a title that the policy makes up opens nothing.
    """

    name = "open"
    description = "Reads on in a document that a search has found: shows the passages that follow."
    parameters: ClassVar = {
        "document": {"type": "string", "description": "The document's title, or the number of its result."}
    }

    async def call(self, request: Request, situation: Situation) -> Result:
        """See ``Tool``. Raises ``RetrievalError``."""
        if len(situation.calls(self.name)) + len(situation.before) >= LIMIT:
            return Result(refused=True, notice=LIMIT_NOTICE)
        last = last_shown(request.text, situation)
        if last is None:
            return Result(notice=UNKNOWN_NOTICE)
        # Of several calls of one document in a turn each reads on where the one before it ends. No more passages are
        # asked for at once than by a search: a server has a limit of them.
        passages: tuple[Passage, ...] = ()
        for _ in range(1 + sum(last_shown(other.text, situation) == last for other in situation.before)):
            passages = await self.searcher.following(last, self.config.top_k)
            if not passages:
                return Result(notice=END_NOTICE)
            last = passages[-1].id
        return Result(passages=passages)


def last_shown(name: str, situation: Situation) -> str | None:
    """The id of the passage to read on from: the last one shown of the document ``name``; None if none was.

    A title goes before a number: there are books called by one. A number is that of the last block of results.
    """
    shown = list(_shown(situation))
    wanted = normalise_title(name.strip().strip('"'))
    if wanted and any(title == wanted for _, title in shown):
        return next(document for document, title in reversed(shown) if title == wanted)
    latest = next(
        (c.document_ids for turn in reversed(situation.turns) for c in reversed(turn.answered) if _is_shown(c)), ()
    )
    number = name.strip()
    if not number.isdecimal() or len(number) > 4 or not 1 <= int(number) <= len(latest):
        return None
    document = latest[int(number) - 1]
    opened = document_name(document, dict(shown)[document])
    return next(d for d, title in reversed(shown) if document_name(d, title) == opened)


def _is_shown(call: Call) -> bool:
    """Whether the policy has seen passages of it, numbered from 1."""
    return bool(call.document_ids) and call.repeat is None


def _shown(situation: Situation) -> Iterator[tuple[str, str]]:
    """Id and normalised title of every passage that the environment has shown, in order."""
    for turn in situation.turns:
        for call in turn.answered:
            yield from zip(call.document_ids, map(normalise_title, call.titles), strict=True)
