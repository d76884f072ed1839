"""BM25 and dense retrieval together, by reciprocal rank fusion: a passage's score is the sum of weight / (60 + rank)
over the rankings that have it (Cormack, Clarke and Büttcher, SIGIR 2009).

Its index is a folder with one of each, ``bm25`` and ``dense``, of the same corpus; one that is built here has links to
them, and is named by both.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.aside import aside
from agent.errors import UserError
from agent.records import Passage
from agent.settings import bounded
from retrieval_service.backend import Identity
from retrieval_service.backends import bm25, dense
from retrieval_service.index import FORMAT, Manifest, read_manifest, write_manifest
from retrieval_service.names import FILE
from retrieval_service.watch import SILENT, Watch

PARTS = ("bm25", "dense")


@dataclass
class Settings(dense.Settings):
    """Settings of ``retrieval=hybrid``: those of both, and of their fusion."""

    backend: str = "hybrid"
    weights: list[float] = bounded([1.0, 1.0], "at least 0")
    """Of BM25 and of dense retrieval."""
    rank_constant: float = bounded(60.0, "at least 0")
    """What is added to ranks: the more, the less the first places count."""
    depth: int = bounded(100, "at least 1")
    """Passages of each ranking that are fused; at least those that are asked for."""

    def __post_init__(self) -> None:
        dense.Settings.__post_init__(self)
        if len(self.weights) != len(PARTS) or not sum(self.weights):
            raise UserError(f"retrieval.weights={self.weights} must be two numbers, of BM25 and dense, not both 0")


class Hybrid:
    """A ``Backend`` over the two of them. For one thread.

    Raises ``UserError`` if either index can't be used, or they aren't of the same passages.
    """

    def __init__(self, index: Path | None, config: Settings) -> None:
        if index is None:
            raise ValueError("hybrid retrieval needs an index")
        for part in PARTS:
            if not (index / part).is_dir():
                lost = "leads nowhere (copy it with cp -rL)" if (index / part).is_symlink() else "is missing"
                raise UserError(f"{index}: needs the folders {' and '.join(PARTS)}, an index each; {part} {lost}")
        self._config = config
        self._lexical = bm25.Bm25(index / "bm25", config)
        try:
            self._dense = dense.Dense(index / "dense", config)
        except BaseException:
            self._lexical.close()
            raise
        self.device = self._dense.device
        one, other = self._lexical.identity(), self._dense.identity()
        if one.documents != other.documents or (one.checksum or other.checksum) != other.checksum:
            self.close()
            raise UserError(
                f"{index}: bm25 is of {one.documents} passages of {one.name}, dense of {other.documents} of "
                f"{other.name}; both must be built from the same corpus"
            )

    def search_batch(self, queries: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """For each query the ``k`` passages of the highest fused scores; of equals the one that BM25 has higher.

        Raises ``ValueError`` for ``k < 1`` and ``RetrievalError`` if Lucene fails.
        """
        depth = max(k, self._config.depth)
        rankings = zip(
            self._lexical.search_batch(queries, depth), self._dense.search_batch(queries, depth), strict=True
        )
        return [fused(both, self._config.weights, self._config.rank_constant)[:k] for both in rankings]

    def following_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """See ``Backend``."""
        return self._dense.following_batch(document_ids, k)

    def document_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """See ``Backend``."""
        return self._dense.document_batch(document_ids, k)

    def identity(self) -> Identity:
        """That of both: the settings of each, and of the fusion."""
        one, other = self._lexical.identity(), self._dense.identity()
        fusion = {"fusion_weights": list(self._config.weights), "rank_constant": self._config.rank_constant}
        return Identity(
            name=other.name,
            backend="hybrid",
            documents=other.documents,
            checksum=other.checksum,
            analyser=one.analyser,
            settings={**one.settings, **other.settings, **fusion, "depth": self._config.depth},
        )

    def close(self) -> None:
        """Closes both."""
        self._lexical.close()
        self._dense.close()


def fused(rankings: Sequence[Sequence[Passage]], weights: Sequence[float], rank_constant: float) -> tuple[Passage, ...]:
    """All passages of ``rankings``, the one with the highest fused score first."""
    scores: dict[str, float] = {}
    passages: dict[str, Passage] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, passage in enumerate(ranking, start=1):
            passages.setdefault(passage.id, passage)
            scores[passage.id] = scores.get(passage.id, 0.0) + weight / (rank_constant + rank)
    best = sorted(scores, key=lambda name: -scores[name])  # stable: equals stay in the order of the first ranking
    return tuple(
        Passage(id=name, title=passages[name].title, text=passages[name].text, score=scores[name]) for name in best
    )


def ensure(corpus: Path, config: Settings, cache: Path, watch: Watch = SILENT) -> Path:
    """See ``retrieval_service.rankers.index_for``: both indexes, and a folder with links to them."""
    indexes = {"bm25": bm25.ensure(corpus, config, cache, watch), "dense": dense.ensure(corpus, config, cache, watch)}
    manifest = read_manifest(indexes["dense"])
    assert manifest is not None
    told = {part: there.name for part, there in indexes.items()}
    both = hashlib.blake2b("\n".join(told.values()).encode(), digest_size=8).hexdigest()
    index = indexes["dense"].with_name(f"{manifest.corpus_checksum}-hybrid-{both}-v{FORMAT}")
    if not index.exists():
        with aside(index) as there:
            made = there / "index"
            made.mkdir()
            for part, single in indexes.items():
                (made / part).symlink_to(Path("..") / single.name)
            (made / FILE).symlink_to(Path("dense") / FILE)
            write_manifest(
                made,
                Manifest(
                    format=FORMAT,
                    backend="hybrid",
                    documents=manifest.documents,
                    corpus=manifest.corpus,
                    corpus_checksum=manifest.corpus_checksum,
                    made_with=told,
                ),
            )
            try:
                os.rename(made, index)
            except OSError:
                if not index.exists():  # else somebody else was first, with the same
                    raise
    return index


Backend = Hybrid
"""What ``retrieval.backend=hybrid`` opens."""
