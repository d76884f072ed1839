"""Texts as weights of a vocabulary's terms, by a masked language model: SPLADE (arXiv 2107.05720, section 3).

A term's weight is the largest, over the text's tokens, of log(1 + relu(logit of the term)). Weights are made whole
numbers as Pyserini makes them, 256 steps for 5, so that an index of ours and one of Pyserini's score alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.errors import Fault, UserError, shortened
from agent.quiet import quietly
from retrieval_service.encoder import Manner, batches, device_of

Weights = dict[str, int]
"""Of a text: the terms whose weight isn't 0."""
STEPS = 256 / 5
"""Whole numbers for a weight of 1."""
_AT_ONCE = 8
"""Texts of a batch: each token has a logit for every term of the vocabulary."""


class SparseEncoder:
    """A model that weighs terms. For one thread; torch works on ``threads`` processors from then on.

    Raises ``UserError`` for a folder without a usable masked language model.
    """

    def __init__(self, folder: Path, manner: Manner, *, threads: int, device: str = "auto") -> None:
        import torch
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        torch.set_num_threads(threads)
        self._torch = torch
        self._manner = manner
        self._device = device_of(device)
        given = f"retrieval.encoder={manner.encoder}"
        try:
            with quietly():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
                model, loading = AutoModelForMaskedLM.from_pretrained(
                    folder, trust_remote_code=False, use_safetensors=True, output_loading_info=True
                )
        except Exception as error:  # safetensors' own, and what torch raises for sizes that differ
            raise UserError(f"{given}: can't be loaded as a masked language model ({shortened(error)})") from error
        if missing := sorted(loading["missing_keys"]):
            raise UserError(
                f"{given}: its files lack {missing[0]}, which a masked language model has; retrieval=splade takes "
                "a SPLADE model, such as naver/splade-v3, and retrieval=dense an encoder of vectors"
            )
        half = self._device.startswith("cuda")
        self._model = model.to(self._device, torch.float16 if half else torch.float32).eval()
        longest = getattr(model.config, "max_position_embeddings", None) or manner.max_tokens
        self._max_tokens = min(manner.max_tokens, int(longest), int(self._tokenizer.model_max_length))
        # A model may have more rows than its tokenizer has tokens: they have no name, and are never trained.
        self._terms: Any = self._tokenizer.convert_ids_to_tokens(list(range(model.config.vocab_size)))

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
        encoded = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._device)
        logits = self._model(**encoded).logits
        # The largest first: log(1 + relu) keeps the order.
        hidden = encoded["attention_mask"].unsqueeze(-1) == 0
        largest = logits.masked_fill(hidden, float("-inf")).amax(dim=1).float()
        if not torch.isfinite(largest).all():
            at = int(torch.isfinite(largest).all(dim=1).int().argmin())
            raise Fault(f"retrieval.encoder={self._manner.encoder} makes no finite weights of {texts[at][:100]!r}")
        whole = torch.round(torch.log1p(torch.relu(largest)) * STEPS).int().cpu()
        return [self._named(row) for row in whole]

    def _named(self, row: Any) -> Weights:
        places = row.nonzero()[:, 0].tolist()
        return {term: int(row[at]) for at in places if (term := self._terms[at]) is not None}
