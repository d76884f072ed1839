"""Wikipedia by name, from the command line to a trained step: a small real index and small sets in their places."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import pytest
from hub import Hub, serving
from patience import run as finished

from retrieval_service.config import RetrievalConfig
from retrieval_service.corpus import write_corpus
from retrieval_service.rankers import index_for
from retrieval_service.wikipedia import HOTPOTQA
from tasks.named import REPOSITORY
from tasks.world import World

ROOT = Path(__file__).parents[2]
ARCHIVE = "castorini/prebuilt-indexes-beir/lucene-inverted/flat/" + HOTPOTQA.archive
SMALLER = """
import dataclasses, sys
from retrieval_service import wikipedia
size, md5, documents, sys.argv = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[3:]
small = dataclasses.replace(wikipedia.HOTPOTQA, size=size, md5=md5, documents=documents)
wikipedia.PREBUILT[small.name] = small
import launch
launch.main()
"""
"""launch.py, told of a small index in the published one's place."""


def rows(kind: str, count: int) -> bytes:
    """The world's questions in FlashRAG's rows."""
    questions = World(0).train_questions(count) if kind == "train" else World(0).eval_questions(count)
    return "".join(
        json.dumps(
            {
                "id": question.id,
                "question": question.text,
                "golden_answers": question.golden_answers,
                "metadata": {"type": question.kind},
            }
        )
        + "\n"
        for question in questions
    ).encode()


def _lucenes(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """What Lucene itself wrote: others' archives have no manifest of ours, and no names."""
    return None if member.name.endswith((".json", ".npz")) else member


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("published")
    write_corpus(folder / "corpus.jsonl", World(0).passages)
    index = index_for(folder / "corpus.jsonl", RetrievalConfig(), folder / "cache")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.add(index, arcname="index", filter=_lucenes)
    sets = {f"{REPOSITORY}/hotpotqa/train.jsonl": rows("train", 60), f"{REPOSITORY}/hotpotqa/dev.jsonl": rows("dev", 4)}
    with serving(Hub({ARCHIVE: out.getvalue(), **sets})) as there:
        yield there


@pytest.mark.slow
def test_the_boxs_command_fetches_what_it_names_and_trains(hub: Hub, whole, tmp_path: Path) -> None:
    cache, packed = tmp_path / "cache", hub.files[ARCHIVE]
    about = [str(len(packed)), hashlib.md5(packed, usedforsecurity=False).hexdigest(), str(len(World(0).passages))]
    environment = os.environ | {"HF_ENDPOINT": hub.url, "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_OFFLINE", None)
    asked = ["mode=fetch", f"model.path={whole.checkpoint}", f"cache_dir={cache}", f"output_dir={tmp_path / 'fetch'}"]
    hub.breaks_after, hub.mends = 1000, True
    done = finished([sys.executable, "-c", SMALLER, *about, *asked], env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("3 downloads are needed, about "), done.stdout
    assert [line.split(":")[0] for line in lines[1:4]] == ["to be fetched"] * 3
    assert f"to be fetched: the index {HOTPOTQA.name} ({len(World(0).passages):,} passages): " in done.stdout
    assert [range for range in hub.got() if range], "a part of the first came, and then the rest"
    again = finished([sys.executable, "-c", SMALLER, *about, *asked], env=environment)
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "everything is here"), again.stdout + again.stderr
    (index,) = (cache / "indexes").glob(f"{HOTPOTQA.name}-*")
    index.rename(index.with_name(HOTPOTQA.folder))  # what the actors, who know the real one alone, look for
    command = [
        *(sys.executable, str(ROOT / "launch.py"), f"model.path={whole.checkpoint}", "tracker=none"),
        *("cluster.dashboard=false", "algorithm.steps=1", "pool.batch_questions=6", "pool.group_size=4"),
        *("agent.prompt=plain", "agent.chat=false", "agent.max_response_tokens=320", "agent.max_prompt_tokens=64"),
        *("agent.max_new_tokens_first=16", "agent.max_new_tokens=16", "agent.top_k=2", "agent.max_searches=5"),
        *("model.dtype=float32", f"cache_dir={cache}", f"output_dir={tmp_path / 'run'}"),
    ]
    run = finished(command, env=environment | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://hub.invalid"})
    assert run.returncode == 0, run.stdout + run.stderr
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (noted,) = (row for row in written if row.get("event") == "about")
    assert noted["index"] == f"bm25 over {HOTPOTQA.name}, 2 passages a search"
    assert noted["data"].startswith("hotpotqa-train: 60 questions to train on, 12 held out (hotpotqa-dev)")
    assert next(row for row in written if row["kind"] == "step")["search/mean"] > 0
    (made,) = (tmp_path / "run" / "checkpoints").glob("step-*/training/made_with.json")
    assert json.loads(made.read_text())["data"]["corpus"] == HOTPOTQA.md5
