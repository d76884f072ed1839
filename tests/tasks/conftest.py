"""Expert trajectories, made on the real Lucene."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for expert_cases.py: importlib mode adds no folder by itself

from expert_cases import AGENT, PASSAGES, THERE

from agent.config import AgentConfig
from agent.records import Question
from retrieval_service.config import RetrievalConfig
from retrieval_service.corpus import write_corpus
from retrieval_service.rankers import index_for, open_backend
from retrieval_service.service import RetrievalService
from tasks.making import make as making
from tasks.making.config import ExpertsConfig
from tasks.making.made import Made


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("making")
    write_corpus(folder / "corpus.jsonl", PASSAGES)
    return index_for(folder / "corpus.jsonl", RetrievalConfig(), folder / "cache")


@pytest.fixture
def make(index: Path) -> Callable[..., Made]:
    """Makes experts of questions on the real index; ``told`` are the functions that ``make`` tells of its progress."""

    def run(
        *questions: Question,
        agent: AgentConfig = AGENT,
        seed: int = 0,
        told: Mapping[str, Callable[..., None]] = MappingProxyType({}),
        **settings,
    ) -> Made:
        async def made() -> Made:
            service = RetrievalService(lambda: open_backend(RetrievalConfig(), index), RetrievalConfig())
            await service.start()
            try:
                library = making.Library(searcher=service, agent=agent, there=THERE)
                return await making.make(questions, library, ExpertsConfig(**settings), seed, **told)
            finally:
                await service.close()

        return asyncio.run(made())

    return run
