"""From a DataConfig to a Task: the world and the user's files."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from agent.errors import UserError
from agent.protocol import PROTOCOLS
from retrieval_service.corpus import read_corpus
from tasks.config import DataConfig
from tasks.load import load
from tasks.tokenizer import train
from tasks.world import World

ROOT = Path(__file__).parents[2]
SEARCH = PROTOCOLS["search"]
SHARED = ROOT.parent / "shared" / "data" / "hotpotqa_mini"


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    ask = [{"question": f"who wrote book {i}?", "answer": f"writer {i}"} for i in range(20)]
    corpus = [{"id": f"d{i}", "contents": f'"book {i}"\nIt was written by writer {i}.'} for i in range(10)]
    return {
        "questions": write(tmp_path / "ask.jsonl", ask),
        "corpus": write(tmp_path / "corpus.jsonl", corpus),
    }


def test_the_world(tmp_path):
    config = DataConfig(train_questions=30, eval_questions_per_hop=5, demonstrations=4, hop_shares=[1, 1, 0])
    task = load(config, 0, tmp_path)
    assert (task.name, len(task.train), len(task.eval)) == ("world", 30, 15)
    assert Counter(q.kind for q in task.train) == {"1-hop": 15, "2-hop": 15}
    assert all(question.supporting for question in task.train)
    assert tuple(read_corpus(task.corpus)) == World(0).passages
    assert len(task.demonstrations(SEARCH, 2)) == 4
    assert pickle.loads(pickle.dumps(task)) == task
    assert load(config, 99, tmp_path) == task, "a run's seed changes no question of the world"


def test_the_worlds_corpus_is_written_anew_each_time(tmp_path):
    config = DataConfig(train_questions=3, eval_questions_per_hop=1)
    corpus = load(config, 0, tmp_path).corpus
    written = corpus.read_bytes()
    corpus.write_text("from an older version\n")
    assert load(config, 0, tmp_path).corpus.read_bytes() == written
    assert load(DataConfig(train_questions=3, world_seed=1), 0, tmp_path).corpus != corpus
    assert sorted(p.name for p in corpus.parent.iterdir()) == ["world-0.jsonl", "world-1.jsonl"]


@pytest.mark.parametrize(("match", "field"), [("title", "title"), ("id", "id")])
def test_supporting_documents_are_named_as_evidence_is_matched(tmp_path, match, field):
    task = load(DataConfig(train_questions=30, eval_questions_per_hop=2, evidence_match=match), 0, tmp_path)
    names = {getattr(p, field) for p in World(0).passages}
    assert all(set(q.supporting) <= names for q in (*task.train, *task.eval))


def test_ones_own_files(files, tmp_path):
    task = load(DataConfig(source="jsonl", **files), 0, tmp_path / "cache")
    assert (task.name, len(task.train), len(task.eval)) == ("ask", 16, 4)
    assert str(task.corpus) == files["corpus"]
    assert not any(question.supporting for question in task.train)
    assert not (tmp_path / "cache").exists()
    other = load(DataConfig(source="jsonl", **files), 1, tmp_path)
    assert {q.id for q in other.eval} != {q.id for q in task.eval}
    with pytest.raises(UserError, match=r"brings no expert trajectories; set algorithm\.warm_start\.steps=0"):
        task.demonstrations(SEARCH, 2)


def test_the_seedings_experts_are_of_different_questions(files, tmp_path):
    """A teacher's file has several trajectories of one question."""
    row = {"question": "Who?", "answer": "a", "trajectory": "<search>x</search> <result>y</result> <answer>a</answer>"}
    rows = [row | {"id": f"{name}#{n}", "question": f"Who is {name}?"} for name in "abcd" for n in range(4)]
    (tmp_path / "experts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    task = load(DataConfig(source="jsonl", **files, experts=str(tmp_path / "experts.jsonl")), 0, tmp_path)
    for seed in range(5):
        assert len({e.question.text for e in task.experts(SEARCH, 2, 4, seed)}) == 4
    with pytest.raises(UserError, match=r"algorithm\.seeding\.experts=5, but .* holds trajectories of 4 questions"):
        task.experts(SEARCH, 2, 5, 0)


def test_a_file_of_held_out_questions(files, tmp_path):
    held_out = write(tmp_path / "held.jsonl", [{"question": "and this?", "answer": "that"}])
    task = load(DataConfig(source="jsonl", eval_questions=held_out, **files), 0, tmp_path)
    assert len(task.train) == 20
    assert [q.id for q in task.eval] == ["held-1"]
    with pytest.raises(UserError, match=r"^data\.eval_questions=.*missing\.jsonl: cannot be read"):
        load(DataConfig(source="jsonl", eval_questions=str(tmp_path / "missing.jsonl"), **files), 0, tmp_path)


def test_development_questions_of_the_world_follow_the_held_out_ones(tmp_path):
    config = DataConfig(train_questions=30, eval_questions_per_hop=5, dev_questions_per_hop=4, evidence_match="id")
    task = load(config, 0, tmp_path)
    dev = task.development()
    assert Counter(q.kind for q in dev) == {"1-hop": 4, "2-hop": 4, "3-hop": 4}
    both = World(0).eval_questions(9, evidence_match="id")
    assert set(dev) == set(both) - set(task.eval)
    assert load(config, 7, tmp_path).development() == dev
    few = DataConfig(train_questions=30, dev_questions_per_hop=3000)
    with pytest.raises(UserError, match=r"1-hop held-out questions, not 3150; lower .*data\.dev_questions_per_hop"):
        load(few, 0, tmp_path).development()


def test_development_questions_held_back_from_training(files, tmp_path):
    whole = load(DataConfig(source="jsonl", **files), 0, tmp_path)
    task = load(DataConfig(source="jsonl", dev_share=0.25, **files), 0, tmp_path)
    assert task.eval == whole.eval, "what is held out doesn't depend on it"
    assert len(task.development()) == 4
    assert {*task.train, *task.development()} == set(whole.train)
    assert len(task.train) == 12
    with pytest.raises(UserError, match=r"no development questions; set data\.dev_questions=FILE, or use the same"):
        whole.development()


def test_a_file_of_development_questions(files, tmp_path):
    dev = write(tmp_path / "dev.jsonl", [{"question": "and this?", "answer": "that"}])
    task = load(DataConfig(source="jsonl", dev_questions=dev, **files), 0, tmp_path)
    assert [q.id for q in task.development()] == ["dev-1"]
    assert len(task.train) == 16
    held_out = write(tmp_path / "held.jsonl", [{"question": "AND this?", "answer": "that"}])
    task = load(DataConfig(source="jsonl", dev_questions=dev, eval_questions=held_out, **files), 0, tmp_path)
    with pytest.raises(UserError, match=r"^data\.dev_questions=.*dev\.jsonl: question 'dev-1' is held out"):
        task.development()


def test_a_corpus_that_is_not_there(files, tmp_path):
    with pytest.raises(UserError, match=r"data\.corpus=.*nothing\.jsonl: no such file"):
        load(DataConfig(source="jsonl", **files | {"corpus": str(tmp_path / "nothing.jsonl")}), 0, tmp_path)


def test_what_is_wrong_with_questions_is_said_before_a_folder_of_documents_is_read(files, tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_text("A text.")
    questions = write(tmp_path / "bad.jsonl", [{"question": "q?"}])
    config = DataConfig(source="jsonl", questions=questions, corpus=str(tmp_path / "documents"))
    with pytest.raises(UserError, match="has no 'golden_answers'"):
        load(config, 0, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_tokenizer_for_ones_own_files(files, tmp_path):
    task = load(DataConfig(source="jsonl", **files), 0, tmp_path)
    text = list(task.tokenizer_text(SEARCH, 2))
    assert text[0] == f"Question: {task.train[0].text}\n"
    assert text[-1] == '\n<result>\nResult 1: "book 9"\nIt was written by writer 9.\n</result>\n'
    folder = train(text, tags=SEARCH.tags, folder=tmp_path / "tokenizer", vocab_size=300)
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_questions": 0}, r"data\.train_questions=0 must be at least 1"),
        ({"eval_questions_per_hop": -1}, r"data\.eval_questions_per_hop=-1 must be at least 1"),
        ({"demonstrations": 0}, r"data\.demonstrations=0 must be at least 1"),
        ({"hop_shares": [1, 1]}, r"data\.hop_shares=\[1, 1\] must be three numbers"),
        ({"hop_shares": [0, 0, 0]}, "not all 0"),
        ({"hop_shares": [2, -1, 1]}, r"data\.hop_shares=\[2, -1, 1\] must be at least 0"),
        ({"overlap_words": 120}, r"data\.overlap_words=120 must be below data\.passage_words=120"),
        ({"source": "word"}, "did you mean 'world'"),
        ({"eval_share": 1.0}, r"must lie in \(0, 1\)"),
        ({"dev_share": 1.0}, r"data\.dev_share=1\.0 must lie in \[0, 1\)"),
        ({"dev_questions": "dev.jsonl"}, r"are for data=jsonl; data=world makes its own development questions"),
        ({"dev_questions_per_hop": 0}, r"data\.dev_questions_per_hop=0 must be at least 1"),
        (
            {"source": "jsonl", "questions": "q", "corpus": "c", "dev_share": 0.1, "dev_questions": "d"},
            r"data\.dev_share and data\.dev_questions both give",
        ),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**settings)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the HotpotQA sample is not here")
def test_hotpotqa(tmp_path):
    config = DataConfig(source="jsonl", questions=str(SHARED / "questions.jsonl"), corpus=str(SHARED / "corpus.jsonl"))
    task = load(config, 0, tmp_path)
    assert (len(task.train), len(task.eval)) == (48, 12)
    assert all(question.supporting for question in task.train)
    titles = {p.title.casefold() for p in read_corpus(task.corpus)}
    assert all(t.casefold() in titles for q in (*task.train, *task.eval) for t in q.supporting)
    assert {q.kind for q in task.train} <= {"bridge", "comparison"}


def test_importing_tasks_imports_nothing_heavy():
    code = (
        "import sys, tasks.load, tasks.tokenizer, tasks.files\n"
        "heavy = ('torch', 'ray', 'vllm', 'jnius', 'pyarrow', 'tokenizers', 'transformers')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
