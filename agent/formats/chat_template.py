"""What a tokenizer's chat template puts around messages, learned from how it renders a few that we can find again.

A template is a program; it is run once per tokenizer, on marks in the place of real texts::

    prompt │ ASSISTANT ◄──lead──► RESULT 1 ◄──middle──► RESULT 2 ◄──tail──► (the next turn)

``lead`` begins with the token that ends the assistant's turn. What an episode appends after a turn is ``lead``, the
results with ``middle`` between them, and ``tail``: exactly what the template would put there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from agent.errors import UserError, shortened
from agent.protocol import THINK
from agent.tokens import TokenCodec
from agent.tools.base import Request

Message = dict[str, Any]
ASSISTANT, FIRST, SECOND = "ASSISTANT-mark", 'mark-1 "quoted"\nélan', 'mark-2 "quoted"\nélan'
ESCAPES: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: json.dumps(text)[1:-1],
)
"""How a template may write a result: as it is, or inside a JSON string (Llama 3)."""
DAY = datetime(2024, 7, 26)
"""A template that names the day (Llama 3) gets this one, so that a prompt is the same tomorrow."""
WHERE = "agent.format=tools"
ASKED: tuple[Message, ...] = ({"role": "user", "content": "?"},)
"""A conversation that is rendered to see what a template does."""
SAMPLE = Request(tool="search", arguments={"query": "?"})
"""A call that is rendered to see how a template writes one."""


def template_options(codec: TokenCodec, thinking: bool | None) -> dict[str, Any]:
    """Variables that a chat template is rendered with. Raises ``UserError`` for ``thinking`` given to a template
    without such a switch."""
    found: dict[str, Any] = {"date_string": DAY.strftime("%d %b %Y"), "strftime_now": DAY.strftime}
    if thinking is None:
        return found
    if codec.render(ASKED, options=found | {"enable_thinking": True}) == codec.render(
        ASKED, options=found | {"enable_thinking": False}
    ):
        raise UserError(
            f"agent.thinking={str(thinking).lower()}, but this model's chat template has no switch for it; "
            "leave agent.thinking out"
        )
    return found | {"enable_thinking": thinking}


def own_end(codec: TokenCodec, options: Mapping[str, Any]) -> str:
    """The special token that ends the assistant's turn in the chat template, where the model's end token is another
    one, as a base model's is; else nothing. No turn is to go on behind it: there the policy invents its user's next."""
    try:
        shown = codec.render([*ASKED, {"role": "assistant", "content": ASSISTANT}, *ASKED], options=options)
    except UserError:  # one for a single message
        return ""
    return beyond_eos(codec, _end(codec, shown.partition(ASSISTANT)[2]))


def beyond_eos(codec: TokenCodec, end: str) -> str:
    """The token ``end``, unless the engine stops on it by itself."""
    return end if end and codec.encode(end)[-1] not in codec.eos_ids else ""


def opened(before: str) -> str:
    """The tag of a thought that ``before``, what stands before a turn, has opened; or nothing."""
    return THINK if before.rstrip().endswith(THINK) else ""


def _end(codec: TokenCodec, after: str) -> str:
    """The special token that ``after``, what follows a turn, begins with; or nothing."""
    return max((token for token in codec.special_tokens if after.startswith(token)), key=len, default="")


class ChatTemplate:
    """A chat template with ``tools`` (JSON schemas; none if it isn't to describe them), as an episode needs it.

    Raises ``UserError`` for a template that can't be used: one that fails, that shows no results, or whose turns don't
    end with a special token; and for ``thinking`` given to a template without such a switch.
    """

    def __init__(self, codec: TokenCodec, tools: Sequence[Mapping[str, Any]], thinking: bool | None) -> None:
        self._codec = codec
        self._options = template_options(codec, thinking)
        self._tools: Sequence[Mapping[str, Any]] = tools
        self.native = bool(tools) and self._takes(tools)
        """Whether the template itself describes the tools, and takes their results. Otherwise the system prompt has to
        describe them, and results are the user's messages."""
        if not self.native:
            self._tools = ()
        self._system = self._takes_a_system_prompt()
        self._learn()

    def _takes(self, tools: Sequence[Mapping[str, Any]]) -> bool:
        """Whether it describes ``tools`` and renders a result. Some fail for any tool, and Mistral's for a result that
        doesn't name the id of its call."""
        turn = [*ASKED, {"role": "assistant", "content": ASSISTANT}, {"role": "tool", "content": FIRST}]
        try:
            shown, answered = (self._codec.render(m, tools=tools, options=self._options) for m in (ASKED, turn))
        except UserError:
            return False
        plain = self._codec.render(ASKED, options=self._options)
        return tools[0]["function"]["name"] in shown and shown != plain and bool(answered)

    def _takes_a_system_prompt(self) -> bool:
        mark = "SYSTEM-mark"
        try:
            return mark in self.render([{"role": "system", "content": mark}, {"role": "user", "content": "?"}])
        except UserError:
            return False

    def render(self, messages: Sequence[Message]) -> str:
        """``messages`` as the template renders them, up to where the assistant starts."""
        return self._codec.render(messages, tools=self._tools, options=self._options)

    def opening(self, system: str, question: str) -> list[Message]:
        """The messages before the first turn. A template without a system prompt gets it in the user's message."""
        if not system:
            return [{"role": "user", "content": question}]
        if self._system:
            return [{"role": "system", "content": system}, {"role": "user", "content": question}]
        return [{"role": "user", "content": f"{system}\n\n{question}"}]

    def results(self, texts: Sequence[str]) -> list[Message]:
        """The messages that hold the results of a turn."""
        if self.native:
            return [{"role": "tool", "content": text} for text in texts]
        blocks = "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in texts)
        return [{"role": "user", "content": blocks}]

    def _learn(self) -> None:
        start = self.opening("", "?")
        turn = [*start, {"role": "assistant", "content": ASSISTANT}]
        prompt = self.render(start)
        try:
            one, two = (self.render([*turn, *self.results(texts)]) for texts in ([FIRST], [FIRST, SECOND]))
        except UserError as error:
            raise UserError(
                f"{WHERE}: {self.family}'s chat template takes no turns with results "
                f"({shortened(error.__cause__ or error)}); set agent.format=tags"
            ) from error
        at = one.find(ASSISTANT)
        self.escape = next((e for e in ESCAPES if e(FIRST) in one and e(SECOND) in two), ESCAPES[0])
        first, second = self.escape(FIRST), self.escape(SECOND)
        if at < 0 or first not in one or second not in two:
            raise UserError(
                f"{WHERE}: {self.family}'s chat template shows no turns with results; set agent.format=tags"
            )
        self.lead, self.tail = one[at + len(ASSISTANT) : one.index(first)], one[one.index(first) + len(first) :]
        self.middle = two[two.index(first) + len(first) : two.index(second)]
        self.end: str = _end(self._codec, self.lead)
        """The special token that ends the assistant's turn."""
        if not self.end:
            raise UserError(
                f"{WHERE}: turns in {self.family}'s chat template don't end with a special token; set agent.format=tags"
            )
        head = one[:at]
        self.dropped = prompt.removeprefix(head) if prompt.startswith(head) else ""
        """Text that the template puts before a turn that is being written, and drops afterwards; usually nothing."""
        self.added = head.removeprefix(prompt) if head.startswith(prompt) else ""
        """Text that it puts before a turn only afterwards; usually nothing."""
        self.written_as = self._sample(len(head))

    def _sample(self, head: int) -> str:
        """How the template writes the call ``SAMPLE``: a rendering from there on, or nothing if it can't."""
        function = {"name": SAMPLE.tool, "arguments": dict(SAMPLE.arguments)}
        call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        try:
            return self.render([*self.opening("", "?"), call])[head:]
        except UserError:
            return ""

    def after_turn(self, texts: Sequence[str]) -> str:
        """What follows a turn: its end token, ``texts`` as results, and the beginning of the next turn."""
        return self.lead + self.middle.join(map(self.escape, texts)) + self.tail

    @property
    def family(self) -> str:
        """What kind of model this is, judging by its template; for messages."""
        shown = self._codec.render(ASKED, options=self._options)
        if "<|start_header_id|>" in shown:
            return "Llama 3"
        if "<|im_start|>" in shown:
            return "Qwen3" if THINK in self._codec.special_tokens else "ChatML"
        return "this model"
