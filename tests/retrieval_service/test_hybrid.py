"""BM25 and dense retrieval fused, and a cross-encoder over either, on the real Lucene and small random models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from encoders import cross_encoder, encoder

from agent.errors import Fault, UserError
from agent.records import Passage
from retrieval_service.backend import Identity
from retrieval_service.backends import hybrid
from retrieval_service.backends.bm25 import Bm25
from retrieval_service.backends.dense import Dense
from retrieval_service.backends.hybrid import Hybrid, Settings, fused
from retrieval_service.config import RetrievalConfig
from retrieval_service.corpus import write_corpus
from retrieval_service.index import FORMAT, Manifest, write_manifest
from retrieval_service.names import FILE, Names
from retrieval_service.rankers import index_for, open_backend
from retrieval_service.rerank import Reranked

PASSAGES = [
    Passage(id="emma", title="Emma", text="novel by jane austen"),
    Passage(id="persuasion", title="Persuasion", text="novel by jane austen"),
    Passage(id="berlin", title="Album", text="berlin album one"),
    *(
        Passage(id=f"twin-{n}", title="Twin", text=f"marmalade {word}")
        for n, word in enumerate(("one", "two", "three"))
    ),
]


def named(*names: str) -> list[Passage]:
    return [Passage(id=name, title=name, text="", score=1.0) for name in names]


def ids(hits: Sequence[Passage]) -> list[str]:
    return [hit.id for hit in hits]


def test_fusion_by_hand() -> None:
    found = fused([named("a", "b", "c"), named("b", "d")], [1.0, 1.0], 60)
    assert [(hit.id, hit.score) for hit in found] == [
        ("b", pytest.approx(1 / 62 + 1 / 61)),
        ("a", pytest.approx(1 / 61)),
        ("d", pytest.approx(1 / 62)),
        ("c", pytest.approx(1 / 63)),
    ]
    assert ids(fused([named("a", "b"), named("b", "a")], [1.0, 1.0], 60)) == ["a", "b"], "of equals BM25's order"
    assert ids(fused([named("a"), named("b")], [1.0, 2.0], 60)) == ["b", "a"]
    assert ids(fused([named("a", "b"), named("c")], [1.0, 1.0], 0)) == ["a", "c", "b"]
    assert fused([(), ()], [1.0, 1.0], 60) == ()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def index(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hybrid")
    write_corpus(folder / "corpus.jsonl", PASSAGES)
    return index_for(folder / "corpus.jsonl", Settings(encoder=str(model)), folder)


@pytest.mark.jvm
def test_both_are_searched_and_fused(model: Path, index: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(index, tmp_path / "elsewhere")  # with what its links lead to
    config = Settings(encoder=str(model), weights=[1.0, 0.5], depth=3)
    backend, lexical, dense = open_backend(config, moved), Bm25(index / "bm25", config), Dense(index / "dense", config)
    try:
        queries = ["emma novel", "marmalade one", "xyzzy", ""]
        each = [lexical.search_batch(queries, 3), dense.search_batch(queries, 3)]
        expected = [fused(both, config.weights, 60)[:2] for both in zip(*each, strict=True)]
        assert backend.search_batch(queries, 2) == expected
        assert [len(hits) for hits in expected] == [2, 2, 2, 0]
        told = backend.identity()
        assert (told.backend, told.documents, told.analyser) == ("hybrid", len(PASSAGES), "porter")
        assert {"k1", "b", "lucene_generation", "encoder", "fusion_weights", "depth"} <= {*told.settings}
        assert told.settings["weights"] == dense.identity().settings["weights"], "the encoder's digest"
        assert backend.device == "cpu"
        assert ids(backend.following_batch(["twin-0"], 2)[0]) == ["twin-1", "twin-2"]
        assert ids(backend.document_batch(["emma"], 2)[0]) == ["emma"]
        assert Names.load(moved / FILE).known({"Emma", "x"}, "title") == {"Emma"}
    finally:
        for each_one in (backend, lexical, dense):
            each_one.close()


def test_a_folder_of_links_is_named_by_both_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The indexes themselves are made up."""
    (tmp_path / "dense").mkdir()
    made_up = {"corpus": "c", "corpus_checksum": "0" * 32, "made_with": {}}
    write_manifest(tmp_path / "dense", Manifest(format=FORMAT, backend="dense", documents=1, **made_up))
    monkeypatch.setattr(hybrid.dense, "ensure", lambda *asked: tmp_path / "dense")
    found = {}
    for analyser in ("krovetz", "porter", "krovetz"):
        (tmp_path / analyser).mkdir(exist_ok=True)
        monkeypatch.setattr(hybrid.bm25, "ensure", lambda *asked, a=analyser: tmp_path / a)
        index = hybrid.ensure(tmp_path / "corpus.jsonl", Settings(encoder="x"), tmp_path)
        assert (index / "bm25").resolve() == (tmp_path / analyser).resolve()
        assert found.setdefault(analyser, index) == index
    assert len({*found.values()}) == 2
    shutil.rmtree(found["porter"])
    rename = os.rename

    def second(made: Path, place: Path) -> None:
        shutil.copytree(made, place, symlinks=True)  # somebody else was first
        rename(made, place)

    monkeypatch.setattr(hybrid.os, "rename", second)
    monkeypatch.setattr(hybrid.bm25, "ensure", lambda *asked: tmp_path / "porter")
    assert hybrid.ensure(tmp_path / "corpus.jsonl", Settings(encoder="x"), tmp_path) == found["porter"]


