"""A document's bytes as text: by its byte order mark, by what it declares, as UTF-8, else by a guess that is told."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from agent.errors import UserError, shortened
from retrieval_service.documents.html_blocks import Page

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WIDER = {
    **dict.fromkeys(("ascii", "iso8859-1"), "cp1252"),
    **dict.fromkeys(("gb2312", "gbk"), "gb18030"),
    **dict.fromkeys(("tis-620", "iso8859-11"), "cp874"),
    "iso8859-9": "cp1254",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "iso2022_jp": "iso2022_jp_ext",
}
"""What browsers read in place of a name, since pages mean it (https://encoding.spec.whatwg.org/#names-and-labels); by
Python's names. The last one is ours: with the half-width katakana that mails have."""
_NO_NEWS = ("utf-8", "utf-16", "utf-32")
"""Names that say nothing: of UTF-8 the bytes tell, and of the others no page could be read as far as to its name."""
_HEAD = 8192
"""Bytes within which a page says what it is in. Browsers look at 1024 first."""
_SURE = 8
"""Letters of UTF-8 that no other encoding of several bytes a letter has by chance: in GBK it is one of eight letters
that could be one."""
_CURE = "save it as UTF-8, or take it out of the folder"
_IN_CONTENT = re.compile(r"charset\s*=\s*[\"']?\s*([^\s\"';>]+)", re.IGNORECASE)
_IN_XML = re.compile(r"xml\s.*?\bencoding\s*=\s*[\"']([^\"']+)[\"']", re.DOTALL)


def decoded(path: Path, declared: Callable[[bytes], str] = lambda data: "") -> tuple[str, str]:
    """The text of ``path``, and in words how it was read, if that is a guess: "are read as …".

    ``declared`` gives the encoding that the document names, or an empty text. A file that is UTF-8 in spite of it is
    read as that: its server has said so, or a tool has written it anew. What is neither is read as UTF-8 with damage
    or as Windows-1252, whichever it looks like, if the document names nothing else.

    UTF-16 without a mark is known by its zero bytes, most of them in one half of its bytes; a single one is stray.
    ISO-2022-JP is known by what it switches alphabets with.

    Raises ``UserError`` for a file that is no text, or isn't in the encoding that it names.
    """
    data = path.read_bytes()
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data[len(mark) :].decode(encoding), ""
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}: begins with the mark of {encoding[:6].upper()}, which it is not ({shortened(error)}); "
                    f"{_CURE}"
                ) from error
    data = data.removeprefix(codecs.BOM_UTF8)
    utf_8 = _strictly(data, "utf-8")
    if (zeros := data.count(0)) > 1 and (zeros > len(data) / 8 or utf_8 is None):
        first = data[::2].count(0)
        text = _strictly(data, "utf-16-be" if 2 * first > zeros else "utf-16-le")
        if text is None or "\0" in text:
            raise UserError(f"{path}: is no text, it has zero bytes; {_CURE}")
        return text, ""
    if (named := declared(data)) and (read := _as_named(data, named, utf_8, path)):
        return read
    if b"\x1b$" in data and (text := _strictly(data, _WIDER["iso2022_jp"])):
        return text, "are not UTF-8 and are read as ISO-2022-JP"
    if utf_8 is not None:
        return utf_8, ""
    text = data.decode("utf-8", "replace")
    damage = text.count("\ufffd")
    if _letters(text) > 2 * damage:  # by chance few bytes are a letter in UTF-8
        return text, "are not UTF-8 and are read as UTF-8, with � for what is none"
    return data.decode("cp1252", "replace"), "are not UTF-8 and are read as Windows-1252"


def _as_named(data: bytes, named: str, utf_8: str | None, path: Path) -> tuple[str, str] | None:
    """What ``decoded`` returns for a document that names its encoding; None where the name says nothing new."""
    encoding = _known(named)
    if encoding is None and utf_8 is None:
        raise UserError(f"{path}: says that it is in {named!r}, an encoding that isn't known; {_CURE}")
    if encoding is None or encoding.startswith(_NO_NEWS):
        return None
    text, reason = None, ""
    try:
        text = data.decode(encoding)
    except UnicodeError as error:
        reason = shortened(error)
    several = text is not None and len(text) < len(data)  # bytes a letter: some texts are right in both
    if utf_8 is not None and _letters(utf_8) >= (_SURE if several else 1):
        return utf_8, "name another encoding, but are UTF-8 and are read as that"
    if text is None:
        raise UserError(f"{path}: says that it is in {named!r}, which it is not ({reason}); {_CURE}")
    return text, ""


def _known(named: str) -> str | None:
    """Python's name for the encoding that a page names, or that browsers take for it; None if it is none of text."""
    plain = named.strip().lower()
    for name in (plain, plain.removeprefix("x-").replace("windows-", "cp")):
        with suppress(LookupError, ValueError):  # of no such name, or of bytes as bytes ("hex")
            b"a".decode(name)
            found = codecs.lookup(name).name
            return _WIDER.get(found, found)
    return None


def _strictly(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeError:
        return None


def _letters(text: str) -> int:
    """How many characters beyond ASCII there are, damage aside."""
    return sum(not letter.isascii() for letter in text) - text.count("\ufffd")


class _Declaration(Page):
    """Finds the first encoding that a page names: in its XML declaration or in a ``meta``."""

    def __init__(self) -> None:
        super().__init__()
        self.name = ""

    def handle_pi(self, data: str) -> None:
        if self.getpos() == (1, 0) and (found := _IN_XML.match(data)):
            self.name = self.name or found[1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "meta" and not self.name:
            given = dict(attrs)
            found = _IN_CONTENT.search(given.get("content") or "")
            of_type = (given.get("http-equiv") or "").strip().lower() == "content-type"
            self.name = given.get("charset") or (found[1] if found and of_type else "")


def named_in_html(data: bytes) -> str:
    """The encoding that an HTML or XHTML page names; empty where it names none. Comments and scripts don't count."""
    parser = _Declaration()
    parser.feed(data[:_HEAD].decode("latin-1"))
    return parser.name
