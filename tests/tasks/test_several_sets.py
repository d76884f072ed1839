"""Several files of questions: which ones a setting names, what their sets are called, and their shares."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from agent.errors import UserError
from tasks.config import DataConfig
from tasks.load import load
from tasks.paths import files_of, listed, set_names


@pytest.mark.parametrize(
    ("value", "files"),
    [
        ("a.jsonl", ("a.jsonl",)),
        ("./[a].jsonl", ("./[a].jsonl",)),
        ("[a.jsonl]", ("a.jsonl",)),
        ("[a b.jsonl,~/é.csv]", ("a b.jsonl", "~/é.csv")),
        ("""[ 'a,b' , "c'd" ]""", ("a,b", "c'd")),
    ],
)
def test_a_setting_names_one_file_or_several(value: str, files: tuple[str, ...]) -> None:
    assert files_of(value, "data.questions") == files
    assert files_of(listed(files), "data.questions") == files


@pytest.mark.parametrize("value", ["[]", "[a,]", "[,a]", "[a,,b]", "['a]", "[a'b,c]", "['a'b]", "[' ,a]"])
def test_a_list_that_can_not_be_read_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"^data\.questions=.*: a list of files is written \[A,B\]"):
        files_of(value, "data.questions")


def test_a_file_is_named_once() -> None:
    with pytest.raises(UserError, match=r"^data\.questions=\[a,b,a\]: names a twice$"):
        files_of("[a,b,a]", "data.questions")


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["musique/dev.jsonl.gz"], ("musique",)),
        (["musique/own.jsonl"], ("own",)),
        (["/dev.jsonl"], ("dev",)),
        (["x/nq.jsonl", "y/popqa.csv"], ("nq", "popqa")),
        (["/nq/train.jsonl", "/popqa/train.jsonl"], ("nq", "popqa")),
        (["/v1/nq/train.jsonl", "/v2/nq/train.jsonl"], ("v1", "v2")),
        (["/nq/train.jsonl", "/popqa/train.jsonl", "/nq/dev.jsonl"], ("nq-train", "popqa", "nq-dev")),
        (["/nq/train.jsonl", "/nq/dev.jsonl"], ("train", "dev")),
        (["/nq/train.jsonl", "/nq/train.csv"], ("train.jsonl", "train.csv")),
        (["/hotpotqa/dev.json", "/2wiki/dev.json", "/x/bamtwoogle.csv"], ("hotpotqa", "2wiki", "bamtwoogle")),
        (["/a/train.jsonl", "/b/train.jsonl", "/c.jsonl"], ("a", "b", "c")),
        (["/hotpotqa/train.jsonl", "/musique/dev.jsonl"], ("hotpotqa", "musique")),
        (["/hotpotqa/dev.jsonl", "/bamboogle/test.csv", "/musique/dev.jsonl"], ("hotpotqa", "bamboogle", "musique")),
        (["/v1/nq/train.jsonl", "/v2/nq/dev.jsonl"], ("v1", "v2")),
    ],
)
def test_sets_are_called_what_is_different_about_their_paths(files: list[str], names: tuple[str, ...]) -> None:
    assert set_names([Path(file) for file in files]) == names


@pytest.fixture
def config(tmp_path: Path):
    """The settings of sets of so many questions."""
    (tmp_path / "corpus.jsonl").write_text('{"id": "d", "contents": "x"}\n')

    def make(sizes: dict[str, int], **settings) -> DataConfig:
        files = []
        for name, size in sizes.items():
            (tmp_path / name).mkdir(exist_ok=True)
            rows = [{"id": f"q{i}", "question": f"{name} {i}?", "answer": "a"} for i in range(size)]
            rows = [row | ({"type": "bridge"} if name == "hotpotqa" else {}) for row in rows]
            files.append(tmp_path / name / "train.jsonl")
            files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
        questions = f"[{','.join(map(str, files))}]"
        return DataConfig(source="jsonl", corpus=str(tmp_path / "corpus.jsonl"), questions=questions, **settings)

    return make


def test_each_question_keeps_the_name_of_its_set(config, tmp_path: Path) -> None:
    task = load(config({"hotpotqa": 4, "nq": 6}), 0, tmp_path)
    assert task.name == "hotpotqa+nq"
    both = [*task.train, *task.eval]
    assert {q.id for q in both} == {f"hotpotqa/q{i}" for i in range(4)} | {f"nq/q{i}" for i in range(6)}
    assert {(q.id.split("/")[0], q.kind) for q in both} == {("hotpotqa", "hotpotqa/bridge"), ("nq", "nq")}


def drawn(config: DataConfig, seed: int, folder: Path) -> set[str]:
    task = load(config, seed, folder)
    return {q.id for q in (*task.train, *task.eval)}


def test_shares_hold_of_what_is_used(config, tmp_path: Path) -> None:
    data = config({"hotpotqa": 70, "nq": 90}, shares=[0.7, 0.3])
    first = drawn(data, 0, tmp_path)
    assert Counter(name.split("/")[0] for name in first) == {"hotpotqa": 70, "nq": 30}
    assert drawn(data, 0, tmp_path) == first
    assert drawn(data, 1, tmp_path) != first
    (notice,) = load(data, 0, tmp_path).notices
    assert notice.text == "data.shares=[0.7, 0.3]: 70 of 70 of hotpotqa, 30 of 90 of nq"
    assert len(notice.items) == 60
    assert {q.id for q in load(data, 0, tmp_path, mode="eval").eval} == first
    assert drawn(config({"hotpotqa": 70, "nq": 90}, shares=[7, 3]), 0, tmp_path) == first, "proportions"
    longer = drawn(config({"hotpotqa": 70, "nq": 100}, shares=[0.7, 0.3]), 0, tmp_path)
    assert len(longer & first) > 90, "more questions move few"


@pytest.mark.parametrize("key", ["eval_questions", "dev_questions"])
def test_shares_are_of_what_is_left(config, tmp_path: Path, key: str) -> None:
    """Questions that are kept in a file of their own are no part of the mixture."""
    held_out = tmp_path / "held_out.jsonl"
    rows = [{"id": f"h{i}", "question": f"nq {i}?", "answer": "a"} for i in range(60)]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = config({"hotpotqa": 70, "nq": 90}, shares=[0.7, 0.3], **{key: str(held_out)})
    mixture = [name for name in drawn(data, 0, tmp_path) if "/" in name]
    assert Counter(name.split("/")[0] for name in mixture) == {"hotpotqa": 70, "nq": 30}
    if key == "dev_questions":
        assert {q.id for q in load(data, 0, tmp_path, mode="eval").eval} == {*mixture}
    data = config({"hotpotqa": 70, "nq": 60}, shares=[0.7, 0.3], **{key: str(held_out)})
    with pytest.raises(
        UserError, match=r"^data\.questions=.*: every question of nq is also in .*; leave that file out$"
    ):
        load(data, 0, tmp_path)


def test_shares_are_as_many_as_files(config) -> None:
    with pytest.raises(UserError, match=r"^data\.shares=\[1\.0\] needs as many files in data\.questions=.* names 2$"):
        config({"hotpotqa": 1, "nq": 1}, shares=[1.0])
    with pytest.raises(UserError, match=r"names 0$"):
        DataConfig(source="jsonl", corpus="c", eval_questions="q", shares=[1.0])


def test_a_file_is_read_once(config, tmp_path: Path) -> None:
    data = config({"hotpotqa": 2})
    one = data.questions.strip("[]")
    data.questions = f"[{one},{tmp_path}/../{tmp_path.name}/hotpotqa/train.jsonl]"
    with pytest.raises(UserError, match=r"^data\.questions=.*names a file twice$"):
        load(data, 0, tmp_path)


def test_held_out_and_development_questions_may_be_several_too(config, tmp_path: Path) -> None:
    others = config({"dev_nq": 2, "dev_popqa": 3}).questions
    data = config({"hotpotqa": 4, "nq": 6}, eval_questions=others, dev_questions=config({"x": 1, "y": 1}).questions)
    task = load(data, 0, tmp_path)
    assert Counter(q.kind for q in task.eval) == {"dev_nq": 2, "dev_popqa": 3}
    assert [q.id for q in task.development()] == ["x/q0", "y/q0"]
