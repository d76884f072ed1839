"""A cross-encoder over any ranker: it reads the query with each of the first passages, and orders them anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.errors import Fault, UserError
from agent.records import Passage
from agent.visible import printable
from retrieval_service.backend import Backend, Identity
from retrieval_service.config import RetrievalConfig
from retrieval_service.encoder import batches, device_of, encoder_folder, loaded, most_tokens, weights_digest

KEY = "retrieval.reranker"
MAX_TOKENS = 512
"""Most of query and passage together; longer ones are cut."""
_AT_ONCE = 32


class Reranked:
    """A ``Backend``: of each query the first ``config.rerank_depth`` passages of ``inner``, by the cross-encoder's
    score.

    For one thread. Raises ``UserError`` for a folder without a sequence classifier of one score. A search raises
    ``Fault`` for a score that isn't finite.
    """

    def __init__(self, inner: Backend, config: RetrievalConfig) -> None:
        given = config.reranker or ""
        self._inner, self._depth = inner, config.rerank_depth
        folder = encoder_folder(given, KEY)
        self._told = {"reranker": given, "reranker_weights": weights_digest(folder, f"{KEY}={given}")}
        self.device = device_of(config.device)
        self._tokenizer, self._model, self._torch = _loaded(folder, given, config.threads, self.device)
        self._max_tokens = most_tokens(self._model, self._tokenizer, MAX_TOKENS)
        self.most: int = min(config.max_batch, getattr(inner, "most", config.max_batch))
        self.until: Callable[[float], None] = getattr(inner, "until", lambda end: None)

    def search_batch(self, queries: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """For each query the ``k`` passages of the highest scores, which are the cross-encoder's; see ``Backend``."""
        found = self._inner.search_batch(queries, max(k, self._depth))
        pairs = [(query, passage) for query, hits in zip(queries, found, strict=True) for passage in hits]
        scores = iter(self._scores(pairs))
        ranked = []
        for hits in found:
            scored = sorted(((next(scores), passage) for passage in hits), key=lambda pair: -pair[0])
            ranked.append(tuple(replace(passage, score=score) for score, passage in scored[:k]))
        return ranked

    def _scores(self, pairs: Sequence[tuple[str, Passage]]) -> list[float]:
        texts = [(printable(query), printable(f"{passage.title}\n{passage.text}".strip())) for query, passage in pairs]
        scores = [0.0] * len(texts)
        with self._torch.inference_mode():
            for batch in batches([passage for _, passage in texts], _AT_ONCE):
                encoded = self._tokenizer(
                    [texts[at][0] for at in batch],
                    [texts[at][1] for at in batch],
                    padding=True,
                    truncation="longest_first",
                    max_length=self._max_tokens,
                    return_tensors="pt",
                ).to(self._model.device)
                for at, score in zip(batch, self._model(**encoded).logits[:, 0].tolist(), strict=True):
                    scores[at] = score
        if not all(map(math.isfinite, scores)):
            query, passage = next(pair for pair, score in zip(pairs, scores, strict=True) if not math.isfinite(score))
            raise Fault(f"{KEY}={self._told['reranker']} gives passage {passage.id!r} no finite score for {query!r}")
        return scores

    def following_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """See ``Backend``."""
        return self._inner.following_batch(document_ids, k)

    def document_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """See ``Backend``."""
        return self._inner.document_batch(document_ids, k)

    def identity(self) -> Identity:
        """The ranker's, with the cross-encoder."""
        inner = self._inner.identity()
        return replace(inner, settings={**inner.settings, **self._told, "rerank_depth": self._depth})

    def close(self) -> None:
        """Closes the ranker."""
        self._inner.close()


def _loaded(folder: Path, given: str, threads: int, device: str) -> tuple[Any, Any, Any]:
    import torch

    torch.set_num_threads(threads)
    tokenizer, model, lacking = loaded("AutoModelForSequenceClassification", folder, f"{KEY}={given}")
    if lacking or model.config.num_labels != 1:
        raise UserError(f"{KEY}={given}: is no cross-encoder: it needs a classifier with one score, and its weights")
    return tokenizer, model.to(device), torch
