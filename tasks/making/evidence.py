"""An expert's searches, planned from the evidence: for each supporting document a query that finds it.

Queries are tried in this order, and the first one whose passages have the document is taken:

1. the document's title, if the question or a passage that was shown names it;
2. the question's own words;
3. the entity: the longest part of the title that a passage that was shown, or the question, has in it;
4. the entity and what the question says of it: its words but those that say nothing;
5. with ``experts.guess_titles``, the title that nothing names.

Documents are looked for in the order in which they can be known: one whose title the question has comes before one
that only its passages name.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from agent.answers import has_words, normalise, normalise_query, normalise_title
from agent.records import Passage, Question
from agent.tools.base import Searcher

_EDGES = " ,;:.()[]\"'"
_NAMING = re.compile(r"[^\W\d_]{4,}|\d{3,}")
"""What a part of a title needs to say anything: a word of four letters, or a number like a year."""


_SILENT = re.compile(
    "an?|the|of|in|on|at|to|for|by|from|with|and|or|as|is|are|was|were|be|been|did|do|does|has|have|had|that|this|which|"
    "who|whom|whose|what|where|when|why|how|its?|their|his|her|s?he|they"
)
"""Words of questions that say nothing."""


class By(StrEnum):
    """What a query is made of, in the order in which they are tried."""

    TITLE = "title"
    QUESTION = "question"
    ENTITY = "entity"
    BOTH = "entity and question"
    GUESS = "a title that nothing names"


class NotFoundError(Exception):
    """No query finds the document ``args[0]``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A search that finds a document."""

    query: str
    by: By


@dataclass(frozen=True, kw_only=True, slots=True)
class Walked:
    """Searches that find every document, and the passages of these documents as they are shown."""

    steps: tuple[Step, ...]
    evidence: tuple[str, ...]


@dataclass
class Walk:
    """The searches for one question, so far. ``titles`` are those of documents that are named by id."""

    question: Question
    searcher: Searcher
    top_k: int
    max_passage_chars: int
    guess_titles: bool = False
    titles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        by_id = self.question.evidence_match == "id"
        names = {name if by_id else normalise_title(name): name for name in self.question.supporting}
        self._names = tuple(name for key, name in names.items() if key)
        self._shown = ""
        self._evidence: list[str] = []
        self._asked: set[str] = set()

    async def walk(self, *, own: bool) -> Walked:
        """With ``own`` a search for each document, also for one that another search has shown already. Without, as few
        as can be: one in the question's own words if that shows all documents, else none for what has been shown.

        Raises ``NotFoundError``, and ``RetrievalError``.
        """
        steps: list[Step] = []
        wanted = [*self._names]
        while wanted:
            step, name, passages = await self._first(wanted) if steps or own else await self._at_once(wanted)
            steps.append(step)
            self._asked.add(normalise_query(step.query))
            self._see(passages)
            wanted = self._missing([n for n in wanted if n != name], () if own else passages)
        return Walked(steps=tuple(steps), evidence=tuple(self._evidence))

    async def _at_once(self, wanted: Sequence[str]) -> tuple[Step, str, tuple[Passage, ...]]:
        """The question's own words if they find all of ``wanted``, else as ``_first``."""
        query = " ".join(self.question.text.split())
        passages = await self.searcher.search(query, self.top_k)
        if not self._missing(wanted, passages):
            return Step(query=query, by=By.QUESTION), wanted[0], passages
        return await self._first(wanted)

    def _see(self, passages: Sequence[Passage]) -> None:
        for passage in passages:
            shown = f"{passage.title}\n{passage.text[: self.max_passage_chars]}"
            self._shown += f"\n{shown}"
            if len(self._missing(self._names, [passage])) < len(self._names):
                self._evidence.append(shown)

    async def _first(self, wanted: Sequence[str]) -> tuple[Step, str, tuple[Passage, ...]]:
        """The first query that finds one of ``wanted``: the step, which one, and all that it finds."""
        for by in By:
            for name in wanted:
                query = " ".join(self._query(by, name).split())
                if not query or normalise_query(query) in self._asked:
                    continue
                passages = await self.searcher.search(query, self.top_k)
                if not self._missing([name], passages):
                    return Step(query=query, by=by), name, passages
        raise NotFoundError(self._title(wanted[0]) or wanted[0])

    def _query(self, by: By, name: str) -> str:
        """The query of that kind for the document ``name``; empty if there is none."""
        question, title = self.question.text, self._title(name)
        if by is By.QUESTION:
            return question
        if not title:
            return ""
        if by in (By.TITLE, By.GUESS):
            known = (by is By.GUESS and self.guess_titles) or has_words(f"{question}\n{self._shown}", [title])
            return title if known else ""
        entity = named(title, self._shown) or named(title, question)
        return f"{entity} {telling(question, entity)}" if entity and by is By.BOTH else entity

    def _title(self, name: str) -> str:
        """A document's title as it would be written in a search; empty if it isn't known."""
        title = self.titles.get(name, "") if self.question.evidence_match == "id" else name
        return html.unescape(title).replace("_", " ").strip(" \"'")

    def _missing(self, names: Sequence[str], passages: Sequence[Passage]) -> list[str]:
        """Those of ``names`` that ``passages`` don't have."""
        if self.question.evidence_match == "id":
            return [name for name in names if name not in {p.id for p in passages}]
        there = {normalise_title(p.title) for p in passages}
        return [name for name in names if normalise_title(name) not in there]


def telling(question: str, entity: str) -> str:
    """The words of ``question`` that say something, without those of ``entity``.

    >>> telling("What is the main airport in the city of Stockholm?", "Stockholm")
    'main airport city'
    """
    there = normalise(entity).split()
    words = (word.strip(_EDGES + "?!") for word in question.split())
    return " ".join(w for w in words if w and normalise(w) not in there and not _SILENT.fullmatch(w.lower()))


def named(title: str, text: str) -> str:
    """The longest run of words of ``title`` that ``text`` has in it and that says something; empty if there is none.

    >>> named("Tosca (1956 film)", "He sang in Tosca.")
    'Tosca'
    """
    words = title.split()
    for length in range(len(words), 0, -1):
        for at in range(len(words) - length + 1):
            run = " ".join(words[at : at + length]).strip(_EDGES)
            if _NAMING.search(run) and has_words(text, [run]):
                return run
    return ""
