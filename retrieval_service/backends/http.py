"""A search service somewhere else, over HTTP, in any dialect of ``retrieval_service/dialects/``.

A request that fails for a reason that may pass (no connection, no answer, ``PASSING``) is sent again after a wait that
doubles, or that the server names; all within ``retrieval.timeout_s``. What remains is a fault: a failed search is
never an empty result, and neither is a reply that isn't one.
"""

from __future__ import annotations

import json
import math
import random
import ssl
import time
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from agent.errors import Fault, RetrievalError, UserError, shortened
from agent.readable import json_of
from agent.records import Passage
from agent.visible import printable
from retrieval_service.address import sent_on
from retrieval_service.backend import Identity, Unavailable, check_same
from retrieval_service.config import RetrievalConfig
from retrieval_service.dialects import dialect
from retrieval_service.environment import trusted
from retrieval_service.retry import PASSING, retry_after_s
from retrieval_service.token import read_token

if TYPE_CHECKING:
    import httpx  # with pydantic an eighth of a command's start: imported where a server is asked

FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 8.0
LOOK_AGAIN_S, LOOK_S = 60.0, 5.0
"""How often a server is asked whether it still searches the same, and how long its answer is waited for: it may have
been started anew, over something else."""
MAX_REPLY = 256 << 20
"""Bytes of a reply that are read."""
TRIAL = "a first one"
"""The query that is asked when the server is opened."""
REDIRECTS = range(300, 400)
DEFINITE = frozenset(range(300, 600)) - PASSING
"""Other statuses than a success: the next request would get the same."""
REMOTE = True
"""See ``retrieval_service/backend.py``."""
OF_THE_REQUEST = frozenset({500, 503})
"""Those of them that a server also gives where one of several queries fails: each is then asked by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reply:
    """What a server has answered."""

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def reason(self) -> str:
        """What a refusal says of itself, in a few words."""
        said = " ".join(self.content[:300].decode(errors="replace").split())
        return f"{said}{sent_on(self.headers)}" if self.status in REDIRECTS else said

    def json(self) -> Any:
        """Raises ``ValueError`` for what is no JSON, with its beginning."""
        try:
            return json_of(self.content)
        except ValueError as error:
            began = f"it begins with {self.reason[:60]!r}" if self.content else "it is empty"
            raise ValueError(f"status {self.status}, no JSON: {error}; {began}") from error


class Http:
    """A ``Backend``: another server's. For one thread.

    Raises ``UserError`` if nothing answers at ``config.url``, or a first search there isn't understood.
    """

    lanes = 2
    device = None

    def __init__(
        self, index: Path | None, config: RetrievalConfig, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        import httpx

        if config.url is None:
            raise UserError("retrieval=http needs retrieval.url=http://HOST:PORT/PATH")
        self._config = config
        self._dialect = dialect(config.dialect)
        # Without lists a query is a request: more than are under way at once would only wait, within the time-out.
        self.most = config.max_batch if self._dialect.batched else config.threads
        self._sleep = sleep
        self._until = math.inf
        self._base, self._url = _addresses(config.url, self._dialect.path)
        token = read_token(config.token_file, "retrieval.token_file")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            limits=httpx.Limits(max_connections=config.threads),
            follow_redirects=False,  # a token isn't carried on to another host
            trust_env=False,  # no proxy, and no password of ~/.netrc in place of the token
            verify=trusted(config.url),
        )
        self._threads = ThreadPoolExecutor(config.threads, "retrieval-http")
        try:
            self._identity = self._look()
            self._look_at = time.monotonic() + LOOK_AGAIN_S
            self._try(1, self._of_dialect())
        except BaseException:
            self.close()
            raise

    def until(self, end: float) -> None:
        """No request goes on after ``end``; see ``Backend``."""
        self._until = end

    def _end(self) -> float:
        """When what is asked now has to be answered."""
        return min(time.monotonic() + self._config.timeout_s, self._until)

    def _look(self) -> Identity:
        """What ``/health`` says, where there is one; any answer that doesn't pass shows that a server is there."""
        try:
            reply = self._ask("GET", f"{self._base}/health", self._end(), also=DEFINITE)
        except RetrievalError as error:
            raise UserError(f"retrieval.url={self._config.url}: {self._no_health(error)}") from error
        self._check_token(reply)
        return self._told(reply)

    def _told(self, reply: _Reply) -> Identity:
        """What an answer of ``/health`` says; the address alone, where that is no server's that says more."""
        try:
            told = reply.json()["index"]
            known = {key: told.get(key) for key in ("name", "documents", "checksum", "analyser")}
            if not _is_identity(known):
                raise ValueError("another program's")
            settings = {key: value for key, value in told.items() if key not in (*known, "backend")}
            settings |= {"url": self._config.url, "dialect": self._config.dialect, "ranked_by": told.get("backend")}
            return Identity(**known, backend="http", settings=settings)
        except (ValueError, KeyError, TypeError, AttributeError):
            return Identity(
                name=self._config.url or "",
                backend="http",
                settings={"url": self._config.url, "dialect": self._config.dialect},
            )

    def _check_same(self) -> None:
        """Raises ``Unavailable`` if something else is searched there by now. Of a server that is busy, isn't there or
        refuses the token the search that follows tells more."""
        import httpx

        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_AGAIN_S
        try:
            reply = self._once("GET", f"{self._base}/health", min(self._end(), time.monotonic() + LOOK_S), {})
        except (httpx.HTTPError, RetrievalError):
            return
        if reply.status in (*PASSING, 401, 403):
            return
        first, now = self._identity, self._told(reply)
        if first.checksum is None:  # another program's: what else it tells may change from one minute to the next
            first, now = replace(first, settings={}), replace(now, settings={})
        try:
            check_same(first, now)
        except Fault as error:
            self._look_at = 0.0  # until it is put back
            raise Unavailable(f"{self._base}: {error}") from error

    def _no_health(self, error: RetrievalError) -> str:
        """Why there is no answer from ``/health``, and what to do."""
        import httpx

        cause = error.__cause__
        if not isinstance(cause, httpx.HTTPError):
            return f"the server isn't ready ({shortened(error)}); start when it is"
        if isinstance(cause, httpx.ReadTimeout):
            return (
                f"it took the connection and hasn't answered within {self._config.timeout_s:g} s "
                f"({type(cause).__name__}); it may still be opening its index: start when it answers, or raise "
                "retrieval.timeout_s"
            )
        what = f"{type(cause).__name__}: {shortened(cause)}"
        if _is_tls(cause):
            return (
                f"no secure connection is made there ({what}); write http:// for a server without TLS, or name its "
                "certificates in SSL_CERT_FILE"
            )
        if isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout):
            return f"no server answers there ({what}); start it first"
        return (
            f"something listens there, but its answer is no HTTP or breaks off ({what}); check HOST and PORT, and "
            "whether it wants https://"
        )

    def _check_token(self, reply: _Reply) -> None:
        if reply.status in (401, 403):
            raise UserError(
                f"retrieval.url={self._config.url}: the server refuses with {reply.status}; give its token with "
                "retrieval.token_file=FILE or SLINGSHOT_RETRIEVAL_TOKEN"
            )

    def check_depth(self, k: int, setting: str) -> None:
        """Raises ``UserError`` that names ``setting`` if no ``k`` passages may be asked for there; see ``Backend``."""
        self._try(k, f"{setting}={k} asks for so many passages of a search; lower it, or raise the server's limit")

    def _try(self, k: int, mend: str) -> None:
        """One search, by which what is wrong is told at once. A server that is busy may do it later."""
        import httpx

        try:
            reply = self._once("POST", self._url, self._end(), self._request([TRIAL], k))
            self._check_token(reply)
            if reply.status in DEFINITE:
                raise RetrievalError(f"{self._url}: status {reply.status}: {reply.reason}")
            if reply.status not in PASSING:
                self._found(reply, 1)
        except httpx.HTTPError:
            return
        except RetrievalError as error:
            first = "a first search" if k == 1 else f"a search for {k} passages"
            raise UserError(f"retrieval.url={self._config.url}: {first} fails ({shortened(error)}); {mend}") from error

    def _of_dialect(self) -> str:
        return f"give the path of searches there, and its dialect in place of retrieval.dialect={self._config.dialect}"

    def identity(self) -> Identity:
        return self._identity

    def search_batch(self, queries: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """One request for all queries, or one for each where the dialect has no lists, ``threads`` at a time."""
        if k < 1:
            raise ValueError(f"k={k}: must be at least 1")
        self._check_same()
        end = self._end()
        if self._dialect.batched:
            return self._search(queries, k, end, len(queries)) if queries else []
        found = self._threads.map(lambda query: self._search([query], k, end, len(queries)), queries)
        return [hits for one in found for hits in one]

    def _search(self, queries: Sequence[str], k: int, end: float, texts: int) -> list[tuple[Passage, ...]]:
        reply = self._ask("POST", self._url, end, texts, **self._request(queries, k))
        return [hits[:k] for hits in self._found(reply, len(queries))]

    def _request(self, queries: Sequence[str], k: int) -> dict[str, Any]:
        queries = [printable(query) for query in queries]  # a server's fault over half a character would be ours
        return {"content": json.dumps(self._dialect.body(queries, k)).encode()}

    def _found(self, reply: _Reply, count: int) -> list[tuple[Passage, ...]]:
        """What a reply to ``count`` queries holds."""
        try:
            found = self._dialect.hits(reply.json())
            if len(found) != count:
                raise ValueError(f"it answers {len(found)} of {count} queries")
            return found
        except ValueError as error:
            raise RetrievalError(
                f"{self._url}: not a reply in the dialect {self._config.dialect} ({error}); see retrieval.dialect"
            ) from error

    def following_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """By ``/document/ID``, which Slingshot's own server has and others don't."""
        found = self.document_batch(document_ids, k + 1)
        for document_id, passages in zip(document_ids, found, strict=True):
            if not passages:
                raise RetrievalError(f"{self._base} has no passage {document_id!r}, or can't say what follows one")
        return [passages[1:] for passages in found]

    def document_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """By ``/document/ID``; a server that has no such path has no passage."""
        end = self._end()
        texts = len(document_ids)
        return list(self._threads.map(lambda name: self._document(name, k, end, texts), document_ids))

    def _document(self, document_id: str, k: int, end: float, texts: int) -> tuple[Passage, ...]:
        from retrieval_service.dialects.base import items, passage_of

        url = f"{self._base}/document/{_quoted(document_id)}"
        reply = self._ask("GET", url, end, texts, params={"following": k - 1}, also=(404,))
        if reply.status == 404:
            return ()
        try:
            told = reply.json()
            passage = passage_of(told)
            if passage.id != printable(document_id):  # as where a proxy has changed the path
                raise ValueError(f"it is {passage.id!r}, and {document_id!r} was asked for")
            return (passage, *map(passage_of, items(told.get("following", []), '"following"')[: k - 1]))
        except (ValueError, AttributeError) as error:
            raise RetrievalError(f"{url}: not the document ({error})") from error

    def _ask(
        self, method: str, url: str, end: float, texts: int = 1, *, also: Container[int] = (), **request: Any
    ) -> _Reply:
        """The reply, a success or one of the statuses ``also``. Raises ``RetrievalError`` when time or tries end.

        Of a batch of several ``texts``, which its caller halves when it fails (``retrieval_service/worker.py``), a
        status that may be the fault of one of them ends the tries after the second one: each half would else wait as
        long again, and all of them lose their time to the one.
        """
        import httpx

        wait = FIRST_WAIT_S
        for left in range(self._config.retries, -1, -1):
            asked = 0.0
            kind: type[RetrievalError] = Unavailable
            cause: httpx.HTTPError | None = None
            try:
                reply = self._once(method, url, end, request)
            except httpx.HTTPError as error:
                problem, cause = f"{type(error).__name__}: {error}", error
            else:
                if 200 <= reply.status < 300 or reply.status in also:
                    return reply
                problem = f"status {reply.status}: {reply.reason}"
                if reply.status not in PASSING:
                    raise RetrievalError(f"{url}: {problem}")
                asked = retry_after_s(reply.headers)
                kind = RetrievalError if reply.status in OF_THE_REQUEST else Unavailable
            pause = max(asked, wait * random.uniform(0.5, 1.0))
            tries = self._config.retries + 1 - left
            halved = texts > 1 and tries > 1 and kind is RetrievalError
            if not left or halved or time.monotonic() + pause >= end:
                raise kind(f"{url}: {problem} ({tries} tries)") from cause
            self._sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT_S)
        raise AssertionError("unreachable")

    def _once(self, method: str, url: str, end: float, request: dict[str, Any]) -> _Reply:
        """One request. httpx's time-outs are for one read each: the whole has an end here."""
        import httpx

        content = bytearray()
        with self._client.stream(
            method,
            url,
            headers={"Content-Type": "application/json", "Accept": "application/json"},
            timeout=max(0.001, end - time.monotonic()),
            **request,
        ) as reply:
            for part in reply.iter_bytes():
                content += part
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("the reply took too long")
                if len(content) > MAX_REPLY:
                    raise RetrievalError(f"{url}: its reply is longer than {MAX_REPLY} bytes")
        return _Reply(status=reply.status_code, headers=reply.headers, content=bytes(content))

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._client.close()


