"""Compressed files of one stream or of several, one after the other, read to their very end.

Python's own readers of bzip2 and xz end, without a word, where what follows a stream begins like no other: with the
zero bytes that xz may put between two of them, or damaged.
"""

from __future__ import annotations

import bz2
import io
import lzma
from collections.abc import Callable
from typing import Any, BinaryIO

READ = 1 << 16
"""Bytes that are read and given at once."""


class _Streams(io.RawIOBase):
    """What the streams in ``file`` hold. Raises ``EOFError`` for one that is cut short, and whatever ``decompressor``
    raises for what is none. ``padding`` may stand behind a stream."""

    def __init__(self, file: BinaryIO, decompressor: Callable[[], Any], padding: bytes) -> None:
        self._file, self._decompressor, self._padding = file, decompressor, padding
        self._stream = decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """See ``io.RawIOBase``."""
        while True:
            packed = b""
            if self._stream.eof:
                packed = self._stream.unused_data.lstrip(self._padding)
                while not packed:
                    if not (block := self._file.read(READ)):
                        return 0
                    packed = block.lstrip(self._padding)
                self._stream = self._decompressor()
            elif self._stream.needs_input and not (packed := self._file.read(READ)):
                raise EOFError("it ends in the middle of a stream")
            if data := self._stream.decompress(packed, len(buffer)):
                buffer[: len(data)] = data
                return len(data)


def bzip2(file: BinaryIO) -> io.BufferedReader:
    """What ``file`` holds."""
    return io.BufferedReader(_Streams(file, bz2.BZ2Decompressor, b""), READ)


def xz(file: BinaryIO) -> io.BufferedReader:
    """What ``file`` holds."""
    return io.BufferedReader(_Streams(file, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), b"\0"), READ)


def zstandard(file: BinaryIO) -> io.BufferedReader:
    """What ``file`` holds."""
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd"))
