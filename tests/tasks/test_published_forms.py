"""Questions in the forms that the field's data sets are published in: no known field of theirs is lost."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from agent.answers import exact_match
from agent.errors import UserError
from agent.records import Question
from tasks.files import read_questions
from tasks.notices import Notice

HOTPOT = {
    "_id": "5a7a0693",
    "question": "Were Scott Derrickson and Ed Wood of the same nationality?",
    "answer": "yes",
    "type": "comparison",
    "level": "hard",
    "supporting_facts": [["Scott Derrickson", 0], ["Ed Wood", 0], ["Ed Wood", 2]],
    "context": [["Ed Wood (film)", ["Ed Wood is a film.", "It is American."]], ["Scott Derrickson", ["He directs."]]],
}
"""A row of HotpotQA as its authors publish it; 2WikiMultihopQA's has ``evidences`` besides."""
READ = Question(
    id="5a7a0693",
    text=HOTPOT["question"],
    golden_answers=("yes",),
    supporting=("Scott Derrickson", "Ed Wood"),
    kind="comparison",
)
FACTS = {"title": ["Scott Derrickson", "Ed Wood", "Ed Wood"], "sent_id": [0, 0, 2]}
"""Supporting facts as the hub has them."""


def paragraph(idx: int, title: str, supports: bool) -> dict:
    return {"idx": idx, "title": title, "paragraph_text": f"All about {title}.", "is_supporting": supports}


MUSIQUE = {
    "id": "2hop__482757_12019",
    "paragraphs": [paragraph(0, "Lloyd Dane", True), paragraph(1, "Noise", False), paragraph(2, "Missouri", True)],
    "question": "When did the state of Lloyd Dane's birth join the Union?",
    "question_decomposition": [
        {"id": 1, "question": "Lloyd Dane >> birthplace", "answer": "Missouri", "paragraph_support_idx": 0},
        {"id": 2, "question": "when did #1 join?", "answer": "1821", "paragraph_support_idx": 2},
    ],
    "answer": "1821",
    "answer_aliases": ["the year 1821", "1821"],
    "answerable": True,
}
STEPS = [
    {"question": "a", "answer": "b", "support_paragraph": paragraph(0, "Lloyd Dane", True)},
    {"question": "c", "answer": "d", "support_paragraph": None},
    {"question": "c", "answer": "d", "support_paragraph": paragraph(2, "Missouri", True)},
]


@pytest.fixture
def read(tmp_path):
    """Questions, and notices, of a file with these bytes or rows."""

    def read(content: bytes | list[dict], name: str = "q.jsonl", **more) -> tuple[tuple[Question, ...], list[Notice]]:
        path = tmp_path / name
        data = content if isinstance(content, bytes) else b"".join(json.dumps(r).encode() + b"\n" for r in content)
        path.write_bytes(data)
        notices: list[Notice] = []
        return read_questions(path, key="data.questions", notices=notices, **more), notices

    return read


def without(row: dict, *names: str) -> dict:
    return {name: value for name, value in row.items() if name not in names}


@pytest.mark.parametrize(
    "row",
    [
        HOTPOT,
        HOTPOT | {"supporting_facts": FACTS},
        HOTPOT | {"supporting_facts": [{"title": "Scott Derrickson", "sent_id": 0}, {"title": "Ed Wood"}]},
        # 2WikiMultihopQA on the hub.
        HOTPOT | {"supporting_facts": json.dumps(HOTPOT["supporting_facts"])},
        HOTPOT | {"supporting_facts": json.dumps(FACTS)},
        # As FlashRAG has it.
        {
            "id": "5a7a0693",
            "question": HOTPOT["question"],
            "golden_answers": ["yes"],
            "metadata": {"type": "comparison", "level": "hard", "supporting_facts": FACTS, "context": {"title": []}},
        },
        HOTPOT | {"evidences": [["Ed Wood", "country", "America"]], "entity_ids": "Q1_Q2", "answer_id": None},
        # What isn't there is null, in a table of several sets.
        HOTPOT | {"paragraphs": None, "answer_aliases": None, "answerable": None, "evidence_documents": []},
    ],
)
def test_hotpotqa_and_2wiki(read, row):
    assert read([row]) == ((READ,), [])


