"""The published definitions of EM, F1 and cover EM, written anew from their descriptions; nothing of the product.

SQuAD (Rajpurkar et al. 2016): lower case, without ASCII punctuation, without articles, single spaces; EM is equality,
F1 that of the bags of words, the best over the golden answers. HotpotQA (Yang et al. 2018) and 2WikiMultihopQA (Ho et
al. 2020): the same, where yes, no and noanswer share nothing with any other text; 2WikiMultihopQA takes the best over
the answer and its aliases. MuSiQue (Trivedi et al. 2022): SQuAD's, where an empty text equals an empty one. Cover EM:
FlashRAG's ``sub_em``, a golden answer's normal form anywhere in the prediction's.

``python tests/agent/published.py`` computes ``published_scores.json``, which was done once.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from pathlib import Path

Golden = tuple[str, ...]
VECTORS = Path(__file__).with_name("published_scores.json")


def normal(text: str) -> str:
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def em(said: str, golden: Golden) -> float:
    return float(any(normal(said) == normal(g) for g in golden))


def _of_words(said: str, golden: str) -> float:
    one, two = said.split(), golden.split()
    same = sum((Counter(one) & Counter(two)).values())
    if not same:
        return 0.0
    precision, recall = same / len(one), same / len(two)
    return 2 * precision * recall / (precision + recall)


def hotpotqa_f1(said: str, golden: Golden) -> float:
    def one(answer: str, right: str) -> float:
        closed = {"yes", "no", "noanswer"}
        return 0.0 if answer != right and (answer in closed or right in closed) else _of_words(answer, right)

    return max(one(normal(said), normal(g)) for g in golden)


def musique_f1(said: str, golden: Golden) -> float:
    def one(answer: str, right: str) -> float:
        return _of_words(answer, right) if answer and right else float(answer == right)

    return max(one(normal(said), normal(g)) for g in golden)


def cover_em(said: str, golden: Golden) -> float:
    return float(any(normal(g) in normal(said) for g in golden))


F1 = {"hotpotqa": hotpotqa_f1, "2wiki": hotpotqa_f1, "musique": musique_f1, "open": hotpotqa_f1}
"""By the style of the data set; of the open ones FlashRAG's, which is HotpotQA's."""


def scores(style: str, found: list[tuple[str, Golden]]) -> dict[str, object]:
    """EM and cover EM as a digit for each pair, F1 in millionths."""
    return {
        "em": "".join(f"{em(said, golden):.0f}" for said, golden in found),
        "cover_em": "".join(f"{cover_em(said, golden):.0f}" for said, golden in found),
        "f1": [round(1e6 * F1[style](said, golden)) for said, golden in found],
    }


if __name__ == "__main__":
    from score_vectors import STYLES, pairs

    lines = [
        f"{json.dumps(style)}: {json.dumps(scores(style, pairs(style)), separators=(',', ':'))}" for style in STYLES
    ]
    VECTORS.write_text("{" + ",\n".join(lines) + "}\n")
