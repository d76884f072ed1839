"""The same service as two tools of the Model Context Protocol, ``search`` and ``fetch``, at ``/mcp``.

Their replies have the form that clients which look for the two by name expect: ``results`` with id, title and url, and
a document with id, title, text and url.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Any
from urllib.parse import quote

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import INVALID_REQUEST, jsonrpc_message_adapter
from pydantic import Field, ValidationError
from pydantic_core import from_json
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agent.records import Passage
from agent.visible import printable
from retrieval_service.dialects.base import Asked, Request, mistake
from retrieval_service.server.config import ServeConfig
from retrieval_service.server.desk import Desk, Refused
from retrieval_service.server.gate import App, Message, Receive, Scope, Send

TOP_K = 5
NO_MESSAGE = (
    'the body is no message of JSON-RPC: an object with "jsonrpc": "2.0", a "method" and, if there are any, "params", '
    "which are an object"
)


def tools(desk: Desk, config: ServeConfig) -> tuple[MCPServer[Any], list[BaseRoute]]:
    """A server of the two tools over ``desk``, with its limits, and the routes that lead there.

    It keeps nothing between two requests; its ``session_manager`` has to run while it serves.
    """

    async def search(query: str, top_k: int = min(TOP_K, config.max_top_k)) -> dict[str, Any]:
        """Finds the passages that fit a query best: id, title, text and url of each, and score if any, best first."""
        try:
            asked = Asked(queries=(query,), k=top_k, scores=True)
            with desk.admit(asked):
                (hits,) = await desk.search(asked)
                return {"results": [_shown(p) | ({} if p.score is None else {"score": p.score}) for p in hits]}
        except Refused as refused:
            raise ToolError(refused.reason) from None

    async def fetch(id: str) -> dict[str, Any]:
        """Gives one passage by the id that a search found."""
        try:
            passage, _ = await desk.document(id)
        except Refused as refused:
            raise ToolError(refused.reason) from None
        return _shown(passage)

    # Annotations are text in this file, and there the limit would have no value.
    search.__annotations__["top_k"] = Annotated[int, Field(ge=1, le=config.max_top_k)]
    server = MCPServer(
        "slingshot-retrieval",
        version=_version(),
        instructions="Search passages, then fetch one by its id.",
        tools=[_Strict.of(search), _Strict.of(fetch)],
        log_level="ERROR",
    )
    app = server.streamable_http_app(
        streamable_http_path="/mcp",
        stateless_http=True,
        json_response=True,
        max_request_body_size=config.max_body_kib << 10,
        # The gate has looked at Host, Origin and token.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    # No stream without an end and no session is to be had here: GET and DELETE are answered with 405.
    return server, [Route(r.path, _Messages(r.endpoint), methods=["POST"]) for r in app.routes if isinstance(r, Route)]


class _Messages:
    """The application ``app`` for messages of JSON-RPC alone. What is none is refused in one line; MCP's own says it in
    pydantic's many, some for each kind of message that it isn't."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given: list[Message] = [await receive()]  # the gate gives all of a body at once

        async def again() -> Message:
            return given.pop() if given else await receive()

        if _is_message(given[0]["body"]):
            await self._app(scope, again, send)
            return
        told = {"jsonrpc": "2.0", "id": None, "error": {"code": INVALID_REQUEST, "message": NO_MESSAGE}}
        await Response(json.dumps(told), 400, media_type="application/json")(scope, receive, send)


def _is_message(body: bytes) -> bool:
    """Whether ``body`` is one, or no JSON at all, which MCP tells in one line."""
    try:
        jsonrpc_message_adapter.validate_python(from_json(body), by_name=False)
    except ValidationError:
        return False
    except ValueError:
        return True
    return True


class _Strict(Tool):
    """A tool that refuses what its function doesn't take, in one line: MCP's own drop arguments, make numbers of words,
    and tell mistakes in pydantic's many lines."""

    @classmethod
    def of(cls, call: Callable[..., Any]) -> Tool:
        """The tool of ``call``."""
        tool = cls.from_function(call)

        class Arguments(tool.fn_metadata.arg_model, Request):  # type: ignore[name-defined]
            pass

        Arguments.__name__ = tool.fn_metadata.arg_model.__name__
        tool.fn_metadata.arg_model = Arguments
        tool.parameters = Arguments.model_json_schema(by_alias=True)
        return tool

    async def run(self, arguments: dict[str, Any], context: Any, convert_result: bool = False) -> Any:
        """See ``Tool``."""
        try:
            self.fn_metadata.validate_arguments(arguments)
        except ValidationError as error:
            raise ToolError(f"Error executing tool {self.name}: {mistake(error)}") from None
        return await super().run(arguments, context, convert_result)


def _version() -> str:
    try:
        return metadata.version("slingshot")
    except metadata.PackageNotFoundError:  # it runs from a folder of its source
        return ""


def _shown(passage: Passage) -> dict[str, Any]:
    return {
        "id": printable(passage.id),
        "title": printable(passage.title),
        "text": printable(passage.text),
        "url": f"/document/{quote(printable(passage.id), safe='')}",
    }
