"""One long JSON list, read in parts: what is read, and what is refused where, whatever the parts are."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest

from retrieval_service import listed as module
from retrieval_service.listed import listed

VALUES = [{"a": [1, 2.5e10, -3, 'é\U0001f600 \\ " ', None, True, {"b": {}}]}, [], 1234567, -0.5e-3, "t", False, {}]


def read(content: bytes) -> list[Any]:
    return list(listed(io.BytesIO(content)))


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_is_read_whatever_part_of_it_is_in_memory(
    monkeypatch: pytest.MonkeyPatch, indent: int | None, ascii_only: bool
) -> None:
    content = json.dumps(VALUES, indent=indent, ensure_ascii=ascii_only).encode()
    for length in range(1, 64):
        monkeypatch.setattr(module, "READ", length)
        assert read(content) == VALUES


@pytest.mark.parametrize("length", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[1,]", "Expecting value at character 4"),
        (b"[1 2]", "']' is missing at character 4"),
        (b"[1, [2", "Expecting ',' delimiter at character 7"),
        (b'[1, "two]', "Unterminated string starting at character 5"),
        (b"[1]\n [2]", "something follows the list, at character 6"),
        (b"[1, nul]", "Expecting value at character 5"),
        (b'[1, "caf\xe9", "\xc3\xa9"]', "a byte that is no UTF-8 at character 9"),
        (b'["\xc3\xa9", "caf\xe9"]', "a byte that is no UTF-8 at character 11"),
        (b'[1, {"a": {"b": 1, "c": 1, "b": 1}}]', "the key 'b' is there twice, in what begins at character 5"),
        (b'[1, {"a": ' + b"[" * 100_000, "nested too deeply, in what begins at character 5"),
        (b"[1, " + b"1" * 5000 + b"]", "a number has more digits than are read, in what begins at character 5"),
        (b'[1, "' + b"a" * 200, "longer than 100 characters is what begins at character 5"),
    ],
)
def test_what_is_no_list_is_refused_with_its_place(
    monkeypatch: pytest.MonkeyPatch, content: bytes, said: str, length: int
) -> None:
    monkeypatch.setattr(module, "READ", length)
    if "longer" in said:
        monkeypatch.setattr(module, "LONGEST", 100)
        content += b"a" * length
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        read(content)
