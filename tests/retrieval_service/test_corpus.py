"""Reading and writing corpora: what is refused, where it says the mistake is, what survives a round trip."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from agent.errors import UserError
from agent.records import Passage
from retrieval_service import corpus as corpus_module
from retrieval_service import listed, stamps, textfile
from retrieval_service.corpus import (
    MAX_CONTENTS,
    MAX_ID_BYTES,
    corpus_stamp,
    join_contents,
    passages_in,
    read_corpus,
    records,
    split_contents,
    unit_of,
    write_corpus,
)
from retrieval_service.names import Register, parts

GOOD = b'{"id": "a", "contents": "\\"Emma\\"\\nA novel."}'


def record(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def corpus_of(tmp_path: Path, *lines: bytes) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def count_passages(path: Path) -> int:
    """Reads and checks a corpus as building its index does."""
    register, count = Register(path), 0
    for part in parts(path):
        register.add(part)
        count += len(part)
    return count


@pytest.mark.parametrize(
    ("contents", "title", "text"),
    [
        ('"Emma"\nA novel.', "Emma", "A novel."),
        ("Emma\nA novel.\nBy Austen.", "Emma", "A novel.\nBy Austen."),
        ('""Heroes" (album)"\nBy Bowie.', '"Heroes" (album)', "By Bowie."),
        ('"Weird Al" Yankovic\nSings.', '"Weird Al" Yankovic', "Sings."),
        ('""\nNo title,\ntwo lines.', "", "No title,\ntwo lines."),
        ("No title.", "", "No title."),
        ('"Only a title"\n', "Only a title", ""),
        ('"\nA lone quote.', '"', "A lone quote."),
    ],
)
def test_title_and_text(contents: str, title: str, text: str) -> None:
    assert split_contents(contents) == (title, text)
    assert split_contents(join_contents(title, text)) == (title, text)


def test_reads_passages_in_order_and_ignores_further_keys(tmp_path: Path) -> None:
    path = corpus_of(tmp_path, GOOD, record(id="b", contents="Text 😀", metadata={"x": 1}) + b"\r")
    assert list(read_corpus(path)) == [
        Passage(id="a", title="Emma", text="A novel."),
        Passage(id="b", title="", text="Text 😀"),
    ]
    assert count_passages(path) == 2


def test_an_id_may_be_a_whole_number(tmp_path: Path) -> None:
    """As pandas writes it, and as Anserini's own reader takes it: an index that it built keeps such lines."""
    lines = (record(id=0, contents="zero"), record(_id=-7, title="T", text="x"), record(id=10**30, contents="many"))
    path = corpus_of(tmp_path, *lines)
    assert [passage.id for passage in read_corpus(path)] == ["0", "-7", str(10**30)]
    assert json.loads(next(records(path))[1].line) == {"id": "0", "contents": "zero"}
    path = corpus_of(tmp_path, record(id=1, contents="x"), record(id="1", contents="y"))
    with pytest.raises(UserError, match="line 2: id '1' is taken by line 1"):
        count_passages(path)


