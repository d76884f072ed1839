"""SPLADE over a small random masked language model: weights, Lucene's index of impacts, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import PASSAGES as GIVEN
from encoders import encoder, ids, masked_model

from agent.errors import Fault, RetrievalError, UserError
from agent.records import Passage
from retrieval_service import jvm, names
from retrieval_service.backends.splade import Settings, Splade
from retrieval_service.corpus import join_contents, write_corpus
from retrieval_service.encoder import manner_of
from retrieval_service.rankers import index_for, open_backend
from retrieval_service.sparse import SparseEncoder

PASSAGES_OF = [
    *GIVEN,
    Passage(id="tokyo", title="東京", text="日本 😀"),
]
QUERIES = ["emma novel", "lighthouse", "two", "berlin album berlin"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked_model(tmp_path_factory.mktemp("masked") / "model")


@pytest.fixture(scope="module")
def config(model: Path) -> Settings:
    return Settings(encoder=str(model))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    write_corpus(file, PASSAGES_OF)
    return file


@pytest.fixture(scope="module")
def index(corpus: Path, config: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of parts of two passages."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(names, "PART", 2)
        return index_for(corpus, config, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def backend(index: Path, config: Settings) -> Iterator[Splade]:
    opened = open_backend(config, index)
    assert isinstance(opened, Splade)
    yield opened
    opened.close()


def by_hand(model: Path, text: str) -> dict[str, int]:
    """The weights of one text alone, without padding."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer, bare = AutoTokenizer.from_pretrained(model), AutoModelForMaskedLM.from_pretrained(model).eval()
    with torch.no_grad():
        logits = bare(**tokenizer(text, return_tensors="pt")).logits[0]
    weights = np.log1p(np.maximum(logits.numpy(), 0)).max(axis=0)
    terms = tokenizer.convert_ids_to_tokens(range(len(weights)))
    return {term: whole for term, w in zip(terms, weights, strict=True) if (whole := round(float(w) * 256 / 5))}


# --- the encoder -----------------------------------------------------------------------------------


def test_weights_are_the_largest_of_the_tokens_logits(model: Path, config: Settings) -> None:
    made = SparseEncoder(model, manner_of(model, "given", config.asked), threads=2)
    texts = ["emma", "novel by jane austen " * 3, "", "one two"]
    for text, weights in zip(texts, made.weights(texts), strict=True):
        wanted = by_hand(model, text)
        assert weights.keys() == wanted.keys()
        assert all(abs(weights[term] - wanted[term]) <= 1 for term in wanted), "a step at most, of rounding"


def test_what_is_not_finite_is_a_fault(model: Path, config: Settings) -> None:
    made = SparseEncoder(model, manner_of(model, "given", config.asked), threads=2)
    made._model.bert.embeddings.word_embeddings.weight.data[made._tokenizer.vocab["austen"]] = float("nan")
    with pytest.raises(Fault, match=r"^retrieval\.encoder=given makes no finite weights of '.*'$"):
        made.weights(["novel by austen"])


def test_an_encoder_of_vectors_is_refused(tmp_path: Path, corpus: Path) -> None:
    """Its head would be made up at random."""
    vectors = encoder(tmp_path / "vectors")
    with pytest.raises(
        UserError, match=r"^retrieval\.encoder=.*vectors: its files lack cls\..*; retrieval=splade takes"
    ):
        index_for(corpus, Settings(encoder=str(vectors)), tmp_path)


# --- searching -------------------------------------------------------------------------------------


@pytest.mark.jvm
def test_scores_are_the_products_of_the_weights(backend: Splade, model: Path) -> None:
    passages = {p.id: by_hand(model, join_contents(p.title, p.text)) for p in PASSAGES_OF}
    for query, hits in zip(QUERIES, backend.search_batch(QUERIES, 100), strict=True):
        asked = by_hand(model, query)
        scores = {name: sum(w * asked.get(term, 0) for term, w in told.items()) for name, told in passages.items()}
        assert {*ids(hits)} == {name for name, score in scores.items() if score}
        assert [hit.score for hit in hits] == pytest.approx([scores[hit.id] for hit in hits], rel=0.02)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert all(replace(hit, score=None) in PASSAGES_OF for hit in hits)
        assert ids(backend.search_batch([query], 2)[0]) == ids(hits)[:2]


