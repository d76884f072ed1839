"""The routes: every dialect's, and what any program may want to know."""

from __future__ import annotations

import asyncio
import json
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.convertors import Convertor, register_url_convertor
from starlette.datastructures import QueryParams
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.routing import Route

from agent.readable import named
from retrieval_service.backend import Identity
from retrieval_service.dialects import spoken
from retrieval_service.dialects.base import Asked, Dialect, Hits, document, mistake
from retrieval_service.server.config import ServeConfig
from retrieval_service.server.desk import RETRY_AFTER_S, Desk, Refused
from retrieval_service.server.gate import App, Counted, Gate, Receive, Scope, Send
from retrieval_service.server.metrics import Metrics
from retrieval_service.server.page import page
from retrieval_service.server.tools import tools
from retrieval_service.service import RetrievalService


class _Anything(Convertor[str]):
    """The rest of a path, whatever is in it: an id may have ends of lines, at which Starlette's ``path`` stops."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anything", _Anything())
LARGE = 200
"""Passages from which on a reply is made in a thread: fewer take a few milliseconds."""
REASON = {"application/json": {"schema": {"type": "object", "properties": {"detail": {"type": "string"}}}}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "Refused, with the reason", "content": REASON},
    "503": {"description": "The search failed, or the server is ending", "content": REASON},
    "504": {"description": "The search took too long", "content": REASON},
}
FOLLOWING = {
    "name": "following",
    "in": "query",
    "description": "How many of the passages after it are given, too",
    "schema": {"type": "integer", "minimum": 0, "default": 0},
}


def make_app(
    service: RetrievalService, identity: Identity, config: ServeConfig, token: str | None
) -> tuple[App, Metrics]:
    """The ASGI application over ``service``, which has been started, and its numbers; it asks for ``token``, if there
    is one."""
    desk = Desk(service, config)
    metrics = Metrics(service.stats, lambda: desk.waiting, identity)
    mcp, mcp_routes = tools(desk, config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with mcp.session_manager.run():
            yield

    app = FastAPI(
        title="Slingshot retrieval",
        description="Passages by search, in the forms in which other programs ask for them.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(Refused, _refused)
    searches = _add_dialects(app, desk, token is not None)
    _add_facts(app, desk, identity, metrics)
    app.router.routes.extend(mcp_routes)
    entered: App = Gate(_Direct(app, searches), config, token)
    if config.cors:
        # Before the gate: what a browser asks beforehand bears no token, and a page is to see a refusal's reason, too.
        entered = CORSMiddleware(
            entered,
            allow_origins=config.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
            max_age=600,
        )
    return Counted(entered, metrics), metrics


class _Direct:
    """The ASGI application that leads searches to theirs, and the rest to ``app``, which is FastAPI's: what that does
    for a request costs more than a short search."""

    def __init__(self, app: App, searches: Sequence[Route]) -> None:
        self._app = app
        self._searches = {route.path: (route, ServerErrorMiddleware(_Told(route.endpoint))) for route in searches}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._searches.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        scope["route"], searches = found
        await searches(scope, receive, send)


class _Told:
    """An ASGI application around ``app`` that answers what is refused there with the reason."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Refused as refused:
            await _said(refused)(scope, receive, send)


