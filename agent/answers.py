"""Comparing texts: normal forms of answers, titles, queries and questions, and the scores made from them.

The normal form is SQuAD's (lower case, no punctuation, no articles, single spaces), which HotpotQA's, MuSiQue's and
2WikiMultihopQA's scripts share. On ASCII text it is theirs to the letter, with one exception: what it would empty
("A", "The The", "!") is compared as it stands, or an empty answer would be right. Beyond ASCII, spellings of the
same text are equal: composed and decomposed accents, typographic quotes and dashes and their ASCII forms, full-width
letters, invisible characters. Accents count, as in those scripts: "é" is not "e".
"""

from __future__ import annotations

import html
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

VERSION = 5
"""Of the normal form and the scores: raised with every change of what they give (``tests/agent/test_scores.py`` holds
them to it), and recorded with every result."""
_MARK = "\u0300-\u036f"
"""Combining marks of Latin letters; one that has no composed form stays behind its letter, and is no end of a word."""
_ARTICLES = re.compile(rf"(?<![{_MARK}])\b(a|an|the)\b(?![{_MARK}])")
_QUERY_ARTICLES = re.compile(r"(?<!\S)(?:an|the)(?!\S)|^a(?!\S)")
"""Articles of a query: "an" and "the" anywhere, "a" only at its beginning, since elsewhere it may be a name."""
_AROUND_WORDS = "".join(c for c in string.punctuation if c not in "+#%&$@*")
"""Signs that tell nothing at either end of a query's word."""
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_TYPOGRAPHIC = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛‹›′‵´ˋʹʻʼʽʾʿˈ", "'"),
        **dict.fromkeys("“”„‟«»″‶ʺ〝〞〟", '"'),
        **dict.fromkeys("‐‑‒–—―−⁃", "-"),
        **dict.fromkeys("⁄∕", "/"),
    }
)
"""Quotes, dashes and slashes beyond ASCII, by the ASCII punctuation that they stand for."""
CLOSED = frozenset({"yes", "no", "noanswer"})
"""Answers that are right or wrong as a whole, in HotpotQA's F1."""
SOFT_WORD_SHARE = 0.7
"""Share of the golden words that earns the full soft outcome (DAVID-GRPO's public code)."""
SOFT_WORDS, SOFT_TIMES = 5, 3
"""Ours: an answer of more words than five, and than three times the golden ones, earns nothing. Without a cap a list of
all years earns as much as the right one."""
SOFT_PART = 0.2
"""Ours: share of the longer text's characters that a part of it has to have. A letter is a part of nearly anything."""
_MIXED = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215f\u2189])")
"""The place between a number and a one-character fraction, for a space: "2½" is "2 1/2", not "21/2"."""
_SPACELESS = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Beginnings of the Unicode names of letters after which a word may end anywhere."""
_POINT = re.compile(r"(?<=\d)\.(?=\d)")
_SIGNS = r"[+#%&$@*=<>^|~§‰]"
_TELLING = re.compile(rf"(\w*+\s*+{_SIGNS}+|(?<![^\s(])-\d+|\d+(?:[./:-]\d+)+|(?<!\w)a(?=\W*\Z))")
"""What tells one question from another and has no part in the normal form of answers: a sign with the word before it, a
number that is negative or of several parts, and an "a" at the end, which is a name there."""
_MAY_TELL = re.compile(rf"{_SIGNS}|-\d|\d[./:]\d|(?<!\w)a\W*\Z")
"""A quick test before ``_TELLING``: it is found in every text in which that is found, and in few others."""


def normalise(text: str) -> str:
    """Case-folded, no punctuation, no articles, single spaces; empty only for a text without a visible character.

    A text of articles alone keeps them, and one of punctuation alone keeps that.

    >>> normalise("The  Beatles!")
    'beatles'
    >>> normalise("The The")
    'the the'
    """
    folded = fold(text)
    bare = _without_punctuation(folded)
    return _spaced(_ARTICLES.sub(" ", bare)) or _spaced(bare) or _spaced(folded)


def normalise_title(title: str) -> str:
    """A title for comparison: folded like an answer, underscores as spaces, no surrounding quotes, single spaces.

    Punctuation and articles count, since titles differ in them. HTML's entities are read: HotpotQA's files have
    them, and other dumps of the same Wikipedia don't. Empty only for a title without a visible character.

    >>> normalise_title('"William_King (governor)"')
    'william king (governor)'
    """
    folded = fold(_without_entities(title))
    return _spaced(folded.replace("_", " ")).strip("\"' ") or _spaced(folded)


def normalise_query(query: str) -> str:
    """A query for comparison: folded like an answer, without signs around its words and without articles.

    Signs that tell one thing from another stay: "C++" and "C#", "Route 1.1" and "Route 11". So does an "a" that may be
    a name: "Vitamin A" is not "Vitamin". Empty only for a query without a visible character.

    >>> normalise_query("  Who made the 'C++', and 1.1?")
    'who made c++ and 1.1'
    """
    folded = _spaced(fold(query))
    bare = _spaced(" ".join(word.strip(_AROUND_WORDS) for word in folded.split()))
    return _spaced(_QUERY_ARTICLES.sub(" ", bare)) or bare or folded


def normalise_question(question: str) -> str:
    """A question for comparison: normalised like an answer, but for what tells it from another, "C++" from "C#", "1.1"
    from "11", "hepatitis A" from "hepatitis". HTML's entities are read, as in titles. Empty only for a question without
    a visible character.

    >>> normalise_question("Who made the C++?"), normalise_question("Who made the “C”?")
    ('who made c++', 'who made c')
    """
    question = _without_entities(question)
    folded = fold(question)
    found = _TELLING.split(_ARTICLES.sub(_but_at_the_end, folded)) if _MAY_TELL.search(folded) else [folded]
    between, *rest = found
    if not rest:
        return normalise(question)
    parts = [_without_punctuation(between)]
    for telling, behind in zip(rest[::2], rest[1::2], strict=True):
        parts += "".join(telling.split()), _without_punctuation(behind)
    return _spaced(" ".join(parts))


def _but_at_the_end(article: re.Match[str]) -> str:
    return article[0] if not article.string[article.end() :].strip(string.punctuation + " ") else " "


def fold(text: str) -> str:
    """``text`` without differences of case, of Unicode form and of typography: what all comparisons start from."""
    if text.isascii():
        return text.lower()
    text = _MIXED.sub(" ", text.translate(_TYPOGRAPHIC))
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = unicodedata.normalize("NFKC", plain).translate(_TYPOGRAPHIC)  # folding can decompose; "½" has a slash
    return "".join(c for c in plain if not _invisible(c))


def is_blank(text: str) -> bool:
    """Whether ``text`` has no visible character: zero-width spaces are as little an answer or a query as blanks are."""
    return not fold(text).strip()


def _without_entities(text: str) -> str:
    return html.unescape(text) if "&" in text else text


def _invisible(character: str) -> bool:
    """Format characters (zero-width spaces, soft hyphens, marks of direction) and the selectors of emoji styles."""
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


def _without_punctuation(folded: str) -> str:
    bare = folded.translate(_PUNCTUATION)
    return bare if bare.isascii() else "".join(c for c in bare if unicodedata.category(c)[0] != "P")


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _has_words(normal: str) -> bool:
    """Whether SQuAD's normalisation leaves anything of a normal form."""
    return bool(_ARTICLES.sub(" ", _without_punctuation(normal)).strip())


