"""EM, F1 and cover EM against the published scripts' numbers, which ``published.py`` computed once.

Where ours differ on purpose is what ``Why`` lists, and nowhere else; how often is counted.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from enum import StrEnum

import published
import pytest
from score_vectors import PAIRS, STYLES, pairs

from agent.answers import VERSION, cover_match, exact_match, f1, has_words


class Why(StrEnum):
    """Why a score of ours isn't the published one."""

    EMPTIED = "emptied"
    """The published normal form of the answer or a golden answer is empty: there any two such texts are equal, an
    answer of nothing is right, and every answer covers it. Ours compares what it would empty as it stands."""
    UNICODE = "unicode"
    """Beyond ASCII, spellings of the same text are equal: accents composed or not, typographic quotes and dashes."""


OURS = {"em": exact_match, "f1": f1, "cover_em": cover_match}
DIFFERENT: dict[str, dict[str, dict[Why, int]]] = {
    "hotpotqa": {"em": {}, "f1": {}, "cover_em": {}},
    "2wiki": {"em": {Why.UNICODE: 5}, "f1": {Why.UNICODE: 6}, "cover_em": {Why.UNICODE: 5}},
    "musique": {"em": {Why.UNICODE: 1}, "f1": {Why.UNICODE: 1}, "cover_em": {Why.UNICODE: 1}},
    "open": {"em": {Why.EMPTIED: 5}, "f1": {Why.EMPTIED: 6}, "cover_em": {Why.EMPTIED: 13}},
}
"""How many of the 500 pairs of a style have another score than the published one, by score and reason."""


def why(said: str, golden: tuple[str, ...]) -> Why | None:
    """What may make a difference for a pair."""
    texts = (said, *golden)
    if not all(map(published.normal, texts)):
        return Why.EMPTIED
    return None if all(text.isascii() for text in texts) else Why.UNICODE


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", OURS)
def test_scores_are_the_published_ones_but_where_they_differ_on_purpose(style: str, name: str) -> None:
    vectors = json.loads(published.VECTORS.read_text())[style][name]
    different: Counter[Why] = Counter()
    plain = 0
    for (said, golden), theirs in zip(pairs(style), vectors, strict=True):
        wanted = int(theirs) * (1 if name == "f1" else 1_000_000)
        reason = why(said, golden)
        plain += reason is None
        if round(1e6 * OURS[name](said, golden)) != wanted:
            assert reason is not None, f"{said!r} against {golden!r} is published as {wanted / 1e6}"
            different[reason] += 1
    assert plain >= 200, "enough pairs are plain ones"
    assert different == DIFFERENT[style][name]


def test_the_vectors_are_those_of_the_pairs() -> None:
    for style, kept in json.loads(published.VECTORS.read_text()).items():
        assert kept == published.scores(style, pairs(style))


def test_whole_words_are_never_more_than_cover_em() -> None:
    rows = [pair for style in STYLES for pair in pairs(style)]
    assert all(has_words(*pair) <= cover_match(*pair) for pair in rows)
    within = [pair for pair in rows if has_words(*pair) < cover_match(*pair)]
    assert within
    assert has_words("nothing", ("no",)) == 0.0 < cover_match("nothing", ("no",))


@pytest.mark.parametrize("style", STYLES)
def test_each_style_has_every_kind_of_pair(style: str) -> None:
    found = pairs(style)
    assert len(found) == PAIRS
    assert found == pairs(style)
    ems = [exact_match(said, golden) for said, golden in found]
    assert 0.2 < sum(ems) / PAIRS < 0.7
    assert any(0 < f1(said, golden) < 1 for said, golden in found)
    assert any(cover_match(said, golden) > exact_match(said, golden) for said, golden in found)
    assert (max(len(golden) for _, golden in found) > 1) == (style != "hotpotqa")


@pytest.mark.parametrize(
    ("text", "golden", "found"),
    [
        ("首都は東京です", "東京", 1.0),
        ("首都は東京です", "大阪", 0.0),
        ("เมืองหลวงคือกรุงเทพ", "กรุงเทพ", 1.0),
        ("nothing", "no", 0.0),
        ("no thing", "no", 1.0),
    ],
)
def test_words_stand_anywhere_in_scripts_without_spaces(text: str, golden: str, found: float) -> None:
    assert has_words(text, (golden,)) == found


def test_a_mixed_number_is_no_other_number() -> None:
    assert exact_match("212 miles", ("2½ miles",)) == 0.0
    assert exact_match("2 1/2 miles", ("2½ miles",)) == 1.0


@pytest.mark.parametrize(("said", "golden"), [("½", "1/2"), ("3⁄4", "3/4"), ("5½", "5 1/2"), ("12 cups", "½ cups")])
def test_a_fraction_is_its_digits_and_a_slash(said: str, golden: str) -> None:
    assert exact_match(said, (golden,)) == 1.0


def test_what_scores_give_has_a_version() -> None:
    """If this fails on purpose, raise ``agent.answers.VERSION``: results of before and after can't be compared."""
    digest = hashlib.blake2b(digest_size=8)
    for style in STYLES:
        for said, golden in pairs(style):
            numbers = (exact_match(said, golden), f1(said, golden), cover_match(said, golden))
            digest.update(" ".join(f"{n:.9f}" for n in numbers).encode() + b"\n")
    assert (VERSION, digest.hexdigest()) == (5, "a3ac7ab518f9a192")