@pytest.mark.jvm
def test_hits_are_those_of_anserini_asked_one_by_one(backend: Splade, index: Path, model: Path) -> None:
    """As Pyserini's ``LuceneImpactSearcher`` asks it, with Pyserini's whole numbers."""
    made = SparseEncoder(model, backend._manner, threads=2)
    searcher = jvm.java_class("io.anserini.search.SimpleImpactSearcher")(str(index))
    integer, hash_map = jvm.java_class("java.lang.Integer"), jvm.java_class("java.util.HashMap")
    for query, hits in zip(QUERIES, backend.search_batch(QUERIES, 4), strict=True):
        asked = hash_map()
        for term, weight in made.weights([query])[0].items():
            asked.put(term, integer(weight))
        wanted = searcher.search(asked, 4)
        assert [(hit.id, hit.score) for hit in hits] == [(hit.docid, hit.score) for hit in wanted]
    searcher.close()


@pytest.mark.jvm
def test_odd_queries_and_passages_by_id(backend: Splade) -> None:
    found = backend.search_batch(["", " \n\t", "emma", "\ud800", "emma " * 5000], 2)
    assert [len(hits) for hits in found[:3]] == [0, 0, 2]
    assert backend.search_batch([], 3) == []
    with pytest.raises(ValueError, match="k=0"):
        backend.search_batch(["x"], 0)
    assert [ids(f) for f in backend.document_batch(["emma", "none", "light.txt#0"], 3)] == [
        ["emma"],
        [],
        ["light.txt#0", "light.txt#1"],
    ]
    with pytest.raises(RetrievalError, match="the index holds no passage 'none'"):
        backend.following_batch(["none"], 1)


@pytest.mark.jvm
def test_the_identity_names_the_encoder(backend: Splade, model: Path) -> None:
    told = backend.identity()
    assert (told.name, told.backend, told.documents, told.analyser) == ("corpus.jsonl", "splade", 6, None)
    assert (told.settings["encoder"], told.settings["max_tokens"]) == (str(model), 256)
    assert {"weights", "anserini", "lucene_generation"} <= {*told.settings}


# --- building --------------------------------------------------------------------------------------


@pytest.mark.jvm
def test_a_passage_without_a_term_is_a_passage(
    corpus: Path, config: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = SparseEncoder.weights

    def some(self: SparseEncoder, texts: list[str]) -> Any:
        return [{} if "berlin" in text else w for text, w in zip(texts, weights(self, texts), strict=True)]

    monkeypatch.setattr(SparseEncoder, "weights", some)
    opened = open_backend(config, index_for(corpus, config, tmp_path))
    assert opened.identity().documents == 6
    assert "berlin" not in ids(opened.search_batch(["emma novel"], 6)[0])
    assert opened.search_batch(["berlin"], 6) == [()]
    assert ids(opened.document_batch(["berlin"], 1)[0]) == ["berlin"]
    opened.close()


@pytest.mark.jvm
def test_an_index_says_its_encoder_and_takes_no_other(index: Path, model: Path, tmp_path: Path) -> None:
    open_backend(Settings(index=str(index)), index).close()
    moved = shutil.copytree(model, tmp_path / "moved")
    open_backend(Settings(encoder=str(moved)), index).close()
    other = masked_model(tmp_path / "other", seed=1)
    with pytest.raises(
        UserError, match=r"was made with .*, and retrieval\.encoder=.*other differs in weights; use that"
    ):
        open_backend(Settings(encoder=str(other)), index)
    with pytest.raises(UserError, match="differs in max_tokens"):
        open_backend(Settings(index=str(index), max_tokens=16), index)
    with pytest.raises(UserError, match=r"is an index of retrieval=splade, not of retrieval=bm25"):
        open_backend(replace(Settings(index=str(index)), backend="bm25"), index)


def test_an_encoder_is_needed() -> None:
    with pytest.raises(UserError, match=r"retrieval=splade needs retrieval\.encoder=FOLDER or a name on the hub"):
        Settings()