def test_last_line_needs_no_newline(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(GOOD)
    assert count_passages(path) == 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"id": "b", "contents": "x"', "not valid JSON"),
        (b'{"id": "b", "contents": "x"} {}', "not valid JSON"),
        (b'{"id": "b", "contents": "x", "score": NaN}', "NaN is no JSON value"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"id": "b", "contents": "x", "size": %s}' % (b"1" * 5000), "a number has more digits than are read"),
        (b'{"id": "b", "contents": "x", "id": "c"}', "the key 'id' is there twice"),
        (b'["b", "x"]', "a list, not an object"),
        (record(contents="x"), 'no "id"'),
        (record(id="", contents="x"), '"id" is empty'),
        (record(id=7.0, contents="x"), '"id" is the number 7.0, not a text'),
        (record(id=None, contents="x"), '"id" is null, not a text'),
        (record(id=True, contents="x"), '"id" is true or false, not a text'),
        (record(id="i" * (MAX_ID_BYTES + 1), contents="x"), '"id" is longer than'),
        (record(id="a", contents="x"), "id 'a' is taken by line 1"),
        (record(id="b", title="x"), 'no "contents" (it has "id", "title")'),
        (record(id="b", content="x"), 'no "contents" (it has "content", "id")'),
        (record(), 'no "id" (it has nothing)'),
        (record(id="b", text=None), '"text" is null, not a text'),
        (record(id="b", title="x", text=["y"]), '"text" is a list, not a text'),
        (record(id="b", title="", text=""), '"text" is empty'),
        (record(id="b", title=["x"], contents="y"), '"title" is a list, not a text'),
        (record(id="b", title="x", contents="y", text="z"), '"text" is not a part of "contents"'),
        (record(_id=[7], contents="x"), '"_id" is a list, not a text'),
        (record(id="b", contents=" \n"), '"contents" is empty'),
        (record(id="b", contents="\0"), '"contents" is empty'),  # to Java, that is
        (record(id="b", contents="\u3000\x01 "), '"contents" is empty'),
        (record(id="b", contents=None), '"contents" is null, not a text'),
        (record(id="b", contents=["x"]), '"contents" is a list, not a text'),
        (record(id="b", contents="x" * (MAX_CONTENTS + 1)), '"contents" is longer than'),
        (b'{"id": "b", "contents": "\\ud800"}', "half of a surrogate pair"),
        ('{"id": "b", "contents": "é"}'.encode("latin-1"), "not UTF-8 (byte 26)"),
        (b"", "the line is empty"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: bytes, reason: str) -> None:
    path = corpus_of(tmp_path, GOOD, bad, record(id="c", contents="x"))
    with pytest.raises(UserError) as caught:
        count_passages(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: ")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("fields", "title", "text"),
    [
        ({"title": "Emma", "text": "A novel."}, "Emma", "A novel."),
        ({"title": " Emma\n(novel) ", "text": "A novel.\nBy Austen."}, "Emma (novel)", "A novel.\nBy Austen."),
        ({"title": '"Heroes" (album)', "text": "By Bowie."}, '"Heroes" (album)', "By Bowie."),
        ({"title": "Emma", "text": ""}, "Emma", ""),
        ({"title": "Emma", "text": " \n\x01"}, "Emma", ""),
        ({"title": "Emma", "text": None}, "Emma", ""),
        ({"title": " ", "text": "No title."}, "", "No title."),
        ({"text": "No title."}, "", "No title."),
        ({"title": None, "text": "No title,\ntwo lines."}, "", "No title,\ntwo lines."),
        ({"title": "Emma", "contents": "A novel."}, "Emma", "A novel."),
        ({"title": "Emma", "contents": "Emma is a novel.\nBy Austen."}, "Emma", "Emma is a novel.\nBy Austen."),
        ({"title": "Emma", "contents": '"Emma"\nA novel.'}, "Emma", "A novel."),
        ({"title": "Caf\u00e9_A", "contents": "Cafe\u0301 A\nA place."}, "Cafe\u0301 A", "A place."),
        ({"title": "", "contents": '"Emma"\nA novel.'}, "Emma", "A novel."),
        # Search-R1's BM25 has all three.
        ({"title": "Emma", "text": "A  novel.", "contents": '"Emma"\nA novel.'}, "Emma", "A novel."),
    ],
)
def test_a_title_of_its_own_is_the_passages_title(tmp_path: Path, fields: dict, title: str, text: str) -> None:
    path = corpus_of(tmp_path, GOOD, record(id="b", **fields))
    assert list(read_corpus(path))[1] == Passage(id="b", title=title, text=text)


def test_beirs_lines_are_read(tmp_path: Path) -> None:
    path = corpus_of(tmp_path, record(_id="7", title="Emma", text="A novel.", metadata={"url": "x"}))
    assert list(read_corpus(path)) == [Passage(id="7", title="Emma", text="A novel.")]


def test_a_byte_order_mark_between_joined_files_is_no_matter(tmp_path: Path) -> None:
    path = corpus_of(tmp_path, b"\xef\xbb\xbf" + GOOD, b"\xef\xbb\xbf" + record(id="b", contents="x"))
    assert [passage.id for passage in read_corpus(path)] == ["a", "b"]


def test_a_record_is_a_line_of_ids_and_contents(tmp_path: Path) -> None:
    plain = corpus_of(
        tmp_path, GOOD, record(id="b", contents="No title.", url="x"), record(id="d", title="D", text="x\ny")
    )
    lines = [record.line for _, record in records(plain)]
    assert [set(json.loads(line)) for line in lines] == [{"id", "contents"}] * 3
    again = tmp_path / "again.jsonl"
    again.write_text("".join(lines), encoding="utf-8")
    assert list(read_corpus(again)) == list(read_corpus(plain))


# --- Parquet ---------------------------------------------------------------------------------------


def parquet_of(tmp_path: Path, **columns: list[Any]) -> Path:
    path = tmp_path / "corpus.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def test_a_parquet_file_is_read_like_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "ROWS", 2)
    path = parquet_of(tmp_path, id=[7, 8, 9], title=["A", None, "C"], text=["one", "two", "three"], url=["x"] * 3)
    assert list(read_corpus(path)) == [
        Passage(id="7", title="A", text="one"),
        Passage(id="8", title="", text="two"),
        Passage(id="9", title="C", text="three"),
    ]
    assert [number for number, _ in records(path)] == [1, 2, 3]


def test_a_null_text_of_a_parquet_file_is_none(tmp_path: Path) -> None:
    path = parquet_of(tmp_path, id=["a", "b"], title=["Emma", None], text=pyarrow.array([None, None], pyarrow.string()))
    passages = read_corpus(path)
    assert next(passages) == Passage(id="a", title="Emma", text="")
    with pytest.raises(UserError, match=r'row 2: "text" is empty; its columns are id, title, text$'):
        next(passages)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"id": ["a", "b", "c"], "contents": ["x", "y", None]}, 'row 3: no "contents"'),
        ({"id": ["a", None], "contents": ["x", "y"]}, 'row 2: no "id"'),
        ({"id": ["a"], "contents": [7]}, 'row 1: "contents" is the number 7, not a text'),
        ({"id": ["a", "b"], "contents": ["x", " "]}, 'row 2: "contents" is empty'),
        ({"id": [1.5], "contents": ["x"]}, 'row 1: "id" is the number 1.5'),
        ({"id": [True], "contents": ["x"]}, 'row 1: "id" is true or false, not a text'),
        ({"id": ["a", "b", "a"], "contents": ["x", "y", "z"]}, "row 3: id 'a' is taken by row 1; every id must be"),
        ({"key": ["a"], "body": ["x"]}, 'row 1: no "id" (it has nothing); its columns are key, body'),
        ({"id": [], "contents": []}, "the corpus is empty"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, columns: dict[str, list[Any]], said: str) -> None:
    path = parquet_of(tmp_path, **columns)
    with pytest.raises(UserError) as caught:
        count_passages(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_row_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    texts = pyarrow.array([b"x", b"y", b"caf\xe9"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    path = parquet_of(tmp_path, id=["a", "b", "c"], contents=texts)
    with pytest.raises(UserError, match=r"corpus\.parquet, row 3: a text that is not UTF-8 \(.*; save it") as caught:
        list(read_corpus(path))
    assert "\n" not in str(caught.value)


TWICE = pyarrow.StructArray.from_arrays([pyarrow.array(["A"]), pyarrow.array(["B"])], names=["n", "n"])
"""An object with a key twice."""


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (pyarrow.array([2**62], pyarrow.timestamp("us")), r", row 1: a value that can't be read \(.*\); write it as a"),
        (TWICE, r", row 1: a value that can't be read \(.*duplicate field names.*\); write it as a text"),
        ([True], r', row 1: "id" is true or false, not a text'),
    ],
)
def test_an_id_of_a_parquet_file_that_is_none_is_one_line(tmp_path: Path, ids: Any, message: str) -> None:
    path = parquet_of(tmp_path, id=ids, contents=["x"])
    with pytest.raises(UserError, match=rf"^.*corpus\.parquet{message}") as caught:
        list(read_corpus(path))
    assert "\n" not in str(caught.value)


def test_a_parquet_file_with_a_column_twice_is_one_line(tmp_path: Path) -> None:
    columns = [pyarrow.array([text]) for text in ("a", "b", "x")]
    parquet.write_table(pyarrow.table(columns, names=["id", "id", "contents"]), tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"c\.parquet: the column 'id' is there twice; take one out"):
        list(read_corpus(tmp_path / "c.parquet"))


def test_a_parquet_file_with_a_damaged_page_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    parquet.write_table(pyarrow.table({"id": ["a"], "contents": ["A novel. " * 1000]}), path, compression="gzip")
    data = path.read_bytes()
    at = data.rindex(b"\x1f\x8b")  # the last page's
    path.write_bytes(data[: at + 12] + bytes(8) + data[at + 20 :])
    with pytest.raises(UserError, match=r"^.*corpus\.parquet: the Parquet file is cut short or damaged \(.*; get it"):
        list(records(path))


def test_a_checksum_that_cannot_be_kept_is_no_corpus_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus_of(tmp_path, GOOD)
    monkeypatch.setattr(stamps, "SETTLED_S", -1.0)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "stamps").write_text("no folder")
    with pytest.raises(
        UserError, match=r"^.*stamps: a checksum can't be kept there \(.*exists\); fix that, or set cach"
    ):
        corpus_stamp(path, tmp_path / "cache")