@pytest.mark.parametrize(
    ("answer", "said"),
    [({}, r"has no 'golden_answers' \(it has _id, context, question\)"), ({"answer": ""}, "'answer' is empty")],
)
def test_a_test_set_without_answers_is_told_as_that(read, answer, said):
    """HotpotQA's fullwiki test set as its authors have it, and as the hub does."""
    row = {"_id": "a", "question": "Who?", "context": [["T", ["s"]]]} | answer
    with pytest.raises(UserError, match=rf", row 1: {said}; a question needs an answer: of a test set that is publish"):
        read(json.dumps([row]).encode())


def test_a_level_stands_in_for_a_type(read):
    (one, two), _ = read([without(HOTPOT, "type"), {"question": "q?", "answer": "a", "level": 3}])
    assert (one.kind, two.kind) == ("hard", "3")


@pytest.mark.parametrize("indent", [None, 2])
def test_one_list_of_objects(read, indent):
    rows = [HOTPOT, HOTPOT | {"_id": "two"}, without(HOTPOT, "_id")]
    questions, notices = read(b" \n" + json.dumps(rows, indent=indent).encode(), name="hotpot_train_v1.1.json")
    assert [q.id for q in questions] == ["5a7a0693", "two", "hotpot_train_v1.1-3"]
    assert questions[0] == READ
    assert not notices


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"question": "q?", "answer": "a"}, {"question": "q?"', r"after row 1: not JSON in UTF-8 \(Expecting ',' "),
        (b'[{"question": "q?", "answer": "a"}, 3]', "row 2: the number 3; each row must be one JSON object"),
        (b'[{"question": "q?", "answer": "a"}, {"question": "r?"}]', "row 2: has no 'golden_answers'"),
        (b'[{"question": "q\xff?"}]', r"after row 0: not JSON in UTF-8 \(a byte .* character 17\)"),
        (b'[{"question": "q?", "answer": "a"}]\n[]', "after row 1: not JSON in UTF-8"),
        (b'[{"question": "q?", "answer": ' + b"[" * 100_000, r"after row 0: not JSON in UTF-8 \(nested too deeply, "),
        (b"[]", "the file holds no questions"),
    ],
)
def test_a_bad_list_is_one_line(read, content, message):
    with pytest.raises(UserError, match=rf"^data\.questions=.*q\.json(, |: ){message}") as caught:
        read(content, name="q.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        MUSIQUE,
        MUSIQUE | {"paragraphs": {name: [p[name] for p in MUSIQUE["paragraphs"]] for name in MUSIQUE["paragraphs"][0]}},
        {
            "id": MUSIQUE["id"],
            "question": MUSIQUE["question"],
            "golden_answers": ["1821", "the year 1821"],
            "metadata": {"question_decomposition": STEPS, "answerable": True},
        },
        without(MUSIQUE, "paragraphs", "question_decomposition")
        | {"metadata": {"metadata": {"question_decomposition": STEPS}}},
    ],
)
def test_musique(read, row):
    ((question,), notices) = read([row])
    assert question == Question(
        id="2hop__482757_12019",
        text=MUSIQUE["question"],
        golden_answers=("1821", "the year 1821"),
        supporting=("Lloyd Dane", "Missouri"),
    )
    assert not notices


def test_an_answer_to_an_earlier_hop_that_counts_as_right_is_said(read):
    """Lists that were made of the answers to all hops are about; none of them says so."""
    aliased = MUSIQUE | {"answer_aliases": ["in 1821", "missouri."]}
    of_flashrag = {
        "id": "f",
        "question": "When?",
        "golden_answers": ["b", "d"],
        "metadata": {"question_decomposition": STEPS},
    }
    alike = MUSIQUE | {"id": "alike", "question_decomposition": [{"answer": "the 1821"}, {"answer": 1821}]}
    _, (notice,) = read([aliased, of_flashrag, alike, MUSIQUE | {"id": "right"}])
    assert notice.kind == "answers"
    said = f"q.jsonl: in 2 rows the answer to an earlier hop counts as right ({MUSIQUE['id']}, f); take it out"
    assert notice.text.endswith(said)
    assert notice.items == (
        (MUSIQUE["id"], "'missouri.' answers an earlier hop and counts as right"),
        ("f", "'b' answers an earlier hop and counts as right"),
    )
    _, (all_needed,) = read([of_flashrag | {"answers_mean": "all"}])
    assert "need all of their answers" in all_needed.text


