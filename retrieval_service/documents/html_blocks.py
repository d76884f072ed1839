"""An HTML page as its blocks of text, as a browser would show them: without navigation, scripts and forms."""

from __future__ import annotations

from collections import Counter
from html import unescape
from html.parser import HTMLParser

HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_ROWS = frozenset(("caption", "table", "tbody", "tfoot", "thead", "tr"))
_CELLS = frozenset(("td", "th"))
_BLOCKS = HEADINGS.union(
    _ROWS,
    ("address", "article", "aside", "blockquote", "body", "br", "dd", "details", "div", "dl", "dt", "figure"),
    ("figcaption", "footer", "form", "header", "hr", "html", "li", "main", "nav", "ol", "option", "p", "pre"),
    ("section", "summary", "title", "ul"),
)
HIDDEN = frozenset(("script", "style", "template"))
"""Elements of which no browser shows anything."""
_UNREAD = HIDDEN.union(("noscript", "svg", "nav", "footer", "select", "button"))
_NESTED = _BLOCKS.union(_UNREAD, _CELLS, ("head",)) - {"br", "hr", "p"}
"""Elements whose end tag ends what is open within them. No ``</p>`` does: a block within a paragraph has ended it."""
_LINKS = ("a", "li", "ul")
_SHOWN = HEADINGS.union(("dt", "summary"))
"""Blocks whose button is their text: what it opens is below."""
_SMALL = ("svg", "select", "button")
_LARGE = (*_SMALL, "noscript", "nav", "footer")
_NOT_WITHIN = {
    **dict.fromkeys((*HEADINGS, *_ROWS, *_CELLS, "article", "ol", "p", "section", "ul"), _SMALL),
    **dict.fromkeys(("body", "main"), _LARGE),
}
"""Tags, and what none of them is a part of: if it is open, its end was forgotten."""


class Page(HTMLParser):
    """Python's parser, for pages as they come: given whole, it takes a time in proportion to their length."""

    def __init__(self, xhtml: bool = False) -> None:
        super().__init__(convert_charrefs=True)
        self._xhtml = xhtml
        self._endless: set[str] = set()
        """Ends that were looked for in vain: they aren't there further on, either."""

    def read(self, text: str) -> None:
        """Takes the whole page."""
        # Behind the last > nothing can end. Python's own looks for it at each < anew.
        end = text.rfind(">") + 1
        self.feed(text[:end])
        self.close()
        if end < len(text) and (rest := unescape(text[end:])):
            self.handle_data(rest)

    def parse_comment(self, i: int, report: bool = True) -> int:
        """The start of a comment without an end is text."""
        if self._has_end("-->", i):
            return super().parse_comment(i, report)
        self.handle_data("<!--")
        return i + len("<!--")

    def parse_html_declaration(self, i: int) -> int:
        """In XHTML a CDATA section is text as it stands."""
        start = "<![CDATA["
        if not (self._xhtml and self.rawdata.startswith(start, i) and self._has_end("]]>", i)):
            return super().parse_html_declaration(i)
        end = self.rawdata.index("]]>", i)
        self.handle_data(self.rawdata[i + len(start) : end])
        return end + len("]]>")

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """``<![if …]>`` and what looks like it is a comment up to its ``>``, as in a browser; Python's own raises
        ``AssertionError`` for a word that it doesn't know."""
        return self.parse_bogus_comment(i, report)

    def _has_end(self, mark: str, i: int) -> bool:
        if mark not in self._endless and self.rawdata.find(mark, i) < 0:
            self._endless.add(mark)
        return mark not in self._endless


def blocks(text: str, xhtml: bool = False) -> list[tuple[str, str]]:
    """The blocks of the page ``text``, none of them empty: the tag that each began with, or nothing, and its text on
    one line. A row of a table is one block, unless a cell holds a heading or a table.

    A ``nav`` that only the end of the page ends would hold all that follows: its end was forgotten, and it is read. So
    is one that the end of what it is in ends, if it holds more than links.
    """
    parser = _Blocks(xhtml)
    parser.read(text)
    if parser.forgotten:
        parser = _Blocks(xhtml, frozenset(parser.forgotten))
        parser.read(text)
    return parser.found