@pytest.mark.jvm
def test_indexes_that_do_not_go_together_are_named(model: Path, index: Path, tmp_path: Path) -> None:
    config = Settings(encoder=str(model))
    (tmp_path / "half" / "bm25").mkdir(parents=True)
    with pytest.raises(UserError, match="half: needs the folders bm25 and dense, an index each; dense is missing"):
        Hybrid(tmp_path / "half", config)
    write_corpus(tmp_path / "corpus.jsonl", PASSAGES[:2])
    other = index_for(tmp_path / "corpus.jsonl", config, tmp_path)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "bm25").symlink_to(other / "bm25")
    (mixed / "dense").symlink_to(index / "dense")
    shutil.copytree(mixed, tmp_path / "links", symlinks=True)
    (tmp_path / "links" / "dense").unlink()
    (tmp_path / "links" / "dense").symlink_to("../nowhere")
    with pytest.raises(UserError, match=r"dense leads nowhere \(copy it with cp -rL\)"):
        Hybrid(tmp_path / "links", config)
    with pytest.raises(UserError, match=r"bm25 is of 2 passages of corpus\.jsonl, dense of 6 .*the same corpus"):
        Hybrid(mixed, config)


def test_weights_that_make_no_sense() -> None:
    for weights in ([1.0], [0.0, 0.0], [1.0, 1.0, 1.0]):
        with pytest.raises(UserError, match=r"retrieval\.weights=.* must be two numbers"):
            Settings(encoder="x", weights=weights)


# --- the cross-encoder -----------------------------------------------------------------------------


class Scripted:
    """A ranker that gives the first ``k`` passages."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.closed = False

    def search_batch(self, queries: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        assert k >= 1
        self.asked.append(k)
        return [tuple(PASSAGES[:k]) if query else () for query in queries]

    following_batch = document_batch = search_batch

    def identity(self) -> Identity:
        return Identity(name="scripted", backend="scripted", settings={"own": 1})

    def close(self) -> None:
        self.closed = True


def test_a_cross_encoder_orders_the_first_passages_anew(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = cross_encoder(tmp_path / "cross")
    inner = Scripted()
    backend = Reranked(inner, RetrievalConfig(reranker=str(folder), rerank_depth=5))
    first, none, second = backend.search_batch(["emma novel", "", "marmalade"], 3)
    assert inner.asked == [5]
    assert none == ()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    for query, hits in (("emma novel", first), ("marmalade", second)):
        with torch.no_grad():
            scores = {
                p.id: float(model(**tokenizer(query, f"{p.title}\n{p.text}", return_tensors="pt")).logits)
                for p in PASSAGES[:5]
            }
        assert ids(hits) == sorted(scores, key=lambda name: -scores[name])[:3]
        assert [hit.score for hit in hits] == pytest.approx([scores[hit.id] for hit in hits], abs=1e-4)
    assert ids(first) != ids(second)
    backend.search_batch(["emma"], 6)
    assert inner.asked[-1] == 6
    told = backend.identity().settings
    assert (told["own"], told["reranker"], told["rerank_depth"]) == (1, str(folder), 5)
    backend.close()
    assert inner.closed


def test_a_cross_encoder_keeps_its_rankers_batches_and_computes_where_it_is_told(tmp_path: Path) -> None:
    folder, inner = cross_encoder(tmp_path / "cross"), Scripted()
    assert Reranked(inner, RetrievalConfig(reranker=str(folder), max_batch=7)).most == 7
    inner.most = 2  # type: ignore[attr-defined]
    backend = Reranked(inner, RetrievalConfig(reranker=str(folder)))
    assert backend.most == 2
    assert backend.device == "cpu"
    there = Reranked(inner, RetrievalConfig(reranker=str(folder), device="cpu:0"))
    assert there.device == "cpu:0"
    half = Passage(id="half", title="\ud800", text="emma")
    inner.search_batch = lambda queries, k: [(half,)] * len(queries)  # type: ignore[method-assign]
    assert ids(there.search_batch(["emma"], 1)[0]) == ["half"]
    half = Passage(id="long", title="", text="emma " * 100)  # the model has 64 positions
    assert ids(there.search_batch(["emma novel"], 1)[0]) == ["long"]
    del inner.search_batch
    with pytest.raises(UserError, match=r"^retrieval\.device=cuda:99: not to be had here"):
        Reranked(inner, RetrievalConfig(reranker=str(folder), device="cuda:99"))
    backend._model.classifier.weight.data.fill_(float("nan"))
    with pytest.raises(Fault, match=r"^retrieval\.reranker=.* gives passage '.*' no finite score for 'emma'$"):
        backend.search_batch(["emma"], 1)


def test_a_model_that_is_no_cross_encoder_is_named(model: Path) -> None:
    with pytest.raises(UserError, match=r"^retrieval\.reranker=.*: is no cross-encoder: it needs a classifier"):
        Reranked(Scripted(), RetrievalConfig(reranker=str(model)))
    with pytest.raises(UserError, match=r"^retrieval\.reranker=/no/where: no such folder"):
        Reranked(Scripted(), RetrievalConfig(reranker="/no/where"))