def exact_match(answer: str, golden: Sequence[str]) -> float:
    """1.0 when the normalised answer equals a normalised golden answer, else 0.0; an empty answer equals none."""
    said = normalise(answer)
    return float(bool(said) and said in {normalise(g) for g in golden})


def cover_match(answer: str, golden: Sequence[str]) -> float:
    """Cover EM as FlashRAG's ``sub_em`` has it: 1.0 when the normalised answer holds a normalised golden answer, within
    a word too, else 0.0."""
    said = normalise(answer)
    return float(bool(said) and any(bool(each) and each in said for each in map(normalise, golden)))


def has_words(text: str, golden: Sequence[str]) -> float:
    """1.0 when the normalised text has all words of a normalised golden answer in a row, else 0.0: unlike cover EM it
    doesn't find "no" in "nothing". In scripts without spaces, words are wherever they stand."""
    said = normalise(text)
    return float(any(_holds(said, wanted) for wanted in map(normalise, golden) if wanted))


def soft_match(answer: str, golden: Sequence[str], needed: Sequence[str] = ()) -> float:
    """1.0 for an exact match or at least 70 % of the golden words, 0.5 for a part of the golden answer, else 0.0.

    A part is of whole words, and no answer may be much longer than the golden one. "Yes or no" is neither. Decimal
    points count: the form that exact match compares has none, as in the published scripts, and there "3.5" is "35".

    Where all of ``needed`` are, which ``golden`` name together, an answer earns at most 0.5 unless it is a golden one,
    or has all words of each of them in a row, each at a place of its own.
    """
    said = normalise(_with_points(answer))
    worth = max(_soft(said, normalise(_with_points(g))) for g in golden) if said else 0.0
    whole = not needed or exact_match(answer, golden) == 1 or _names_all(said, needed)
    return worth if whole else min(worth, 0.5)


