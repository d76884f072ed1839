"""A document's paragraphs as passages of about a length, each beginning with the last words of the one before.

Passages are made of whole paragraphs; one that is too long by itself is cut between sentences, and a sentence that is
too long between words. A heading stays with the paragraph after it. Each character of Chinese and Japanese counts as a
word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_CLOSING = "\"'”’)\\]»」』）】"
_SENTENCE = re.compile(rf"[.!?…][{_CLOSING}]*\s+|[。！？][{_CLOSING}]*\s*")
"""The end of a sentence, which Chinese and Japanese write without a blank. Abbreviations end one too: a passage may
then begin in the middle of a sentence."""
_CHARACTER = "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
"""Of Chinese and Japanese, which have no blanks between words."""
LONGEST = 100
"""Characters of a word; what is longer counts as several."""
_WORD = re.compile(rf"(?:{_CHARACTER}(?:(?!{_CHARACTER})[^\w\s])*|(?:(?!{_CHARACTER})\S){{1,{LONGEST}}})\s*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Paragraph:
    """One paragraph, list item, table row or heading, on one line."""

    text: str
    heading: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """A paragraph or a part of one."""

    words: tuple[str, ...]
    """Each with the blank after it, if there is one."""
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
    tail: list[_Piece] = []
    """The last passage's end, with which the next one begins."""
    fresh: list[_Piece] = []
    for piece in _pieces(paragraphs, words - overlap):
        if fresh and _length(tail) + _length(fresh) + len(piece.words) > words:
            at = _first_heading(fresh, words - len(piece.words))
            done, fresh = fresh[:at], fresh[at:]
            if done:
                tail += done
                found.append(_text(tail))
            tail = _tail(tail, min(overlap, words - len(piece.words) - _length(fresh)))
        fresh.append(piece)
    if fresh:
        found.append(_text([*tail, *fresh]))
    return found


def _first_heading(pieces: Sequence[_Piece], room: int) -> int:
    """Where the headings at the end of ``pieces`` begin that have ``room``, in words."""
    at = len(pieces)
    while at and pieces[at - 1].heading and _length(pieces[at - 1 :]) <= room:
        at -= 1
    return at


def _pieces(paragraphs: Sequence[Paragraph], longest: int) -> Iterator[_Piece]:
    for number, paragraph in enumerate(paragraphs):
        whole = _words(paragraph.text)
        if len(whole) <= longest:
            if whole:
                yield _Piece(words=whole, paragraph=number, heading=paragraph.heading)
            continue
        for sentence in _sentences(paragraph.text):
            words = _words(sentence)
            for at in range(0, len(words), longest):
                yield _Piece(words=words[at : at + longest], paragraph=number, heading=False)


def _sentences(text: str) -> Iterator[str]:
    at = 0
    for end in _SENTENCE.finditer(text):
        yield text[at : end.end()]
        at = end.end()
    yield text[at:]


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lstrip()))


def _length(pieces: Sequence[_Piece]) -> int:
    return sum(len(piece.words) for piece in pieces)


def _tail(pieces: Sequence[_Piece], overlap: int) -> list[_Piece]:
    """The last ``overlap`` words: whole pieces as far as they go, or else the end of the last one."""
    tail: list[_Piece] = []
    for piece in reversed(pieces):
        if _length(tail) + len(piece.words) > overlap:
            break
        tail.insert(0, piece)
    if not tail and overlap > 0 and pieces:
        last = pieces[-1]
        tail = [_Piece(words=last.words[-overlap:], paragraph=last.paragraph, heading=False)]
    return tail


def _text(pieces: Sequence[_Piece]) -> str:
    lines: dict[int, list[str]] = {}
    for piece in pieces:
        lines.setdefault(piece.paragraph, []).extend(piece.words)
    return "\n".join(" ".join("".join(words).split()) for words in lines.values())