@pytest.mark.parametrize("no", [False, "False", "false", 0, "0"])
def test_a_distractor_is_no_evidence_however_it_is_marked(read, no):
    paragraphs = [paragraph(0, "Missouri", "True"), paragraph(1, "Noise", no)]
    assert read([MUSIQUE | {"paragraphs": paragraphs}])[0][0].supporting == ("Missouri",)
    steps = {"question_decomposition": [{"support_paragraph": each} for each in paragraphs]}
    assert read([without(MUSIQUE, "paragraphs") | steps])[0][0].supporting == ("Missouri",)


def test_unanswerable_rows_are_left_out_and_counted(read):
    """The full MuSiQue has each question twice, under one id, and once without what answers it."""
    twin = MUSIQUE | {"answerable": False, "paragraphs": MUSIQUE["paragraphs"][1:]}
    questions, (notice,) = read([twin, MUSIQUE])
    assert [q.id for q in questions] == [MUSIQUE["id"]]
    assert notice.kind == "left_out"
    assert notice.text.endswith(f"1 rows are marked answerable=false ({MUSIQUE['id']}), and left out")
    assert notice.items == ((MUSIQUE["id"], "answerable is false"),)
    with pytest.raises(UserError, match=r"1 rows are marked answerable=false.*data\.strict=true allows none"):
        read([twin, MUSIQUE], strict=True)
    with pytest.raises(UserError, match="holds no questions with an answer"):
        read([twin])


def test_david_grpo(read):
    documents = [
        {"id": "9", "title": "Woolton", "content": "A suburb."},
        {"id": 10, "title": "Gateacre", "content": ""},
    ]
    row = {"id": "s1", "question": "How many?", "answer": "12,921", "evidence_documents": documents}
    assert read([row])[0][0].supporting == ("Woolton", "Gateacre")
    assert read([row], evidence_match="id")[0][0].supporting == ("9", "10")


def test_david_grpos_parquet_has_its_question_in_the_prompt_alone(read, tmp_path):
    """data/processed/hotpot_qa/dev.parquet; warmup.parquet has supporting facts besides."""
    asked = "Now, please answer the user's question below: \nWho wrote Emma: A or B?\n\n"
    row = {
        "_id": "5a77",
        "level": "medium",
        "data_source": "HotpotQA",
        "prompt": [{"role": "user", "content": f"Answer the question below: see there. {asked}"}],
        "reward_model": {"ground_truth": "Jane Austen", "style": "rule"},
        "extra_info": {"index": 0, "split": "dev"},
        "supporting_facts": FACTS,
    }
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "dev.parquet")
    ((question,), notices) = read((tmp_path / "dev.parquet").read_bytes(), name="dev.parquet")
    assert question == Question(
        id="HotpotQA/5a77",
        text="Who wrote Emma: A or B?",
        golden_answers=("Jane Austen",),
        supporting=("Scott Derrickson", "Ed Wood"),
        kind="HotpotQA/medium",
    )
    assert not notices
    for said in ("Who wrote Emma?", "Question:  "):
        with pytest.raises(
            UserError, match=r"line 1: (has no 'question', and its 'prompt' doesn't|'prompt's question' is)"
        ):
            read([row | {"prompt": [{"role": "user", "content": said}]}])
    with pytest.raises(UserError, match=r"line 1: has no 'question' \(it has"):
        read([row | {"prompt": "Who wrote Emma?"}])
    assert read([row | {"question": "Who?"}])[0][0].text == "Who?"


@pytest.mark.parametrize(
    ("said", "question"),
    [
        ("Answer the question below: it is short. Now the user's question below: \nWho? Question: is it?", "Who? Q"),
        ("Question: Which book has a Question: in it?", "Which book has a Question: in it?"),
        ("Put it in <answer> Beijing </answer>. Question: Who is it?\n", "Who is it?"),
    ],
)
def test_a_question_in_a_prompt_is_whole(read, said, question):
    ((found,), _) = read([{"answer": "a", "prompt": [{"role": "user", "content": said}]}])
    assert found.text.startswith(question)


def test_what_follows_a_question_in_a_prompt_is_not_taken_for_it(read):
    said = "Answer. Question: Who wrote Emma?\nThink step by step, and answer."
    with pytest.raises(
        UserError,
        match=r"'prompt' goes on after the first line of its question \(Who wrote Emma\?\); give the question",
    ):
        read([{"answer": "a", "prompt": [{"role": "user", "content": said}]}])


