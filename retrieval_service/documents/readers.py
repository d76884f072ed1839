"""Documents as paragraphs: text, Markdown (markdown-it), HTML (``html_blocks.py``), PDF (pypdf)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import UserError, shortened
from retrieval_service.documents.chunks import Paragraph
from retrieval_service.documents.decoding import decoded, named_in_html
from retrieval_service.documents.front_matter import front_matter
from retrieval_service.documents.html_blocks import HEADINGS, HIDDEN, blocks

LONGEST_TITLE = 200
"""Characters; a longer first line is no title."""
NESTING = 200
"""Lists and quotes that are read within one another, an item of a list counting as well. At its limit, by itself 20,
markdown-it leaves out the rest of the document."""
_BREAK = re.compile(r"\A<br\b[^>]*>\Z", re.IGNORECASE)
_BLANK = re.compile(r"\n\s*\n")
_HIDDEN = re.compile(rf"<(/?)({'|'.join(sorted(HIDDEN))})(?=[\s/>])", re.IGNORECASE)
"""The tag at which an element begins, or ends, that isn't read."""


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
    parts = [part for part in _BLANK.split(text.strip()) if part.strip()]
    if len(parts) > 1 and "\n" not in parts[0].strip() and len(parts[0]) <= LONGEST_TITLE:
        document.title = " ".join(parts.pop(0).split())
    for part in parts:
        document.add(part)
    return document


def read_markdown(path: Path) -> Document:
    """Its blocks without the marks. The title is the front matter's, else the first heading. Raises ``UserError`` for
    one that is nested too deeply."""
    from markdown_it import MarkdownIt

    text, guessed = decoded(path)
    document = Document(guessed=guessed)
    document.title, text = front_matter(text)
    before = ""
    cells: list[str] | None = None  # of the row of a table that is being read
    tokens = MarkdownIt("commonmark", {"maxNesting": NESTING}).enable("table").parse(text)
    if any(token.level >= NESTING - 1 for token in tokens):
        raise UserError(f"{path}: has lists or quotes within one another too deeply; flatten it, or take it out")
    for token in tokens:
        if token.type == "tr_open":
            cells = []
        elif token.type == "tr_close":
            document.add(" ".join(cells or ()))
            cells = None
        elif token.type == "inline" and cells is not None:
            cells.append(_said(token.children or ()))
        elif token.type == "inline":
            said = _said(token.children or ())
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


def _said(tokens: Iterable[Any]) -> str:
    """What a block says, without the scripts and the like that begin and end in it."""
    parts: list[str] = []
    begun: dict[str, int] = {}
    for token in tokens:
        tag = _HIDDEN.match(token.content) if token.type == "html_inline" else None
        if tag and not tag[1]:
            begun.setdefault(tag[2].lower(), len(parts))
        elif tag:
            del parts[begun.pop(tag[2].lower(), len(parts)) :]
        parts.append(_inline(token))
    return "".join(parts)


def _inline(token: Any) -> str:
    if token.type == "html_inline":
        return "\n" if _BREAK.match(token.content) else ""
    return "\n" if token.type in ("softbreak", "hardbreak") else str(token.content)


def read_html(path: Path) -> Document:
    """Its text by blocks, without navigation, scripts and styles. The title is ``<title>``, else the first heading.
    XHTML is known by the file's name, or by an XML declaration."""
    text, guessed = decoded(path, named_in_html)
    document = Document(guessed=guessed)
    _html(text, document, xhtml=path.suffix.lower() == ".xhtml" or text.startswith("<?xml"))
    return document


def _html(text: str, document: Document, *, xhtml: bool = False) -> None:
    for tag, said in blocks(text, xhtml):
        heading = tag in HEADINGS
        if tag == "title" or (heading and not document.title):
            document.title = document.title or said
        elif said != document.title:
            document.add(said, heading=heading)


def pdf_package(path: Path) -> Any:
    """What reads a PDF. Raises ``UserError`` where it isn't installed."""
    try:
        import pypdf
    except ImportError:
        raise UserError(
            f"{path}: reading a PDF needs pypdf: `pip install pypdf`, or take it out of the folder"
        ) from None
    return pypdf


def read_pdf(path: Path) -> Document:
    """The text of its pages, hyphens at the ends of lines undone. The title is its metadata's. Raises ``UserError``
    without pypdf, and for a file that is damaged or locked."""
    pypdf = pdf_package(path)
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
