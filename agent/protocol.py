"""Tag protocols: how the policy asks and answers between tags, and how results are marked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.answers import is_blank
from agent.errors import UserError
from agent.records import SEARCH
from agent.tools.base import Request, Tool

VERSION = 2
"""Of how an answer is taken out of a turn: raised with every change of it, and recorded with every result."""
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|emph|mbox|mathrm|mathbf|mathit)\s*\{([^{}]*)\}"
)
_BRACE = re.compile("[{}]")
_ESCAPED = re.compile(r"\\([&%$#_{} ])")
THINK, THOUGHT_END = "<think>", "</think>"
"""What models write around their thoughts."""
NO_RESULTS = "No passage matches this query."


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """What one turn of the policy asks for: requests of tools, an answer, or nothing valid."""

    requests: tuple[Request, ...] = ()
    answer: str | None = None
    malformed: str = ""
    """Why a turn that closes an action is none, in words of ours."""

    def check(self) -> None:
        """Raises ``TypeError`` for an action that isn't made of these: a format of the user's own gives it."""
        if not isinstance(self.requests, tuple) or not all(isinstance(each, Request) for each in self.requests):
            raise TypeError("an Action's requests must be a tuple of agent.tools.base.Request")
        if not isinstance(self.answer, str | None) or not isinstance(self.malformed, str):
            raise TypeError("an Action's answer must be a text or None, and malformed a text")
        for request in self.requests:
            _ = request.text  # arguments that JSON hasn't couldn't be recorded

    @property
    def query(self) -> str | None:
        """What it searches for first, or None."""
        return next((r.text for r in self.requests if r.tool == SEARCH), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolTags:
    """The tags of one tool, and the argument that is written between them."""

    tool: str
    argument: str
    opening: str
    closing: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TagProtocol:
    """One set of tags.

    ``answer_close`` of ``}`` means a brace-balanced answer as in ``\\boxed{…}``: it can't be a stop
    string, so such an answer is read when the policy ends its turn.
    """

    name: str
    search_open: str
    search_close: str
    result_open: str
    result_close: str
    answer_open: str
    answer_close: str
    result_label: str
    others: tuple[ToolTags, ...] = ()
    """Tags of tools other than the search."""
    search_argument: str = "query"
    """What the search's tool calls the text between its tags."""

    @property
    def calls(self) -> tuple[ToolTags, ...]:
        """The tags of all tools, the search first."""
        search = ToolTags(
            tool=SEARCH, argument=self.search_argument, opening=self.search_open, closing=self.search_close
        )
        return (search, *self.others)

    @property
    def tags(self) -> tuple[str, ...]:
        """The strings that no untrusted text may contain."""
        tags = (self.search_open, self.search_close, self.result_open, self.result_close, self.answer_open)
        others = (tag for call in self.others for tag in (call.opening, call.closing))
        return (*tags, *(() if self.braced_answer else (self.answer_close,)), *others)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Opening and closing tags that a well-formed text has as many of."""
        pairs = [*((call.opening, call.closing) for call in self.calls), (self.result_open, self.result_close)]
        return tuple(pairs) if self.braced_answer else (*pairs, (self.answer_open, self.answer_close))

    @property
    def braced_answer(self) -> bool:
        return self.answer_close == "}"

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end the policy's turn."""
        calls = tuple(call.closing for call in self.calls)
        return calls if self.braced_answer else (*calls, self.answer_close)

    def with_tools(self, tools: Sequence[type[Tool]]) -> TagProtocol:
        """This protocol, and the tags ``<name>…</name>`` of ``tools`` other than the search.

        Raises ``UserError`` for a tool with several arguments, or whose tags have another meaning here.
        """
        others, search_argument = [], self.search_argument
        for tool in tools:
            if len(tool.parameters) != 1 or next(iter(tool.parameters.values()))["type"] != "string":
                raise UserError(
                    f"agent.tools: '{tool.name}' takes other arguments than one text, which no tag can hold; set "
                    "agent.format=tools"
                )
            (argument,) = tool.parameters
            if tool.name == SEARCH:
                search_argument = argument
                continue
            tags = ToolTags(
                tool=tool.name,
                argument=argument,
                opening=f"<{tool.name}>",
                closing=f"</{tool.name}>",
            )
            if {tags.opening, tags.closing} & {*self.tags, THINK, THOUGHT_END}:
                raise UserError(
                    f"agent.tools: the tags of '{tool.name}' have another meaning in agent.protocol={self.name}; "
                    "rename the tool"
                )
            others.append(tags)
        return replace(self, others=tuple(others), search_argument=search_argument)

    def parse(self, text: str) -> Action:
        """The action that ends ``text``, the policy's whole turn.

        The turn ends at the first closing tag; what follows it is the rest of the last token. A
        closing tag without its opening one, or an empty call, is no action.
        """
        closes = {tag: at for tag in self.stop if (at := text.find(tag)) >= 0}
        if closes:
            tag = min(closes, key=lambda t: closes[t])
            call = next((call for call in self.calls if call.closing == tag), None)
            opening = self.answer_open if call is None else call.opening
            start = text.rfind(opening, 0, closes[tag])
            if start < 0:
                return Action(malformed="a closing tag without its opening tag")
            content = text[start + len(opening) : closes[tag]].strip()
            if call is None:
                return Action(answer=content)
            if is_blank(content):
                return Action(malformed="a call with nothing in it")
            return Action(requests=(Request(tool=call.tool, arguments={call.argument: content}),))
        box = self.last_box(text) if self.braced_answer else None
        return Action() if box is None else Action(answer=_without_latex(text[slice(*box)]))

    def last_box(self, text: str) -> tuple[int, int] | None:
        """Where the content of the last balanced ``answer_open … }`` after all thoughts begins and ends, or None."""
        said = text.rfind(THOUGHT_END) + 1
        if text.find(THINK, said) >= 0:
            return None
        last: tuple[int, int] | None = None
        opened: list[int] = []  # where the content begins of each brace that is open
        for brace in _BRACE.finditer(text, said):
            if brace[0] == "{":
                opened.append(brace.end())
                continue
            begin = opened.pop() if opened else 0
            if text.endswith(self.answer_open, said, begin) and (last is None or begin > last[0]):
                last = begin, brace.start()
        return last


def _without_latex(content: str) -> str:
    r"""The text of a box, which LaTeX reads as mathematics, so that models write words with a command for text.

    >>> _without_latex(r"\text{Marks \& \textbf{Spencer}}")
    'Marks & Spencer'
    """
    changes = 1
    while changes:
        content, changes = _TEXT_COMMAND.subn(r"\1", content)
    return _ESCAPED.sub(r"\1", content).strip()


PROTOCOLS = {
    p.name: p
    for p in (
        TagProtocol(
            name="search",
            search_open="<search>",
            search_close="</search>",
            result_open="<result>",
            result_close="</result>",
            answer_open="<answer>",
            answer_close="</answer>",
            result_label="Result",
        ),
        TagProtocol(
            name="search_r1",
            search_open="<search>",
            search_close="</search>",
            result_open="<information>",
            result_close="</information>",
            answer_open="<answer>",
            answer_close="</answer>",
            result_label="Doc",
        ),
        TagProtocol(
            name="autocoa",
            search_open="<begin_search>",
            search_close="</end_search>",
            result_open="<search_result>",
            result_close="</search_result>",
            answer_open="\\boxed{",
            answer_close="}",
            result_label="result",
        ),
    )
}
