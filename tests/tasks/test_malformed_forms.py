"""Each published form, and ten ways in which a file of it can be wrong: one line with file, place and reason.

A case is a change of a good file and the end of the message that it gives.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from agent.errors import UserError
from tasks.files import read_questions

Rows = list[dict[str, Any]]


def as_list(rows: Rows) -> bytes:
    return json.dumps(rows).encode()


def as_lines(rows: Rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_parquet(rows: Rows) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


FACTS = [["Ed Wood", 0], ["Tim Burton", 1]]
PARAGRAPHS = [{"idx": 0, "title": "Missouri", "paragraph_text": "…", "is_supporting": True}]
DOCUMENTS = [{"id": "1", "title": "Woolton", "content": "…"}]
HOTPOT = {"question": "Who?", "answer": "Ed", "type": "bridge", "supporting_facts": FACTS, "context": []}
MUSIQUE = {"question": "When?", "answer": "1821", "answer_aliases": ["in 1821"], "answerable": True}
DAVID = {"question": "Who?", "answer": "Ed", "evidence_documents": DOCUMENTS}
TARGET = {"style": "rule", "ground_truth": {"target": ["Ed"]}}
GOOD: dict[str, tuple[Callable[[Rows], bytes], Rows]] = {
    "hotpot.json": (as_list, [HOTPOT | {"_id": "a"}, HOTPOT | {"_id": "b"}]),
    "2wiki.json": (as_list, [HOTPOT | {"_id": "a", "answer_id": "Q1"}, HOTPOT | {"_id": "b", "answer_id": "Q2"}]),
    "musique.jsonl": (as_lines, [MUSIQUE | {"id": name, "paragraphs": PARAGRAPHS} for name in "ab"]),
    "antileak.json": (as_list, [{"question": "Who?", "answers": ["Ed"], "context": "Passage 1: …"}] * 2),
    "search_r1.parquet": (as_parquet, [{"id": n, "question": "Who?", "reward_model": TARGET} for n in "ab"]),
    "verl.parquet": (as_parquet, [{"extra_info": {"question": "Who?"}, "reward_model": TARGET}] * 2),
    "david.parquet": (as_parquet, [{"question": "Who?", "reward_model": {"ground_truth": "Ed"}}] * 2),
    "david.jsonl": (as_lines, [DAVID | {"id": "a"}, DAVID | {"id": "b"}]),
}  # fmt: skip
TABLES = {
    "bamboogle.csv": b"Question,Answer\nWho?,Ed\nWhen?,1821\n",
    "bamtwoogle.csv": b"question,answer\nWho?,Ed\nWhen?,1821\n",
    "popqa.tsv": b'id\tquestion\tpossible_answers\n1\tWho?\t["Ed", "E."]\n2\tWhen?\t["1821"]\n',
}


def good(name: str) -> bytes:
    if name in TABLES:
        return TABLES[name]
    write, rows = GOOD[name]
    return write(rows)


def second(name: str, **fields: Any) -> bytes:
    """A good file whose second row has other fields; ``None`` takes one away."""
    write, (one, two) = GOOD[name]
    return write([one, {key: value for key, value in (two | fields).items() if value is not None}])


def rows_of(name: str, row: Any) -> bytes:
    """A good file with a second row that is something else."""
    write, (one, _) = GOOD[name]
    return write([one, row])


def both(name: str, **fields: Any) -> bytes:
    """A Parquet file has one type in a column: the same fields in both rows."""
    write, rows = GOOD[name]
    return write([row | fields for row in rows])


def json_cases(name: str, row: str, cut: str) -> list[tuple[bytes, str]]:
    """What can be wrong with any file of JSON, whose second row is called ``row`` and its broken end ``cut``."""
    content = good(name)
    return [
        (content[: len(content) - 9], rf", {cut}: not JSON in UTF-8 \("),
        (
            content.replace(b'"question"', b'"question": "What?", "question"'),
            r", .*: not JSON .* key 'question' is there twice",
        ),
        (rows_of(name, ["Who?", "Ed"]), rf", {row}: a list; each (row|line) must be one JSON object"),
        (second(name, question=None), rf", {row}: has no 'question' \(it has .*\)"),
        (second(name, question="  "), rf", {row}: 'question' is empty"),
        (second(name, question={"text": "Who?"}), rf", {row}: 'question' must be a text, not an object"),
    ]


def named_cases(name: str, row: str, answer: str) -> list[tuple[bytes, str]]:
    """What can be wrong with ids and answers."""
    return [
        (second(name, **{answer: None}), rf", {row}: has no 'golden_answers' \(it has .*\)"),
        (
            second(name, **{answer: 7.5}),
            rf", {row}: '{answer}' must be a text, not the number 7\.5; write it as a text: ",
        ),
        (second(name, **{answer: [""]}), rf", {row}: '{answer}\[0\]' is empty"),
    ]


def table_cases(content: bytes, tab: str, answer: str) -> list[tuple[bytes, str]]:
    """What can be wrong with any table of columns that end with question and answer."""
    header, one, two = content.splitlines(keepends=True)
    sign, kind = tab.encode(), "TSV" if tab == "\t" else "CSV"
    cells = two.rstrip().split(sign)
    count = len(cells)
    row = lambda *new: header + one + sign.join([*cells[: count - 2], *new]) + b"\n"  # noqa: E731
    return [
        (row(b"When?", b"1821", b"more"), rf", line 3: has {count + 1} cells, and the header {count}; a cell with a"),
        (row(b"When?"), rf", line 3: has {count - 1} cells, and the header {count}"),
        (row(b'"When?', b"1821"), rf", line 3: is no row of a {kind} table \(unexpected end of data\)"),
        (row(b'"When" then?', b"1821"), rf", line 3: is no row of a {kind} table \("),
        (row(b"", b"1821"), r", line 3: has no 'question' \("),
        (row(b"When?", b""), r", line 3: has no 'golden_answers' \("),
        (row(b"Wh\x81n?", b"1821"), r", line 3: is neither UTF-8 nor Windows-1252; save the file as UTF-8"),
        (header, r": the file holds no questions"),
        (
            content + b"\xef\xbb\xbf" + header.upper() + one,
            r", line 4: is the header again, as in files that were joined",
        ),
        (header.replace(header.split(sign)[-1].strip(), b"reply") + one, r", line 2: has no 'golden_answers' \("),
        (header.strip() + sign + header.split(sign)[-1] + one, rf", line 1: the column '{answer}' is there twice"),
        (content.decode().encode("utf-16"), r": is encoded in UTF-16; save it as UTF-8"),
    ]


def fact_cases(name: str) -> list[tuple[bytes, str]]:
    return [
        (second(name, supporting_facts="Ed Wood"), r", row 2: 'supporting_facts' must be a list of \[title, "),
        (second(name, supporting_facts=[["", 0]]), r", row 2: 'supporting_facts\[0\]\[0\]' is empty"),
        (second(name, supporting_facts=[["Ed", 0], []]), r", row 2: 'supporting_facts\[1\]' must be \[title, "),
        (second(name, _id="a"), r", row 2: id 'a' is already taken; ids must differ"),
        (second(name, type=3.5), r", row 2: 'type' must be a text, not the number 3\.5"),
    ]  # fmt: skip


def parquet_cases(name: str, question: Any, reward: Callable[[Any], dict[str, Any]]) -> list[Any]:
    """``question`` makes the fields of a question, ``reward`` those of the golden answers."""
    target = "reward_model.ground_truth" + (".target" if isinstance(reward(1)["ground_truth"], dict) else "")
    content = good(name)
    field = next(iter(question("x")))
    said = "question" if field == "question" else f"{field}.question"
    return [
        (content[:-6], r": cannot be read as Parquet \("),
        (b"PAR1" + content[40:], r": cannot be read as Parquet \("),
        (content[:4], r": cannot be read as Parquet \("),
        (as_parquet([]), r": the file holds no questions"),
        (both(name, **question(None)), r", row 1: has no 'question' \(it has .*\)"),
        (both(name, **question("")), rf", row 1: '{said}' is empty"),
        (both(name, **question(["Who?"])), rf", row 1: '{said}' must be a text, not a list"),
        (both(name, reward_model={"style": "rule"}), r", row 1: has no 'golden_answers' \(it has .*\)"),
        (both(name, reward_model=reward(7.5)), rf", row 1: '{target}' must be a text, not the number 7\.5; write it"),
        (both(name, reward_model=reward([])), rf", row 1: '{target}' is empty; it needs at least one text"),
        (both(name, reward_model=reward(["Ed", " "])), rf", row 1: '{target}\[1\]' is empty"),
    ]


def under_target(value: Any) -> dict[str, Any]:
    return {"style": "rule", "ground_truth": {"target": value}}


CASES: dict[str, list[tuple[bytes, str]]] = {
    "hotpot.json": [
        *json_cases("hotpot.json", "row 2", "after row 1"),
        *named_cases("hotpot.json", "row 2", "answer"),
        *fact_cases("hotpot.json"),
    ],
    "2wiki.json": [
        *json_cases("2wiki.json", "row 2", "after row 1"),
        *named_cases("2wiki.json", "row 2", "answer"),
        *fact_cases("2wiki.json"),
    ],
    "musique.jsonl": [
        *json_cases("musique.jsonl", "line 2", "line 2"),
        *named_cases("musique.jsonl", "line 2", "answer"),
        (second("musique.jsonl", answer_aliases={"a": 1}), r", line 2: 'answer_aliases' must be a list of texts"),
        (second("musique.jsonl", paragraphs=[{"is_supporting": True}]), r", line 2: 'paragraphs\[0\]\.title' must be"),
        (second("musique.jsonl", id="a"), r", line 2: id 'a' is already taken"),
    ],
    "antileak.json": [
        *json_cases("antileak.json", "row 2", "after row 1"),
        *named_cases("antileak.json", "row 2", "answers"),
        (second("antileak.json", answers=[]), r", row 2: 'answers' is empty; it needs at least one text"),
        (second("antileak.json", answers=[["Ed"]]), r", row 2: 'answers\[0\]' must be a text, not a list"),
    ],
    "david.jsonl": [
        *json_cases("david.jsonl", "line 2", "line 2"),
        *named_cases("david.jsonl", "line 2", "answer"),
        (second("david.jsonl", evidence_documents="Woolton"), r", line 2: 'evidence_documents' must be a list of"),
        (second("david.jsonl", evidence_documents=[{"id": "1"}]), r", line 2: 'evidence_documents\[0\]\.title' must"),
    ],
    "bamboogle.csv": table_cases(TABLES["bamboogle.csv"], ",", "answer"),
    "bamtwoogle.csv": table_cases(TABLES["bamtwoogle.csv"], ",", "answer"),
    "popqa.tsv": [
        *table_cases(TABLES["popqa.tsv"], "\t", "possible_answers"),
        (
            TABLES["popqa.tsv"] + b'3\t"Heroes" by?\t["Ed"]\n',
            r", line 4: is no row of a TSV table \(.*\); a cell that begins with a double quote ends with one, quotes",
        ),
        (
            TABLES["popqa.tsv"] + b'3\t"Who?\t["Ed"]\n4\tHow "tall"\t["1"]\n',
            r", line 4: is no row of a TSV table \(.*\); a cell that begins",
        ),
        (
            b'question\tanswer\n"Who?\tEd\nHow wide is 5"\t1\n',
            r", line 2: a cell with tabs goes on to line 3: its double quote isn't meant to open a cell; write",
        ),
        (b"question\tanswer\rWho?\tEd\r", r", line 1: is no row of a TSV table \(.*\); .* and lines end with \\n"),
        (TABLES["popqa.tsv"] + b"3\tWho?\tEd\n", r", line 4: 'possible_answers' must be a list in JSON, .*Ed is"),
        (TABLES["popqa.tsv"] + b"3\tWho?\t['Ed']\n", r", line 4: 'possible_answers' must be a list in JSON"),
        (TABLES["popqa.tsv"] + b'3\tWho?\t["Ed", 7.5]\n', r", line 4: 'possible_answers\[1\]' must be a text"),
        (TABLES["popqa.tsv"] + b"3\tWho?\t[]\n", r", line 4: 'possible_answers' is empty"),
    ],
    "search_r1.parquet": parquet_cases("search_r1.parquet", lambda q: {"question": q}, under_target),
    "verl.parquet": parquet_cases("verl.parquet", lambda q: {"extra_info": {"question": q}}, under_target),
    "david.parquet": parquet_cases("david.parquet", lambda q: {"question": q}, lambda v: {"ground_truth": v}),
}  # fmt: skip


@pytest.mark.parametrize("name", [*GOOD, *TABLES])
def test_a_good_file_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(good(name))
    assert len(read_questions(tmp_path / name, key="data.questions")) == 2
    assert len(CASES[name]) >= 10


TWINS = ("2wiki.json", "bamtwoogle.csv", "david.parquet")
"""Forms that are read as another one of the list is."""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param(name, *case, id=f"{name}-{number}", marks=[pytest.mark.slow] if name in TWINS else [])
        for name, cases in CASES.items()
        for number, case in enumerate(cases, start=1)
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(f'data.questions={tmp_path / name}')}{message}") as caught:
        read_questions(tmp_path / name, key="data.questions")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"Q1: [a]", r"line 2: not JSON in UTF-8 \("),
        (b'{"Q_id": "Q1", "aliases": ["a"]', r"line 2: not JSON in UTF-8 \("),
        (b'{"Q_id": "Q1", "aliases": ["\xff"]}', r"line 2: not JSON in UTF-8 \("),
        (b'["Q1", ["a"]]', r"line 2: a list; each line must be one JSON object"),
        (b'{"id": "Q1", "aliases": ["a"]}', r"line 2: has no 'Q_id' \(it has aliases, id\)"),
        (b'{"Q_id": 1, "aliases": ["a"]}', r"line 2: 'Q_id' must be a text, not the number 1"),
        (b'{"Q_id": "Q1", "aliases": {"a": 1}}', r"line 2: 'aliases' must be a list of texts, not an object"),
        (b'{"Q_id": "Q1", "aliases": [3.5]}', r"line 2: 'aliases\[0\]' must be a text, not the number 3\.5"),
        (b'{"Q_id": "Q1", "demonyms": ["a", null]}', r"line 2: 'demonyms\[1\]' must be a text, not null"),
    ],
)
def test_what_is_wrong_with_2wikis_aliases_is_one_line(line: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_bytes(good("2wiki.json"))
    (tmp_path / "id_aliases.json").write_bytes(b'{"Q_id": "Q2", "aliases": ["b"], "demonyms": []}\n' + line + b"\n")
    where = re.escape(f"data.questions={tmp_path / 'id_aliases.json'}, ")
    with pytest.raises(UserError, match=f"^{where}{message}") as caught:
        read_questions(tmp_path / "dev.json", key="data.questions")
    assert "\n" not in str(caught.value)


def test_a_row_of_parquet_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    texts = pa.array([b"Who?", b"Where is the caf\xe9?"], pa.binary()).cast(pa.string(), safe=False)
    parquet.write_table(pa.table({"question": texts, "answer": ["Ed", "Ed"]}), tmp_path / "q.parquet")
    with pytest.raises(
        UserError, match=r"^data\.questions=.*q\.parquet, row 2: a text that is not UTF-8 \(.*; save it"
    ):
        read_questions(tmp_path / "q.parquet", key="data.questions")