def _is_identity(known: Mapping[str, Any]) -> bool:
    """Whether the fields of an ``Identity`` that a server tells are of its types: others have an ``index``, too."""
    documents = known["documents"]
    return (
        isinstance(known["name"], str)
        and (documents is None or (isinstance(documents, int) and not isinstance(documents, bool)))
        and all(known[key] is None or isinstance(known[key], str) for key in ("checksum", "analyser"))
    )


def _is_tls(error: BaseException | None) -> bool:
    """Whether TLS is what failed, at the root of ``error``."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None


def _addresses(url: str, path: str) -> tuple[str, str]:
    """Where ``/health`` and ``/document`` of a server are, and where its searches go.

    To a ``url`` without a path, or with one that ends in a slash, the dialect's own is added; any other is where
    searches go, and the rest is beside it.
    """
    parts = urlsplit(url)
    folder, _, name = parts.path.rpartition("/")
    base = f"{parts.scheme}://{parts.netloc}{folder}"
    return base, f"{base}/{name}" if name else base + path


def _quoted(document_id: str) -> str:
    """An id as the end of a path. One of dots would else be taken for a step up."""
    quoted = quote(document_id, safe="", errors="replace")
    return quoted.replace(".", "%2E") if document_id in (".", "..") else quoted


Backend = Http
"""What ``retrieval=http`` opens."""
