"""``agent.format=tools``: the model's own tool-calling format, through its tokenizer's chat template.

Each turn of the policy is a message of the assistant, each result a message of the tool; what the template puts
between them is appended as observation tokens. Sampled ids are never encoded again: a call is what the model wrote.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from agent.config import AgentConfig
from agent.errors import Fault, UserError
from agent.formats.base import Format, Shown
from agent.formats.calls import CallStyle, JsonCalls, Malformed, TaggedCalls, check
from agent.formats.chat_template import SAMPLE, ChatTemplate, beyond_eos, opened
from agent.formats.tags import tags_of
from agent.neutral import ENCODINGS
from agent.prompts import described_tools, tools_prompt
from agent.protocol import THINK, THOUGHT_END, Action
from agent.records import Finish
from agent.tokens import TokenCodec
from agent.tools.base import Request, Tool

MARKS = tuple(f"<{slash}{name}>" for name in ("tool_call", "tool_response", "tools", "think") for slash in ("", "/"))


class ToolFormat(Format):
    """Raises ``UserError`` for a tokenizer whose chat template can't be used."""

    ends_turns = True

    def __init__(self, codec: TokenCodec, config: AgentConfig, tools: Sequence[type[Tool]]) -> None:
        self.protocol = tags_of(config)
        self._codec = codec
        self._most = config.max_parallel
        self._parameters = {tool.name: tool.parameters for tool in tools}
        schemas = [schema(tool) for tool in tools]
        self._template = ChatTemplate(codec, schemas, config.thinking)
        self._style: CallStyle = TaggedCalls()
        if self._template.native and "<tool_call>" not in self._template.written_as:
            self._style = JsonCalls()
        if self._template.native and not self._reads_the_template():
            self._template, self._style = ChatTemplate(codec, (), config.thinking), TaggedCalls()
        described = described_tools([json.dumps(s, ensure_ascii=False) for s in schemas], self._style.how)
        self._system, self._user = tools_prompt(config, self.protocol, described, native=self._template.native)
        self.stop = (self._template.end,)
        self.end = beyond_eos(codec, self._template.end)
        self.begun = (opened(self.prompt("?")), opened(self._template.tail))
        self.marks = (*MARKS, *self.protocol.tags)
        (self._end,) = codec.encode(self._template.end)
        self._special = [i for i in codec.encode(self._template.after_turn([])) if i in codec.special_ids]
        self._encoded = lru_cache(ENCODINGS)(self._encode)
        self.notices = self._differences()

    def messages(self, question: str) -> list[dict[str, Any]]:
        """The messages of a question's prompt."""
        return self._template.opening(self._system, self._user.of(question))

    def prompt(self, question: str) -> str:
        """See ``Format``."""
        return self._template.render(self.messages(question))

    def parse(self, text: str, finish: Finish) -> Action:
        """See ``Format``.

        A turn is whole when it has ended by itself. One without a call is the answer: what stands between the
        protocol's answer tags if they are there, else all of it. Thoughts (up to ``</think>``) are neither.
        """
        if finish is Finish.LENGTH and self._template.end not in text:
            return Action()
        body = self._body(text)
        if THINK in body:
            return Action()
        try:
            requests = self._style.read(body)
            check(requests, self._parameters)
            if len(requests) > self._most:
                raise Malformed(f"more than {self._most} calls in one turn")
            return Action(requests=tuple(requests)) if requests else Action(answer=self._answer(body))
        except Malformed as why:
            return Action(malformed=str(why))

    def _body(self, text: str) -> str:
        """A turn's text without what ends it, and without its thoughts."""
        body = text.partition(self._template.end)[0]
        for token in self._codec.special_tokens:
            body = body.strip().removesuffix(token) if token not in MARKS else body
        return body.rpartition(THOUGHT_END)[2]

    def _reads_the_template(self) -> bool:
        """Whether a call as the template writes it is read as that call."""
        try:
            return self._style.read(self._body(self._template.written_as)) == [SAMPLE]
        except Malformed:
            return False

    def _answer(self, body: str) -> str | None:
        if self.protocol.answer_open not in body:
            return body.strip() or None
        answer = self.protocol.parse(body[body.rindex(self.protocol.answer_open) :]).answer
        if answer is None:
            raise Malformed("an answer that is not closed")
        return answer

    def observation(self, shown: Sequence[Shown], last: int | None) -> list[int]:
        """See ``Format``. Encoded as one text, as the template's own tokens are; begins with the turn's end token
        unless that was sampled."""
        ids = self._encoded(tuple(block.text.strip() for block in shown))
        return [*ids[1:]] if last == self._end else [*ids]

    def _encode(self, texts: tuple[str, ...]) -> tuple[int, ...]:
        ids = tuple(self._codec.encode(self._template.after_turn(texts)))
        middle = [i for i in self._codec.encode(self._template.middle) if i in self._codec.special_ids]
        if len([i for i in ids if i in self._codec.special_ids]) != len(self._special) + len(middle) * (len(texts) - 1):
            raise Fault(f"this tokenizer makes a special token out of untrusted text: {texts[0][:80]!r}")
        return ids

    def written(self, action: str, *, last: bool) -> list[int]:
        """See ``Format``: the call is written as the model does, and the turn is ended. An expert's thought stays where
        a call may have one before it (Llama 3's may not)."""
        (request,) = self.protocol.parse(action).requests or (None,)
        if request is not None:
            call = next(c for c in self.protocol.calls if c.tool == request.tool)
            thought = action[: action.rindex(call.opening)].strip()
            action = self._style.write(self._as_taken(request))
            if thought and isinstance(self._style, TaggedCalls):
                action = f"{thought}\n{action}"
        return self._codec.encode(action.strip() + self._template.end)

    def _as_taken(self, request: Request) -> Request:
        """An expert's ``request`` with the argument's name of the tool, which may be a search of the user's own.

        Raises ``UserError`` for a tool that doesn't take one text.
        """
        names = [*self._parameters.get(request.tool, ())]
        if len(names) != 1:
            raise UserError(
                f"agent.tools has no '{request.tool}' that takes one text, as experts call it; leave the experts out, "
                "or give the tool one argument"
            )
        return Request(tool=request.tool, arguments={names[0]: request.text})

    def _differences(self) -> tuple[str, ...]:
        """Where an episode isn't what the template makes of the same messages, token for token."""
        question, texts = "Who wrote Emma?", ("No passage matches this query.", "Emma\nis a novel.")
        call = self._style.write(Request(tool="search", arguments={"query": "Emma"}))
        messages, ours = self.messages(question), self._codec.encode(self.prompt(question))
        for number in (1, 2):
            messages += [{"role": "assistant", "content": call}, *self._template.results(texts[:number])]
            turn = self._codec.encode(call + self._template.end)
            shown = [Shown(text=text, ids=()) for text in texts[:number]]
            ours += [*turn, *self.observation(shown, turn[-1])]
        if ours == self._codec.encode(self._template.render(messages)):
            return ()
        dropped, added = self._template.dropped, self._template.added
        what = f"drops {dropped!r} from" if dropped else f"adds {added!r} to" if added else "rewrites"
        return (
            f"{self._template.family}'s chat template {what} earlier turns; an episode keeps every "
            "token as the policy saw and wrote it",
        )


def schema(tool: type[Tool]) -> dict[str, Any]:
    """The tool's signature, as chat templates take it."""
    parameters = {"type": "object", "properties": dict(tool.parameters), "required": [*tool.parameters]}
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }
