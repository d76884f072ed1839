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
