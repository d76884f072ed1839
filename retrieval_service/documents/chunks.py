"""A document's paragraphs as passages of about a length, each beginning with the last words of the one before.

Passages are made of whole paragraphs; one that is too long by itself is cut between sentences, and a sentence that is
too long between words. A heading stays with the paragraph after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_SENTENCE = re.compile(r"(?<=[.!?…。！？])[\"'”’)\]]*\s+")
"""Between sentences. Abbreviations end one too: a passage may then begin in the middle of a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Paragraph:
    """One paragraph, list item, table row or heading, on one line."""

    text: str
    heading: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """A paragraph or a part of one."""

    words: tuple[str, ...]
    paragraph: int
    heading: bool


def chunks(paragraphs: Sequence[Paragraph], words: int, overlap: int) -> list[str]:
    """The texts of the passages, in order: at most ``words`` words each, of which up to ``overlap`` are the last ones
    of the passage before. Paragraphs are lines of a text.

    >>> chunks([Paragraph(text="One two three."), Paragraph(text="Four five six.")], 4, 1)
    ['One two three.', 'three.\\nFour five six.']
    """
    if not 0 <= overlap < words:
        raise ValueError(f"overlap={overlap} must lie in [0, {words})")
    found: list[str] = []
    current: list[_Piece] = []
    repeated = 0
    """Pieces of ``current`` that are the last passage's."""
    for piece in _pieces(paragraphs, words - overlap):
        if len(current) > repeated and _length(current) + len(piece.words) > words:
            moved = [current.pop()] if current[-1].heading and len(current) > repeated + 1 else []
            found.append(_text(current))
            current = [*_tail(current, overlap), *moved]
            repeated = len(current) - len(moved)
        current.append(piece)
    if len(current) > repeated:
        found.append(_text(current))
    return found


def _pieces(paragraphs: Sequence[Paragraph], longest: int) -> Iterator[_Piece]:
    for number, paragraph in enumerate(paragraphs):
        whole = tuple(paragraph.text.split())
        if len(whole) <= longest:
            if whole:
                yield _Piece(words=whole, paragraph=number, heading=paragraph.heading)
            continue
        for sentence in _SENTENCE.split(paragraph.text):
            words = tuple(sentence.split())
            for at in range(0, len(words), longest):
                yield _Piece(words=words[at : at + longest], paragraph=number, heading=False)


def _length(pieces: Sequence[_Piece]) -> int:
    return sum(len(piece.words) for piece in pieces)


def _tail(pieces: Sequence[_Piece], overlap: int) -> list[_Piece]:
    """The last ``overlap`` words: whole pieces as far as they go, or else the end of the last one."""
    tail: list[_Piece] = []
    for piece in reversed(pieces):
        if _length(tail) + len(piece.words) > overlap:
            break
        tail.insert(0, piece)
    if not tail and overlap:
        last = pieces[-1]
        tail = [_Piece(words=last.words[-overlap:], paragraph=last.paragraph, heading=False)]
    return tail


def _text(pieces: Sequence[_Piece]) -> str:
    lines: dict[int, list[str]] = {}
    for piece in pieces:
        lines.setdefault(piece.paragraph, []).extend(piece.words)
    return "\n".join(" ".join(words) for words in lines.values())
