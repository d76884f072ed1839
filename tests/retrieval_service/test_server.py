"""The server over a real index, asked over real connections: each dialect by its public shape, and who is refused."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import pytest
from patience import until
from served import CONFIG, PASSAGES, PATIENCE_S, Running, Scripted, open_index, running

from agent.errors import Stopped, UserError
from agent.records import Passage
from retrieval_service import jvm
from retrieval_service.config import RetrievalConfig
from retrieval_service.corpus import corpus_stamp
from retrieval_service.dialects import dialect, dialect_names
from retrieval_service.rankers import open_backend
from retrieval_service.server import app
from retrieval_service.server.config import ServeConfig
from retrieval_service.server.run import bind, serve, serve_on

pytestmark = pytest.mark.jvm

EMMA = {
    "id": "emma",
    "title": "Emma (novel)",
    "text": "Emma is a novel by Jane Austen, published in 1815.",
    "contents": '"Emma (novel)"\nEmma is a novel by Jane Austen, published in 1815.',
}


def ids(documents: list[dict[str, Any]]) -> list[str]:
    return [d["id"] for d in documents]


def refusal(reply: httpx.Response, status: int) -> str:
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["detail"]
    reason: str = reply.json()["detail"]
    assert reason.isprintable()
    return reason


def mcp(server: Running, method: str, **params: Any) -> dict[str, Any]:
    """The result of one request of the Model Context Protocol."""
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    reply = server.post("/mcp", body, headers={"Accept": "application/json, text/event-stream"})
    result: dict[str, Any] = reply.json()["result"]
    return result


def call(server: Running, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return mcp(server, "tools/call", name=tool, arguments=arguments)


@pytest.fixture
def backend() -> Scripted:
    return Scripted()


@pytest.fixture
def few(backend: Scripted) -> Iterator[Running]:
    """A server over a scripted backend that gives four passages a query at most."""
    with running(lambda: backend, max_top_k=4) as server:
        yield server


# --- dialects --------------------------------------------------------------------------------------


def test_search_r1_gets_its_nested_lists_with_scores(server: Running) -> None:
    """As its ``retrieval_request.py`` asks."""
    reply = server.post("/retrieve", {"queries": ["Emma Austen", "lighthouses"], "topk": 2, "return_scores": True})
    assert reply.headers["content-type"] == "application/json"
    first, second = reply.json()["result"]
    assert [e["document"]["id"] for e in first] == ["emma", "persuasion"]
    assert first[0]["document"] == EMMA
    assert first[0]["score"] > first[1]["score"] > 0
    assert ids([e["document"] for e in second]) == ["untitled"]


def test_search_r1_gets_documents_alone_without_scores(server: Running) -> None:
    reply = server.post("/retrieve", {"queries": ["Emma Austen novel"], "topk": None, "return_scores": False}).json()
    assert ids(reply["result"][0])[:2] == ["emma", "persuasion"]
    assert len(reply["result"][0]) == 3
    assert server.post("/retrieve", {"queries": ["Emma Austen novel"]}).json() == reply


def test_verls_and_skyrls_tools_read_what_they_get(server: Running) -> None:
    """What both do with a reply: title and text out of the contents, by the first newline."""
    payload = {"queries": ["Emma"], "topk": 1, "return_scores": True}
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    raw = httpx.post(f"{server.url}/retrieve", headers=headers, json=payload, timeout=PATIENCE_S).json()["result"]
    (title, _, text) = raw[0][0]["document"]["contents"].partition("\n")
    assert (title, text) == ('"Emma (novel)"', EMMA["text"])


def test_verl_may_say_query_list(server: Running) -> None:
    asked = {"topk": 2, "return_scores": True}
    same = server.post("/retrieve", {"queries": ["Emma", "Berlin"], **asked}).json()
    assert server.post("/retrieve", {"query_list": ["Emma", "Berlin"], **asked}).json() == same


def test_skyrl_may_ask_one_query_by_itself(server: Running) -> None:
    same = server.post("/retrieve", {"queries": ["Emma"], "topk": 2, "return_scores": True}).json()
    assert server.post("/retrieve", {"query": "Emma", "topk": 2, "return_scores": True}).json() == same


def test_search_r1_reads_a_topk_of_0_as_none(server: Running) -> None:
    asked = {"queries": ["novel"], "return_scores": True}
    assert server.post("/retrieve", asked | {"topk": 0}).json() == server.post("/retrieve", asked).json()


def test_a_list_without_any_other_key_is_david_grpos(server: Running) -> None:
    """Both of its other keys have defaults in its server, and SkyRL's query is never a list."""
    told = {"tok_k": 3, "return_score": True}
    assert (
        server.post("/retrieve", {"query": ["Emma"]}).json()
        == server.post("/retrieve", {"query": ["Emma"], **told}).json()
    )


