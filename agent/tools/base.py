"""What a tool is: a name, a signature, and a call that answers a request of the policy."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

from agent.config import AgentConfig, SelectivityConfig
from agent.records import Call, Passage, Repeat, StopReason, Turn


class Searcher(Protocol):
    """The retriever, as tools see it. What it is asked is a text, and a number of passages of at least 1 and, in a run,
    at most 1000; it raises ``TypeError`` or ``ValueError`` for anything else."""

    async def search(self, query: str, k: int) -> tuple[Passage, ...]:
        """The top ``k`` passages, possibly none. Raises ``RetrievalError`` when it can't tell."""

    async def following(self, document_id: str, k: int) -> tuple[Passage, ...]:
        """The at most ``k`` passages that come after this one in the same document; none at its end.

        Raises ``RetrievalError`` when it can't tell, and for an id that isn't there: what the policy names may be
        none, and what was shown (``Situation.turns``) is one.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the policy asks of a tool.

    >>> Request(tool="search", arguments={"query": "Emma"}).text
    'Emma'
    """

    tool: str
    arguments: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The arguments as one text: the only one as it is, several as JSON."""
        values = list(self.arguments.values())
        if len(values) == 1 and isinstance(values[0], str):
            return values[0]
        return json.dumps(dict(self.arguments), ensure_ascii=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a tool gives for one request. The policy is shown the first of ``notice``, ``text`` and ``passages``."""

    passages: tuple[Passage, ...] = ()
    """What was retrieved. It counts as evidence once the turn is answered, also where ``text`` or ``notice`` stands for
    it: a tool that lays its passages out by itself gives both."""
    text: str | None = None
    """What a tool found out, in its own words. It isn't trusted: tags in it are broken. It is cut at
    ``agent.max_passage_chars`` characters, as a passage is; beside passages, at so many for each."""
    notice: str = ""
    """A remark of ours. It is trusted: nothing from outside may be in it."""
    refused: bool = False
    """The tool did nothing, since a limit of its own is reached."""
    repeat: Repeat | None = None
    stop: StopReason | None = None
    """A reason to end the episode, which shows nothing then: neither an answer nor a fault, since a fault is raised."""

    def unseen(self) -> Result:
        """This result where the policy never gets to see it: without its passages, which are no evidence then."""
        return replace(self, passages=(), repeat=None)

    def call(self, request: Request) -> Call:
        """The record of ``request`` and of this result."""
        return Call(
            tool=request.tool,
            argument=request.text,
            document_ids=tuple(p.id for p in self.passages),
            titles=tuple(p.title for p in self.passages),
            refused=self.refused,
            repeat=self.repeat,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """Where an episode stands when a tool is called. Tools keep nothing of an episode: all they need is here."""

    turns: Sequence[Turn]
    """The turns before this one, each with its calls."""
    before: tuple[Request, ...] = ()
    """What the same turn asks of the same tool before this request; its result isn't known yet."""
    max_searches: int
    """The episode's limit of searches."""
    selectivity: SelectivityConfig = field(default_factory=SelectivityConfig)

    def calls(self, tool: str) -> list[Call]:
        """The calls of ``tool`` in earlier turns, in their order."""
        return [call for turn in self.turns for call in turn.calls if call.tool == tool]


class Tool(ABC):
    """One tool of a run, shared by all of its episodes.

    A tool of your own is a subclass in a file of ``agent/tools/``, or anywhere, named by its import path in
    ``agent.tools`` (``my_package.tools:MyTool``).
    """

    name: ClassVar[str]
    """A word of small letters, digits and underscores. Also the tag in the tag protocols: ``<name>…</name>``."""
    description: ClassVar[str]
    """A sentence or two for the policy: what it does, and what comes back."""
    parameters: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Its arguments by name, each a JSON schema with ``type`` and ``description``; all are required.

    Calls are checked by ``type`` and ``enum``, and a text without one may not be blank. What else it says, the policy
    reads, and the tool answers what doesn't fit with a notice. With ``agent.format=tags`` the policy reads the
    argument's name alone.
    """

    def __init__(self, config: AgentConfig, searcher: Searcher) -> None:
        """Made once in each rollout worker."""
        self.config = config
        self.searcher = searcher

    @abstractmethod
    async def call(self, request: Request, situation: Situation) -> Result:
        """Answers one request, whose arguments are those of ``parameters``, each of its type and one of its ``enum``.

        The requests of one turn are answered concurrently. Raises ``ToolError`` where something broke: the
        trajectory is then excluded from its group, since that says nothing about the policy.
        """
