"""Pairs of a prediction and its golden answers, 500 for each style of data set, the same on every machine.

``python tests/agent/score_vectors.py`` prints them as JSON lines, for another program to score.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence

PAIRS = 500
Pair = tuple[str, tuple[str, ...]]

PEOPLE = (
    *("Jane Austen", "J. R. R. Tolkien", "Martin Luther King, Jr.", "Catherine O'Hara", "Jean-Luc Godard", "Prince"),
    *(
        "William the Conqueror",
        "Alexander the Great",
        "A. A. Milne",
        "Ann Lee",
        "Mary-Kate Olsen",
        '"Weird Al" Yankovic',
    ),
)
PLACES = ("New York", "New York City", "the Netherlands", "The Hague", "St. Louis, Missouri", "U.S.", "Rome", "York")
WORKS = ("A Tale of Two Cities", "The Who", "An American in Paris", "Emma (novel)", "Catch-22", "Theatre", "Help!")
UNICODE = (
    *("Beyoncé", "Beyonce\u0301", "Łódź", "Antonín Dvořák", "O’Brien", "“Heroes”", "1914–1918", "北京", "Ｅｍｍａ"),
    *("Straße", "ΣΊΣΥΦΟΣ", "¿Qué?", "soft\u00adhyphen", "Nguyễn Văn A"),
)
NUMBERS = (
    *("1977", "12 May 1983", "May 12, 1983", "1,000", "1000", "3.5", "35", "$5 million", "5%", "-40", "2nd", "second"),
    *("20th century", "1914-1918", "one", "1"),
)
CLOSED = ("yes", "no", "Yes", "No.", "noanswer")
EMPTIED = ("A", "The The", "!", "The", "...")
OPEN = (*PEOPLE, *PLACES, *WORKS, *NUMBERS)
STYLES: dict[str, tuple[Sequence[str], int, float]] = {
    "hotpotqa": ((*OPEN, *CLOSED * 3, *UNICODE[:4]), 1, 0.0),
    "2wiki": ((*OPEN, *CLOSED * 2, *UNICODE), 4, 0.5),
    "musique": ((*OPEN, *UNICODE[:6]), 4, 0.6),
    "open": ((*OPEN * 4, *UNICODE, *EMPTIED), 3, 0.8),
}
"""For each style what is answered, the most aliases, and the share of questions that have some; ``open`` is that of
NaturalQuestions, TriviaQA and PopQA."""

MUTATIONS: tuple[Callable[[random.Random, str, str], str], ...] = (
    lambda rng, golden, other: golden,
    lambda rng, golden, other: golden,
    lambda rng, golden, other: golden.upper(),
    lambda rng, golden, other: golden.lower(),
    lambda rng, golden, other: f"the {golden}",
    lambda rng, golden, other: f" {golden}.",
    lambda rng, golden, other: golden.replace(" ", "  \t"),
    lambda rng, golden, other: golden.replace(" ", rng.choice(("-", ", ", "/"))),
    lambda rng, golden, other: "".join(c for c in golden if c.isalnum() or c == " "),
    lambda rng, golden, other: f"The answer is {golden}, I think",
    lambda rng, golden, other: f"{golden} and {other}",
    lambda rng, golden, other: f"{other} {golden}",
    lambda rng, golden, other: " ".join(golden.split()[:-1]),
    lambda rng, golden, other: " ".join(reversed(golden.split())),
    lambda rng, golden, other: f"{golden}s",
    lambda rng, golden, other: f"un{golden.lower()}",
    lambda rng, golden, other: other,
    lambda rng, golden, other: other,
    lambda rng, golden, other: rng.choice(("yes", "no", "Yes, it is", "no way", "noanswer", "nothing")),
    lambda rng, golden, other: rng.choice(("", " ", "the", "!", "a an")),
)


def pairs(style: str) -> list[Pair]:
    """The pairs of a style."""
    answers, most, share = STYLES[style]
    rng = random.Random(f"slingshot {style}")
    found = []
    for _ in range(PAIRS):
        more = rng.randint(1, most) if rng.random() < share else 0
        golden = tuple(dict.fromkeys(rng.choices(answers, k=1 + more)))
        said = rng.choice(MUTATIONS)(rng, rng.choice(golden), rng.choice(answers))
        found.append((said, golden))
    return found


if __name__ == "__main__":
    for name in STYLES:
        for said, golden in pairs(name):
            print(json.dumps({"style": name, "prediction": said, "golden_answers": golden}))
