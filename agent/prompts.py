"""What a question's prompt says: the shipped texts, a file of the user's own, and how placeholders are filled in.

| placeholder | stands for |
| --- | --- |
| ``{question}`` | the question |
| ``{tools}`` | what each tool does and how it is called |
| ``{answer_open}``, ``{answer_close}`` | the tags of ``agent.protocol`` for an answer |
| ``{search_open}``, ``{search_close}``, ``{result_open}``, ``{result_close}`` | its others, with ``format=tags`` |

With ``agent.format=tags`` a file is the user's message, and needs ``{question}`` and ``{tools}``. With
``agent.format=tools`` it is the system prompt, unless ``{question}`` is in it; it needs ``{tools}`` if the model's chat
template describes no tools. ``{{name}}`` is the text ``{name}``; braces around anything but small letters and
underscores are left alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.config import AgentConfig
from agent.errors import UserError, nearest, one_of
from agent.formats.catalogue import format_class
from agent.paths import at_home
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
_TAGS = ("search_open", "search_close", "result_open", "result_close", "answer_open", "answer_close")
_PLACEHOLDER = re.compile(r"\{(\{[a-z_]+\})\}|\{([a-z_]+)\}")


class OwnPrompt(str):
    """The path of a prompt of the user's own, and the ``text`` that was read from it.

    A run reads the file once: somebody edits it while the run goes on, and a worker on another machine has none.
    """

    text: str


def read_once(config: AgentConfig) -> str:
    """What ``config.prompt`` is to be from now on: the text of a file stays with it. Raises as ``prompt_text``."""
    text = prompt_text(config)
    if config.prompt in _shipped(config):
        return config.prompt
    own = OwnPrompt(config.prompt)
    own.text = text
    return own


def prompt_digest(config: AgentConfig) -> str:
    """A short name of ``prompt_text``, for what is recorded. Raises as that does."""
    return hashlib.blake2b(prompt_text(config).encode(), digest_size=16).hexdigest()


def fill(template: str, values: Mapping[str, str]) -> str:
    """``template`` with each ``{name}`` of ``values`` in its place, once, and ``{name}`` for ``{{name}}``; all other
    braces stay.

    >>> fill("{a} is not {b}, {c} or {{a}}", {"a": "{b}", "b": "x"})
    '{b} is not x, {c} or {a}'
    """
    return _PLACEHOLDER.sub(lambda match: match[1] or values.get(match[2], match[0]), template)


def _names(template: str) -> list[str]:
    """What is to be filled in."""
    return [match[2] for match in _PLACEHOLDER.finditer(template) if match[2]]


def check_placeholders(template: str, known: Sequence[str], where: str) -> None:
    """Raises ``UserError`` that starts with ``where`` for a placeholder that isn't ``known``."""
    for name in _names(template):
        if name not in known:
            raise UserError(
                f"{where}: there is no placeholder {{{name}}}; {nearest(name, known)} (the text {{{name}}} itself is "
                f"written {{{{{name}}}}})"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A template, with ``values`` for all but the question: all is filled in at once, and nothing of it twice."""

    template: str
    values: Mapping[str, str]

    def of(self, question: str) -> str:
        """The prompt for ``question``."""
        return fill(self.template, {**self.values, "question": question})


def tag_prompt(config: AgentConfig, protocol: TagProtocol, tools: Sequence[type[Tool]]) -> Prompt:
    """The prompt of ``agent.format=tags``.

    Raises ``UserError`` as ``prompt_text``.
    """
    values = {name: getattr(protocol, name) for name in _TAGS}
    told = {call.tool: f"{call.opening} {call.argument} {call.closing}" for call in protocol.calls}
    values["tools"] = "\n".join(f"{told[tool.name]}: {tool.description}" for tool in tools)
    return Prompt(template=prompt_text(config), values={**values, "more": _more(config, protocol, tools)})


def prompt_text(config: AgentConfig) -> str:
    """The text that ``agent.prompt`` names, placeholders included, for ``agent.format``.

    Raises ``UserError`` for a name that isn't known, or a file that can't be read, lacks a placeholder or has another.
    """
    tags = format_class(config.format).in_tags
    shipped, where = _shipped(config), f"agent.prompt={config.prompt}"
    if config.prompt in shipped:
        return shipped[config.prompt]
    text = config.prompt.text if isinstance(config.prompt, OwnPrompt) else _read(config.prompt, where, shipped)
    if not text.strip():
        raise UserError(f"{where}: the file is empty")
    check_placeholders(text, ("question", "tools", *(_TAGS if tags else _TAGS[-2:])), where)
    found = _names(text)
    for name in ("question", "tools") if tags else ():
        if name not in found:
            raise UserError(f"{where}: the placeholder {{{name}}} is missing; the prompt has to say it somewhere")
    return text


def _shipped(config: AgentConfig) -> Mapping[str, str]:
    return PROMPTS if format_class(config.format).in_tags else SYSTEM_PROMPTS


def _read(prompt: str, where: str, shipped: Mapping[str, str]) -> str:
    path = at_home(prompt)
    if not path.exists() and not path.suffix and len(path.parts) == 1:
        one_of(prompt, shipped, "agent.prompt")
    try:
        return path.read_text(encoding="utf-8-sig")  # as editors on Windows save it, too
    except (OSError, ValueError) as error:
        what = (error.strerror if isinstance(error, OSError) else None) or "it is no UTF-8 text"
        raise UserError(f"{where}: can't be read ({what}); name one of {', '.join(shipped)}, or a text file") from None


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


def described_tools(schemas: Sequence[str], how: str) -> str:
    """Tools, given as JSON schemas, for a system prompt whose chat template doesn't describe them, and ``how`` they
    are called."""
    listed = "\n".join(schemas)
    return f"These tools are there:\n<tools>\n{listed}\n</tools>\n{how}"


def tools_prompt(config: AgentConfig, protocol: TagProtocol, described: str, *, native: bool) -> tuple[str, Prompt]:
    """System prompt and user's message of ``agent.format=tools``.

    ``described`` is what there is to say of the tools; with ``native`` the chat template says it. Raises ``UserError``
    for a file that leaves the tools out although nobody else describes them.
    """
    most = config.max_parallel
    parallel = f" You can make up to {most} calls at once." if most > 1 else ""
    values = {"answer_open": protocol.answer_open, "answer_close": protocol.answer_close, "parallel": parallel}
    text = prompt_text(config)
    asked = Prompt(template="{question}", values={})
    if config.prompt in SYSTEM_PROMPTS:
        system = fill(text, values)
        return (system if native else f"{system}\n\n{described}".strip()), asked
    found = _names(text)
    if not native and "tools" not in found:
        raise UserError(
            f"agent.prompt={config.prompt}: the placeholder {{tools}} is missing, and this model's chat template "
            "describes no tools"
        )
    own = Prompt(template=text, values={**values, "tools": described})
    return ("", own) if "question" in found else (own.of(""), asked)
