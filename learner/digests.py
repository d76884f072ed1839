"""What a file holds, as a short text."""

from __future__ import annotations

from pathlib import Path

import xxhash

_BLOCK = 1 << 24


def file_digest(file: Path) -> str:
    """xxh3-128 of its bytes, in hexadecimal: some GB a second."""
    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