def test_parquet_of_the_hub(read, tmp_path):
    rows = [without(HOTPOT, "context") | {"supporting_facts": FACTS}, without(HOTPOT, "context") | {"_id": "b"}]
    parquet.write_table(pa.Table.from_pylist([rows[0]]), tmp_path / "facts.bin")
    assert read((tmp_path / "facts.bin").read_bytes()) == ((READ,), []), "its bytes say what it is, not its name"
    musique = MUSIQUE | {"question_decomposition": STEPS}
    parquet.write_table(pa.Table.from_pylist([musique]), tmp_path / "m.parquet")
    ((question,), _) = read((tmp_path / "m.parquet").read_bytes(), name="m.parquet")
    assert (question.supporting, question.golden_answers) == (("Lloyd Dane", "Missouri"), ("1821", "the year 1821"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"supporting_facts": "Ed Wood"}, r"'supporting_facts' must be a list of \[title, sentence\] or .* a text"),
        ({"supporting_facts": ["Ed Wood"]}, r"'supporting_facts\[0\]' must be \[title, sentence\], not a text"),
        ({"supporting_facts": [[0, "Ed Wood"]]}, r"'supporting_facts\[0\]\[0\]' must be a text, not the number 0"),
        ({"supporting_facts": {"titles": ["x"]}}, r"'supporting_facts' must be a list of .*, not an object"),
        ({"metadata": {"supporting_facts": {"title": [None]}}}, r"'metadata\.supporting_facts\.title\[0\]' must be"),
        ({"paragraphs": [{"title": "", "is_supporting": True}]}, r"'paragraphs\[0\]\.title' is empty"),
        ({"question_decomposition": [{"support_paragraph": {}}]}, r"'question_decomposition\[0\]\.support_parag"),
        ({"evidence_documents": ["Ed Wood"]}, r"'evidence_documents' must be a list of objects with id and title"),
        ({"evidence_documents": [{"id": "1"}]}, r"'evidence_documents\[0\]\.title' must be a text, not null"),
        ({"answer_aliases": ["x", 3.5]}, r"'answer_aliases\[1\]' must be a text, not the number 3\.5"),
        ({"paragraphs": [paragraph(0, "x", "maybe")]}, r"'paragraphs\[0\]\.is_supporting' must be true or false"),
        ({"_id": ["x"]}, "'_id' must be a text, not a list"),
        ({"type": ["x"]}, "'type' must be a text, not a list"),
    ],
)  # fmt: skip
def test_a_known_field_that_can_not_be_read_is_named(read, fields, message):
    with pytest.raises(UserError, match=rf"line 2: {message}"):
        read([{"question": "q?", "answer": "a"}, {"question": "r?", "answer": "a"} | fields])


@pytest.mark.parametrize(
    ("fields", "evidence", "message"),
    [
        ({"supporting_title": ["x"]}, "title", "'supporting_title' isn't read; did you mean 'supporting_titles'?"),
        ({"metadata": {"Supporting_Facts": []}}, "title", "'metadata.Supporting_Facts' isn't read; did you mean"),
        ({"url": [], "answer_alias": "x"}, "title", "'answer_alias' isn't read; did you mean 'answer_aliases'?"),
        ({"paragraphs": ["plain text"]}, "title", "'paragraphs' names no supporting document by title"),
        ({"paragraphs": [paragraph(0, "x", False)]}, "title", "'paragraphs' names no supporting document by title"),
        ({"supporting_titles": ["x"]}, "id", "'supporting_titles' names no supporting document by id"),
        ({"supporting_ids": ["x"]}, "title", "'supporting_ids' names no supporting document by title"),
        ({"metadata": '{"supporting_titles": ["x"]}'}, "title", "'metadata' isn't read: it is a text, not an object"),
    ],
)  # fmt: skip
def test_what_looks_like_a_known_field_and_is_not_read_is_said_with_a_count(read, fields, evidence, message):
    rows = [{"question": f"q{i}?", "answer": "a"} | (fields if i else {}) for i in range(3)]
    questions, notices = read(rows, evidence_match=evidence)
    assert len(questions) == 3
    assert [n.kind for n in notices] == ["unread"]
    assert f"in 2 of 3 rows {message}" in notices[0].text


