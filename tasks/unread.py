"""What of a file looks like a known field and isn't read: counted row by row, said once."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from agent.readable import named
from agent.records import Question
from tasks import supporting
from tasks.fields import anywhere
from tasks.notices import Notice
from tasks.rows import Row

_OBJECTS = ("metadata", "extra_info", "reward_model")
_READ = frozenset(
    {"id", "_id", "question", "golden_answers", "answers", "answer", "answer_aliases", "answerable", "data_source"}
    | {"answer 2", "possible_answers", "answers_mean", "answer_id", "type", "level", "prompt", "ground_truth"}
    | {*_OBJECTS, *supporting.NAMES}
)
"""Fields that are read, in the row or in its metadata."""
_ALIKE = 0.85
"""Similarity from which on a field's name is taken for a known one, misspelt."""


@lru_cache(maxsize=4096)
def _meant(name: str) -> str | None:
    """The field that an unknown one may be meant for. Short names are near to too many."""
    names = sorted(n for n in _READ if len(n) > 6 and n.isidentifier())
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=_ALIKE)
    return close[0] if close and name not in _READ else None


def is_like_a_field(name: str) -> bool:
    """Whether a column is read, or nearly named like one that is."""
    return name in _READ or _meant(name) is not None


class Unread:
    """Looks at the rows of one file."""

    def __init__(self) -> None:
        self._rows = 0
        self._counts: Counter[tuple[str, str]] = Counter()

    def look(self, row: Row, question: Question) -> None:
        """Takes in one row and the question that was read from it."""
        self._rows += 1
        metadata = row.get("metadata")
        for name in (*row, *(f"metadata.{n}" for n in (metadata if isinstance(metadata, Mapping) else ()))):
            if meant := _meant(name.removeprefix("metadata.")):
                self._counts[name, f"isn't read; did you mean '{meant}'?"] += 1
        for name in _OBJECTS:
            if row.get(name) not in (None, "") and not isinstance(row[name], Mapping):
                self._counts[name, f"isn't read: it is {named(row[name])}, not an object"] += 1
        if question.needed:
            for name, _ in anywhere(row, "answer_aliases"):
                self._counts[name, "isn't read, since all answers are needed and it names none of them"] += 1
        if not question.supporting:
            for name in supporting.mute(row):
                self._counts[name, f"names no supporting document by {question.evidence_match}"] += 1

    def notices(self, file: str) -> list[Notice]:
        """One notice per field, for the file in words."""
        return [
            Notice(kind="unread", text=f"{file}: in {count} of {self._rows} rows '{name}' {what}")
            for (name, what), count in sorted(self._counts.items())
        ]
