"""The search tools of the Model Context Protocol, asked of a real server."""

from __future__ import annotations

import asyncio
import json
from importlib import metadata
from typing import Any

import pytest
from served import PASSAGES, Running, Scripted

from agent.records import Passage

pytestmark = pytest.mark.jvm
ACCEPT = {"Accept": "application/json, text/event-stream"}


def mcp(server: Running, method: str, **params: Any) -> dict[str, Any]:
    """The result of one request of the Model Context Protocol."""
    reply = server.post("/mcp", {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, headers=ACCEPT)
    result: dict[str, Any] = reply.json()["result"]
    return result


def call(server: Running, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return mcp(server, "tools/call", name=tool, arguments=arguments)


def test_mcp_clients_search_and_fetch(server: Running) -> None:
    from mcp import Client

    async def ask() -> tuple[Any, Any, Any, Any]:
        async with Client(f"{server.url}/mcp") as client:
            assert client.server_info.version == metadata.version("slingshot")
            names = [tool.name for tool in (await client.list_tools()).tools]
            found = await client.call_tool("search", {"query": "Emma Austen", "top_k": 2})
            fetched = await client.call_tool("fetch", {"id": "emma"})
            wrong = await client.call_tool("fetch", {"id": "nobody"})
            return names, found, fetched, wrong

    names, found, fetched, wrong = asyncio.run(ask())
    assert names == ["search", "fetch"]
    results = json.loads(found.content[0].text)["results"]
    assert [r["id"] for r in results] == ["emma", "persuasion"]
    assert json.loads(fetched.content[0].text)["text"] == PASSAGES[0].text
    assert wrong.is_error
    assert "no passage" in wrong.content[0].text


INTEGER = "top_k: Input should be a valid integer"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"query": "x", "topk": 2}, "'topk' is no key of this request; its keys are 'query', 'top_k'"),
        ({"query": "x", "top_k": True}, INTEGER),
        ({"query": "x", "top_k": "2"}, INTEGER),
        ({"query": "x", "top_k": 0}, "top_k: Input should be greater than or equal to 1"),
        ({"query": "x", "top_k": 5}, "top_k: Input should be less than or equal to 4"),
        ({"query": ["x\ny"], "top_k": "2"}, "query: Input should be a valid string"),
        ({"top_k": 2}, "query: Field required"),
    ],
    ids=str,
)
def test_mcp_takes_its_own_arguments_alone(few: Running, arguments: dict[str, Any], reason: str) -> None:
    told = call(few, "search", arguments)
    assert told["isError"]
    assert told["content"][0]["text"] == f"Error executing tool search: {reason}"


@pytest.mark.parametrize(
    "body",
    [
        [{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}],
        {"id": 1, "method": "tools/list"},
        {"jsonrpc": "1.0", "id": 1, "method": "tools/list"},
        {"jsonrpc": "2.0", "id": 1},
        {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": [1]},
        3,
        b"{",
    ],
    ids=str,
)
def test_what_is_no_message_for_mcp_is_told_in_one_line(few: Running, body: Any) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = few.client.post("/mcp", content=content, headers={**ACCEPT, "Content-Type": "application/json"})
    assert reply.status_code == 400
    said: str = reply.json()["error"]["message"]
    assert said.isprintable()
    assert said.startswith("Parse error: " if isinstance(body, bytes) else "the body is no message of JSON-RPC: an obj")


def test_mcp_says_which_arguments_it_takes(few: Running) -> None:
    told = {tool["name"]: tool["inputSchema"] for tool in mcp(few, "tools/list")["tools"]}
    top_k = told["search"]["properties"]["top_k"]
    assert (top_k["minimum"], top_k["maximum"], top_k["default"]) == (1, 4, 4)
    assert [schema["additionalProperties"] for schema in told.values()] == [False, False]
    assert len(json.loads(call(few, "search", {"query": "x"})["content"][0]["text"])["results"]) == 4


def test_mcp_gives_passages_that_utf_8_cannot_hold(few: Running, backend: Scripted) -> None:
    half = "half \ud800 a pair"
    backend.search_batch = lambda queries, k: [(Passage(id=half, title=half, text=half),)]  # type: ignore[method-assign]
    (found,) = json.loads(call(few, "search", {"query": "odd", "top_k": 1})["content"][0]["text"])["results"]
    assert found == dict.fromkeys(("id", "title", "text"), "half ? a pair") | {"url": "/document/half%20%3F%20a%20pair"}


def test_mcp_offers_no_stream_without_an_end(server: Running) -> None:
    for method in ("GET", "DELETE"):
        reply = server.client.request(method, "/mcp", headers={"Accept": "text/event-stream"})
        assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