def test_fields_of_other_sets_are_no_matter(read):
    row = {"question": "q?", "answer": "a", "context": [], "evidences": [], "prompt": "x", "question_id": 3, "url": "u"}
    assert read([row])[1] == []


def test_a_misspelt_column_of_a_parquet_file_is_said(read, tmp_path):
    parquet.write_table(
        pa.Table.from_pylist([{"question": "q?", "answer": "a", "supporting_title": ["x"], "context": "y"}]),
        tmp_path / "x.parquet",
    )
    _, (notice,) = read((tmp_path / "x.parquet").read_bytes())
    assert "in 1 of 1 rows 'supporting_title' isn't read; did you mean 'supporting_titles'?" in notice.text


# --- tables, aliases, and what several answers mean ------------------------------------------------


def test_bamboogle_and_bamtwoogle(read):
    """CSV with a header; of Bamboogle not all is UTF-8."""
    content = (
        b'Question,Answer\r\n"Who, of all, was it?",Andr\xe9 Rieu\r\n\r\n"The ""Prince""\nof whom?","Wales, maybe"\r\n'
    )
    questions, (notice,) = read(content, name="bamboogle.csv")
    assert questions == (
        Question(id="bamboogle-2", text="Who, of all, was it?", golden_answers=("André Rieu",)),
        Question(id="bamboogle-4", text='The "Prince"\nof whom?', golden_answers=("Wales, maybe",)),
    )
    assert notice.text.endswith("bamboogle.csv: 1 lines are not UTF-8 and were read as Windows-1252 (line 2)")
    (question,), notices = read("\ufeffquestion,answer\nOù?,Liège\n".encode(), name="bamtwoogle.csv")
    assert (question.text, question.golden_answers, notices) == ("Où?", ("Liège",), [])


def test_bamboogles_second_column_of_answers_is_read(read):
    """The published table has columns without a name, and one question with two answers."""
    content = b"Question,,,,Answer,Answer 2\r\nWho?,,,,Mildred Warner,Mildred Gale\r\nWhen?,,,,1999,\r\n"
    questions, notices = read(content, name="bamboogle.csv")
    assert [q.golden_answers for q in questions] == [("Mildred Warner", "Mildred Gale"), ("1999",)]
    assert not notices
    assert read([{"Question": "Who?", "Answer": "a", "Answer 2": "b"}])[0][0].golden_answers == ("a", "b")


def test_bamboogles_names_are_read_in_any_file(read, tmp_path):
    rows = [{"Question": "Who?", "Answer": "a", "Url": "x"}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    for content in ((tmp_path / "x.parquet").read_bytes(), json.dumps(rows).encode(), json.dumps(rows[0]).encode()):
        ((question,), notices) = read(content)
        assert (question.text, question.golden_answers, notices) == ("Who?", ("a",), [])
    with pytest.raises(UserError, match=r"line 1: has no 'question' \(it has QUESTION, Question, answer\)"):
        read([{"Question": "Who?", "QUESTION": "What?", "answer": "a"}])


@pytest.mark.parametrize("cell", ['"[""politician"", ""political leader""]"', '["politician", "political leader"]'])
def test_popqa(read, cell):
    """TSV whose answers are a list in JSON, in a cell with quotes or without."""
    header = "id\tsubj\tprop\tobj\ts_aliases\tquestion\tpossible_answers"
    line = f"4222362\tGeorge Rankin\toccupation\tpolitician\t[]\tWhat is George Rankin's occupation?\t{cell}"
    (question,), notices = read(f"{header}\n{line}\n".encode(), name="popQA.tsv")
    assert (question.id, question.golden_answers) == ("4222362", ("politician", "political leader"))
    assert question.text == "What is George Rankin's occupation?"
    assert not notices


def test_popqa_of_the_hub_is_a_text_in_parquet_too(read, tmp_path):
    row = {"id": 4222362, "question": "Who?", "possible_answers": '["a", "b"]', "s_pop": 142}
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "popqa.parquet")
    ((question,), _) = read((tmp_path / "popqa.parquet").read_bytes())
    assert (question.id, question.golden_answers) == ("4222362", ("a", "b"))


def test_antileak_bench(read):
    rows = [{"question": "Who is the spouse of the head?", "answers": ["A B", "Ab"], "context": "Passage 1: …"}]
    (question,), notices = read(json.dumps(rows).encode(), name="multihop-gold.json")
    assert (question.id, question.golden_answers) == ("multihop-gold-1", ("A B", "Ab"))
    assert not notices


