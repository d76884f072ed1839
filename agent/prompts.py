"""What a question's prompt says: the shipped texts, and how placeholders are filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from agent.config import AgentConfig
from agent.protocol import TagProtocol
from agent.records import SEARCH
from agent.tools.base import Tool

PROMPTS = {
    "plain": "Question: {question}\n",
    "instruct": (
        "Answer the question below. You can look things up in a document collection: write "
        "{search_open} a short query {search_close} and the best passages come back between {result_open} "
        "and {result_close}.{more} Think before each search about what is still missing, search once for each "
        "missing fact, and don't repeat a query. When the passages support an answer, write it, as short "
        "as possible, as {answer_open}the answer{answer_close}.\n\nQuestion: {question}\n"
    ),
}
"""By name, for ``agent.format=tags``: ``plain`` leaves the tags to what the model has learned."""
SYSTEM_PROMPTS = {
    "plain": "",
    "instruct": (
        "Answer the user's question. Look up what you don't know with the tools. Think before each call about what is "
        "still missing, search once for each missing fact, and don't repeat a query.{parallel} When the results "
        "support an answer, write it, as short as possible, as {answer_open}the answer{answer_close}."
    ),
}
"""The same for ``agent.format=tools``; the question is the user's message."""
_CALLS = (
    'To call a tool, write <tool_call>\n{"name": the tool\'s name, "arguments": an object with its arguments}\n'
    "</tool_call> and end your turn. The result comes back between <tool_response> and </tool_response>."
)
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def fill(template: str, values: Mapping[str, str]) -> str:
    """``template`` with each ``{name}`` of ``values`` in its place, once; all other braces stay.

    >>> fill("{a} is not {b}, {c}", {"a": "{b}", "b": "x"})
    '{b} is not x, {c}'
    """
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)


def tag_prompt(config: AgentConfig, protocol: TagProtocol, tools: Sequence[type[Tool]]) -> str:
    """The prompt of ``agent.format=tags`` with all but the question filled in."""
    names = ("search_open", "search_close", "result_open", "result_close", "answer_open", "answer_close")
    values = {name: getattr(protocol, name) for name in names}
    return fill(PROMPTS[config.prompt], {**values, "more": _more(config, protocol, tools)})


def _more(config: AgentConfig, protocol: TagProtocol, tools: Sequence[type[Tool]]) -> str:
    """What there is to say of several queries at once, and of tools other than the search."""
    most = config.max_parallel
    parallel = f" You can write up to {most} queries at once, each on a line of its own." if most > 1 else ""
    tags = {call.tool: call for call in protocol.calls}
    return parallel + "".join(
        f" You can also write {tags[tool.name].opening} {tags[tool.name].argument} {tags[tool.name].closing}: "
        f"{tool.description}"
        for tool in tools
        if tool.name != SEARCH
    )


def described_tools(schemas: Sequence[str]) -> str:
    """Tools, given as JSON schemas, for a system prompt whose chat template doesn't describe them."""
    listed = "\n".join(schemas)
    return f"These tools are there:\n<tools>\n{listed}\n</tools>\n{_CALLS}"


def tools_prompt(config: AgentConfig, protocol: TagProtocol, described: str, *, native: bool) -> tuple[str, str]:
    """System prompt and user's message of ``agent.format=tools``, with all but ``{question}`` filled in.

    ``described`` is what there is to say of the tools; with ``native`` the chat template says it.
    """
    most = config.max_parallel
    parallel = f" You can make up to {most} calls at once." if most > 1 else ""
    values = {"answer_open": protocol.answer_open, "answer_close": protocol.answer_close, "parallel": parallel}
    system = fill(SYSTEM_PROMPTS[config.prompt], values)
    if not native:
        system = f"{system}\n\n{described}".strip()
    return system, "{question}"