def test_david_grpo_gets_an_object_for_a_query_and_a_list_for_a_list(server: Running) -> None:
    """Its client asserts that the object has two keys with scores and one without."""
    one = server.post("/retrieve", {"query": "Emma Austen", "tok_k": 2, "return_score": True}).json()
    assert list(one) == ["documents", "scores"]
    assert one["documents"][0] == {key: EMMA[key] for key in ("id", "contents")}
    assert len(one["scores"]) == 2
    bare = server.post("/retrieve", {"query": "Emma Austen", "tok_k": 2, "return_score": False}).json()
    assert bare == {"documents": one["documents"]}
    several = server.post("/retrieve", {"query": ["Emma Austen", "the of"], "tok_k": 2, "return_score": True}).json()
    assert several == [one, {"documents": [], "scores": []}]
    info = server.client.get("/info").json()
    assert (info["corpus_size"], info["index_loaded"]) == (len(PASSAGES), True)


def test_flashrag_gets_documents_or_a_pair(server: Running) -> None:
    documents = server.post("/search", {"query": "Emma Austen", "top_n": 2}).json()
    assert ids(documents) == ["emma", "persuasion"]
    pair = server.post("/search", {"query": "Emma Austen", "top_n": 2, "return_score": True}).json()
    assert pair[0] == documents
    assert pair[1][0] > pair[1][1]
    batch = server.post("/batch_search", {"query": ["Emma Austen", "Berlin"], "top_n": 2, "return_score": True}).json()
    assert [half[0] for half in batch] == pair
    assert [len(half) for half in batch] == [2, 2]
    assert server.post("/batch_search", {"query": ["Emma Austen"], "top_n": 2}).json() == [documents]
    assert len(server.post("/search", {"query": "novel"}).json()) == 10, "its default"


def test_every_dialects_example_is_answered_and_read(server: Running) -> None:
    """The server's side against the client's side, of each file there is."""
    for name in dialect_names():
        spoken = dialect(name)
        assert server.post(spoken.path, spoken.example).status_code == 200
        found = spoken.hits(server.post(spoken.path, spoken.body(["Emma Austen"], 2)).json())
        assert [[p.id for p in hits] for hits in found] == [["emma", "persuasion"]]


def test_no_query_no_results_and_a_query_of_nothing_no_passages(server: Running) -> None:
    assert server.post("/retrieve", {"queries": []}).json() == {"result": []}
    assert server.post("/retrieve", {"queries": ["", "\x00", "the of"]}).json() == {"result": [[], [], []]}


# --- other routes ----------------------------------------------------------------------------------


def test_a_document_is_found_by_its_id(server: Running) -> None:
    assert server.client.get("/document/emma").json() == EMMA
    assert server.client.get("/document/a%2Fb%20c%3F1.txt%230").json()["text"] == "Odd names of files, number 1."
    twins = server.client.get("/document/twin-3?following=2").json()
    assert (twins["id"], ids(twins["following"])) == ("twin-3", ["twin-1", "twin-2"])
    assert "no passage" in refusal(server.client.get("/document/nobody"), 404)
    assert "following" in refusal(server.client.get("/document/emma?following=-1"), 422)
    assert "following" in refusal(server.client.get("/document/emma?following=51"), 422)
    assert server.client.get("/document/emma?following=0").json() == EMMA


def test_health_says_which_index_it_is(server: Running, served_index: Path) -> None:
    told = server.client.get("/health").json()
    assert told["status"] == "healthy"
    index = told["index"]
    assert index["documents"] == len(PASSAGES)
    corpus = served_index.parents[2] / "corpus.jsonl"
    assert index["checksum"] == corpus_stamp(corpus, corpus.parent).checksum
    assert (index["name"], index["backend"], index["analyser"]) == ("corpus.jsonl", "bm25", "porter")
    assert (index["k1"], index["b"], index["lucene_generation"]) == (0.9, 0.4, 1)


