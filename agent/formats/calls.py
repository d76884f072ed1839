"""How models write calls of tools in their own formats, and how that is read."""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from agent.answers import is_blank
from agent.readable import each_once, json_of
from agent.tools.base import Request
from agent.tools.catalogue import fits


class Malformed(ValueError):
    """A text that was meant as a call and is none; says why, in words of ours."""


class CallStyle(ABC):
    """One way to write calls."""

    how: ClassVar[str]
    """The same in words, for a prompt."""

    @abstractmethod
    def read(self, text: str) -> list[Request]:
        """The calls in a turn's ``text``, thoughts aside; none if it has none. Raises ``Malformed``."""

    @abstractmethod
    def write(self, request: Request) -> str:
        """A call as the model writes it."""


class TaggedCalls(CallStyle):
    """``<tool_call>{"name": …, "arguments": …}</tool_call>``: Qwen2.5, Qwen3, Hermes, and our fallback.

    >>> TaggedCalls().read('So <tool_call>{"name": "search", "arguments": {"query": "Emma"}}</tool_call>')
    [Request(tool='search', arguments={'query': 'Emma'})]
    """

    how = (
        'To call a tool, write <tool_call>\n{"name": the tool\'s name, "arguments": an object with its arguments}\n'
        "</tool_call> and end your turn. The result comes back between <tool_response> and </tool_response>."
    )
    _OPEN, _CLOSE = "<tool_call>", "</tool_call>"

    def read(self, text: str) -> list[Request]:
        """See ``CallStyle``."""
        bodies, rest, at = [], [], 0
        while (start := text.find(self._OPEN, at)) >= 0 and (end := text.find(self._CLOSE, start)) >= 0:
            bodies.append(text[start + len(self._OPEN) : end])
            rest.append(text[at:start])
            at = end + len(self._CLOSE)
        other = "".join([*rest, text[at:]])
        if self._OPEN in other or self._CLOSE in other:
            raise Malformed("a call with one of its two tags missing")
        return [_request(_loaded(body), "arguments") for body in bodies]

    def write(self, request: Request) -> str:
        """See ``CallStyle``."""
        call = {"name": request.tool, "arguments": dict(request.arguments)}
        return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


class JsonCalls(CallStyle):
    """A turn that ends in ``{"name": …, "parameters": …}``, or in several with ``;`` between them: Llama 3.

    As other readers of this format do, we take the keys in any order, ``arguments`` for ``parameters``, a fence around
    the call and words before it.

    >>> JsonCalls().read('{"name": "search", "parameters": {"query": "Emma"}}')
    [Request(tool='search', arguments={'query': 'Emma'})]
    """

    how = (
        'To call a tool, write nothing but {"name": the tool\'s name, "parameters": an object with its arguments} and '
        "end your turn. The result comes back in the next message."
    )
    _MARK = "<|python_tag|>"
    _BEGINNING = re.compile(r'\{\s*"(?:name|type|function|parameters|arguments)"\s*:')

    def read(self, text: str) -> list[Request]:
        """See ``CallStyle``. A text without what a call begins with has none."""
        _, mark, body = text.rpartition(self._MARK)
        beginning = self._BEGINNING.search(body)
        if not mark and beginning is None:
            return []
        body = (body if beginning is None else body[beginning.start() :]).strip().removesuffix("```")
        decoder, found = json.JSONDecoder(object_pairs_hook=each_once), []
        while body := body.lstrip(" \n;"):
            try:
                value, end = decoder.raw_decode(body)
            except (ValueError, RecursionError):  # nested too deeply
                raise Malformed("a call that is no valid JSON") from None
            found.append(_request(value, "parameters"))
            body = body[end:]
        return found

    def write(self, request: Request) -> str:
        """See ``CallStyle``."""
        return json.dumps({"name": request.tool, "parameters": dict(request.arguments)}, ensure_ascii=False)


def _loaded(text: str) -> Any:
    try:
        return json_of(text)
    except ValueError:
        raise Malformed("a call that is no valid JSON") from None


def _request(value: Any, key: str) -> Request:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise Malformed("a call without the name of a tool")
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):  # some models quote the object
        arguments = _loaded(arguments)
    if not isinstance(arguments, dict):
        raise Malformed(f"a call without {key}")
    return Request(tool=value["name"], arguments=arguments)


def check(requests: Sequence[Request], parameters: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Raises ``Malformed`` unless each request fits a tool of ``parameters``: each tool's arguments, by its name."""
    for request in requests:
        wanted = parameters.get(request.tool)
        if wanted is None:
            raise Malformed("there is no such tool")
        if request.arguments.keys() != wanted.keys():
            raise Malformed("a call with other arguments than the tool takes")
        for name, schema in wanted.items():
            value = request.arguments[name]
            if not fits(value, schema["type"]):
                raise Malformed("a call whose argument has the wrong type")
            if schema["type"] == "number" and not _is_float(value):
                raise Malformed("a call whose number is none")
            if "enum" in schema:
                if value not in schema["enum"]:
                    raise Malformed("a call whose argument is none of its choices")
            elif isinstance(value, str) and is_blank(value):
                raise Malformed("a call with nothing in it")


def _is_float(number: float) -> bool:
    """Whether a tool can compute with it: Python's reader takes NaN, 1e999 and whole numbers beyond all floats."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False
