"""Questions from the user's files: every layout that is read, and every mistake with its message."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from agent.errors import UserError
from agent.records import Question
from tasks.files import read_questions, split
from tasks.notices import Notice


def jsonl(folder: Path, *rows, name: str = "q.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def table(folder: Path, rows: list[dict], name: str = "q.parquet") -> Path:
    path = folder / name
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def read(path: Path, **more) -> tuple[Question, ...]:
    return read_questions(path, key="data.questions", **more)


def test_our_own_layout(tmp_path):
    row = {
        "id": "5a76",
        "question": "What does their new acronym stand for?",
        "golden_answers": ["Gesellschaft mit beschränkter Haftung", "GmbH"],
        "metadata": {"type": "bridge", "supporting_titles": ["VIVA Media", "GmbH", "VIVA Media"]},
    }
    (question,) = read(jsonl(tmp_path, row))
    assert question == Question(
        id="5a76",
        text="What does their new acronym stand for?",
        golden_answers=("Gesellschaft mit beschränkter Haftung", "GmbH"),
        supporting=("VIVA Media", "GmbH"),
        kind="bridge",
    )


def test_the_least_a_row_needs(tmp_path):
    path = jsonl(tmp_path, {"question": "q?", "answer": "a"}, "", {"question": "r?", "answers": ["b"]})
    first, second = read(path)
    assert (first.id, first.golden_answers, first.supporting, first.kind) == ("q-1", ("a",), (), "")
    assert (second.id, second.golden_answers) == ("q-3", ("b",)), "a blank line is counted and not read"


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes('﻿{"question": "q?", "answer": "a"}\r\n{"question": "é?", "answer": "b"}\r\n'.encode())
    assert [q.text for q in read(path)] == ["q?", "é?"]


def test_supporting_ids_when_evidence_is_matched_by_id(tmp_path):
    metadata = {"supporting_titles": ["T"], "supporting_ids": ["d1", "d2"]}
    path = jsonl(tmp_path, {"question": "q?", "answer": "a", "metadata": metadata})
    assert read(path)[0].supporting == ("T",)
    assert read(path, evidence_match="id")[0].supporting == ("d1", "d2")


def search_r1(number: int, source: str, **metadata) -> dict:
    """A row of Search-R1's nq_hotpotqa_train as published."""
    return {
        "id": f"train_{number}",
        "question": f"question {number}?",
        "golden_answers": ["one", "two"],
        "data_source": source,
        "prompt": [{"role": "user", "content": "Answer the given question. ... Question: question?"}],
        "ability": "fact-reasoning",
        "reward_model": {"ground_truth": {"target": ["one", "two"]}, "style": "rule"},
        "extra_info": {"index": number, "split": "train"},
        "metadata": metadata or None,
    }


def test_search_r1s_parquet_with_ids_that_repeat_across_sources(tmp_path):
    facts = {"supporting_facts": {"title": ["A", "B", "A"], "sent_id": [0, 1, 2]}, "type": "comparison"}
    nq, hotpot = read(table(tmp_path, [search_r1(0, "nq"), search_r1(0, "hotpotqa", **facts)]))
    assert (nq.id, nq.golden_answers, nq.supporting, nq.kind) == ("nq/train_0", ("one", "two"), (), "nq")
    assert (hotpot.id, hotpot.supporting, hotpot.kind) == ("hotpotqa/train_0", ("A", "B"), "hotpotqa/comparison")


def test_verls_parquet(tmp_path):
    row = {
        "data_source": "searchR1_nq",
        "prompt": [{"role": "system", "content": "..."}, {"role": "user", "content": "..."}],
        "ability": "fact-reasoning",
        "reward_model": {"ground_truth": {"target": ["one", "two"]}, "style": "rule"},
        "extra_info": {"index": 4, "need_tools_kwargs": True, "question": "who?", "split": "train"},
        "metadata": None,
    }
    (question,) = read(table(tmp_path, [row]))
    assert question == Question(id="searchR1_nq/q-1", text="who?", golden_answers=("one", "two"), kind="searchR1_nq")


def test_a_ground_truth_that_is_a_text(tmp_path):
    row = {"question": "q?", "reward_model": {"style": "rule", "ground_truth": "72"}}
    assert read(jsonl(tmp_path, row))[0].golden_answers == ("72",)