def test_metrics_count_requests_and_searches(server: Running) -> None:
    counted = 'slingshot_retrieval_requests_total{route="/search",status="200"}'
    before = server.metric(counted), server.metric("slingshot_retrieval_queries_total")
    server.post("/search", {"query": "Emma Austen"})
    after = server.metric(counted), server.metric("slingshot_retrieval_queries_total")
    assert after == (before[0] + 1, before[1] + 1)
    assert server.metric("slingshot_retrieval_waiting") == 0


def test_openapi_and_its_page_name_every_route(server: Running) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    assert {"/retrieve", "/search", "/batch_search", "/document/{document_id}", "/health", "/metrics"} <= set(paths)
    body = paths["/search"]["post"]["requestBody"]["content"]["application/json"]
    assert set(body["schema"]["properties"]) == {"query", "top_n", "return_score"}
    page = server.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert all(path in page.text for path in paths)
    assert "http://" not in page.text, "it loads nothing from anywhere"
    assert "https://" not in page.text
    document = paths["/document/{document_id}"]["get"]
    assert [p["name"] for p in document["parameters"]] == ["document_id", "following"]
    assert set(document["responses"]) == {"200", "4XX", "503", "504"}
    assert set(paths["/search"]["post"]["responses"]) == {"200", "4XX", "503", "504"}
    told = document["responses"]["4XX"]["content"]["application/json"]["schema"]["properties"]
    assert told == {"detail": {"type": "string"}}
    assert list(paths["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]


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
    assert ids(results) == ["emma", "persuasion"]
    assert json.loads(fetched.content[0].text)["text"] == EMMA["text"]
    assert wrong.is_error
    assert "no passage" in wrong.content[0].text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"query": "x", "topk": 2}, "topk\n  Extra inputs are not permitted"),
        ({"query": "x", "top_k": True}, "valid integer"),
        ({"query": "x", "top_k": "2"}, "valid integer"),
        ({"query": "x", "top_k": 0}, "greater than or equal to 1"),
        ({"query": "x", "top_k": 5}, "less than or equal to 4"),
    ],
    ids=str,
)
def test_mcp_takes_its_own_arguments_alone(few: Running, arguments: dict[str, Any], reason: str) -> None:
    told = call(few, "search", arguments)
    assert told["isError"]
    assert reason in told["content"][0]["text"]


def test_mcp_says_which_arguments_it_takes(few: Running) -> None:
    told = {tool["name"]: tool["inputSchema"] for tool in mcp(few, "tools/list")["tools"]}
    top_k = told["search"]["properties"]["top_k"]
    assert (top_k["minimum"], top_k["maximum"], top_k["default"]) == (1, 4, 4)
    assert [schema["additionalProperties"] for schema in told.values()] == [False, False]
    assert len(json.loads(call(few, "search", {"query": "x"})["content"][0]["text"])["results"]) == 4


def test_mcp_gives_passages_that_utf_8_cannot_hold(few: Running, backend: Scripted) -> None:
    backend.text = "half \ud800 a pair"
    (found,) = json.loads(call(few, "search", {"query": "odd", "top_k": 1})["content"][0]["text"])["results"]
    assert (found["id"], found["text"]) == ("odd-0", "half ? a pair")


def test_mcp_offers_no_stream_without_an_end(server: Running) -> None:
    for method in ("GET", "DELETE"):
        reply = server.client.request(method, "/mcp", headers={"Accept": "text/event-stream"})
        assert (reply.status_code, reply.headers["allow"]) == (405, "POST")


# --- the same as Lucene's own ----------------------------------------------------------------------


def test_64_clients_get_what_the_searcher_gives_directly(server: Running, served_index: Path) -> None:
    """Anserini's ``SimpleSearcher`` is what Pyserini's ``LuceneSearcher`` calls; hits are compared to the last bit."""
    jvm.start_jvm(CONFIG.heap, CONFIG.threads)
    searcher = jvm.java_class("io.anserini.search.SimpleSearcher")(str(served_index))
    searcher.set_bm25(CONFIG.k1, CONFIG.b)
    queries = [f"novel sold in {year} by {who}" for year in range(40) for who in ("Austen", "marmalade")]
    expected = {q: [(hit.docid, hit.score) for hit in searcher.search(q, 5)] for q in queries}
    searcher.close()

    async def client(number: int, http: httpx.AsyncClient) -> None:
        asked = queries[number::64] + queries[: number % 2]
        for query in asked:
            reply = await http.post("/retrieve", json={"queries": [query], "topk": 5, "return_scores": True})
            assert [(e["document"]["id"], e["score"]) for e in reply.json()["result"][0]] == expected[query]

    async def all_clients() -> None:
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S, limits=limits, trust_env=False) as http:
            await asyncio.gather(*(client(number, http) for number in range(64)))

    asyncio.run(all_clients())


