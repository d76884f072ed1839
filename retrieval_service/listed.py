"""The values of one long JSON list, one by one."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from agent.readable import each_once, plain

READ = 1 << 20
"""Bytes that are read at once."""
LONGEST = 1 << 26
"""Characters of a value that are read: a text that doesn't end where it should may be all of a large file."""
_CUT = 16
"""Characters before the end of what was read. Where the decoder stops within them, the end may have cut a token: of a
number it leaves the exponent, of ``true`` all."""
_JSON = json.JSONDecoder(object_pairs_hook=each_once)
_BLANK = re.compile(r"[ \t\n\r]+")


def listed(file: BinaryIO) -> Iterator[Any]:
    """The values of the list that ``file`` is, in UTF-8. Memory: one value and ``READ`` bytes.

    Raises ``ValueError``, with the place in the file, for what is no JSON list, is nested too deeply, or has an object
    with a key twice.
    """
    text = _Text(file)
    text.take("[")
    if text.sign() != "]":
        yield text.value()
        while text.sign() == ",":
            text.take(",")
            yield text.value()
    text.take("]")
    if text.sign():
        raise ValueError(f"something follows the list, {text.place()}")


class _Text:
    """What of the file is in memory, and how much of it is taken."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._text, self._at, self._before, self._ended = "", 0, 0, False

    def place(self, at: int | None = None) -> str:
        """Where in the file it is, in words, at ``at`` of what is in memory."""
        return f"at character {self._before + (self._at if at is None else at) + 1:,}"

    def sign(self) -> str:
        """The next character that is no white space; nothing at the end of the file."""
        while True:
            if blank := _BLANK.match(self._text, self._at):
                self._at = blank.end()
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def take(self, sign: str) -> None:
        if self.sign() != sign:
            raise ValueError(f"{sign!r} is missing {self.place()}")
        self._at += 1

    def value(self) -> Any:
        self.sign()
        while True:
            try:
                found, end = _JSON.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                begun = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _CUT
                if self._ended or not begun:
                    raise ValueError(f"{error.msg.removesuffix(' at')} {self.place(error.pos)}") from None
            except RecursionError:
                raise ValueError(f"nested too deeply, in what begins {self.place()}") from None
            except ValueError as error:
                raise ValueError(f"{plain(error)}, in what begins {self.place()}") from None
            else:
                if end + _CUT < len(self._text) or self._ended:  # else a number may go on
                    self._check(end)
                    self._at = end
                    return found
            if len(self._text) - self._at > LONGEST:
                raise ValueError(f"longer than {LONGEST:,} characters is what begins {self.place()}")
            self._more()

    def _check(self, end: int) -> None:
        try:
            self._text[self._at : end].encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"a byte that is no UTF-8 {self.place(self._at + error.start)}") from None

    def _more(self) -> None:
        """Reads on, at least as much as there is left: so a long value is decoded a few times, not at each block."""
        left = self._text[self._at :]
        content = self._file.read(max(READ, len(left)))
        self._before += self._at
        self._text, self._at, self._ended = left + self._decode(content, not content), 0, not content
