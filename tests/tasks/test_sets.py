"""Which of the user's questions are for what: every mode's files, and no text on two sides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.answers import normalise
from agent.errors import UserError
from agent.records import Question
from tasks.config import DataConfig
from tasks.files import split, split_texts
from tasks.load import load
from tasks.notices import FILE, Notice, left_out, some, write_notices
from tasks.paths import read_by
from tasks.several import read_sets

MODES = ("train", "calibrate", "eval")
TEXTS = [f"who wrote book {i}?" for i in range(20)]


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"question": text, "answer": "x"}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def config(tmp_path):
    """The settings of files with these texts."""
    (tmp_path / "corpus.jsonl").write_text('{"id": "d", "contents": "x"}\n')

    def make(**texts_or_settings) -> DataConfig:
        settings = {
            key: write(tmp_path / f"{key}.jsonl", value) if isinstance(value, list) else value
            for key, value in texts_or_settings.items()
        }
        return DataConfig(source="jsonl", corpus=str(tmp_path / "corpus.jsonl"), **settings)

    return make


def texts(questions) -> list[str]:
    return [q.text for q in questions]


# --- copies and leaks ------------------------------------------------------------------------------


def numbered(texts: list[str]) -> list[Question]:
    return [Question(id=f"q{i:02}", text=text, golden_answers=("a",)) for i, text in enumerate(texts)]


def test_without_copies_a_split_by_texts_is_the_split_by_ids():
    questions = numbered(TEXTS)
    assert split_texts(questions, 0.3, seed=5) == split(questions, 0.3, seed=5)


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_a_text_are_on_the_same_side(seed):
    questions = numbered([*TEXTS, *(t.upper() for t in TEXTS[:10]), "Who wrote “book 3”"])
    train, held_out = split_texts(questions, 0.3, seed)
    assert len({normalise(t) for t in texts(held_out)}) == 6
    assert not {normalise(t) for t in texts(train)} & {normalise(t) for t in texts(held_out)}
    assert sorted([*train, *held_out], key=questions.index) == questions
    again = split_texts(questions[::-1], 0.3, seed)
    assert {q.id for q in again[1]} == {q.id for q in held_out}, "whatever their order"


def test_questions_that_differ_in_a_sign_are_no_copies(config, tmp_path):
    data = config(questions=["Who made C#?", "Who made C?", "who made “C++”"], eval_questions=["Who made C++?"])
    assert texts(load(data, 0, tmp_path).train) == ["Who made C#?", "Who made C?"]


def test_copies_of_one_question_can_not_be_split():
    with pytest.raises(
        UserError, match=r"one question is too few for data\.eval_share=0\.5 .* data\.eval_questions=FILE"
    ):
        split_texts(numbered(["one?", "One", "one!"]), 0.5, seed=0)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_too_few_to_hold_back_is_said_of_the_share_that_wants_them(config, tmp_path, mode):
    with pytest.raises(
        UserError,
        match=r"questions\.jsonl \(after data\.eval_share\): one question is too few for data\.dev_share=0\.1 ",
    ):
        load(config(questions=TEXTS[:2], dev_share=0.1), 0, tmp_path, mode=mode)


def test_training_questions_that_are_held_out_are_left_out(config, tmp_path):
    data = config(questions=TEXTS, eval_questions=["Who wrote  book 3", "who wrote “book 7”?", "what else?"])
    task = load(data, 0, tmp_path)
    assert texts(task.train) == [t for i, t in enumerate(TEXTS) if i not in (3, 7)]
    assert len(task.eval) == 3
    (notice,) = task.notices
    assert "2 of 20 questions are also in data.eval_questions=" in notice.text
    assert [name for name, _ in notice.items] == ["questions-4", "questions-8"]
    data.strict = True
    with pytest.raises(UserError, match=r"2 of 20 questions are also in .* \(questions-4, questions-8\); data\."):
        load(data, 0, tmp_path)


def test_the_same_question_under_another_id_and_in_another_spelling_is_no_training_question(config, tmp_path):
    data = config(questions=["Who wrote &quot;Café&quot;?", *TEXTS], eval_questions=["who wrote “Cafe\u0301”"])
    assert texts(load(data, 0, tmp_path).train) == TEXTS


def test_copies_of_a_question_with_other_answers_are_said(tmp_path):
    answers = (["Ed", "E. Wood"], ["the ed"], ["Tim"], ["Tim", "E. Wood"])
    rows = [{"question": "Who made “Ed Wood”?", "golden_answers": golden} for golden in answers]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    notices: list[Notice] = []
    path = str(tmp_path / "q.jsonl")
    found = read_sets(path, key="data.questions", evidence_match="title", strict=True, notices=notices)
    assert [len(q.golden_answers) for q in found["q"]] == [2, 1, 1, 2]
    (notice,) = notices
    assert notice.kind == "answers"
    assert "q.jsonl: 1 questions have the text of another one and none of its answers (q-3): what" in notice.text
    assert notice.items == (("q-3", "has the text of 'q-1' and none of its answers"),)


def test_training_questions_that_are_for_calibration_are_left_out(config, tmp_path):
    task = load(config(questions=TEXTS, eval_questions=["what else?"], dev_questions=TEXTS[:2]), 0, tmp_path)
    assert texts(task.train) == TEXTS[2:]
    assert "2 of 20 questions are also in data.dev_questions=" in task.notices[0].text


def test_a_file_that_is_held_out_whole_leaves_nothing_to_train_on(config, tmp_path):
    with pytest.raises(UserError, match=r"every question is also in data\.eval_questions=.*none is left$"):
        load(config(questions=TEXTS, eval_questions=TEXTS), 0, tmp_path)


def test_strict_data_without_a_fault_pass(config, tmp_path):
    assert load(config(questions=TEXTS, eval_questions=["what else?"], strict=True), 0, tmp_path).notices == ()


# --- modes -----------------------------------------------------------------------------------------


def test_an_evaluation_plays_all_of_the_file_that_it_is_given(config, tmp_path):
    for data in (config(questions=TEXTS), config(eval_questions=TEXTS)):
        task = load(data, 0, tmp_path, mode="eval")
        assert (texts(task.eval), task.train) == (TEXTS, ())
    both = load(config(questions=["other?"], eval_questions=TEXTS), 0, tmp_path, mode="eval")
    assert (texts(both.eval), both.name) == (TEXTS, "eval_questions")


def test_questions_are_called_as_their_own_file(config, tmp_path):
    data = config(questions=TEXTS, eval_questions=["other?"], dev_questions=["third?"])
    names = {mode: (t.name, t.held_out_name) for mode in MODES if (t := load(data, 0, tmp_path, mode=mode))}
    assert names == {
        "train": ("questions", "eval_questions"),
        "calibrate": ("dev_questions", "eval_questions"),
        "eval": ("eval_questions", ""),
    }
    assert load(config(questions=TEXTS, dev_share=0.2), 0, tmp_path, mode="calibrate").name == "questions"
    assert load(config(questions=TEXTS), 0, tmp_path).held_out_name == "", "they are of the same file"


def test_an_evaluation_reads_only_what_it_plays(config, tmp_path):
    data = config(questions=str(tmp_path / "missing.jsonl"), eval_questions=TEXTS)
    assert texts(load(data, 0, tmp_path, mode="eval").eval) == TEXTS


def test_an_evaluation_leaves_out_what_is_for_calibration(config, tmp_path):
    data = config(questions=TEXTS, dev_share=0.25)
    dev = load(data, 0, tmp_path, mode="calibrate").development()
    task = load(data, 0, tmp_path, mode="eval")
    assert set(texts(task.eval)) == set(TEXTS) - set(texts(dev))
    assert f"{len(dev)} questions are for calibration, and left out" in task.notices[0].text


def test_what_is_held_out_depends_on_the_split_seed(config, tmp_path):
    """As ``mode=eval`` sets it, to that of the run which wrote the checkpoint."""
    run = load(config(questions=TEXTS, dev_share=0.25), 3, tmp_path)
    again = load(config(questions=TEXTS, dev_share=0.25, split_seed=3), 0, tmp_path, mode="eval")
    assert not {*texts(again.eval)} & {*texts(run.held_back)}
    assert {*texts(again.eval)} == {*texts(run.train), *texts(run.eval)}
    assert texts(load(config(questions=TEXTS, split_seed=3), 9, tmp_path).eval) == texts(
        load(config(questions=TEXTS), 3, tmp_path).eval
    )


@pytest.mark.parametrize("mode", ["ask", "index"])
def test_asking_and_indexing_need_the_corpus_alone(config, tmp_path, mode):
    task = load(config(), 0, tmp_path, mode=mode)
    assert (task.train, task.eval, task.corpus) == ((), (), tmp_path / "corpus.jsonl")
    with pytest.raises(UserError, match=r"data\.corpus=gone\.jsonl: no such file"):
        load(DataConfig(source="jsonl", corpus="gone.jsonl"), 0, tmp_path, mode=mode)


def test_a_calibration_needs_its_own_questions_alone(config, tmp_path):
    assert texts(load(config(dev_questions=TEXTS), 0, tmp_path, mode="calibrate").development()) == TEXTS


def test_calibration_and_evaluation_leave_out_and_take_what_training_did(config, tmp_path):
    data = config(questions=TEXTS, dev_questions=[TEXTS[0].upper(), "what else?"])
    run, calibration, evaluation = (load(data, 3, tmp_path, mode=mode) for mode in ("train", "calibrate", "eval"))
    assert {*texts(run.train), *texts(run.eval)} == {*TEXTS[1:]}
    assert (calibration.train, calibration.eval) == (run.train, run.eval)
    assert texts(calibration.development()) == [TEXTS[0].upper(), "what else?"]
    assert texts(evaluation.eval) == TEXTS[1:]
    for task in (run, calibration, evaluation):
        (notice,) = task.notices
        assert "1 of 20 questions are also in data.dev_questions=" in notice.text
    assert read_by("eval", data.eval_questions) == ("questions", "dev_questions")
    with pytest.raises(UserError, match=r"every question is also in data\.dev_questions=.*none is left$"):
        load(config(questions=TEXTS[:2], dev_questions=TEXTS), 0, tmp_path, mode="eval")


def test_compressed_files_have_their_names_without_the_suffixes(config, tmp_path):
    import gzip

    packed = tmp_path / "own.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(write(tmp_path / "x", TEXTS)).read_bytes()))
    task = load(config(questions=str(packed), eval_questions=["x?"]), 0, tmp_path)
    assert (task.name, task.train[0].id) == ("own", "own-1")


# --- notices ---------------------------------------------------------------------------------------


def test_notices_are_listed_in_a_file(tmp_path):
    write_notices(tmp_path, [Notice(kind="unread", text="only a count")])
    assert list(tmp_path.iterdir()) == []
    write_notices(tmp_path, [left_out("2 are long", [("q1", "é"), ("q2", "y")], strict=False)])
    rows = [json.loads(line) for line in (tmp_path / FILE).read_text("utf-8").splitlines()]
    assert rows == [{"kind": "left_out", "id": "q1", "why": "é"}, {"kind": "left_out", "id": "q2", "why": "y"}]


def test_a_line_names_the_first_few():
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(["a", "b", "c", "d"]) == "a, b, c, …"
