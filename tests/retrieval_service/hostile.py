"""Requests that nobody sends who means well, made from a seed, as the bytes that go over the wire."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PATHS = ("/retrieve", "/search", "/batch_search")
KEYS = ("queries", "query_list", "query", "topk", "tok_k", "top_n", "return_scores", "return_score", "extra")
LUCENE = (
    "+emma -emma && || !",
    "title:x emma~2^ [a TO b} /x/ \\",
    "*:*",
    '"emma',
    "(((",
    "emma AND ( NOT",
    "_query_:{!x}",
)
UNICODE = (
    "\x00",
    "\x1b[31m",
    "\u202e",
    "\ufeff",
    "\ufffe",
    "\U0010ffff",
    "e\u0301" * 50,
    "😀" * 40,
    "\n\r\t",
    "%00",
    "ß" * 99,
)
WRONG: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**31, 2**63, 10**300, 1.5, -0.0, 1e308, "", "3", [], {}, [[]], {"a": 1}, [None], [1]),
    *(["x", 2], [{"query": "x"}], ["x"] * 300, [""], "x" * 2000),
)
"""Values that are wrong for at least one key."""
LITERALS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "0x1",
    "01",
    "'x'",
    '"\\ud800"',
    '"\\x"',
    "undefined",
    "\x00",
    "[1,]",
    "9" * 5000,
)
"""Values that are no JSON, or no number that a machine has."""
TEN_MB = 10_000_000


@dataclass(frozen=True)
class Hostile:
    """What is sent over one connection."""

    kind: str
    data: bytes
    whole: bool = True
    """Whether it is a complete request, which has to be answered; else the client goes away after it."""


def hostile(seed: int) -> Hostile:
    """Request number ``seed``."""
    rng = random.Random(seed)
    name = rng.choices(list(MAKERS), [weight for weight, _ in MAKERS.values()])[0]
    made = MAKERS[name][1](rng)
    return made if isinstance(made, Hostile) else Hostile(name, made)


def request(body: bytes, path: str = "/retrieve", method: str = "POST", *headers: str, version: str = "1.1") -> bytes:
    head = [f"{method} {path} HTTP/{version}", "Host: localhost", "Connection: close", f"Content-Length: {len(body)}"]
    return "\r\n".join((*head, *headers, "", "")).encode("utf-8", "surrogatepass") + body


def _text(rng: random.Random) -> str:
    parts = [
        rng.choice((*LUCENE, *UNICODE, "emma", "novel", "Austen", " ", string.punctuation))
        for _ in range(rng.randint(0, 8))
    ]
    return rng.choice(("", " ")).join(parts)


def _odd_text(rng: random.Random) -> bytes:
    path = rng.choice(PATHS)
    query: Any = _text(rng) if path == "/search" else [_text(rng) for _ in range(rng.randint(0, 5))]
    key = "queries" if path == "/retrieve" else "query"
    return request(json.dumps({key: query}, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass"), path)


def _wrong_types(rng: random.Random) -> bytes:
    body = {rng.choice(KEYS): rng.choice((*WRONG, "emma", ["emma"])) for _ in range(rng.randint(0, 4))}
    value: Any = rng.choice((body, body, body, [body], rng.choice(WRONG)))
    return request(json.dumps(value).encode(), rng.choice(PATHS))


def _no_json(rng: random.Random) -> bytes:
    fields = [f'"{rng.choice(KEYS)}":{rng.choice((*LITERALS, "[]"))}' for _ in range(rng.randint(1, 3))]
    body = ('{"queries":["emma"],"query":"emma",' + ",".join(fields) + rng.choice("}} ]")).encode(
        "utf-8", "surrogatepass"
    )
    return request(body[: rng.randint(1, len(body))] if rng.random() < 0.3 else body, rng.choice(PATHS))


def _noise(rng: random.Random) -> bytes:
    return request(
        rng.randbytes(rng.randint(0, 300)),
        rng.choice((*PATHS, "/mcp")),
        rng.choice(("POST", "POST", "PUT", "PATCH", "DELETE")),
    )


def _deep(rng: random.Random) -> bytes:
    depth = rng.choice((100, 1000, 30_000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    return request(('{"queries":' + opening * depth + "1" + closing * depth + "}").encode(), rng.choice(PATHS))


def _long(rng: random.Random) -> bytes:
    body = json.dumps({"queries": ["x" * TEN_MB], "topk": 3}).encode()
    if rng.random() < 0.5:
        return request(body)
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part) for part in (body[i : i + 65_536] for i in range(0, len(body), 65_536))
    )
    return (
        b"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunks
        + b"0\r\n\r\n"
    )


def _paths(rng: random.Random) -> bytes:
    odd = (
        "%",
        "%00",
        "%ff",
        "%2e%2e/",
        "../",
        "..;/",
        "//",
        "?following=",
        "#",
        "é",
        "\x7f",
        "'",
        "<script>",
        "a" * 5000,
    )
    path = rng.choice(
        ("/", "/document/", "/health", "/docs", "/mcp", "/retrieve", "*", "http://evil/", "//")
    ) + "".join(rng.choice((*odd, "emma", "-1", "NaN")) for _ in range(rng.randint(0, 4)))
    return request(b"", path.replace(" ", "%20"), rng.choice(("GET", "GET", "POST", "HEAD", "OPTIONS", "TRACE")))


def _headers(rng: random.Random) -> bytes:
    odd = (
        *(
            "Content-Length: -1",
            "Content-Length: x",
            "Content-Length: 99999999999999999999",
            "Transfer-Encoding: chunked",
        ),
        *(
            "Expect: 100-continue",
            "Upgrade: websocket",
            "Upgrade: h2c",
            "Content-Type: image/png",
            "Accept: x/y",
            "Host: evil",
        ),
        *(
            "Authorization: Bearer \xff",
            "X: " + "y" * 100_000,
            "Cookie: a=b",
            ": empty",
            "No-Colon",
            "A B: c",
            "Range: bytes=0-",
        ),
    )
    return request(b'{"queries":["emma"]}', rng.choice(PATHS), "POST", *rng.sample(odd, rng.randint(1, 3)))


def _protocols(rng: random.Random) -> bytes:
    good = b'{"queries":["emma"]}'
    return rng.choice(
        (
            b"GET /\r\n\r\n",
            request(good, version="1.0"),
            request(good, version="3.0"),
            request(good, version="x"),
            request(good, method="EMMA"),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200),
            request(good).replace(b"Connection: close\r\n", b"") + request(good),
            b"\r\n" * 50 + request(good),
            rng.randbytes(500),
        )
    )


def _half_open(rng: random.Random) -> Hostile:
    """A request that is left in its middle, or as soon as it has been sent."""
    whole = request(json.dumps({"queries": ["emma"], "topk": 3}).encode(), rng.choice(PATHS))
    return Hostile("half_open", whole[: rng.choice((len(whole), rng.randint(0, len(whole) - 1)))], whole=False)


def _mcp(rng: random.Random) -> bytes:
    call = {
        "name": rng.choice(("search", "fetch", "drop")),
        "arguments": {rng.choice(("query", "id", "top_k")): rng.choice(WRONG)},
    }
    message = {
        "jsonrpc": "2.0",
        "id": rng.choice(WRONG),
        "method": rng.choice(("tools/call", "tools/list", "x", "")),
        "params": call,
    }
    accept = "Accept: application/json, text/event-stream"
    return request(json.dumps(message).encode(), "/mcp", "POST", "Content-Type: application/json", accept)


MAKERS: dict[str, tuple[float, Callable[[random.Random], bytes | Hostile]]] = {
    "odd_text": (20, _odd_text),
    "wrong_types": (20, _wrong_types),
    "no_json": (15, _no_json),
    "noise": (8, _noise),
    "deep": (3, _deep),
    "long": (1, _long),
    "paths": (12, _paths),
    "headers": (8, _headers),
    "protocols": (5, _protocols),
    "half_open": (6, _half_open),
    "mcp": (4, _mcp),
}
"""How often, and how each kind is made."""
