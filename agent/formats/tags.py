"""``agent.format=tags``: one long turn of the assistant; calls, results and the answer stand between tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agent.answers import is_blank
from agent.config import AgentConfig
from agent.errors import UserError, one_of
from agent.formats.base import Format, Shown
from agent.formats.calls import Malformed, check
from agent.formats.catalogue import format_class
from agent.formats.chat_template import FIRST as MARK
from agent.formats.chat_template import opened, own_end, template_options
from agent.prompts import tag_prompt
from agent.protocol import PROTOCOLS, Action, TagProtocol
from agent.records import SEARCH, Finish
from agent.tokens import TokenCodec
from agent.tools.base import Request, Tool
from agent.tools.catalogue import tool_classes


def tags_of(config: AgentConfig) -> TagProtocol:
    """The tags of ``config.protocol``, and of ``config.tools``.

    Raises ``UserError`` for what isn't there, and for the shipped prompt that tells of a search where there is none.
    """
    one_of(config.protocol, PROTOCOLS, "agent.protocol")
    tools = tool_classes(config.tools)
    if not format_class(config.format).in_tags:
        return PROTOCOLS[config.protocol]
    protocol = PROTOCOLS[config.protocol].with_tools(tools)
    if config.prompt == "instruct" and all(tool.name != SEARCH for tool in tools):
        raise UserError(
            "agent.prompt=instruct tells of a search, and agent.tools has none; say in a prompt of your own how the "
            "tools are used: agent.prompt=FILE"
        )
    return protocol


class TagFormat(Format):
    """A tag protocol over one tokenizer.

    Our tags, our notices and untrusted text are encoded apart, so their tokens never merge.
    """

    in_tags = True

    def __init__(self, codec: TokenCodec, config: AgentConfig, tools: Sequence[type[Tool]]) -> None:
        self.protocol = tags_of(config)
        self.marks = self.protocol.tags
        self._codec = codec
        self._chat = codec.has_template if config.chat is None else config.chat
        self.beginning = () if self._chat else codec.beginning
        self._options = template_options(codec, config.thinking) if self._chat else {}
        if config.thinking is not None and not self._chat:
            raise UserError(
                f"agent.thinking={str(config.thinking).lower()} is a switch of a chat template, and none is used "
                "(agent.chat=false); leave agent.thinking out"
            )
        self.end = own_end(codec, self._options) if self._chat else ""
        self.stop = (*self.protocol.stop, self.end) if self.end else self.protocol.stop
        self._most = config.max_parallel
        self._parameters = {tool.name: tool.parameters for tool in tools}
        self._asking = tag_prompt(config, self.protocol, tools)
        self._open = codec.encode(f"\n{self.protocol.result_open}\n")
        self._close = codec.encode(f"\n{self.protocol.result_close}\n")
        if self._chat and self._asking.of(MARK).strip() not in self._rendered(MARK):  # tags, say, as &lt;search&gt;
            raise UserError(
                "this model's chat template leaves out or rewrites what the user says; give its tokenizer one that "
                "shows a message's content as it is, or set agent.chat=false"
            )
        # The answer is one long turn: it is thought about once.
        self.begun = (opened(self.prompt("?")) if self._chat else "", "")

    def prompt(self, question: str) -> str:
        """See ``Format``. With ``agent.chat`` the chat template is around it."""
        return self._rendered(question) if self._chat else self._asking.of(question)

    def _rendered(self, question: str) -> str:
        return self._codec.render([{"role": "user", "content": self._asking.of(question)}], options=self._options)

    def parse(self, text: str, finish: Finish) -> Action:
        """See ``Format``. A turn that closes an action is whole, whatever ended it; an answer without a closing tag of
        its own (``\\boxed{…}``) is whole when the turn has ended by itself.

        With ``agent.max_parallel`` above 1 each line between a tool's tags is a call of its own; the turn still ends
        at the first closing tag.
        """
        said, end, _ = text.partition(self.end) if self.end else (text, "", "")
        action = self.protocol.parse(said)
        if finish is Finish.LENGTH and not end and action.answer is not None and self.protocol.braced_answer:
            return Action()
        try:
            requests = self._each(action.requests)
            check(requests, self._parameters)
        except Malformed as why:
            return Action(malformed=str(why))
        return replace(action, requests=requests)

    def _each(self, requests: Sequence[Request]) -> tuple[Request, ...]:
        """The calls of a turn, which has one or none: a line each where there may be several. Raises ``Malformed``."""
        if self._most == 1 or not requests:
            return tuple(requests)
        (request,) = requests
        lines = [line for line in map(str.strip, request.text.splitlines()) if not is_blank(line)]
        if len(lines) > self._most:
            raise Malformed(f"more than {self._most} calls in one turn")
        (argument,) = request.arguments
        return tuple(Request(tool=request.tool, arguments={argument: line}) for line in lines)

    def observation(self, shown: Sequence[Shown], last: int | None) -> list[int]:
        """See ``Format``: a result block for each."""
        return [id for block in shown for id in (*self._open, *block.ids, *self._close)]

    def written(self, action: str, *, last: bool) -> list[int]:
        """See ``Format``: as it is. A protocol whose answer has no closing tag still needs an end token.

        Raises ``UserError`` for a call of a tool that isn't there: the policy would learn a malformed one.
        """
        for request in self.protocol.parse(action).requests:
            if request.tool not in self._parameters:
                raise UserError(
                    f"agent.tools has no '{request.tool}', which experts and the world's demonstrations call; leave "
                    "them out (data.experts, algorithm.warm_start.steps=0), or give the tool that retrieves this name"
                )
        return self._codec.encode(action)