class _Searches:
    """The ASGI application of one path, for the dialects that are spoken there."""

    def __init__(self, desk: Desk, spoken: Sequence[Dialect], large: asyncio.Lock) -> None:
        self._desk = desk
        self._spoken = spoken
        self._large = large
        """Held while a large reply is made: several threads at it would leave the event loop little time."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _check_parameters(scope)
        body = _object((await receive())["body"])  # the gate gives all of it at once
        one = next((d for d in self._spoken if d.speaks(body)), None)
        if one is None:
            keys = sorted({next(iter(d.example)) for d in self._spoken})
            raise Refused(422, f"the body needs {' or '.join(keys)}")
        try:
            asked = one.asked(one.request.model_validate(body))
        except ValidationError as error:
            raise Refused(422, mistake(error)) from None
        reply = await self._reply(one, asked)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(reply))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": reply})

    async def _reply(self, one: Dialect, asked: Asked) -> bytes:
        with self._desk.admit(asked):
            found = await self._desk.search(asked)
            if sum(map(len, found)) < LARGE:
                return json.dumps(one.reply(asked, found)).encode("ascii")
            async with self._large:
                return await asyncio.to_thread(_large, one, asked, found)

    def described(self) -> dict[str, Any]:
        """What OpenAPI says of it."""
        schemas = [d.request.model_json_schema() for d in self._spoken]
        examples = {d.about: {"value": dict(d.example)} for d in self._spoken}
        body = {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}, "examples": examples}
        return {
            "summary": "; ".join(d.about for d in self._spoken),
            "requestBody": {"required": True, "content": {"application/json": body}},
            "responses": {"200": {"description": "Passages"}, **REFUSALS},
        }


def _add_dialects(app: FastAPI, desk: Desk, guarded: bool) -> list[Route]:
    """Adds the paths of searches, and gives their routes."""
    by_path: dict[str, list[Dialect]] = {}
    for each in spoken()[0]:
        by_path.setdefault(each.path, []).append(each)
    large = asyncio.Lock()
    searches = {path: _Searches(desk, alike, large) for path, alike in by_path.items()}
    routes = [Route(path, endpoint, methods=["POST"]) for path, endpoint in searches.items()]
    app.router.routes.extend(routes)  # for what isn't POST, which is refused there
    others = app.openapi

    def openapi() -> dict[str, Any]:
        described = others()
        described["paths"] = {path: {"post": e.described()} for path, e in searches.items()} | described["paths"]
        if guarded:
            components = described.setdefault("components", {})
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            described["security"] = [{"token": []}]
        return described

    app.openapi = openapi  # type: ignore[method-assign]
    return routes


def _add_facts(app: FastAPI, desk: Desk, identity: Identity, metrics: Metrics) -> None:
    told = asdict(identity)
    told |= told.pop("settings")

    @app.get("/health", summary="The index: name, checksum, passages, analyser, k1, b; the device that computes")
    async def health() -> Response:
        return _json({"status": "healthy", "index": told, "device": desk.service.device, "waiting": desk.waiting})

    @app.get("/info", summary="David-GRPO's form of it")
    async def info() -> dict[str, Any]:
        size, device = identity.documents, desk.service.device
        return {"model": identity.backend, "device": device, "corpus_size": size, "index_loaded": True}

    @app.get(
        "/document/{document_id:anything}",
        summary="One passage, and those that follow it in the same document",
        responses=REFUSALS,
        openapi_extra={"parameters": [FOLLOWING]},
    )
    async def one_document(request: Request, document_id: str) -> Response:
        _check_parameters(request.scope, "following")
        given = request.query_params.get("following", "0")
        if not (given.isascii() and given.isdecimal() and len(given) < 10):
            raise Refused(422, "following: must be a number of passages")
        passage, after = await desk.document(document_id, int(given))
        return _json({**document(passage), **({"following": [document(p) for p in after]} if int(given) else {})})

    @app.get("/metrics", summary="Prometheus", response_class=PlainTextResponse)
    async def scrape() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()))


def _check_parameters(scope: Scope, *known: str) -> None:
    """Refuses what stands behind the ``?`` of an address and isn't read, as keys of a body are refused."""
    for name in QueryParams(scope["query_string"]):
        if name not in known:
            instead = f"{known[0]!r} is" if known else "keys of the body are"
            raise Refused(422, f"{name[:40]!a} is not read behind the address; {instead}")


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = from_json(body.removeprefix(BOM_UTF8), allow_inf_nan=False)  # as an editor writes it
    except ValueError as error:
        raise Refused(400, f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(422, f"the body is {named(value)}, and an object is needed")
    return value


def _json(value: Any) -> Response:
    # Passages may come from anywhere: ASCII holds even what UTF-8 can't.
    return Response(json.dumps(value), media_type="application/json")


def _large(dialect: Dialect, asked: Asked, found: Sequence[Hits]) -> bytes:
    return "".join(_pieces(dialect.reply(asked, found))).encode("ascii")


def _pieces(value: Any) -> Iterator[str]:
    """What ``json.dumps`` gives, in pieces of a document or so: within one call of it no other thread runs."""
    if isinstance(value, dict) and len(value) < 3:
        for n, (key, inner) in enumerate(value.items()):
            yield f"{', ' if n else '{'}{json.dumps(key)}: "
            yield from _pieces(inner)
        yield "}" if value else "{}"
    elif isinstance(value, list):
        for n, inner in enumerate(value):
            yield ", " if n else "["
            yield from _pieces(inner)
        yield "]" if value else "[]"
    else:
        yield json.dumps(value)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _said(error)


def _said(refused: Refused) -> Response:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if refused.status in (429, 503) else {}
    return Response(json.dumps({"detail": refused.reason}), refused.status, headers, "application/json")
