"""The server over a real index, asked over real connections: each dialect by its public shape, and who may ask."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import CONFIG, PASSAGES, PATIENCE_S, Running, Scripted, refusal, running

from retrieval_service import jvm
from retrieval_service.backend import Identity
from retrieval_service.corpus import corpus_stamp
from retrieval_service.dialects import dialect, dialect_names

pytestmark = pytest.mark.jvm

EMMA = {
    "id": "emma",
    "title": "Emma (novel)",
    "text": "Emma is a novel by Jane Austen, published in 1815.",
    "contents": '"Emma (novel)"\nEmma is a novel by Jane Austen, published in 1815.',
}


def ids(documents: list[dict[str, Any]]) -> list[str]:
    return [d["id"] for d in documents]


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


def test_rllm_gets_an_object_with_flat_results(server: Running) -> None:
    """Its tool sends these two keys, and reads ``results``; the words of the scores are as it writes them."""
    same = server.post("/retrieve", {"queries": ["Emma"], "topk": 2, "return_scores": True}).json()["result"][0]
    told = server.post("/retrieve", {"query": "Emma", "top_k": 2}).json()
    assert told == {"query": "Emma", "results": same, "num_results": len(same)}


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


def test_a_body_may_begin_with_a_byte_order_mark(server: Running) -> None:
    """As of a file that an editor saved, and ``curl -d @FILE`` sends; Search-R1's own server reads it, too."""
    body = b'{"queries": ["Emma Austen"], "topk": 1}'
    told = server.client.post("/retrieve", content=b"\xef\xbb\xbf" + body)
    assert told.json() == server.client.post("/retrieve", content=body).json()
    assert told.status_code == 200


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


def test_health_and_info_say_where_it_computes_and_any_name_can_be_told(server: Running) -> None:
    assert server.client.get("/health").json()["device"] == "cpu"

    class Elsewhere(Scripted):
        device = "cuda:1"

        def identity(self) -> Identity:
            return Identity(name="caf\udce9.jsonl", backend="scripted")  # as Python reads a name that isn't in UTF-8

    with running(Elsewhere) as other:
        told = other.client.get("/health").json()
        assert (told["index"]["name"], told["device"]) == ("caf\udce9.jsonl", "cuda:1")
        assert other.client.get("/info").json()["device"] == "cuda:1"
        assert 'name="caf?.jsonl"' in other.client.get("/metrics").text


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
            assert reply.status_code == 200, reply.text
            assert [(e["document"]["id"], e["score"]) for e in reply.json()["result"][0]] == expected[query]

    async def all_clients() -> None:
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S, limits=limits, trust_env=False) as http:
            await asyncio.gather(*(client(number, http) for number in range(64)))

    asyncio.run(all_clients())


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


def test_a_page_of_an_origin_that_is_named_may_ask() -> None:
    """As a browser does it: it asks beforehand, without the token, whether it may send what the page wants sent."""
    page, other = "https://inspector.example", "https://other.example"
    wish = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    right = {"Authorization": "Bearer t0ken"}
    with running(Scripted, token="t0ken", cors=[page]) as server:
        for path in ("/mcp", "/retrieve"):
            told = server.client.options(path, headers={"Origin": page, **wish})
            assert told.status_code == 200
            assert told.headers["access-control-allow-origin"] == page
            assert told.headers["access-control-allow-headers"] == "authorization,content-type"
            assert (
                "access-control-allow-origin"
                not in server.client.options(path, headers={"Origin": other, **wish}).headers
            )
        reply = server.post("/retrieve", {"queries": ["x"]}, headers={"Origin": page, **right})
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, page)
        asked = {
            status: f'slingshot_retrieval_requests_total{{route="other",status="{status}"}}' for status in (200, 400)
        }
        told = server.client.get("/metrics", headers=right).text
        assert all(f"{line} 2.0" in told for line in asked.values()), "what it asks beforehand is counted, too"
        refused = server.post("/retrieve", {"queries": ["x"]}, headers={"Origin": page})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, page)
    with running(Scripted, cors=[page]) as server:
        assert server.client.get("/health", headers={"Origin": page}).status_code == 200
        assert "serve.cors" in refusal(server.client.get("/health", headers={"Origin": other}), 403)
        reply = server.client.get("/health", headers={"Origin": "http://localhost:3000"})
        assert "access-control-allow-origin" not in reply.headers


def test_pages_of_no_origin_may_ask_unless_one_is_named(server: Running) -> None:
    origin = {"Origin": "http://localhost:6274"}
    assert server.client.options("/mcp", headers=origin | {"Access-Control-Request-Method": "POST"}).status_code == 405
    assert "access-control-allow-origin" not in server.client.get("/health", headers=origin).headers


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
