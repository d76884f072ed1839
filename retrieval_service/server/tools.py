"""The same service as two tools of the Model Context Protocol, ``search`` and ``fetch``, at ``/mcp``.

Their replies have the form that clients which look for the two by name expect: ``results`` with id, title and url, and
a document with id, title, text and url.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any
from urllib.parse import quote

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from starlette.routing import BaseRoute, Route

from agent.records import Passage
from retrieval_service.dialects.base import Asked
from retrieval_service.server.config import ServeConfig
from retrieval_service.server.desk import Desk, Refused

TOP_K = 5


def tools(desk: Desk, config: ServeConfig) -> tuple[MCPServer[Any], list[BaseRoute]]:
    """A server of the two tools over ``desk``, with its limits, and the routes that lead there.

    It keeps nothing between two requests; its ``session_manager`` has to run while it serves.
    """
    server = MCPServer(
        "slingshot-retrieval",
        version=_version(),
        instructions="Search passages, then fetch one by its id.",
        log_level="ERROR",
    )

    @server.tool()
    async def search(query: str, top_k: int = TOP_K) -> dict[str, Any]:
        """Finds the passages that fit a query best: id, title, text, score and url of each, best first."""
        try:
            (hits,) = await desk.search(Asked(queries=(query,), k=top_k, scores=True))
        except Refused as refused:
            raise ToolError(refused.reason) from None
        return {"results": [_shown(p) | {"score": p.score} for p in hits]}

    @server.tool()
    async def fetch(id: str) -> dict[str, Any]:
        """Gives one passage by the id that a search found."""
        try:
            passage, _ = await desk.document(id)
        except Refused as refused:
            raise ToolError(refused.reason) from None
        return _shown(passage)

    app = server.streamable_http_app(
        streamable_http_path="/mcp",
        stateless_http=True,
        json_response=True,
        max_request_body_size=config.max_body_kib << 10,
        # The gate has looked at Host, Origin and token.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    # No stream without an end and no session is to be had here: GET and DELETE are answered with 405.
    return server, [Route(r.path, r.endpoint, methods=["POST"]) for r in app.routes if isinstance(r, Route)]


def _version() -> str:
    try:
        return metadata.version("slingshot")
    except metadata.PackageNotFoundError:  # it runs from a folder of its source
        return ""


def _shown(passage: Passage) -> dict[str, Any]:
    return {
        "id": passage.id,
        "title": passage.title,
        "text": passage.text,
        "url": f"/document/{quote(passage.id, safe='')}",
    }
