"""The table of a corpus's titles and ids: right, kept by checksum, made whole or not at all."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from agent.answers import normalise_title
from agent.errors import UserError
from agent.records import Call, Passage, Question, Turn
from agent.rewards.evidence import evidence_found, evidence_wanted
from retrieval_service import names as names_module
from retrieval_service.corpus import corpus_stamp, write_corpus
from retrieval_service.names import among, corpus_names, digests, name_digest

PASSAGES = [
    Passage(id="1", title="Emma (novel)", text="x"),
    Passage(id="2", title="Emma (novel)", text="another part"),
    Passage(id="3", title="Caf\u00e9 &amp; Bar", text="x"),
    Passage(id="4", title="", text="no title"),
    Passage(id="5", title="!!!", text="a band"),
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus.jsonl", PASSAGES)
    return tmp_path / "corpus.jsonl"


def test_titles_are_compared_normalised_and_ids_as_they_are(tmp_path: Path, corpus: Path) -> None:
    names = corpus_names(corpus, tmp_path / "cache")
    wanted = {"emma_(Novel)", "Cafe\u0301 & Bar", "!!!", "???", "", "Emma", "1"}
    assert names.known(wanted, "title") == {"emma_(Novel)", "Cafe\u0301 & Bar", "!!!"}
    assert names.known({"1", "5", "6", "Emma (novel)", ""}, "id") == {"1", "5"}
    assert (len(names.titles), len(names.ids)) == (3, 5)
    assert names.examples == ("Emma (novel)", "Emma (novel)", "Caf\u00e9 &amp; Bar")


@pytest.mark.parametrize(
    ("named", "there", "same"),
    [
        ("Caf\u00e9", "Cafe\u0301", True),
        ("S\u00e3o\u00a0Paulo", "Sa\u0303o Paulo", True),
        ("New\u2009York", "New York", True),
        ("\u201cHeroes\u201d (album)", '"Heroes" (album)', True),
        ("Schindler\u2019s List", "Schindler's List", True),
        ("Tom &amp; Jerry", "Tom & Jerry", True),
        ("2\u00bd Men", "2 1/2_Men", True),
        ("Caf\u00e9", "Cafe", False),
        ("The Emma", "Emma", False),
    ],
)
def test_a_title_is_there_for_the_check_before_a_run_if_it_is_for_the_reward(
    tmp_path: Path, named: str, there: str, same: bool
) -> None:
    write_corpus(tmp_path / "corpus.jsonl", [Passage(id="1", title=there, text="x")])
    call = Call(tool="search", argument="x", document_ids=("1",), titles=(there,))
    turn = Turn(action_start=0, action_end=1, observation_end=2, text="", calls=(call,))
    question = Question(id="q", text="?", golden_answers=("a",), supporting=(named,))
    assert (evidence_found([turn], question) == evidence_wanted(question)) == same
    assert (corpus_names(tmp_path / "corpus.jsonl", tmp_path).known({named}, "title") == {named}) == same


def test_a_kept_table_is_of_todays_form_of_titles() -> None:
    """If this fails on purpose, raise ``FORMAT``: in a table that is kept, titles have the form that they had."""
    signs = [*range(0x20, 0x250), *range(0x2000, 0x2065), *range(0x2150, 0x2160), *range(0xFF01, 0xFF5F)]
    forms = "\n".join(normalise_title(f"A{chr(sign)} 1{chr(sign)}_e\u0301") for sign in signs)
    assert (names_module.FORMAT, name_digest(forms)) == (2, 7763858211203477714)


def test_a_corpus_is_read_once(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = corpus_names(corpus, tmp_path / "cache")
    monkeypatch.setattr(names_module, "records", lambda path: pytest.fail("read again"))
    again = corpus_names(corpus, tmp_path / "cache")
    assert np.array_equal(again.titles, first.titles)
    assert again.examples == first.examples


def test_names_of_an_index_whose_parts_are_gone_are_passed_over(tmp_path: Path, corpus: Path) -> None:
    """Python 3.13 finds a link by its name that leads nowhere, those before it don't."""
    checksum = corpus_stamp(corpus, tmp_path).checksum
    (tmp_path / "indexes" / f"{checksum}-hybrid").mkdir(parents=True)
    (tmp_path / "indexes" / f"{checksum}-hybrid" / names_module.FILE).symlink_to("nowhere")
    assert corpus_names(corpus, tmp_path).known({"Emma (novel)"}, "title") == {"Emma (novel)"}


def test_a_changed_corpus_is_read_anew(tmp_path: Path, corpus: Path) -> None:
    corpus_names(corpus, tmp_path / "cache")
    write_corpus(corpus, [Passage(id="9", title="New", text="x")])
    assert corpus_names(corpus, tmp_path / "cache").known({"New", "!!!"}, "title") == {"New"}


@pytest.mark.parametrize("kept", [0, 10, -10])
def test_a_table_that_is_cut_short_is_one_line(tmp_path: Path, corpus: Path, kept: int) -> None:
    corpus_names(corpus, tmp_path / "cache")
    (table,) = (tmp_path / "cache" / "corpora").iterdir()
    table.write_bytes(table.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"^the titles and ids in .*npz, which may be deleted: damaged, or") as caught:
        corpus_names(corpus, tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_a_compressed_corpus_without_titles(tmp_path: Path) -> None:
    path = tmp_path / "c.gz"
    path.write_bytes(gzip.compress(b'{"id": "a", "text": "x"}\n'))
    names = corpus_names(path, tmp_path)
    assert names.known({"a"}, "id") == {"a"}
    assert (names.known({"a", "x"}, "title"), names.examples) == (set(), ())


def test_a_bad_corpus_is_named_and_nothing_kept(tmp_path: Path, corpus: Path) -> None:
    corpus.write_bytes(corpus.read_bytes() + b"{}\n")
    with pytest.raises(UserError, match=r"corpus\.jsonl, line 6: no \"id\""):
        corpus_names(corpus, tmp_path / "cache")
    assert list((tmp_path / "cache").glob("corpora/*")) == []


def test_only_a_large_corpus_is_announced(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    corpus_names(corpus, tmp_path / "a", said.append)
    assert said == []
    monkeypatch.setattr(names_module, "LARGE", 10)
    corpus_names(corpus, tmp_path / "b", said.append)
    corpus_names(corpus, tmp_path / "b", said.append)
    assert said == [f"reading the titles of {corpus}, once: they are kept in {tmp_path / 'b' / 'corpora'}"]


def test_digests_are_looked_up_by_bisection() -> None:
    texts = [str(n) for n in range(1000)]
    table = digests(texts + texts)
    assert len(table) == 1000
    assert among([*texts[::7], "x", ""], table) == set(texts[::7])
    assert among(texts, digests([])) == set()