class _Blocks(Page):
    """Fills ``found``."""

    def __init__(self, xhtml: bool, read: frozenset[int] = frozenset()) -> None:
        """``read``: which ones of the elements ``nav`` are read, by their numbers."""
        super().__init__(xhtml)
        self.found: list[tuple[str, str]] = []
        self.forgotten: list[int] = []
        """Of the elements ``nav`` those whose end was forgotten."""
        self._read = read
        self._count_navs = 0
        self._navs: list[int] = []
        """Those that are open."""
        self._linked = False
        self._words = {True: 0, False: 0}
        """Of the outermost of them: in links and items of lists, and elsewhere."""
        self._block = ""
        self._text: list[str] = []
        self._open: list[str] = []
        """Of the elements ``_NESTED`` those that are open, from the outermost to the innermost."""
        self._count: Counter[str] = Counter()
        """The same by their tags: in a table without end tags thousands are open, too many to look through."""
        self._unread = 0
        """How many of them aren't read."""
        self._cell = False
        """Whether blocks belong to the row of a table that is read."""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if self._unread and tag in _NOT_WITHIN:
            self._end_forgotten(_NOT_WITHIN[tag])
        if tag in _BLOCKS or tag == "a":
            self._linked = tag in _LINKS
        shown = tag == "button" and self._block in _SHOWN
        if not self._unread:
            self._cell = self._cell and tag not in _ROWS and tag not in HEADINGS
            if tag in _CELLS or tag in ("button", "select") or (tag == "br" and self._block in (*HEADINGS, "title")):
                self._text.append(" ")  # a heading of two lines is one
            elif tag in _BLOCKS:
                self._part(tag)
            self._cell = self._cell or tag in _CELLS
        if tag == "nav":
            self._count_navs += 1
            if self._count_navs in self._read:
                return
            if not self._navs:
                self._words = {True: 0, False: 0}
            self._navs.append(self._count_navs)
        if tag in _NESTED and not shown:
            self._open.append(tag)
            self._count[tag] += 1
            self._unread += tag in _UNREAD

    def handle_endtag(self, tag: str) -> None:
        if tag == "br":
            self.handle_starttag(tag, ())  # as a browser reads it
            return
        self._linked = self._linked and tag not in _LINKS
        if self._count[tag]:
            self._end(next(at for at in reversed(range(len(self._open))) if self._open[at] == tag))
        if tag in _BLOCKS and not self._unread:
            self._part("")

    def handle_data(self, data: str) -> None:
        if not self._unread:
            self._text.append(data)
        elif self._unread == len(self._navs):
            self._words[self._linked] += len(data.split())

    def _end_forgotten(self, tags: tuple[str, ...]) -> None:
        if forgotten := sum(self._count.pop(tag, 0) for tag in tags):
            self._open = [tag for tag in self._open if tag not in tags]
            self._unread -= forgotten
            self._navs = [] if "nav" in tags else self._navs

    def _end(self, at: int) -> None:
        """Ends the element that is open at this place, and those within it."""
        navs = self._open[at:].count("nav")
        by = self._open[at]
        if navs and (by in ("body", "html") or (by != "nav" and self._words[False] > self._words[True])):
            self.forgotten += self._navs[-navs:]
        del self._navs[len(self._navs) - navs :]
        for tag in self._open[at:]:
            self._count[tag] -= 1
            self._unread -= tag in _UNREAD
            self._cell = self._cell and tag not in _CELLS
        del self._open[at:]

    def _part(self, tag: str) -> None:
        """A block begins here, with ``tag``, or ends."""
        if self._cell:
            self._text.append(" ")
            return
        if text := " ".join("".join(self._text).split()):
            self.found.append((self._block, text))
        self._text, self._block = [], tag

    def read(self, text: str) -> None:
        super().read(text)
        self.forgotten += self._navs
        self._cell = False
        self._part("")