# --- limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/retrieve", {"queries": ["x" * 1001]}, 422, "a query of 1001 characters, and at most 1000"),
        ("/retrieve", {"queries": ["x"] * 201}, 422, "201 queries, and at most 200"),
        ("/retrieve", {"queries": ["x"], "topk": 51}, 422, "51 passages a query; from 1 to 50"),
        (
            "/retrieve",
            {"queries": ["x"] * 101, "topk": 50},
            422,
            "101 queries for 50 passages each are 5050, and at most",
        ),
        ("/retrieve", {"query": ["x"] * 101, "tok_k": 50}, 422, "are 5050, and at most 5000 may be asked for at once"),
        ("/batch_search", {"query": ["x"] * 101, "top_n": 50}, 422, "are 5050, and at most 5000"),
        ("/retrieve", {"queries": ["x"], "topk_retrieval": 9}, 422, '"topk_retrieval" is for a server with a reranker'),
        ("/retrieve", {"queries": ["x"], "topk": 3, "topk_rerank": 2}, 422, '"topk_rerank" is for a server with a rer'),
        ("/retrieve", {"queries": ["x"], "topk": -1}, 422, "topk: Input should be greater than or equal to 0"),
        ("/retrieve", {"queries": ["x"], "topk": 10**40}, 422, "passages a query"),
        ("/retrieve", {"queries": ["x"], "topk": "3"}, 422, "topk: Input should be a valid integer"),
        ("/retrieve", {"queries": "x"}, 422, "queries: Input should be a valid list"),
        ("/retrieve", {"queries": ["x", 3]}, 422, "queries.1: Input should be a valid string"),
        ("/retrieve", {"question": "x"}, 422, "the body needs"),
        ("/retrieve", ["x"], 422, "the body is a JSON list, and an object is needed"),
        ("/retrieve", {"query": {"a": 1}, "tok_k": 3}, 422, "query"),
        ("/retrieve", {"queries": ["x"], "top_k": 1}, 422, '"top_k" is not read beside these keys; write "topk"'),
        (
            "/retrieve",
            {"query": "x", "topk": 1, "return_score": True},
            422,
            '"topk" is not read beside these keys; write "tok_k"',
        ),
        ("/retrieve", {"query": ["x"], "topk": 2}, 422, 'query: one query is read beside "topk"; write "queries"'),
        ("/retrieve", {"queries": ["x"], "return_score": True}, 422, 'write "return_scores"'),
        ("/batch_search", {"query": ["x"], "k": 2}, 422, '"k" is not read beside these keys; write "top_n"'),
        ("/search", {"query": ["x"]}, 422, "query: Input should be a valid string"),
        ("/batch_search", {"query": "x"}, 422, "query: Input should be a valid list"),
        ("/retrieve", {"queries": ["x" * 70_000]}, 413, "a body of more than 65536 bytes"),
    ],
    ids=str,
)
def test_what_is_over_a_limit_or_wrong_is_refused_with_the_reason(
    server: Running, path: str, body: Any, status: int, reason: str
) -> None:
    assert reason in refusal(server.post(path, body), status)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"queries=x",
        b'{"queries": ["\xff"]}',
        b'{"queries": ["x"], "topk": NaN}',
        b'{"queries": ["\\ud800"]}',
    ],
)
def test_what_is_no_json_is_refused(server: Running, body: bytes) -> None:
    assert "the body is no JSON" in refusal(server.client.post("/retrieve", content=body), 400)