@pytest.mark.parametrize("kept", [4, 60, -8, -1])
def test_a_parquet_file_that_is_cut_short_is_one_line(tmp_path: Path, kept: int) -> None:
    path = parquet_of(tmp_path, id=["a", "b"], contents=["x", "y"])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"^.*corpus\.parquet: the Parquet file is cut short or damaged") as caught:
        list(read_corpus(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("start", [b"[\n", b"\n \n\t[\n", b"\xef\xbb\xbf[", b" " * 2000 + b"["])
def test_one_list_is_read_object_by_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    """As David-GRPO's corpus is."""
    monkeypatch.setattr(listed, "READ", 16)
    path = corpus_of(tmp_path, start + GOOD + b",", b" " + record(id="b", contents="x"), b"]")
    told = [(1, Passage(id="a", title="Emma", text="A novel.")), (2, Passage(id="b", title="", text="x"))]
    assert [(number, found.passage) for number, found in records(path)] == told
    assert (unit_of(path), passages_in(path, corpus_stamp(path, tmp_path / "cache"))) == ("row", 0)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert count_passages(path) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[%s, {"id": "b"}]', r', row 2: no "contents" \(it has "id"\); a row must be like \{'),
        (b"[%s, [7]]", ", row 2: a list, not an object; a row must be like "),
        (b"[%s, {]", r", after row 1: not JSON in UTF-8 \(.* at character \d+\); write one list of objects, or one"),
        (b"[%s, %%s]" % GOOD, ", row 2: id 'a' is taken by row 1; every id must be unique"),
        (b"[]%.0s", ": the corpus is empty; it needs"),
    ],
)
def test_a_bad_object_of_a_list_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=rf"corpus\.jsonl{said}") as caught:
        count_passages(corpus_of(tmp_path, content % GOOD))
    assert "\n" not in str(caught.value)


