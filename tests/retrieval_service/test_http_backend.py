"""``retrieval=http``: against our own server in every dialect, and against scripted servers that misbehave."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import certifi
import httpx
import pytest
from served import CONFIG, PATIENCE_S, Running, Scripted, running

from agent.errors import RetrievalError, UserError
from agent.records import Passage
from retrieval_service.backend import Unavailable
from retrieval_service.backends import http as http_module
from retrieval_service.backends.http import TRIAL, Http
from retrieval_service.config import RetrievalConfig
from retrieval_service.dialects import dialect, dialect_names
from retrieval_service.dialects.base import passage_of
from retrieval_service.rankers import open_backend, opener
from retrieval_service.retry import retry_after_s
from retrieval_service.token import read_token
from retrieval_service.worker import answers

QUERIES = ["Emma Austen", "the of", "marmalade", "首都 😀", "", "Berlin albums of 1977"]


def asking(url: str, **settings: Any) -> RetrievalConfig:
    return RetrievalConfig(backend="http", url=url, **settings)


@contextmanager
def opened(config: RetrievalConfig, sleep: Callable[[float], None] | None = None) -> Iterator[Http]:
    backend = Http(None, config, sleep or (lambda seconds: None))
    try:
        yield backend
    finally:
        backend.close()


# --- against our own server ------------------------------------------------------------------------


@pytest.mark.jvm
@pytest.mark.parametrize("name", dialect_names())
def test_every_dialect_finds_what_the_index_gives_directly(server: Running, served_index: Path, name: str) -> None:
    direct = open_backend(CONFIG, served_index)
    try:
        expected = direct.search_batch(QUERIES, 4)
    finally:
        direct.close()
    with opened(asking(server.url, dialect=name)) as http:
        assert http.search_batch(QUERIES, 4) == expected
        assert http.search_batch([], 4) == []


@pytest.mark.jvm
def test_documents_what_follows_them_and_the_identity_come_along(server: Running, served_index: Path) -> None:
    with opened(asking(f"{server.url}/retrieve")) as http:
        found = http.document_batch(["twin-3", "nobody", "a/b c?1.txt#0"], 2)
        assert [[p.id for p in one] for one in found] == [["twin-3", "twin-1"], [], ["a/b c?1.txt#0"]]
        assert [p.id for p in http.following_batch(["twin-3"], 2)[0]] == ["twin-1", "twin-2"]
        with pytest.raises(RetrievalError, match="has no passage 'nobody'"):
            http.following_batch(["nobody"], 2)
        told = http.identity()
        there = server.identity
        assert (told.name, told.documents, told.checksum) == (there.name, there.documents, there.checksum)
        assert (told.backend, told.settings["ranked_by"], told.settings["k1"]) == ("http", "bm25", 0.9)


def test_a_service_over_a_service_is_one(tmp_path: Path) -> None:
    with running(Scripted) as inner:
        config = asking(inner.url)
        with running(opener(tmp_path / "unread.jsonl", config, tmp_path), config) as outer:
            asked = {"queries": ["a", "b"], "return_scores": True}
            assert outer.post("/retrieve", asked).json() == inner.post("/retrieve", asked).json()


class Unscored(Scripted):
    """Passages that nobody has given a score."""

    def search_batch(self, queries: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        return [tuple(replace(p, score=None) for p in hits) for hits in super().search_batch(queries, k)]


@pytest.mark.parametrize("name", dialect_names())
def test_no_score_stays_none_from_server_to_server(name: str) -> None:
    with running(Unscored) as server, opened(asking(server.url, dialect=name)) as http:
        assert [p.score for p in http.search_batch(["q"], 2)[0]] == [None, None]
        spoken = dialect(name)
        told = server.post(spoken.path, spoken.body(["q"], 2)).text
        assert "0.0" not in told
        assert told.count("null") == (2 if told.startswith("[") else 0), "where a list has to have one"


def test_a_token_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("t0ken\n")
    with running(Scripted, token="t0ken") as server:
        with pytest.raises(UserError, match=r"the server refuses with 401; give its token with retrieval\.token_file"):
            Http(None, asking(server.url))
        with opened(asking(server.url, token_file=str(tmp_path / "token"))) as http:
            assert len(http.search_batch(["a"], 2)[0]) == 2
        monkeypatch.setenv("SLINGSHOT_RETRIEVAL_TOKEN", "t0ken")
        with opened(asking(server.url)) as http:
            assert len(http.search_batch(["a"], 2)[0]) == 2


@pytest.mark.parametrize("text", ["", " \n", "two words", "größe", "a\x00b"])
def test_a_file_without_a_token_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(UserError, match=r"serve\.token_file=.*: a token is one word") as caught:
        read_token(str(tmp_path / "token"), "serve.token_file")
    assert not text.strip() or text not in str(caught.value)
    with pytest.raises(UserError, match="can't be read as text"):
        read_token(str(tmp_path / "none"), "serve.token_file")


def test_a_token_may_stand_behind_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xef\xbb\xbfsecret\r\n")
    assert read_token(str(tmp_path / "token"), "serve.token_file") == "secret"


class Echoing(Scripted):
    """Knows a passage of any id but those that begin with ``no``."""

    def document_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        return [
            () if name.startswith("no") else tuple(Passage(id=name, title="", text=f"{n}") for n in range(k))
            for name in document_ids
        ]


ODD_IDS = [
    *("two\nlines", "end\n", "\n", "\r\n", "a/b", "/a", "a/", "//", ".", "..", "a/../b", "../a", "100%", "a%41", "%2F"),
    *("a?following=9", "a#b", "a b", "a+b", "a&b=c", "é 😀", "\x00", "\x1b", "\\", "[x]{y}", "~", "a" * 2000),
]


def test_a_passage_of_any_id_is_found_by_it() -> None:
    with running(Echoing) as server, opened(asking(server.url)) as http:
        found = http.document_batch([*ODD_IDS, "nobody\n"], 2)
        assert [[p.id for p in one] for one in found] == [*([name] * 2 for name in ODD_IDS), []]


def test_another_passage_than_the_one_that_was_asked_for_is_a_fault() -> None:
    """A proxy that takes ``%2F`` for ``/`` and tidies the path up."""

    class Tidying(Echoing):
        def document_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
            return super().document_batch([name.replace("//", "/") for name in document_ids], k)

    with running(Tidying) as server, opened(asking(server.url)) as http:
        assert [p.id for p in http.document_batch(["a/b"], 1)[0]] == ["a/b"]
        with pytest.raises(RetrievalError, match="not the document \\(it is 'a/b', and 'a//b' was asked for"):
            http.document_batch(["a//b"], 1)


@pytest.mark.parametrize(
    ("url", "health", "searches"),
    [
        ("http://h:1", "http://h:1/health", "http://h:1/retrieve"),
        ("http://h:1/", "http://h:1/health", "http://h:1/retrieve"),
        ("http://h:1/elsewhere", "http://h:1/health", "http://h:1/elsewhere"),
        ("http://h:1/prefix/", "http://h:1/prefix/health", "http://h:1/prefix/retrieve"),
        ("http://h:1/a/prefix/retrieve", "http://h:1/a/prefix/health", "http://h:1/a/prefix/retrieve"),
    ],
)
def test_a_server_may_be_behind_a_path(monkeypatch: pytest.MonkeyPatch, url: str, health: str, searches: str) -> None:
    asked: list[str] = []

    def once(self: Http, method: str, url: str, end: float, request: dict[str, Any]) -> Any:
        asked.append(url)
        return http_module._Reply(status=200, headers=httpx.Headers(), content=ONE)

    monkeypatch.setattr(Http, "_once", once)
    with opened(asking(url)) as http:
        http.search_batch(["q"], 1)
    assert asked == [health, searches, searches]


def test_a_servers_certificate_is_checked_by_those_that_the_user_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----")
    (tmp_path / "own.pem").write_text("".join(first[:2]))
    seen: list[Any] = []
    monkeypatch.setattr(httpx, "Client", lambda **settings: seen.append(settings["verify"]) or 1 / 0)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))
    with pytest.raises(ZeroDivisionError):
        Http(None, asking("https://h:1"))
    assert [len(context.get_ca_certs()) for context in seen] == [1]
    for file, text in (("none.pem", None), ("empty.pem", "")):
        if text is not None:
            (tmp_path / file).write_text(text)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / file))
        with pytest.raises(UserError, match=rf"^SSL_CERT_FILE=.*{file}: can't be read as certificates \(.*; name a"):
            Http(None, asking("https://h:1"))
    with pytest.raises(ZeroDivisionError):
        Http(None, asking("http://h:1"))


@pytest.mark.parametrize(
    ("said", "date", "seconds"),
    [
        ("3", None, 3.0),
        (" 120 ", None, 120.0),
        ("Wed, 21 Oct 2015 07:28:30 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:30 GMT", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None, 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", "soon", pytest.approx(2.5e11, rel=0.1)),
        ("soon", None, 0.0),
        ("-3", None, 0.0),
        ("", None, 0.0),
        (None, None, 0.0),
        ("\u0663", None, 0.0),
        ("9" * 400, None, float("inf")),
    ],
)
def test_what_a_server_asks_to_wait(said: str | None, date: str | None, seconds: float) -> None:
    given = {"Retry-After": said, "Date": date}
    assert retry_after_s({name: value for name, value in given.items() if value is not None}) == seconds


# --- against servers that misbehave ----------------------------------------------------------------


class Script:
    """A server that answers POST with what it is given, one after the other, the last for ever.

    The first search of who opens it is none of those: ``trial`` answers that, and ``health`` each GET, in the same way.
    """

    def __init__(self, *answers: tuple[int, bytes] | tuple[int, bytes, dict[str, str]]) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []
        self.trial: tuple[int, bytes] | tuple[int, bytes, dict[str, str]] = (503, b"busy")
        self.health = [(404, b"")]
        self.url = ""

    def next(self, asked: Any) -> tuple[int, bytes, dict[str, str]]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer if len(answer) == 3 else (*answer, {})

    @contextmanager
    def running(self) -> Iterator[Script]:
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(*(script.health.pop(0) if len(script.health) > 1 else script.health[0]), {})

            def do_POST(self) -> None:
                asked = self.rfile.read(int(self.headers["Content-Length"]))
                if TRIAL.encode() in asked:
                    self.answer(*(script.trial if len(script.trial) == 3 else (*script.trial, {})))
                    return
                script.asked.append(json.loads(asked))
                self.answer(*script.next(json.loads(asked)))

            def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}"
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


ONE = json.dumps({"result": [[{"document": {"contents": '"T"\nx'}, "score": 2.5}]]}).encode()


def test_a_server_that_is_busy_is_asked_again_after_a_wait() -> None:
    slept: list[float] = []
    answers = ((429, b"{}", {"Retry-After": "3"}), (503, b"busy"), (500, b""), (200, ONE))
    with Script(*answers).running() as script, opened(asking(script.url), slept.append) as http:
        ((hit,),) = http.search_batch(["q"], 3)
    assert (hit.title, hit.text, hit.score) == ("T", "x", 2.5)
    assert script.asked == [{"queries": ["q"], "topk": 3, "return_scores": True}] * 4
    assert slept[0] == 3.0, "what the server named"
    assert 0.25 <= slept[1] <= 0.5, "twice the first wait, less a random part"
    assert 0.5 <= slept[2] <= 1.0


def test_a_server_that_stays_busy_is_a_fault() -> None:
    with Script((503, b'{"detail": "no index"}')).running() as script:
        with (
            opened(asking(script.url, retries=2)) as http,
            pytest.raises(RetrievalError, match=r"503: .*no index.*3 tri"),
        ):
            http.search_batch(["q"], 3)
        assert len(script.asked) == 3
        with (
            opened(asking(script.url, retries=50, timeout_s=2.0)) as http,
            pytest.raises(RetrievalError, match="status 503"),
        ):
            http.search_batch(["q"], 3)  # the next wait would go beyond the time-out
        assert len(script.asked) < 20


@pytest.mark.parametrize("status", [500, 503])
def test_a_query_that_breaks_the_server_fails_alone(status: int) -> None:
    with Script((200, b"")).running() as script, opened(asking(script.url, retries=0, timeout_s=60.0)) as http:

        def next_of_its_kind(asked: Any) -> tuple[int, bytes, dict[str, str]]:
            queries = asked["queries"]
            one = json.loads(ONE)["result"][0]
            reply = json.dumps({"result": [one] * len(queries)}).encode()
            return (status, b"", {}) if "poison" in queries else (200, reply, {})

        script.next = next_of_its_kind  # type: ignore[method-assign]
        found = answers(http.search_batch, ["a", "b", "poison", "c"], 3, time.monotonic() + 60.0)
    assert [isinstance(each, RetrievalError) for each in found] == [False, False, True, False]


@pytest.mark.parametrize("name", ["search_r1", "flashrag_single"])
def test_a_query_that_breaks_the_server_does_not_take_the_time_of_its_batch(name: str) -> None:
    """Each half that it is in is tried twice, and it alone as often as it may be."""
    slept: list[float] = []
    with (
        Script((200, b"")).running() as script,
        opened(asking(script.url, dialect=name, retries=4, timeout_s=PATIENCE_S, threads=8), slept.append) as http,
    ):

        def next_of_its_kind(asked: Any) -> tuple[int, bytes, dict[str, str]]:
            one = {"document": {"contents": "x"}, "score": 1.0}
            found = {"result": [[one] for _ in asked["queries"]]} if "queries" in asked else [[one["document"]], [1.0]]
            return (503, b"", {}) if "poison" in json.dumps(asked) else (200, json.dumps(found).encode(), {})

        script.next = next_of_its_kind  # type: ignore[method-assign]
        queries = [*(f"q{n}" for n in range(7)), "poison"]
        found = answers(http.search_batch, queries, 3, time.monotonic() + PATIENCE_S)
    assert [isinstance(each, RetrievalError) for each in found] == [False] * 7 + [True]
    assert "(5 tries)" in str(found[-1])
    assert len(slept) == 3 + 4, "of 8, of 4, of 2, and by itself"
    assert sum("poison" in json.dumps(asked) for asked in script.asked) == 3 * 2 + 5


def test_a_refusal_is_a_fault_at_once() -> None:
    with Script((422, b'{"detail": "100 passages"}')).running() as script, opened(asking(script.url)) as http:
        with pytest.raises(RetrievalError, match=r"status 422: .*100 passages"):
            http.search_batch(["q"], 1000)
        assert len(script.asked) == 1


@pytest.mark.parametrize(
    ("name", "reply", "reason"),
    [
        ("search_r1", b"", "Expecting value"),
        ("search_r1", b"[" * 100_000, "nested too deeply"),
        ("search_r1", b"[]", 'it has no "result"'),
        ("search_r1", b'{"result": []}', "it answers 0 of 1 queries"),
        ("search_r1", b'{"result": [[], []]}', "it answers 2 of 1 queries"),
        ("search_r1", b'{"result": "Search request failed"}', '"result" is a text, not a list'),
        ("search_r1", b'{"result": [[{"document": null, "score": 1}]]}', "a document is null"),
        ("search_r1", b'{"result": [[{"document": {"contents": ""}, "score": 1}]]}', 'neither "contents" nor "text"'),
        ("search_r1", b'{"result": [[{"document": {"contents": "x"}, "score": NaN}]]}', "a score is nan, not a number"),
        ("search_r1", b'{"result": [[{"document": {"contents": "x"}, "score": "1"}]]}', "a score is '1'"),
        ("search_r1", b'{"result": null}', '"result" is null, not a list'),
        ("search_r1", b'{"result": [null]}', "a result is null, not a list"),
        ("search_r1", b'{"result": ["Emma"]}', "a result is a text, not a list"),
        ("search_r1", b'{"result": [["Emma"]]}', "a document is a text"),
        ("search_r1", b'{"result": [[{"document": {"contents": "x"}, "score": null}]]}', "a score is null"),
        ("search_r1", b'{"result": [[{"document": {"contents": "x"}, "score": 1%s}]]}' % (b"0" * 400), "a score is 10"),
        ("search_r1", b'{"result": [[{"document": {"contents": "x"}, "score": 1e999}]]}', "a score is inf"),
        ("search_r1", b'{"result": [[{"document": {"id": ["a"], "contents": "x"}}]]}', "an id is a list"),
        (
            "search_r1",
            b'{"result": [[{"document": {"contents": "x"}, "score": 1}, {"document": {"contents": "y"}}]]}',
            "some documents have a score, and others have none",
        ),
        (
            "search_r1",
            b'{"result": [[{"contents": "x"}, {"document": {"contents": "y"}, "score": 1}]]}',
            "some documents have a score, and others have none",
        ),
        ("search_r1", b'{"result": [[]], "result": [[]]}', "the key 'result' is there twice"),
        ("verl", b'{"result": [[], []]}', "it answers 2 of 1 queries"),
        ("skyrl", b'{"result": [[], []]}', "it answers 2 of 1 queries"),
        ("david_grpo", b'{"documents": [], "scores": []}', "it is an object, not a list"),
        ("david_grpo", b"[]", "it answers 0 of 1 queries"),
        ("david_grpo", b'[{"documents": null, "scores": null}]', "the documents is null, not a list"),
        ("david_grpo", b'[{"documents": []}]', 'lacks "documents" or "scores"'),
        ("david_grpo", b'[{"documents": [{"contents": "x"}], "scores": []}]', "1 documents have 0 scores"),
        ("flashrag", b"[[]]", "a list of 1, not a pair"),
        ("flashrag", b"[[[]], []]", "1 lists of documents have 0 lists of scores"),
        ("flashrag", b"[[], []]", "it answers 0 of 1 queries"),
        ("flashrag", b'[[[{"contents": "x"}]], [[]]]', "1 documents have 0 scores"),
        ("flashrag_single", b'[[{"contents": "x"}], ["1"]]', "a score is '1'"),
        ("flashrag_single", b'[[[{"contents": "x"}]], [[1]]]', "a document is a list"),
        ("flashrag_single", b"[null, null]", "the first half is null, not a list"),
    ],
)
def test_what_is_no_reply_is_a_fault_and_never_an_empty_result(name: str, reply: bytes, reason: str) -> None:
    with Script((200, reply)).running() as script, opened(asking(script.url, dialect=name)) as http:
        with pytest.raises(RetrievalError, match=f"not a reply in the dialect {name} \\(.*{reason}"):
            http.search_batch(["q"], 3)
        assert len(script.asked) == 1, "it would be the same again"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((200, b"<html><title>Log in</title></html>", {"Content-Type": "text/html"}), "begins with '<html><title>Log"),
        ((200, b""), "it is empty"),
        ((204, b""), "status 204, no JSON: .*it is empty"),
        ((206, b'{"result": [['), "status 206, no JSON"),
        ((302, b"", {"Location": "http://127.0.0.1/login"}), "status 302: .*sends on to http://127.0.0.1/login"),
        ((200, b"not gzip", {"Content-Encoding": "gzip"}), r"DecodingError: .*\(2 tries\)"),
        # Without the time: processes that share the tests have to give them the same names.
        ((200, gzip.compress(bytes(2000), mtime=0)), "no JSON"),
        (
            (200, gzip.compress(bytes(20_000), mtime=0), {"Content-Encoding": "gzip"}),
            "its reply is longer than 9999 bytes",
        ),
        ((200, b" " * 10_000), "its reply is longer than 9999 bytes"),
    ],
    ids=str,
)
def test_an_answer_that_is_no_reply_is_told(answer: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "MAX_REPLY", 9999)
    with (
        Script(answer).running() as script,
        opened(asking(script.url, retries=1)) as http,
        pytest.raises(RetrievalError, match=reason),
    ):
        http.search_batch(["q"], 3)


def test_a_reply_may_be_packed_and_passages_beyond_those_asked_for_are_left_out() -> None:
    more = json.dumps({"result": [[{"document": {"id": n, "contents": "x"}, "score": 9 - n} for n in range(9)]]})
    with (
        Script((200, gzip.compress(more.encode()), {"Content-Encoding": "gzip"})).running() as script,
        opened(asking(script.url)) as http,
    ):
        assert [p.id for p in http.search_batch(["q"], 3)[0]] == ["0", "1", "2"]


def test_a_server_that_never_answers_is_a_fault_when_the_time_is_over() -> None:
    backend = Scripted()
    with running(lambda: backend, read_timeout_s=60.0) as server:
        with opened(asking(server.url, timeout_s=0.5, retries=100)) as http:
            backend.go_on.clear()
            with pytest.raises(RetrievalError, match="ReadTimeout"):
                http.search_batch(["q"], 3)
        backend.go_on.set()


def test_a_server_that_takes_the_connection_and_says_nothing_may_be_opening_its_index() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(
            UserError, match=rf"^retrieval\.url={url}: it took the connection and .* within 0\.1 s \(Re"
        ):
            Http(None, asking(url, timeout_s=0.1))


def test_nobody_there_is_told_before_the_start() -> None:
    with Script((200, ONE)).running() as script:
        pass
    with pytest.raises(UserError, match=r"no server answers there \(ConnectError: .*refused\); start it first"):
        Http(None, asking(script.url), lambda seconds: None)


@pytest.mark.parametrize(
    ("scheme", "answer", "told"),
    [
        ("http", b"SSH-2.0-x\r\n", r"something listens there, .*\(RemoteProtocolError: .*check HOST and PORT"),
        ("http", b"", r"something listens there, but its answer is no HTTP or breaks off \(Re.*disconnected"),
        ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", r"breaks off \(Re.*received 3 bytes, expected 9"),
        (
            "http",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
            r"breaks off \(Re.*incomplete chunked",
        ),
        ("https", b"HTTP/1.1 400 No\r\n\r\n", r"no secure connection is made .*WRONG_VERSION_NUMBER.*write http://"),
    ],
    ids=["SSH", "nothing", "half", "half a chunk", "no TLS"],
)
def test_what_answers_and_is_no_server_of_http_is_told(scheme: str, answer: bytes, told: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        done = pool.submit(once)
        with pytest.raises(UserError, match=rf"^retrieval\.url={scheme}://127\.0\.0\.1:\d+: .*{told}"):
            Http(None, asking(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", retries=0))
        done.result(PATIENCE_S)


def test_a_wrong_path_or_dialect_is_told_before_the_start() -> None:
    with Script((200, ONE)).running() as script:
        for trial, reason in (
            ((404, b"not found"), r"/x: status 404: not found\); give the path of searches there"),
            ((422, b"no top_n"), r"status 422: no top_n\).* in place of retrieval\.dialect=search_r1"),
            ((200, b"[]"), r'not a reply in the dialect search_r1 \(it has no "result"\)'),
            ((403, b""), r"refuses with 403; give its token"),
        ):
            script.trial = trial
            with pytest.raises(UserError, match=rf"^retrieval\.url={script.url}/x: .*{reason}"):
                Http(None, asking(f"{script.url}/x"))
        for trial in ((200, ONE), (500, b"")):
            script.trial = trial
            with opened(asking(script.url)) as http:
                assert len(http.search_batch(["q"], 3)[0]) == 1


@pytest.mark.parametrize(
    ("settings", "top_k", "setting"),
    [({}, 60, "agent.top_k=60"), ({"reranker": "r", "rerank_depth": 51}, 5, "retrieval.rerank_depth=51")],
)
def test_more_passages_than_a_server_gives_are_told_before_the_start(
    settings: dict[str, Any], top_k: int, setting: str
) -> None:
    with running(Scripted, max_top_k=50) as server:
        config = asking(server.url, **settings)
        with pytest.raises(
            UserError,
            match=rf"^retrieval\.url=.*: a search for \d+ passages fails \(.*from 1 to 50 may.*; {setting} asks for so",
        ):
            open_backend(config, None, top_k)
        open_backend(asking(server.url), None, 50).close()


def test_a_server_that_is_not_ready_has_no_name_yet() -> None:
    told = json.dumps({"index": {"name": "wiki", "documents": 7, "backend": "bm25"}}).encode()
    with Script((200, ONE)).running() as script:
        for status in (429, 503):
            script.health = [(status, b"loading"), (status, b"loading"), (200, told)]
            with opened(asking(script.url)) as http:
                assert (http.identity().name, http.identity().documents) == ("wiki", 7)
        script.health = [(503, b"loading")]
        with pytest.raises(
            UserError, match=r"^retrieval\.url=.*: the server isn't ready \(.*503: loading \(3 tries\)\)"
        ):
            Http(None, asking(script.url, retries=2), lambda seconds: None)
        script.health = [(405, b"")]
        with opened(asking(script.url)) as http:
            assert http.identity().name == script.url


def test_a_server_that_searches_something_else_by_now_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was started anew, over another index: results of the two would be taken for one."""
    now = [0.0]
    monkeypatch.setattr(http_module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def health(**index: Any) -> list[tuple[int, bytes]]:
        return [(200, json.dumps({"index": {"name": "wiki", "documents": 7, "backend": "bm25", **index}}).encode())]

    with Script((200, ONE)).running() as script:
        script.health = health()
        with opened(asking(script.url)) as http:
            for busy in ([(503, b"loading")], [(401, b"")], health(uptime_s=9)):
                script.health = busy
                now[0] += http_module.LOOK_AGAIN_S
                assert len(http.search_batch(["q"], 3)[0]) == 1
            for other in (health(documents=8), health(name="nq"), health(checksum="5"), [(404, b"another program")]):
                script.health = other
                now[0] += 1.0
                assert len(http.search_batch(["q"], 3)[0]) == 1, "it isn't asked each time"
                now[0] += http_module.LOOK_AGAIN_S
                for _ in range(2):
                    with pytest.raises(
                        Unavailable, match=r"^http://\S*: what is searched has changed since the start: "
                    ):
                        http.search_batch(["q"], 3)
                script.health = health()
                assert len(http.search_batch(["q"], 3)[0]) == 1, "it was put back"
        script.health = health(checksum="5", k1=0.9)
        with opened(asking(script.url)) as http:
            script.health = health(checksum="5", k1=1.2)
            now[0] += http_module.LOOK_AGAIN_S
            with pytest.raises(Unavailable, match="has changed since the start: settings "):
                http.search_batch(["q"], 3)


@pytest.mark.parametrize(
    "index",
    [
        {"status": "ok"},
        {"name": None},
        {"name": 7},
        {"name": "wiki", "documents": "many"},
        {"name": "wiki", "documents": True},
        {"name": "wiki", "checksum": ["a"]},
        ["wiki"],
        "ok",
    ],
)
def test_another_programs_health_is_no_identity(index: Any) -> None:
    with Script((200, ONE)).running() as script:
        script.health = [(200, json.dumps({"index": index}).encode())]
        with opened(asking(script.url)) as http:
            told = http.identity()
    assert (told.name, told.documents, told.checksum) == (script.url, None, None)


def test_where_a_server_sends_on_to_is_told() -> None:
    sent = {"Location": "https://box.lan/retrieve?login=secret"}
    with Script((307, b"", sent)).running() as script:
        with (
            opened(asking(script.url)) as http,
            pytest.raises(RetrievalError, match=r"307: +\(it sends on to https://box\.lan/retrieve\)$"),
        ):
            http.search_batch(["q"], 3)
        script.trial = (308, b"moved", sent)
        with pytest.raises(
            UserError, match=r"308: moved \(it sends on to https://box\.lan/retrieve\)\); give the path"
        ):
            Http(None, asking(script.url))


def test_no_request_outlasts_the_batch_that_it_is_of() -> None:
    backend = Scripted()
    with running(lambda: backend, read_timeout_s=60.0) as server:
        with opened(asking(server.url, timeout_s=PATIENCE_S)) as http:
            backend.go_on.clear()
            http.until(time.monotonic() + 0.2)
            with pytest.raises(RetrievalError, match="ReadTimeout"):
                http.search_batch(["q"], 3)
        backend.go_on.set()


def test_a_foreign_server_is_known_by_its_address_and_its_passages_by_their_contents() -> None:
    with Script((200, ONE)).running() as script, opened(asking(f"{script.url}/elsewhere")) as http:
        assert http.identity().name == f"{script.url}/elsewhere"
        first, second = http.search_batch(["q"], 3), http.search_batch(["r"], 3)
        assert first == second
        assert first[0][0].id.startswith("contents-")
        with pytest.raises(RetrievalError, match="can't say what follows"):
            http.following_batch(["q"], 1)


@pytest.mark.parametrize("entry", [{"contents": "x"}, {"document": {"contents": "x"}}])
def test_a_server_that_tells_no_scores_ranks_without_them(entry: dict[str, Any]) -> None:
    reply = json.dumps({"result": [[entry, entry]]}).encode()
    with Script((200, reply)).running() as script, opened(asking(script.url)) as http:
        assert [(p.text, p.score) for p in http.search_batch(["q"], 3)[0]] == [("x", None)] * 2


def test_documents_of_any_server_are_passages() -> None:
    assert passage_of({"id": 7, "contents": '"T"\nx'}, 1) == Passage(id="7", title="T", text="x", score=1.0)
    assert passage_of({"id": "a", "title": "T", "text": "x"}) == Passage(id="a", title="T", text="x")
    assert passage_of({"id": "a", "text": "x"}).title == ""
    assert passage_of({"id": "a", "title": "T", "text": None}) == Passage(id="a", title="T", text="")
    beside = {"id": "a", "title": "A \n Title", "contents": "One line.\nAnother."}
    assert passage_of(beside) == Passage(id="a", title="A Title", text="One line.\nAnother.")
    assert passage_of({"id": "a", "title": "T", "contents": "x"}) == Passage(id="a", title="T", text="x")
    assert passage_of({"id": "a", "title": "t", "contents": '"T"\nx'}) == Passage(id="a", title="T", text="x")
    assert passage_of({"id": "a", "title": 7, "contents": '"T"\nx'}).title == "T"
    assert passage_of({"contents": "x"}).id == passage_of({"contents": "x", "id": ""}).id
    assert passage_of({"contents": "x"}).id != passage_of({"contents": "y"}).id
    assert passage_of({"contents": "\ud800"}).id.startswith("contents-")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"backend": "http"}, r"retrieval=http needs retrieval\.url=http://HOST:PORT"),
        (
            {"url": "http://x:1"},
            r"retrieval\.url is for a ranker that asks a service, which bm25 doesn't; set retrieval=http",
        ),
        ({"backend": "http", "url": "http://x:1", "index": "folder"}, "leave one out"),
        ({"backend": "http", "url": "http://x:1", "dialect": "search-r1"}, "did you mean 'search_r1'"),
        ({"backend": "http", "url": "http://x:1", "retries": -1}, r"retrieval\.retries=-1 must be at least 0"),
        *(
            ({"backend": "http", "url": url}, r"is written http://HOST:PORT")
            for url in (
                "x:1",
                "ftp://x",
                "http://",
                "http://x:99999",
                "http://u:p@x",
                "http://x/?q=1",
                "http://x y",
                "",
            )
        ),
        *(
            (
                {"backend": "http", "url": f"http://{place}/x"},
                rf"^retrieval\.url=.*: nothing can listen at {place}; HOST",
            )
            for place in ("127.0.0..1:9", "box..lan:8000", ".lan", "300.1.1.1:9", "xn--a:9", "a" * 64, "x:0")
        ),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        RetrievalConfig(**settings)