def test_a_large_reply_is_made_while_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    made, go_on = app._large, threading.Event()
    begun = threading.Event()

    def slowly(*given: Any) -> Any:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return made(*given)

    monkeypatch.setattr(app, "_large", slowly)
    with running(Scripted) as server, ThreadPoolExecutor(1) as pool:
        asked = {"queries": [str(n) for n in range(20)], "topk": 10, "return_scores": True}
        large = pool.submit(server.post, "/retrieve", asked)
        try:
            assert begun.wait(PATIENCE_S)
            assert httpx.get(f"{server.url}/health", timeout=PATIENCE_S).status_code == 200
        finally:
            go_on.set()
        reply = large.result(PATIENCE_S)
    assert reply.status_code == 200
    assert [len(hits) for hits in reply.json()["result"]] == [10] * 20


@pytest.mark.parametrize(
    "value", [{}, [], [[]], [[], []], {"a": []}, {"result": [[{"document": {"id": "é"}, "score": 1.5}], []]}, "x", None]
)
def test_a_reply_in_pieces_is_the_reply(value: Any) -> None:
    assert "".join(app._pieces(value)) == json.dumps(value)


def test_a_full_line_is_answered_with_429_until_there_is_room() -> None:
    backend = Scripted()
    with running(lambda: backend, max_waiting=4, max_queries=4) as server:
        backend.go_on.clear()

        async def scene() -> None:
            async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as http:
                held = asyncio.ensure_future(http.post("/retrieve", json={"queries": ["a", "b", "c"]}))
                assert await asyncio.to_thread(backend.entered.acquire, timeout=PATIENCE_S)
                full = await http.post("/retrieve", json={"queries": ["d", "e"]})
                assert "3 searches wait already" in refusal(full, 429)
                assert full.headers["retry-after"] == "1"
                last = asyncio.ensure_future(http.post("/retrieve", json={"queries": ["d"]}))
                while (await http.get("/health")).json()["waiting"] < 4:
                    await asyncio.sleep(0.01)
                assert (await http.post("/search", json={"query": "e"})).status_code == 429
                assert (await http.get("/document/e")).status_code == 429
                assert not held.done()
                backend.go_on.set()
                assert [len(hits) for hits in (await held).json()["result"]] == [3, 3, 3]
                assert (await last).status_code == 200
                assert (await http.post("/search", json={"query": "e"})).status_code == 200

        asyncio.run(scene())


