"""Seeded damage to files: what a broken disk, a wrong program or a careless hand makes of them."""

from __future__ import annotations

import json
import random
from typing import Any

WORDS = [
    *(b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"-Infinity", b"9" * 5000, b"1" + b"0" * 30, b"0.1"),
    *(b"[", b"{", b"]", b"}", b'"', b",", b":", b"\\", b"[" * 3000, b'{"a":' * 2000, b"\\ud800", b"\\u0000"),
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\r\n", b"\n\n", b"\t", b"  "),
    *(b"\x1f\x8b\x08", b"PAR1", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"<search>", b"</answer>", b"<result>"),
    *(b"${oc.env:HOME}", b"!!python/object:os.system x", b"? ", b"- ", b"*a", b"&a ", b"%", b"../../etc/passwd"),
    b"x" * 100_000,
]  # fmt: skip
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf")),
    *("", " ", "x", "\ud800", "\x00", "\x1b[31m", "a\nb", "x" * 10_000, "1", "null", "../..", "/", "é" * 50),
    *([], {}, [[]], [{}], {"": None}, [None], ["a", 1, None], {"a": {"b": []}}, [[0] * 50] * 50),
]  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """``data`` with one to four things done to it."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        data = rng.choice((_flipped, _cut, _without, _with, _with, _twice, _moved, _value, _value, _value))(data, rng)
    return data


def _place(data: bytes, rng: random.Random) -> int:
    return rng.randint(0, len(data))


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    begin = _place(data, rng)
    return begin, min(len(data), begin + rng.choice((1, 2, 5, 20, 200, 2000)))


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 30)) if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: _place(data, rng)]


def _without(data: bytes, rng: random.Random) -> bytes:
    begin, end = _span(data, rng)
    return data[:begin] + data[end:]


def _with(data: bytes, rng: random.Random) -> bytes:
    at = _place(data, rng)
    what = rng.choice(WORDS) if rng.random() < 0.8 else rng.randbytes(rng.choice((1, 4, 100)))
    return data[:at] + what + data[at:]


def _twice(data: bytes, rng: random.Random) -> bytes:
    begin, end = _span(data, rng)
    return data[:end] + data[begin:]


def _moved(data: bytes, rng: random.Random) -> bytes:
    begin, end = _span(data, rng)
    part, rest = data[begin:end], data[:begin] + data[end:]
    at = _place(rest, rng)
    return rest[:at] + part + rest[at:]


def _value(data: bytes, rng: random.Random) -> bytes:
    """Another value in the place of one in a JSON text, or in a line of several."""
    lines = data.split(b"\n")
    numbers = [number for number, line in enumerate(lines) if line.strip()[:1] in (b"{", b"[")]
    whole = not numbers or len(numbers) == 1
    at = 0 if not numbers else rng.choice(numbers)
    try:
        document = json.loads(data if whole else lines[at])
    except (ValueError, RecursionError):
        return _with(data, rng)
    if rng.random() < 0.1:
        document = rng.choice(VALUES)
    else:
        _replace_one(document, rng)
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return text if whole else b"\n".join([*lines[:at], text, *lines[at + 1 :]])


def _replace_one(document: Any, rng: random.Random) -> None:
    """Walks to some value of ``document`` and puts another there, renames its key, or takes it away."""
    here = document
    while isinstance(here, dict | list) and here:
        key: Any = rng.choice([*here]) if isinstance(here, dict) else rng.randrange(len(here))
        below = here[key]
        if isinstance(below, dict | list) and below and rng.random() < 0.7:
            here = below
            continue
        how = rng.random()
        if how < 0.7:
            here[key] = rng.choice(VALUES)
        elif how < 0.85:
            del here[key]
        elif isinstance(here, dict):
            here[rng.choice(("", "x", "id", key + "s", key.upper()))] = here.pop(key)
        else:
            here.append(below)
        return
