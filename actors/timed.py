"""The engine and the retrieval as a worker uses them, for the timeline: when anything was generated or searched for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.episode import Completion, Generator
from agent.records import Passage
from agent.tools.base import Searcher
from tracking.spans import Stretches


@dataclass(frozen=True, slots=True)
class TimedGenerator:
    """A ``Generator`` that notes while any of its requests is under way."""

    generator: Generator
    stretches: Stretches

    async def generate(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop: tuple[str, ...], temperature: float, seed: int
    ) -> Completion:
        """See ``agent.episode.Generator``."""
        with self.stretches.one():
            return await self.generator.generate(
                prompt_ids, max_new_tokens=max_new_tokens, stop=stop, temperature=temperature, seed=seed
            )

    async def score(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float:
        """See ``agent.episode.Generator``."""
        with self.stretches.one():
            return await self.generator.score(prompt_ids, token_ids)


@dataclass(frozen=True, slots=True)
class TimedSearcher:
    """A ``Searcher`` that notes while any of its searches is under way."""

    searcher: Searcher
    stretches: Stretches

    async def search(self, query: str, k: int) -> tuple[Passage, ...]:
        """See ``agent.tools.base.Searcher``."""
        with self.stretches.one():
            return await self.searcher.search(query, k)

    async def following(self, document_id: str, k: int) -> tuple[Passage, ...]:
        """See ``agent.tools.base.Searcher``."""
        with self.stretches.one():
            return await self.searcher.following(document_id, k)
