"""Settings of the passages and of the server that would do nothing: they are refused, and what says so costs no run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from agent.errors import UserError
from conf.idle import check_idle
from retrieval_service.backends import dense, hybrid, splade
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import FORMAT, Manifest, write_manifest
from retrieval_service.server.config import ServeConfig
from tasks.config import DataConfig

RANKERS = {"bm25": RetrievalConfig, "dense": dense.Settings, "hybrid": hybrid.Settings, "splade": splade.Settings}


def refusal(mode: str, ranker: str, *lines: str) -> str:
    """What ``check_idle`` says of what ``lines`` make of the defaults; nothing if they are taken."""

    def composed(job: Sequence[str]) -> DictConfig:
        settings = dict(line.split("=", 1) for line in job)
        chosen = settings.pop("retrieval", ranker)
        made = {} if chosen == "bm25" else {"encoder": "somewhere"}
        found = OmegaConf.create(
            {
                "mode": mode,
                "data": {**asdict(DataConfig()), "source": "jsonl"},
                "retrieval": asdict(RANKERS[chosen](**made)),
                "serve": asdict(ServeConfig()),
            }
        )
        for key, value in settings.items():
            OmegaConf.update(found, key, value)
        return found

    try:
        check_idle(OverridesParser.create().parse_overrides(list(lines)), composed)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("mode", "ranker", "lines", "message"),
    [
        ("index", "splade", ["retrieval.analyser=de"], "it is of BM25"),
        ("eval", "dense", ["retrieval=dense", "retrieval.k1=1.2"], "it is of BM25"),
        ("train", "bm25", ["retrieval.dialect=flashrag"], "it is for a server that is asked; set retrieval=http"),
        ("serve", "bm25", ["retrieval.token_file=secret"], "it is for a server that is asked; set retrieval=http"),
        ("serve", "bm25", ["retrieval.rerank_depth=50"], "it is how much a cross-encoder reads; set retrieval.rer"),
        ("serve", "dense", ["retrieval.vectors=hnsw", "retrieval.index=i"], "an index that is named says how its"),
        ("index", "dense", ["retrieval.lists=512"], "it is for retrieval.vectors=ivf and ivf_sq8; set that, too"),
        ("train", "hybrid", ["retrieval.beam=400", "retrieval.vectors=ivf"], "it is for retrieval.vectors=hnsw; set"),
        ("index", "bm25", ["data.passage_words=60", "data.corpus=FILE"], "documents of a folder are cut by it"),
        ("index", "bm25", ["data.passage_words=60", "data.corpus=wiki-18"], "documents of a folder are cut by it"),
        ("serve", "bm25", ["data.overlap_words=0", "retrieval.index=i"], "documents of a folder are cut by it"),
        ("train", "bm25", ["data.revision=abc", "data.questions=q.jsonl"], "it is of questions that are fetched by"),
        ("train", "bm25", ["serve.port=8001"], "it is for mode=serve; leave it out"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(
    tmp_path: Path, mode: str, ranker: str, lines: list[str], message: str
) -> None:
    (tmp_path / "c.jsonl").touch()
    lines = [line.replace("FILE", str(tmp_path / "c.jsonl")) for line in lines]
    first = next(line for line in lines if "." in line)
    assert refusal(mode, ranker, *lines).startswith(f"{first}: {message}")


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("flat", "retrieval.probes=8", "it is for an index of retrieval.vectors=ivf and ivf_sq8, and the one that is"),
        ("hnsw", "retrieval.probes=8", "it is for an index of retrieval.vectors=ivf and ivf_sq8, and the one that is"),
        ("ivf", "retrieval.beam=400", "it is for an index of retrieval.vectors=hnsw, and the one that is named keeps"),
        ("ivf", "retrieval.lists=512", "an index that is named says how its vectors are kept; leave it out"),
        ("ivf_sq8", "retrieval.probes=8", ""),
        ("hnsw", "retrieval.beam=400", ""),
        (None, "retrieval.beam=400", ""),  # what is wrong with the index is said where it is opened
    ],
)
@pytest.mark.parametrize(("ranker", "folder"), [("dense", "."), ("hybrid", "dense")])
def test_a_search_among_vectors_has_the_settings_of_the_index_that_is_named(
    tmp_path: Path, kind: str | None, line: str, message: str, ranker: str, folder: str
) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    manifest = Manifest(
        format=FORMAT, backend="dense", documents=1, corpus="c", corpus_checksum="0", made_with={"vectors": kind}
    )
    if kind is not None:
        write_manifest(tmp_path / folder, manifest)
    told = refusal("serve", ranker, f"retrieval.index={tmp_path}", line)
    assert told.startswith(f"{line}: {message}") if message else told == ""


@pytest.mark.parametrize(
    ("mode", "ranker", "lines"),
    [
        ("index", "hybrid", ["retrieval.analyser=de", "retrieval.k1=1.2"]),
        ("train", "dense", ["retrieval=dense,bm25", "retrieval.k1=1.2"]),  # one of the jobs has a use for it
        ("serve", "bm25", ["retrieval.url=http://h:1", "retrieval.dialect=flashrag", "retrieval.token_file=secret"]),
        ("serve", "bm25", ["retrieval.reranker=r", "retrieval.rerank_depth=50"]),
        ("index", "dense", ["retrieval.vectors=ivf", "retrieval.lists=512", "retrieval.probes=8"]),
        ("serve", "dense", ["retrieval.index=i", "retrieval.probes=8", "retrieval.beam=400"]),
        ("index", "bm25", ["data.passage_words=60", "data.corpus=FOLDER"]),
        ("index", "bm25", ["data.passage_words=60", "data.corpus=nowhere"]),  # that it isn't there is said elsewhere
        ("train", "bm25", ["data.revision=abc", "data.questions=flashrag:nq/train"]),
        ("serve", "bm25", ["serve.port=8001"]),
        ("fetch", "bm25", ["serve.port=8001", "retrieval.rerank_depth=50"]),  # it prepares another mode
    ],
)
def test_one_that_does_something_is_taken(tmp_path: Path, mode: str, ranker: str, lines: list[str]) -> None:
    assert refusal(mode, ranker, *(line.replace("FOLDER", str(tmp_path)) for line in lines)) == ""