def is_closed(answer: str) -> bool:
    """Whether ``answer`` is yes, no or that there is none."""
    return normalise(answer) in CLOSED


def _names_all(said: str, needed: Sequence[str]) -> bool:
    # The longest first, and what is found is taken out: "New York City" doesn't name "New York", too.
    for wanted in sorted((normalise(_with_points(each)) for each in needed), key=len, reverse=True):
        at = next(_places(said, wanted), None)
        if at is None:
            return False
        said = f"{said[:at]} \n {said[at + len(wanted) :]}"
    return True


def _with_points(text: str) -> str:
    """``text`` with the points within numbers as letters, which outlast ``normalise``."""
    return _POINT.sub("point", text)


def _soft(answer: str, golden: str) -> float:
    if answer == golden:
        return 1.0
    # Without words only the whole is comparable: the letter "a" is a substring of nearly every answer.
    if not _has_words(answer) or not _has_words(golden):
        return 0.0
    said, wanted = answer.split(), golden.split()
    if len(said) > max(SOFT_WORDS, SOFT_TIMES * len(wanted)):
        return 0.0
    if golden in CLOSED and CLOSED.intersection(said) != {golden}:
        return 0.0
    if sum(word in {*said} for word in wanted) >= SOFT_WORD_SHARE * len(wanted):
        return 1.0
    return 0.5 if _is_part(answer, golden) or _is_part(golden, answer) else 0.0


def _is_part(part: str, whole: str) -> bool:
    """Whether ``whole`` has ``part`` in it, of whole words where its script parts them, and no tiny one."""
    return len(part) >= SOFT_PART * len(whole) and _holds(whole, part)


def _holds(whole: str, part: str) -> bool:
    return any(True for _ in _places(whole, part))


def _places(whole: str, part: str) -> Iterator[int]:
    """Where ``part`` stands in ``whole``, as words."""
    starts = (match.start() for match in re.finditer(f"(?={re.escape(part)})", whole))
    return (at for at in starts if _ends_word(whole, at) and _ends_word(whole, at + len(part)))


def _ends_word(text: str, at: int) -> bool:
    """Whether a word may end before ``text[at]``; in scripts without spaces one may anywhere."""
    return at in (0, len(text)) or any(c == " " or _without_spaces(c) for c in text[at - 1 : at + 1])


def _without_spaces(character: str) -> bool:
    """Whether its script puts no space between a word and the next, or, as Korean, none before a particle."""
    return unicodedata.category(character) == "Lo" and unicodedata.name(character, "").startswith(_SPACELESS)


def f1(answer: str, golden: Sequence[str]) -> float:
    """Best token F1 of the normalised answer against the golden answers, in [0, 1]; 0 for an empty answer.

    As in HotpotQA's script, yes, no and noanswer have no part in common with anything else.
    """
    said = normalise(answer)
    return max(_f1(said, normalise(g)) for g in golden) if said else 0.0


def _f1(answer: str, golden: str) -> float:
    if answer == golden:
        return 1.0
    if answer in CLOSED or golden in CLOSED:
        return 0.0
    said, wanted = answer.split(), golden.split()
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))