def test_a_client_that_has_gone_leaves_the_line() -> None:
    backend = Scripted()
    with running(lambda: backend, max_waiting=2, max_queries=2) as server:
        backend.go_on.clear()
        body = b'{"queries": ["a", "b"]}'
        with server.connect() as gone:
            gone.sendall(
                b"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            assert backend.entered.acquire(timeout=PATIENCE_S)
            assert server.client.get("/health").json()["waiting"] == 2
        until(lambda: server.client.get("/health").json()["waiting"] == 0)
        backend.go_on.set()
        assert server.post("/retrieve", {"queries": ["c"]}).status_code == 200


def test_refusals_before_a_route_are_counted() -> None:
    def counted(status: int) -> float:
        return server.metric(f'slingshot_retrieval_requests_total{{route="other",status="{status}"}}')

    sent = {400: b"nonsense\r\n\r\n", 431: b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000}
    with running(Scripted, max_connections=2) as server:
        assert server.client.get("/health", headers={"Host": "evil.example"}).status_code == 403
        assert server.post("/retrieve", {}, headers={"Content-Encoding": "gzip"}).status_code == 415
        for status, head in sent.items():
            with server.connect() as connection, suppress(ConnectionError):
                connection.sendall(head)
                connection.recv(12)
            until(partial(lambda status: counted(status) == 1, status))
        with server.connect(), server.connect() as third:
            assert third.recv(12) == b"HTTP/1.1 429"
        until(lambda: [counted(status) for status in (403, 415, 429)] == [1, 1, 1])


def test_a_search_that_fails_is_a_503_and_one_that_takes_too_long_a_504() -> None:
    backend = Scripted()
    with running(lambda: backend, RetrievalConfig(timeout_s=0.5)) as server:
        assert "the index is gone" in refusal(server.post("/retrieve", {"queries": ["a", "poison"]}), 503)
        assert "the index is gone" in refusal(server.client.get("/document/a"), 503)
        backend.go_on.clear()
        assert "too long" in refusal(server.post("/retrieve", {"queries": ["slow"]}), 504)
        backend.go_on.set()


# --- who may ask -----------------------------------------------------------------------------------


def test_a_token_is_asked_for_and_never_shown() -> None:
    token = "9f2c4b7a"
    with running(Scripted, token=token) as server:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": token}, {"Authorization": "Bearer"}):
            for path in ("/health", "/metrics", "/info", "/document/x", "/nowhere"):
                reply = server.client.get(path, headers=header)
                assert "a token is needed" in refusal(reply, 401)
                assert reply.headers["www-authenticate"] == "Bearer"
            for path in ("/retrieve", "/search", "/batch_search", "/mcp"):
                refusal(server.post(path, {"query": "x"}, headers=header), 401)
        right = {"Authorization": f"Bearer {token}"}
        assert server.post("/retrieve", {"queries": ["x"]}, headers=right).status_code == 200
        shown = [
            server.client.get(path, headers=right).text for path in ("/health", "/metrics", "/docs", "/openapi.json")
        ]
        assert not any(token in text for text in shown)
        described = server.client.get("/openapi.json").json()
        assert described["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}
        assert described["security"] == [{"token": []}]
        assert server.client.get("/docs").status_code == 200, "the page says nothing of the index"


def test_a_page_of_another_name_can_not_search_here(server: Running) -> None:
    """A browser sends the name in the address bar, even when that name leads to 127.0.0.1."""
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        assert "localhost" in refusal(server.client.get("/health", headers={"Host": host}), 403)
    for host in ("localhost", "LocalHost:9", "127.0.0.1:1", "127.0.0.2:1", "[::1]:8000", "[::1]"):
        assert server.client.get("/health", headers={"Host": host}).status_code == 200
    for origin in ("http://evil.example", "https://localhost.evil.example:8000", "null", "http://127.0.0.1.evil"):
        assert "no pages but" in refusal(server.post("/mcp", {}, headers={"Origin": origin}), 403)
    for origin in ("http://localhost:3000", "http://127.0.0.1"):
        assert server.client.get("/health", headers={"Origin": origin}).status_code == 200
    with running(Scripted, token="t0ken") as guarded:
        right = {"Host": "any.example", "Authorization": "Bearer t0ken"}
        assert guarded.client.get("/health", headers=right).status_code == 200
        assert guarded.client.get("/health", headers=right | {"Authorization": "bearer t0ken"}).status_code == 200


def test_a_body_that_is_compressed_is_refused(server: Running) -> None:
    packed = gzip.compress(b'{"queries": ["Emma"]}')
    reply = server.client.post("/retrieve", content=packed, headers={"Content-Encoding": "gzip"})
    assert "without Content-Encoding" in refusal(reply, 415)


def test_unknown_paths_and_methods_are_told(server: Running) -> None:
    assert server.client.get("/nowhere").status_code == 404
    assert server.client.get("/retrieve").status_code == 405
    assert server.client.delete("/search").status_code == 405


def test_head_is_get_without_the_body(few: Running) -> None:
    for path in ("/health", "/info", "/openapi.json", "/docs"):
        got, head = few.client.get(path), few.client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == got.headers["content-length"]
    assert few.metric('slingshot_retrieval_requests_total{route="/health",status="200"}') == 2
    assert few.client.head("/search").status_code == 405


# --- beginning and end ---------------------------------------------------------------------------


def test_ctrl_c_while_the_index_is_opened_ends_it_at_once() -> None:
    go_on, closed = threading.Event(), threading.Event()

    class Closing(Scripted):
        def close(self) -> None:
            closed.set()

    def slowly() -> Scripted:
        os.kill(os.getpid(), signal.SIGINT)
        assert go_on.wait(PATIENCE_S)
        return Closing()

    with pytest.raises(KeyboardInterrupt):
        serve(slowly, CONFIG, ServeConfig(port=0), None, lambda url, identity: None)
    go_on.set()
    assert closed.wait(PATIENCE_S), "what was opened after all is closed"


def test_no_client_is_taken_before_the_index_is_open() -> None:
    listener = bind(ServeConfig(port=0))
    place = listener.getsockname()[:2]

    def opening() -> Scripted:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(place)
        return Scripted()

    def ready(server: Any, identity: Any) -> None:
        socket.create_connection(place, timeout=PATIENCE_S).close()
        server.should_exit = True

    asyncio.run(serve_on(listener, opening, CONFIG, ServeConfig(), None, ready))


def test_a_port_that_was_taken_meanwhile_is_told() -> None:
    config = ServeConfig(port=0)
    listener = bind(config)
    config.port = listener.getsockname()[1]
    other = bind(config)
    other.listen()
    with other, pytest.raises(UserError, match=rf"serve\.port={config.port}: can't listen there"):
        asyncio.run(serve_on(listener, Scripted, CONFIG, config, None, lambda *told: None))


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)], ids=["SIGINT", "SIGTERM"]
)
def test_a_second_signal_ends_it_at_once(
    backend: Scripted, caplog: pytest.LogCaptureFixture, number: signal.Signals, raised: type[BaseException]
) -> None:
    """The backend is held up to the end, and the time-out of a search is never reached."""
    backend.go_on.clear()

    def refused(url: httpx.URL) -> bool:
        try:
            socket.create_connection((url.host, url.port)).close()
        except ConnectionRefusedError:
            return True
        return False

    def client(url: httpx.URL) -> httpx.Response:
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(httpx.post, url.join("/search"), json={"query": "x"}, timeout=PATIENCE_S)
            assert backend.entered.acquire(timeout=PATIENCE_S)
            os.kill(os.getpid(), number)
            until(lambda: refused(url))
            assert not reply.done(), "the first signal lets it be answered"
            os.kill(os.getpid(), number)
            return reply.result(PATIENCE_S)

    with ThreadPoolExecutor(1) as pool:
        replies: list[Future[httpx.Response]] = []
        with pytest.raises(raised) as error:
            serve(
                lambda: backend,
                RetrievalConfig(timeout_s=PATIENCE_S),
                ServeConfig(port=0),
                None,
                lambda url, identity: replies.append(pool.submit(client, httpx.URL(url))),
            )
        assert "the server is ending" in refusal(replies[0].result(PATIENCE_S), 503)
    backend.go_on.set()
    assert getattr(error.value, "code", 130) == 128 + number
    assert not caplog.records


