"""Texts as weights of a vocabulary's terms, by a masked language model: SPLADE (arXiv 2107.05720, section 3).

A term's weight is the largest, over the text's tokens, of log(1 + relu(logit of the term)). Weights are made whole
numbers as Pyserini makes them, 256 steps for 5, so that an index of ours and one of Pyserini's score alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.errors import Fault
from retrieval_service.encoder import KEY, Manner, TextModel, batches

Weights = dict[str, int]
"""Of a text: the terms whose weight isn't 0."""
STEPS = 256 / 5
"""Whole numbers for a weight of 1."""
_AT_ONCE = 8
"""Texts of a batch: each token has a logit for every term of the vocabulary."""


class SparseEncoder(TextModel):
    """A model that weighs terms."""

    kind = "AutoModelForMaskedLM"
    hint = "; retrieval=splade takes a SPLADE model, such as naver/splade-v3, and retrieval=dense an encoder of vectors"

    def __init__(self, folder: Path, manner: Manner, *, threads: int, device: str = "auto") -> None:
        super().__init__(folder, manner, threads=threads, device=device)
        # A model may have more rows than its tokenizer has tokens: they have no name, and are never trained.
        self._terms: Any = self._tokenizer.convert_ids_to_tokens(list(range(self._model.config.vocab_size)))

    def weights(self, texts: Sequence[str]) -> list[Weights]:
        """Of each text its terms' weights. Raises ``Fault`` for one that isn't finite."""
        found: list[Weights] = [{}] * len(texts)
        with self._torch.inference_mode():
            for batch in batches(texts, _AT_ONCE):
                for at, weights in zip(batch, self._batch([texts[at] for at in batch]), strict=True):
                    found[at] = weights
        return found

    def _batch(self, texts: list[str]) -> list[Weights]:
        torch = self._torch
        encoded = self._tokenized(texts)
        logits = self._model(**encoded).logits
        # The largest first: log(1 + relu) keeps the order.
        hidden = encoded["attention_mask"].unsqueeze(-1) == 0
        largest = logits.masked_fill(hidden, float("-inf")).amax(dim=1).float()
        if not torch.isfinite(largest).all():
            at = int(torch.isfinite(largest).all(dim=1).int().argmin())
            raise Fault(f"{KEY}={self._manner.encoder} makes no finite weights of {texts[at][:100]!r}")
        whole = torch.round(torch.log1p(torch.relu(largest)) * STEPS).int().cpu()
        return [self._named(row) for row in whole]

    def _named(self, row: Any) -> Weights:
        places = row.nonzero()[:, 0].tolist()
        return {term: int(row[at]) for at in places if (term := self._terms[at]) is not None}
