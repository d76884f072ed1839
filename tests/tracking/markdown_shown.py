"""What a reader of Markdown sees."""

from __future__ import annotations

from markdown_it import MarkdownIt
from markdown_it.token import Token


def shown_by_markdown(text: str) -> str:
    """The plain text of each heading, paragraph and cell, a line each; what is markup in it is left out."""
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return "".join(f"{_plain(token.children or [])}\n" for token in reader.parse(text) if token.type == "inline")


def _plain(parts: list[Token]) -> str:
    return "".join("\n" if part.type == "softbreak" else part.content for part in parts if part.type in _PLAIN)


_PLAIN = ("text", "softbreak")