def test_search_r1_and_verl_in_parquet(read, tmp_path):
    target = {"reward_model": {"style": "rule", "ground_truth": {"target": ["a", "b"]}}, "data_source": "nq"}
    rows = [
        target | {"id": "train_0", "question": "Who?", "extra_info": {"question": None}},
        target | {"id": "train_1", "question": None, "extra_info": {"question": "What?"}},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    questions, _ = read((tmp_path / "train.parquet").read_bytes())
    assert [(q.id, q.text, q.golden_answers) for q in questions] == [
        ("nq/train_0", "Who?", ("a", "b")),
        ("nq/train_1", "What?", ("a", "b")),
    ]


def test_rllm_in_parquet(read, tmp_path):
    rows = [{"question": "Who?", "ground_truth": "A B", "data_source": "hotpotqa"}]
    placeholder = {"prompt": [{"role": "user", "content": "placeholder"}], "reward_model": {"ground_truth": None}}
    for name, written in (("train", rows), ("train_verl", [placeholder | {"extra_info": row} for row in rows])):
        parquet.write_table(pa.Table.from_pylist(written), tmp_path / f"{name}.parquet")
        (question,), notices = read((tmp_path / f"{name}.parquet").read_bytes())
        assert (question.text, question.golden_answers, notices) == ("Who?", ("A B",), [])


ALIASES = [
    {"Q_id": "Q3", "aliases": ["U.S.", "", "America"], "demonyms": []},
    {"Q_id": "Q3", "aliases": [], "demonyms": [" ", "American"]},
    {"Q_id": "Q4", "aliases": "not looked at", "demonyms": []},
]


def test_sets_that_are_mixed_in_one_file_stay_apart(read):
    """As FlashRAG's rows are in Search-R1's layout: HotpotQA and 2WikiMultihopQA have types of the same names."""
    rows = [
        {"data_source": source, "question": "Who?", "answer": "a", "metadata": {"type": "comparison"}}
        for source in ("hotpotqa", "2wikimultihopqa")
    ]
    questions, _ = read([*rows, {"data_source": "nq", "question": "Who?", "answer": "a"}])
    assert [(q.id.rpartition("-")[0].partition("/")[0], q.kind) for q in questions] == [
        ("hotpotqa", "hotpotqa/comparison"),
        ("2wikimultihopqa", "2wikimultihopqa/comparison"),
        ("nq", "nq"),
    ]


@pytest.mark.parametrize("answerable", [False, "False", "false", 0, "0"])
def test_whatever_says_that_a_row_has_no_answer_is_heeded(read, answerable):
    rows = [{"question": "Who?", "answer": "a", "answerable": yes} for yes in (True, "TRUE", 1, None)]
    questions, (notice,) = read([*rows, {"question": "Who?", "answer": "", "answerable": answerable}])
    assert len(questions) == 4
    assert "1 rows are marked answerable=false" in notice.text


@pytest.mark.parametrize(
    ("said", "shown"), [("no", "'no'"), (2, "the number 2"), ([True], "a list"), (0.0, "the number")]
)
def test_answerable_is_true_or_false(read, said, shown):
    with pytest.raises(UserError, match=rf"line 1: 'answerable' must be true or false, not {shown}"):
        read([{"question": "Who?", "answer": "a", "answerable": said}])


def test_other_names_of_2wikis_answers(read, tmp_path):
    """The authors' evaluation takes the best over the answer, its aliases and its demonyms."""
    rows = [HOTPOT | {"answer": "America", "answer_id": "Q3"}, HOTPOT | {"_id": "b", "answer_id": "Q9"}]
    _, (notice,) = read(json.dumps(rows).encode(), name="dev.json")
    assert "dev.json: 2 answers may have other names" in notice.text
    assert notice.text.endswith("in 2WikiMultihopQA's id_aliases.json; put it into the same folder")
    (tmp_path / "id_aliases.json").write_text("".join(json.dumps(line) + "\n" for line in ALIASES))
    (one, two), notices = read(json.dumps(rows).encode(), name="dev.json")
    assert one.golden_answers == ("America", "U.S.", "American")
    assert two.golden_answers == ("yes",)
    assert not notices
    assert read([HOTPOT | {"answer_id": 3}])[1] == [], "other sets' answer_id is no entity"
    (tmp_path / "id_aliases.json").write_bytes(b"\n")
    with pytest.raises(UserError, match=r"id_aliases\.json: holds no names; get it again, or delete it$"):
        read(json.dumps(rows).encode(), name="dev.json")


def test_answers_all_of_which_are_needed_are_not_taken_one_by_one(read):
    rows = [
        {"id": "one", "question": "Which twins?", "answers": ["Romulus", "Remus"], "answers_mean": "all"},
        {"id": "any", "question": "Who?", "answers": ["a", "b"], "metadata": {"answers_mean": "any"}},
        {"id": "many", "question": "Which four?", "answers": ["a", "b", "c", "d"], "metadata": {"answers_mean": "all"}},
        {"id": "single", "question": "Which one?", "answer": "a", "answers_mean": "all"},
    ]
    questions, (left, marked) = read(rows)
    golden = {q.id: q.golden_answers for q in questions}
    assert golden["any"] == ("a", "b")
    assert golden["single"] == ("a",)
    assert [exact_match(said, golden["one"]) for said in ("Remus and Romulus", "Romulus, Remus", "Romulus")] == [
        1,
        1,
        0,
    ]
    assert [q.needed for q in questions] == [("Romulus", "Remus"), (), ()]
    assert "1 rows need all of more than 3 answers" in left.text
    assert left.items == (("many", "needs all of 4 answers"),)
    assert (marked.kind, [name for name, _ in marked.items]) == ("answers", ["one", "single"])
    with pytest.raises(UserError, match=r"line 1: 'answers_mean' must be any or all, not 'both'"):
        read([{"question": "q?", "answers": ["a", "b"], "answers_mean": "both"}])


def test_other_names_of_answers_all_of_which_are_needed_are_not_read(read, tmp_path):
    """Which of the answers they are of isn't said."""
    twice = {"question": "Where?", "answers": ["New York", "new york", "Rome"], "answers_mean": "all"}
    ((both,), _), ((one,), _) = read([twice]), read([{**twice, "answers": ["New York", "new york."]}])
    assert both.needed == ("New York", "Rome"), "two spellings are one answer"
    assert (one.golden_answers, one.needed) == (("New York",), ())
    row = {"question": "Which?", "answers": ["Rome", "Paris"], "answers_mean": "all"}
    (tmp_path / "id_aliases.json").write_text(json.dumps({"Q_id": "Q3", "aliases": ["U.S."], "demonyms": []}))
    ((plain,), _) = read([row])
    ((question,), notices) = read([row | {"answer_aliases": ["Roma", "Lutetia"], "answer_id": "Q3"}])
    assert question.golden_answers == plain.golden_answers
    assert "'answer_aliases' isn't read, since all answers are needed" in notices[0].text


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gz", "bz2", "xz"])
def test_compressed_files(read, pack):
    marked = b"\xef\xbb\xbf" + json.dumps(without(HOTPOT, "_id")).encode() + b"\r\n"
    ((question,), _) = read(pack(marked), name="train.jsonl.gz")
    assert (question.id, question.text) == ("train-1", READ.text)
    assert read(pack(json.dumps([HOTPOT]).encode()), name="train.json.gz")[0] == (READ,)


def test_files_that_are_damaged_or_no_utf8_are_one_line(read):
    for content, message in (
        (gzip.compress(json.dumps([HOTPOT] * 50).encode())[:-20], "the gzip file is cut short or damaged"),
        (gzip.compress(json.dumps(HOTPOT).encode() + b"\n")[:-20], "the gzip file is cut short or damaged"),
        (json.dumps(HOTPOT).encode("utf-16"), "is encoded in UTF-16; save it as UTF-8"),
        (b"PK\x03\x04", "is a zip archive, or a workbook; unpack it"),
    ):
        with pytest.raises(UserError, match=rf"^data\.questions=.*q\.jsonl: {message}") as caught:
            read(content)
        assert "\n" not in str(caught.value)


SHARED = Path(__file__).parents[3] / "shared" / "data" / "multihop_mini"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the multi-hop sample is not here")
def test_a_real_sample_has_nothing_unread():
    notices: list[Notice] = []
    questions = read_questions(SHARED / "train.jsonl", key="data.questions", notices=notices)
    assert len(questions) == 839
    assert all(q.supporting and q.kind for q in questions)
    assert not notices
