"""Documents as paragraphs: text, Markdown (markdown-it), HTML (the standard library's parser), PDF (pypdf)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from agent.errors import UserError, shortened
from retrieval_service.documents.chunks import Paragraph
from retrieval_service.documents.decoding import decoded, named_in_html
from retrieval_service.documents.front_matter import front_matter

LONGEST_TITLE = 200
"""Characters; a longer first line is no title."""
_BREAK = re.compile(r"\A<br\b[^>]*>\Z", re.IGNORECASE)
_BLANK = re.compile(r"\n\s*\n")


@dataclass(kw_only=True, slots=True)
class Document:
    """What a file says."""

    title: str = ""
    """As the file names it; empty where it doesn't."""
    guessed: str = ""
    """How its bytes were read, where that is a guess (``decoding.py``); empty otherwise."""
    paragraphs: list[Paragraph] = field(default_factory=list)

    def add(self, text: str, *, heading: bool = False) -> None:
        """Appends a paragraph on one line, unless it is empty."""
        if text := " ".join(text.split()):
            self.paragraphs.append(Paragraph(text=text, heading=heading))


def read_text(path: Path) -> Document:
    """Paragraphs between blank lines. A short first line before a blank one is the title."""
    text, guessed = decoded(path)
    document = Document(guessed=guessed)
    blocks = [block for block in _BLANK.split(text.strip()) if block.strip()]
    if len(blocks) > 1 and "\n" not in blocks[0].strip() and len(blocks[0]) <= LONGEST_TITLE:
        document.title = " ".join(blocks.pop(0).split())
    for block in blocks:
        document.add(block)
    return document


def read_markdown(path: Path) -> Document:
    """Its blocks without the marks. The title is the front matter's, else the first heading."""
    from markdown_it import MarkdownIt

    text, guessed = decoded(path)
    document = Document(guessed=guessed)
    document.title, text = front_matter(text)
    before = ""
    cells: list[str] | None = None  # of the row of a table that is being read
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "tr_open":
            cells = []
        elif token.type == "tr_close":
            document.add(" ".join(cells or ()))
            cells = None
        elif token.type == "inline" and cells is not None:
            cells.append("".join(map(_inline, token.children or ())))
        elif token.type == "inline":
            said = "".join(map(_inline, token.children or ()))
            heading = before == "heading_open"
            if heading and not document.title:
                document.title = " ".join(said.split())
            else:
                document.add(said, heading=heading)
        elif token.type in ("fence", "code_block"):
            document.add(token.content)
        elif token.type == "html_block":
            _html(token.content, document)
        before = token.type
    return document


def _inline(token: Any) -> str:
    if token.type in ("softbreak", "hardbreak") or _BREAK.match(token.content):
        return "\n"
    return "" if token.type == "html_inline" else str(token.content)


def read_html(path: Path) -> Document:
    """Its text by blocks, without navigation, scripts and styles. The title is ``<title>``, else the first heading."""
    text, guessed = decoded(path, named_in_html)
    document = Document(guessed=guessed)
    _html(text, document)
    return document


_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_BLOCKS = _HEADINGS.union(
    (
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "br",
        "caption",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "figure",
    ),
    ("figcaption", "form", "header", "hr", "html", "li", "main", "ol", "option", "p", "pre", "section", "summary"),
    ("table", "tbody", "tfoot", "thead", "title", "tr", "ul"),
)
_UNREAD = frozenset(("script", "style", "noscript", "template", "svg", "nav", "footer", "select", "button"))
_SHOWN = (*_HEADINGS, "dt", "summary")
"""Blocks whose button is their text: what it opens is below."""
_FORGOTTEN = frozenset(("svg", "button"))
"""What is left open by mistake. A text, a heading, a list or a table isn't a part of it."""
_NOT_WITHIN = _HEADINGS.union(("article", "main", "ol", "p", "section", "table", "ul"))


class _Html(HTMLParser):
    """Adds what it reads to ``document``."""

    def __init__(self, document: Document) -> None:
        super().__init__(convert_charrefs=True)
        self.document = document
        self._text: list[str] = []
        self._block = ""
        self._unread: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in _NOT_WITHIN:
            self._unread = [outer for outer in self._unread if outer not in _FORGOTTEN]
        if tag == "button" and self._block in _SHOWN:
            self._text.append(" ")
        elif tag in _UNREAD:
            self._unread.append(tag)
        elif tag == "br" and self._block in (*_HEADINGS, "title"):
            self._text.append(" ")  # a heading of two lines is one
        elif tag in _BLOCKS:
            self._end()
            self._block = tag
        elif tag in ("td", "th"):
            self._text.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._unread:
            del self._unread[len(self._unread) - 1 - self._unread[::-1].index(tag) :]
        elif tag == "br":
            self.handle_starttag(tag, ())  # as a browser reads it
        elif tag in _BLOCKS:
            self._end()

    def handle_data(self, data: str) -> None:
        if not self._unread:
            self._text.append(data)

    def _end(self) -> None:
        """A block begins or ends here."""
        text, self._text, block, self._block = " ".join("".join(self._text).split()), [], self._block, ""
        if not text:
            return
        heading = block in _HEADINGS
        if block == "title" or (heading and not self.document.title):
            self.document.title = self.document.title or text
        elif text != self.document.title:
            self.document.add(text, heading=heading)

    def close(self) -> None:
        super().close()
        self._end()


def _html(text: str, document: Document) -> None:
    parser = _Html(document)
    parser.feed(text)
    parser.close()


def read_pdf(path: Path) -> Document:
    """The text of its pages, hyphens at the ends of lines undone. The title is its metadata's. Raises ``UserError``
    without pypdf, and for a file that is damaged or locked."""
    try:
        import pypdf
    except ImportError:
        raise UserError(
            f"{path}: reading a PDF needs pypdf: `pip install pypdf`, or take it out of the folder"
        ) from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells of every oddity that it can cope with
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise UserError(f"{path}: is locked by a password; save it without one, or take it out of the folder")
        told = reader.metadata
        document = Document(title=" ".join(str((told.get("/Title") if told else "") or "").split()))
        for page in reader.pages:
            text = re.sub(r"(?<=[a-zà-ÿ])-\n(?=[a-zà-ÿ])", "", page.extract_text())
            for block in _BLANK.split(text):
                document.add(block)
        return document
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes of its reader
        raise UserError(f"{path}: can't be read as a PDF ({shortened(error)}); repair it or take it out") from error


READERS: dict[str, Callable[[Path], Document]] = {
    ".txt": read_text,
    ".text": read_text,
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".pdf": read_pdf,
}
"""By a file name's end, in small letters."""