@pytest.mark.parametrize("behind", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["one", "two"])
def test_what_takes_longer_than_the_end_waits_gets_a_503(
    backend: Scripted, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, behind: bytes
) -> None:
    monkeypatch.setattr("retrieval_service.server.run.GRACE_S", 0.1)
    backend.go_on.clear()
    body = b'{"queries": ["a"]}'
    head = b"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with running(lambda: backend) as server, server.connect() as connection:
        connection.sendall(head + body + behind)
        assert backend.entered.acquire(timeout=PATIENCE_S)
        server.server.should_exit = True
        told = b"".join(iter(lambda: connection.recv(65_536), b""))
        backend.go_on.set()
    assert told.startswith(b"HTTP/1.1 503 ")
    assert told.endswith(b'{"detail": "the server is ending"}')
    assert not caplog.records


# --- settings --------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_named(server: Running) -> None:
    with pytest.raises(UserError, match=rf"serve\.port={server.place[1]}: can't listen there .*serve\.port=0"):
        bind(ServeConfig(port=server.place[1]))
    with pytest.raises(UserError, match=r"serve\.host=no\.such\.host\.invalid"):
        bind(ServeConfig(host="no.such.host.invalid"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"port": 70_000}, r"serve\.port=70000 must lie in \[0, 65535\]"),
        ({"max_top_k": 0}, r"serve\.max_top_k=0 must be at least 1"),
        ({"read_timeout_s": float("nan")}, r"serve\.read_timeout_s=nan must be above 0"),
        ({"max_passages": 99}, r"serve\.max_passages=99 must be at least serve\.max_top_k=100"),
        ({"max_waiting": 10}, r"serve\.max_waiting=10 must be at least serve\.max_queries=4096"),
    ],
)
def test_wrong_limits_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        ServeConfig(**settings)


def test_an_index_that_cannot_be_opened_is_told_before_anything_is_served(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"), running(open_index(tmp_path / "none")):
        pass


def test_a_passage_is_found_by_its_id_in_the_backend(served_index: Path) -> None:
    backend = open_backend(CONFIG, served_index)
    try:
        found = backend.document_batch(["emma", "nobody", "twin-2", "\ud800"], 2)
    finally:
        backend.close()
    assert [[p.id for p in one] for one in found] == [["emma"], [], ["twin-2", "twin-10"], []]
    assert found[0][0] == Passage(id="emma", title=EMMA["title"], text=EMMA["text"])