@pytest.mark.parametrize(
    ("answer", "golden"),
    [
        ('["a", "b"]', ("a", "b")),
        (["[a]", "{b}", "('c',)"], ("[a]", "{b}", "('c',)")),
        ("('Til) I Kissed You, and You (Kissed Me)", ("('Til) I Kissed You, and You (Kissed Me)",)),
        ('("Heroes")', ('("Heroes")',)),
        ("(3, 4)", ("(3, 4)",)),
        (1987, ("1987",)),
        (["in 1987", 1987], ("in 1987", "1987")),
        ("[1987]", ("1987",)),
        ({"value": "a", "aliases": ["b", "a"], "normalized_aliases": ["b"]}, ("a", "b")),
        ({"value": "a"}, ("a",)),
    ],
)
def test_answers_as_they_are_written(tmp_path, answer, golden):
    assert read(jsonl(tmp_path, {"question": "q?", "answer": answer}))[0].golden_answers == golden


def test_a_list_of_titles_that_is_written_as_a_text(tmp_path):
    (question,) = read(jsonl(tmp_path, {"question": "q?", "answer": "a", "supporting_titles": '["T", "U"]', "type": 2}))
    assert (question.supporting, question.kind) == (("T", "U"), "2")


def test_supporting_documents_of_which_only_the_keys_are_there_are_none(tmp_path):
    nothing = {"supporting_facts": {"title": None, "sent_id": None}, "paragraphs": {}}
    row = {"question": "q?", "answer": "a", "metadata": nothing, "evidence_documents": {"id": [], "title": []}}
    notices: list[Notice] = []
    assert read(jsonl(tmp_path, row), notices=notices)[0].supporting == ()
    assert notices == []


def test_many_rows_keep_their_order_and_numbers(tmp_path):
    rows = [{"question": f"q{i}?", "answer": "a"} for i in range(2500)]
    questions = read(table(tmp_path, rows))
    assert [q.id for q in questions[::1000]] == ["q-1", "q-1001", "q-2001"]
    assert questions[-1].text == "q2499?"