def test_a_line_that_may_be_all_of_a_large_file_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus_of(tmp_path, GOOD, b'{"data": [' + GOOD * 9 + b"]}")
    most = len(GOOD) + 1  # with its end
    monkeypatch.setattr(textfile, "LONGEST_LINE", most)
    with pytest.raises(
        UserError, match=rf"corpus\.jsonl, line 2: is longer than {most} bytes; write one object a line"
    ):
        count_passages(path)


def test_a_corpus_that_is_cut_short_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD * 100)[:-9])
    with pytest.raises(UserError, match=r"^.*corpus\.jsonl\.gz: the gzip file is cut short or damaged") as caught:
        count_passages(path)
    assert "\n" not in str(caught.value)


def test_an_empty_or_missing_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"corpus\.jsonl: the corpus is empty"):
        count_passages(corpus_of(tmp_path))
    with pytest.raises(UserError, match=r"none\.jsonl: cannot read the corpus"):
        count_passages(tmp_path / "none.jsonl")
    (tmp_path / "circle").symlink_to("circle")
    for path in (tmp_path, tmp_path / "circle"):
        with pytest.raises(UserError, match="cannot read the corpus"):
            corpus_stamp(path, tmp_path)


def test_reading_streams(tmp_path: Path) -> None:
    path = corpus_of(tmp_path, GOOD, b"not JSON")
    passages = read_corpus(path)
    assert next(passages).id == "a"
    with pytest.raises(UserError, match="line 2"):
        next(passages)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    passages = [
        Passage(id="1", title='"Heroes"', text="Line one\nline two"),
        Passage(id="2", title="", text="Two lines\nwithout a title"),
        Passage(id="3", title="", text="日本 😀"),
        Passage(id="4", title="Only a title", text=""),
    ]
    path = tmp_path / "new" / "corpus.jsonl"
    assert write_corpus(path, passages) == 4
    assert list(read_corpus(path)) == passages


@pytest.mark.parametrize(
    "passages",
    [
        [Passage(id="", title="t", text="x")],
        [Passage(id="a", title="", text="")],
        [Passage(id="a", title="two\nlines", text="x")],
        [Passage(id="a", title="t", text="\ud800")],
        [Passage(id="a", title="t", text="x"), Passage(id="a", title="t", text="y")],
    ],
)
def test_what_a_corpus_cannot_hold_is_not_written(tmp_path: Path, passages: list[Passage]) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(GOOD)
    with pytest.raises(ValueError, match=f"^passage {passages[0].id!r}: "):
        write_corpus(path, passages)
    assert path.read_bytes() == GOOD
    assert [file.name for file in tmp_path.iterdir()] == ["corpus.jsonl"]
