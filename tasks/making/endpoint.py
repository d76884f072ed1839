"""A client of an OpenAI-compatible endpoint that waits for trouble that may pass."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from agent.errors import Fault, shortened
from agent.readable import json_of
from retrieval_service.address import sent_on
from retrieval_service.environment import reached
from retrieval_service.retry import PASSING, retry_after_s

if TYPE_CHECKING:
    import httpx

LONGEST_PAUSE_S = 60.0
COMPLETIONS = "/chat/completions"
TOO_LARGE = frozenset({400, 413, 422})
_FULL = re.compile(r"context[ _](length|size|window)", re.IGNORECASE)
"""In what OpenAI, vLLM, SGLang and llama.cpp answer to more than the context holds."""


class EndpointError(Fault):
    """The endpoint gave no completion. ``code`` is its HTTP code; None if it gave none."""

    def __init__(self, message: str, code: int | None = None, *, full: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.full = full
        """Whether it says that the messages don't fit the model's context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a model said, and why it stopped: ``stop``, ``length``, …"""

    text: str
    finish: str
    tokens: int = 0
    """That the model has generated; 0 where the endpoint doesn't say."""
    stopped_by: str | None = None
    """The stop string that ended it, "" for none of them; None where the endpoint doesn't say (vLLM does)."""


class Endpoint:
    """``async with Endpoint(…) as endpoint: await endpoint.chat(messages, temperature=0)``.

    ``url`` goes up to and without ``/chat/completions``. Trouble that may pass is waited for: ``tries`` tries, with
    ``pause_s`` seconds before the second one and twice as long before each later one, or what Retry-After says.
    """

    def __init__(
        self, url: str, model: str, *, key: str = "", timeout_s: float = 30.0, tries: int = 3, pause_s: float = 1.0
    ) -> None:
        self._url = f"{url.rstrip('/')}{COMPLETIONS}"
        self._model = model
        self._key = key
        self._timeout_s = timeout_s
        self._tries = tries
        self._pause_s = pause_s
        self.answered = 0
        """Completions so far."""

    async def __aenter__(self) -> Endpoint:
        import httpx

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.AsyncClient(
            **reached(self._url),
            timeout=httpx.Timeout(self._timeout_s, pool=None),
            limits=httpx.Limits(max_connections=None),  # who asks knows how many requests are open
            headers=headers,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def chat(self, messages: Sequence[Mapping[str, str]], **settings: Any) -> Reply:
        """The reply to ``messages``. Raises ``EndpointError``."""
        import httpx

        body = {"model": self._model, "messages": [*map(dict, messages)], **settings}
        pause = self._pause_s
        for attempt in range(self._tries):
            last, asked = attempt == self._tries - 1, 0.0
            try:
                response = await self._client.post(self._url, json=body)
            except httpx.HTTPError as error:
                if last or not isinstance(error, httpx.TransportError):
                    raise EndpointError(f"{self._url}: {type(error).__name__}: {shortened(error)}") from error
            else:
                told = _parsed(response)
                code = _code(response, told)
                if last or code not in PASSING:
                    return self._read(response, told, code, settings.get("stop", ()))
                asked = retry_after_s(response.headers)
            await asyncio.sleep(min(max(pause, asked), LONGEST_PAUSE_S))
            pause = min(2 * pause, LONGEST_PAUSE_S)  # not 2**attempt, which no float holds for ever
        raise AssertionError("unreachable")

    def _read(self, response: httpx.Response, told: Any, code: int, stop: Sequence[str]) -> Reply:
        said = _said(response)
        shown = " ".join(said[:80].split())
        if code != 200:
            full = code in TOO_LARGE and _FULL.search(said) is not None
            within = f" with the error {code}" if code != response.status_code else ""
            what = f"HTTP {response.status_code} {response.reason_phrase}{within}: {_why(response, told)!r}"
            what += sent_on(response.headers)
            raise EndpointError(f"{self._url}: {what}", code, full=full)
        try:
            choice = told["choices"][0]
            text, finish = _text(choice), choice.get("finish_reason")
        except (LookupError, TypeError, AttributeError) as error:
            raise EndpointError(f"{self._url}: the reply is no chat completion: {shown!r}", code) from error
        if not isinstance(text, str):
            raise EndpointError(f"{self._url}: the reply has no text: {shown!r}", code)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise EndpointError(f"{self._url}: the reply's text has half a surrogate pair: {shown!r}", code) from error
        if not finish:
            raise EndpointError(f"{self._url}: the reply has no finish_reason: it was cut: {shown!r}", code)
        self.answered += 1
        return Reply(text=text, finish=finish, tokens=_tokens(told), stopped_by=_stopped_by(choice, stop))


def _said(response: httpx.Response) -> str:
    """The reply as text, whatever character set it says that it has: httpx raises where it isn't true."""
    return response.content.decode(errors="replace")


def _parsed(response: httpx.Response) -> Any:
    """The reply as JSON; None if it is none."""
    try:
        return json_of(response.content)
    except ValueError:
        return None


def _code(response: httpx.Response, told: Any) -> int:
    """Its HTTP code. Of an error inside HTTP 200, as routers send it, the code that stands there; 502 without one."""
    error = None if response.status_code != 200 else _error(told)
    if error is None:
        return response.status_code
    try:
        code = int(error["code"])
    except (ValueError, LookupError, TypeError, OverflowError):
        return 502
    return code if 400 <= code < 600 else 502


def _error(told: Any) -> Any:
    """What the reply, or its choice, calls its error; None for none."""
    try:
        if told.get("error"):
            return told["error"]
        choice = told["choices"][0]
        return choice.get("error") or ("error" if choice.get("finish_reason") == "error" else None)
    except (LookupError, TypeError, AttributeError):
        return None


def _why(response: httpx.Response, told: Any) -> str:
    """What the endpoint says of a request that it refuses: its message, or how its reply begins."""
    try:
        said = _error(told)["message"]
    except (LookupError, TypeError):
        said = None
    return " ".join((said if isinstance(said, str) else _said(response)[:80]).split())[:300]


def _text(choice: Mapping[str, Any]) -> Any:
    """What the model said. Nothing, where a parser of thoughts gave them all another place: they never ended. Of parts,
    as Mistral's thinking models have them, those that are text."""
    message = choice["message"]
    said = message["content"]
    if isinstance(said, list):
        said = "".join(part["text"] for part in said if part["type"] == "text") or None
    elsewhere = any(message.get(key) for key in ("tool_calls", "function_call", "refusal"))
    return "" if said is None and choice.get("finish_reason") in ("stop", "length") and not elsewhere else said


def _tokens(told: Mapping[str, Any]) -> int:
    """See ``Reply``. A count that is no number is none, and the reply is as good without it."""
    try:
        return max(0, int(told["usage"]["completion_tokens"]))
    except (ValueError, LookupError, TypeError, OverflowError):
        return 0


def _stopped_by(choice: Mapping[str, Any], stop: Sequence[str]) -> str | None:
    """See ``Reply``. vLLM's is one of ``stop``, a token's id, or null for the end token; any other text is another
    server's, and tells nothing of a tag."""
    if "stop_reason" not in choice:
        return None
    told = choice["stop_reason"]
    if isinstance(told, str):
        return told if told in stop else None
    return ""