BAD_LINES = [
    (
        '{"question": "q?"',
        r"not JSON in UTF-8 \(.*\); each line must be one object, .* or a table \(CSV, TSV\) with a column 'question'",
    ),
    ("[1, 2]", "a list; each line must be one JSON object"),
    (f'{{"question": "q?", "answer": {"1" * 5000}}}', r"not JSON in UTF-8 \(a number has more digits than are read\)"),
    ('{"question": "q?", "answer": NaN}', "'answer' must be a text, not the number nan; leave the field out where"),
    ('{"question": "q?", "answer": "a", "type": 1e400}', "'type' must be a text, not the number inf; leave the field"),
    ('"text"', "a text; each line must be one JSON object"),
    ({"query": "q?", "answer": "a"}, r"has no 'question' \(it has answer, query\)"),
    ({}, r"has no 'question' \(it has nothing\)"),
    ({"question": "q?", "golden": ["a"]}, r"has no 'golden_answers' \(it has golden, question\)"),
    ({"question": "q?", "golden_answers": None}, "has no 'golden_answers'"),
    ({"question": " ", "answer": "a"}, "'question' is empty"),
    ({"question": ["q?"], "answer": "a"}, "'question' must be a text, not a list"),
    ({"question": "q?", "golden_answers": []}, "'golden_answers' is empty; it needs at least one text"),
    ({"question": "q?", "golden_answers": ["a", ""]}, r"'golden_answers\[1\]' is empty"),
    ({"question": "q?", "golden_answers": ["a", None]}, r"'golden_answers\[1\]' must be a text, not null"),
    ({"question": "q?", "answer": 3.5}, "'answer' must be a text, not the number 3.5; write it as a text: \"3.5\""),
    ({"question": "q?", "answer": {"text": "a"}}, "'answer' must be a list of texts, not an object"),
    (
        {"question": "q?", "answer": {"value": "<unk>", "aliases": []}},
        "'answer.value' is <unk>, as in TriviaQA's test set, whose answers aren't published; take the validation set",
    ),
    ({"question": "q?", "answer": True}, "'answer' must be a text, not true or false; write it as a text: \"true\""),
    (
        {"question": "q?", "golden_answers": "['a', 'b']"},
        r"""'golden_answers' must be a list in JSON, \["a", "b"\], w""",
    ),
    ({"question": "q?", "golden_answers": "['a'\n 'b']"}, "'golden_answers' must be a list in JSON"),
    ({"question": "q?", "golden_answers": '["a", "b'}, "'golden_answers' must be a list in JSON"),
    ({"question": "q?", "answer_aliases": "['a']", "answer": "a"}, "'answer_aliases' must be a list in JSON"),
    (
        {"question": "q?", "reward_model": {"ground_truth": '{"target": ["a"]}'}},
        r"""'reward_model\.ground_truth' is an object within a text \({"target": \["a"\]}\); write the object, w""",
    ),
    (
        {"question": "q?", "golden_answers": "('a', 'b')"},
        r"""'golden_answers' is Python's way to write several values \(\('a', 'b'\)\); write a list in JSON, \["a""",
    ),
    ({"question": "q?", "answer": "('it',)"}, "'answer' is Python's way to write several values"),
    ({"question": "q?", "answer": ' ("it\'s",\n 1) '}, "'answer' is Python's way to write several values"),
    ({"question": "q?", "answer": "array(['a'], dtype=object)"}, "'answer' is Python's way to write several values"),
    ({"question": "q?", "answer": "a", "supporting_titles": "('T', 'U')"}, "'supporting_titles' is Python's way to"),
    ({"question": "q?", "answer": "a", "supporting_titles": "['T','U']"}, "'supporting_titles' must be a list in JSON"),
    ({"Data": [{"Question": "q?"}]}, "one JSON object with its rows in 'Data'; write its list of rows, or one object"),
    ({"id": "b", "question": "q?", "answer": "a"}, "id 'b' is already taken"),
    ({"id": ["b"], "question": "q?", "answer": "a"}, "'id' must be a text, not a list"),
    ({"question": "q?", "answer": " \u200b"}, "'answer' is empty, but for characters that can't be seen"),
    ({"question": "\ufeff", "answer": "a"}, "'question' is empty, but for characters that can't be seen"),
    ({"question": "q\ud800?", "answer": "a"}, "'question' holds half a surrogate pair at character 1"),
    (
        {"question": "q?", "answer": "a", "metadata": {"supporting_titles": "A", "type": 2.5}},
        r"'metadata\.type' must be a text, not the number 2\.5",
    ),
    (
        {"question": "q?", "answer": "a", "metadata": {"supporting_titles": [None]}},
        r"'metadata\.supporting_titles\[0\]' must be a text, not null",
    ),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_named_with_the_fix(tmp_path, line, message):
    path = jsonl(tmp_path, {"id": "b", "question": "good?", "answer": "a"}, line)
    with pytest.raises(UserError, match=f"^data.questions=.*q.jsonl, line 2: {message}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("indent", [0, 1])
def test_an_object_over_several_lines_is_told_what_to_write(tmp_path, indent):
    for value in ({"Data": [{"Question": "q?"}]}, {"question": "q?", "answer": "a"}):
        path = jsonl(tmp_path, json.dumps(value, indent=indent))
        with pytest.raises(
            UserError, match="line 1: one JSON object over several lines; write its list of rows, or one"
        ):
            read(path)


def test_a_comma_at_the_end_of_a_line_is_no_object_over_several(tmp_path):
    with pytest.raises(UserError, match=r"line 1: not JSON in UTF-8 \(Extra data: .*\); each line must be one object"):
        read(jsonl(tmp_path, '{"question": "q?", "answer": "a"},', '{"question": "r?", "answer": "b"}'))


def test_bytes_that_are_no_utf8_are_a_bad_line(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"question": "q?", "answer": "a"}\n{"question": "\xff", "answer": "a"}\n')
    with pytest.raises(UserError, match="line 2: not JSON in UTF-8"):
        read(path)


def test_a_bad_row_of_a_parquet_file_is_named(tmp_path):
    path = table(tmp_path, [{"question": "q?", "answer": "a"}, {"question": "r?", "answer": None}])
    with pytest.raises(UserError, match=r"^data\.questions=.*q\.parquet, row 2: has no 'golden_answers'"):
        read(path)


TIMES = pa.array([2**62], pa.timestamp("us"))
"""Of a year that Python has no date for."""
TWICE = pa.StructArray.from_arrays([pa.array(["A"]), pa.array(["B"])], names=["title", "title"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query": ["q?"], "gold": ["a"]}, r", row 1: has no 'question' \(it has gold, query\)"),
        ({"question": ["q?"], "gold": ["a"]}, r", row 1: has no 'golden_answers' \(it has gold, question\)"),
        ({"question": ["q?"], "answer": TIMES}, r", row 1: a value that can't be read \(.*\); write it as a text"),
        (
            {"question": ["q?"], "answer": ["a"], "metadata": TWICE},
            r", row 1: a value that can't be read \(.*duplicate field names.*\); write it as a text",
        ),
        (
            {"question": ["q?"], "answer": [b"a"]},
            r", row 1: 'answer' must be .* not bytes that the file doesn't mark as",
        ),
        (
            {"question": ["q?"], "answer": pa.array([1], pa.timestamp("s"))},
            r", row 1: 'answer' must be a list of texts, not a value of type datetime",
        ),
    ],
)
def test_a_value_of_parquet_that_is_no_text_is_named_as_what_it_is(tmp_path, columns, message):
    parquet.write_table(pa.table(columns), tmp_path / "q.parquet")
    with pytest.raises(UserError, match=rf"^data\.questions=.*q\.parquet{message}") as caught:
        read(tmp_path / "q.parquet")
    assert "\n" not in str(caught.value)


def test_a_column_of_parquet_that_is_there_twice_is_named(tmp_path):
    columns = [pa.array(["q?"]), pa.array(["r?"]), pa.array(["a"])]
    parquet.write_table(pa.table(columns, names=["question", "question", "answer"]), tmp_path / "q.parquet")
    with pytest.raises(UserError, match=r"q\.parquet: the column 'question' is there twice; take one out"):
        read(tmp_path / "q.parquet")


def test_a_file_that_is_compressed_twice_is_told(tmp_path):
    path = tmp_path / "q.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.compress(b'{"question": "q?", "answer": "a"}')))
    with pytest.raises(UserError, match=r"q\.jsonl\.gz: is compressed twice; unpack the gzip file once"):
        read(path)


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet"])
def test_a_file_that_is_not_there(tmp_path, name):
    with pytest.raises(UserError, match=rf"^data\.questions=.*{name}: cannot be read.*No such file"):
        read(tmp_path / name)


def test_files_that_hold_nothing_or_something_else(tmp_path):
    with pytest.raises(UserError, match="holds no questions"):
        read(jsonl(tmp_path, ""))
    path = tmp_path / "q.parquet"
    path.write_text("not parquet")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read(path)
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path)


def questions(count: int) -> list[Question]:
    return [Question(id=f"q{i}", text="?", golden_answers=("a",)) for i in range(count)]


def test_split_is_exact_disjoint_and_depends_on_the_seed():
    everything = questions(60)
    train, held_out = split(everything, 0.2, seed=0)
    assert len(held_out) == 12
    assert sorted([*train, *held_out], key=everything.index) == everything
    assert list(train) == [q for q in everything if q in train], "file order"
    assert split(everything, 0.2, seed=0) == (train, held_out)
    assert split(everything, 0.2, seed=1)[1] != held_out


def test_split_depends_on_ids_not_on_order():
    everything = questions(60)
    ids = {q.id for q in split(everything, 0.2, seed=3)[1]}
    assert {q.id for q in split(everything[::-1], 0.2, seed=3)[1]} == ids
    fewer = {q.id for q in split(everything[:-1], 0.2, seed=3)[1]}
    assert len(ids ^ fewer) <= 3


@pytest.mark.parametrize(("count", "share", "held"), [(2, 0.01, 1), (2, 0.99, 1), (3, 0.99, 2)])
def test_split_leaves_something_on_both_sides(count, share, held):
    train, held_out = split(questions(count), share, seed=0)
    assert (len(train), len(held_out)) == (count - held, held)


def test_one_question_can_not_be_split():
    with pytest.raises(UserError, match=r"^q\.jsonl: one question is too few for data\.dev_share=0\.2 .* data\.dev_q"):
        split(questions(1), 0.2, 0, "dev", "q.jsonl")
