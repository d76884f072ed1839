"""BM25 on the real Lucene. One index and one JVM for the whole module."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from patience import run

from agent.errors import Fault, RetrievalError, UserError
from agent.records import Passage
from retrieval_service import jvm, lucene_searcher, names
from retrieval_service.backends.bm25 import Bm25
from retrieval_service.config import RetrievalConfig
from retrieval_service.corpus import Record, corpus_stamp, write_corpus
from retrieval_service.index import MANIFEST, check_index
from retrieval_service.lucene import LuceneBuilder
from retrieval_service.rankers import index_for, open_backend
from retrieval_service.service import RetrievalService

pytestmark = pytest.mark.jvm

ROOT = Path(__file__).parents[2]
HOTPOT = ROOT.parent / "shared" / "data" / "hotpotqa_mini"
# The defaults of heap and threads, which other tests in this process are likely to start the JVM with.
CONFIG = RetrievalConfig()

PASSAGES = [
    Passage(id="emma", title="Emma (novel)", text="Emma is a novel by Jane Austen, published in 1815."),
    Passage(id="persuasion", title="Persuasion", text="Persuasion is the last novel that Jane Austen completed."),
    Passage(id="heroes", title='"Heroes" (David Bowie album)', text="Recorded in Berlin.\nReleased in 1977."),
    Passage(id="untitled", title="", text="A passage about lighthouses, without a title."),
    Passage(id="tokyo", title="東京", text="東京は日本の首都である。 😀"),
    *(Passage(id=f"twin-{n}", title="Twin", text="The very same marmalade.") for n in (3, 1, 2, 10)),
    *(Passage(id=name, title="", text="A shibboleth.") for name in ("\ufeffemma", "\ufffeß")),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bm25")
    write_corpus(folder / "corpus.jsonl", PASSAGES)
    # A second JSON file beside the corpus is none of the index's business.
    write_corpus(folder / "other.jsonl", [Passage(id="other", title="Other", text="marmalade")])
    return index_for(folder / "corpus.jsonl", CONFIG, folder / "cache")


@pytest.fixture(scope="module")
def bm25(index: Path) -> Iterator[Bm25]:
    backend = Bm25(index, CONFIG)
    yield backend
    backend.close()


def ids(hits: tuple[Passage, ...]) -> list[str]:
    return [hit.id for hit in hits]


def test_the_manifest_counts_what_lucene_holds(index: Path) -> None:
    manifest = check_index(index, "bm25")
    assert manifest is not None
    assert manifest.documents == len(PASSAGES)
    corpus = index.parents[2] / "corpus.jsonl"
    assert manifest.corpus_checksum == corpus_stamp(corpus, corpus.parent).checksum


def test_the_right_passage_comes_first_and_comes_back_whole(bm25: Bm25) -> None:
    queries = ["who wrote Emma?", "Persuasion novels", "Bowie's albums of 1977", "lighthouse", "首都 😀"]
    expected = [PASSAGES[n] for n in range(5)]
    for hits, passage in zip(bm25.search_batch(queries, 3), expected, strict=True):
        top = hits[0]
        assert (top.id, top.title, top.text) == (passage.id, passage.title, passage.text)
        assert top.score > 0


def test_a_compressed_corpus_with_titles_apart_is_searched_by_them(tmp_path: Path) -> None:
    rows = [{"_id": p.id, "title": p.title, "text": p.text} for p in PASSAGES]
    corpus = tmp_path / "corpus.jsonl.gz"
    corpus.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    backend = Bm25(index_for(corpus, CONFIG, tmp_path / "cache"), CONFIG)
    try:
        ((top,),) = backend.search_batch(["heroes album"], 1)
    finally:
        backend.close()
    assert (top.id, top.title, top.text) == (PASSAGES[2].id, PASSAGES[2].title, PASSAGES[2].text)


def test_hits_are_ordered_by_score_and_limited_by_k(bm25: Bm25) -> None:
    (hits,) = bm25.search_batch(["Jane Austen novel Emma"], 2)
    assert ids(hits) == ["emma", "persuasion"]
    assert hits[0].score > hits[1].score
    assert [len(bm25.search_batch(["marmalade"], k)[0]) for k in (1, 3, 100, 2**40)] == [1, 3, 4, 4]


def test_equal_scores_are_ordered_by_id(bm25: Bm25) -> None:
    (hits,) = bm25.search_batch(["marmalade"], 10)
    assert ids(hits) == ["twin-1", "twin-10", "twin-2", "twin-3"]
    assert ids(bm25.search_batch(["marmalade"], 2)[0]) == ["twin-1", "twin-10"], "a smaller k is a prefix"


def test_a_batch_is_its_searches_one_by_one(bm25: Bm25) -> None:
    queries = ["Emma", "marmalade", "", "Emma", "Berlin 1977", "xyzzy"] * 20
    batch = bm25.search_batch(queries, 3)
    assert batch == [bm25.search_batch([query], 3)[0] for query in queries]
    assert bm25.search_batch([], 3) == []


@pytest.mark.parametrize("rounds", [4, pytest.param(15, marks=pytest.mark.slow)])
def test_two_threads_that_search_at_once_get_their_own_hits(
    index: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """A service searches in two. Each finds what it finds alone, however often Python changes between them."""
    monkeypatch.setattr(lucene_searcher, "KEPT_PASSAGES", 1)
    queries = [f"{passage.title} {passage.text}" for passage in PASSAGES]
    shifted = [queries[n:] + queries[:n] for n in range(len(queries))]

    def searched(rounds: int) -> list[list[tuple[Passage, ...]]]:
        backend = Bm25(index, CONFIG)
        found = [backend.search_batch(some, 3) for _ in range(rounds) for some in shifted]
        backend.close()
        return found

    alone = rounds * searched(1)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(searched, [rounds, rounds])) == [alone, alone]
    finally:
        sys.setswitchinterval(before)


def test_an_id_may_begin_with_any_character(bm25: Bm25) -> None:
    """Also with a byte order mark, as of a column that was read with the file's; and beside the same without one."""
    assert ids(bm25.search_batch(["emma"], 3)[0]) == ["emma"]
    assert {*ids(bm25.search_batch(["shibboleth"], 3)[0])} == {"\ufeffemma", "\ufffeß"}
    assert [ids(found) for found in bm25.document_batch(["emma", "\ufeffemma"], 1)] == [["emma"], ["\ufeffemma"]]


@pytest.mark.parametrize("query", ["", " \n\t", "?!... --- ***", "the of and", "xyzzy", "\x00", "\ud800", "😎"])
def test_a_query_without_an_indexed_word_has_no_hits(bm25: Bm25, query: str) -> None:
    assert bm25.search_batch([query], 3) == [()]


@pytest.mark.parametrize(
    "query",
    [
        'emma AND ( NOT "persuasion',
        "title:x emma~2^ [a TO b} /x/ \\",
        "+emma -emma && || !",
        "emma \ud800\x00\u202e",
        "\ufeff emma",
        "\ufffe emma ß",
        "emma " + "x" * 10_000,
        "emma " * 2_000,
        "emma " + " ".join(f"word{n}" for n in range(5_000)),
        "emma" + "".join(chr(0x4E00 + n) for n in range(5_000)),
    ],
    ids=[
        "operators",
        "syntax",
        "signs",
        "controls",
        "mark",
        "no mark",
        "long",
        "repeated",
        "many clauses",
        "many characters",
    ],
)
def test_a_weird_query_is_a_bag_of_words(bm25: Bm25, query: str) -> None:
    (hits,) = bm25.search_batch([query], 3)
    assert "emma" in ids(hits)


def test_k1_and_b_count(index: Path, bm25: Bm25) -> None:
    other = Bm25(index, RetrievalConfig(k1=2.0, b=1.0))
    query = ["Jane Austen"]
    assert other.search_batch(query, 3) != bm25.search_batch(query, 3)
    other.close()
    # Closing detached this thread; calling again attaches it.
    assert bm25.search_batch(query, 1)[0]


@pytest.mark.parametrize(
    ("analyser", "found"),
    [("none", []), ("krovetz", ["emma"]), ("de", ["größe"]), ("porter", ["emma"])],
)
def test_the_analyser_of_an_index_is_that_of_its_queries(tmp_path: Path, analyser: str, found: list[str]) -> None:
    write_corpus(
        tmp_path / "corpus.jsonl",
        [
            Passage(id="emma", title="", text="many novels"),
            Passage(id="größe", title="", text="die Häuser einer Straße"),
        ],
    )
    asked = RetrievalConfig(analyser=analyser)
    index = index_for(tmp_path / "corpus.jsonl", asked, tmp_path)
    for config in (asked, CONFIG):  # an index says its own
        backend = Bm25(index, config)
        assert backend.identity().analyser == analyser
        assert ids(backend.search_batch(["haus" if analyser == "de" else "novel"], 3)[0]) == found
        backend.close()
    with pytest.raises(UserError, match=rf"was made with retrieval\.analyser={analyser}, not zh; leave it out"):
        Bm25(index, RetrievalConfig(analyser="zh"))


def test_a_bad_k_is_told(bm25: Bm25) -> None:
    with pytest.raises(ValueError, match="k=0"):
        bm25.search_batch(["emma"], 0)


def test_a_failure_names_its_cause(index: Path) -> None:
    backend = Bm25(index, CONFIG)
    backend.close()
    with pytest.raises(RetrievalError, match=r"AlreadyClosedException.*closed"):
        backend.search_batch(["emma"], 3)
    with pytest.raises(RetrievalError, match=r"^Lucene: java\.lang\.RuntimeException: "):
        backend.search_batch(["\ufffeß"], 3)


def test_what_is_no_index_is_named(index: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: no such folder"):
        open_backend(CONFIG, tmp_path / "none")
    (tmp_path / "segments_1").write_bytes(b"not Lucene's")
    with pytest.raises(UserError, match=f"{tmp_path}: Lucene cannot open it"):
        open_backend(CONFIG, tmp_path)


def test_an_index_that_lost_documents_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl", PASSAGES[:2])
    index = index_for(tmp_path / "corpus.jsonl", CONFIG, tmp_path)
    file = index / MANIFEST
    file.write_text(file.read_text().replace('"documents": 2', '"documents": 3'))
    with pytest.raises(UserError, match="holds 2 documents, not 3"):
        Bm25(index, CONFIG)
    # Without a manifest it is a Lucene index like any other, and good to use.
    file.unlink()
    backend = Bm25(index, CONFIG)
    assert ids(backend.search_batch(["emma"], 1)[0]) == ["emma"]
    backend.close()


def test_passages_that_lucene_dropped_are_a_fault(tmp_path: Path) -> None:
    builder = LuceneBuilder(tmp_path, CONFIG)
    builder.take(0, [Record("a", "x"), Record("b", "")], lambda done: None)
    with pytest.raises(Fault, match=r"indexed 1 of 2 passages \(indexed 1, .*\)"):
        builder.finish(tmp_path / "out")
    builder.close()


def test_a_part_that_was_finished_is_not_indexed_again(tmp_path: Path) -> None:
    parts = [[Record(name, f"passage {name}")] for name in ("a", "b", "c", "d")]
    builder = LuceneBuilder(tmp_path, CONFIG)
    for number, part in enumerate(parts[: CONFIG.threads + 1]):
        builder.take(number, part, lambda done: None)  # the last one waits for the first
    builder.close()
    assert (tmp_path / "part-00000").is_dir()
    again = LuceneBuilder(tmp_path, CONFIG)
    for number, part in enumerate([[Record("not read again", "x")], *parts[1:]]):
        again.take(number, part, lambda done: None)
    again.finish(tmp_path / "out")
    again.close()
    backend = Bm25(tmp_path / "out", CONFIG)
    assert {*ids(backend.search_batch(["passage"], 10)[0])} == {*"abcd"}
    backend.close()


def test_what_is_under_way_where_a_build_is_interrupted_is_kept(tmp_path: Path) -> None:
    builder = LuceneBuilder(tmp_path, CONFIG)
    builder.take(0, [Record(id="a", contents="One.")], lambda done: None)
    builder.take(1, [Record(id="b", contents="   ")], lambda done: None)  # one that Lucene drops
    builder.close()
    assert [path.name for path in tmp_path.iterdir() if ".busy" not in path.name] == ["part-00000"]


def test_the_jvm_starts_once(index: Path) -> None:
    jvm.start_jvm(CONFIG.heap, CONFIG.threads)
    with pytest.raises(UserError, match=r"retrieval\.heap=3g.*already runs"):
        jvm.start_jvm("3g", CONFIG.threads)


def test_the_service_answers_from_lucene(index: Path) -> None:
    async def run() -> None:
        service = RetrievalService(lambda: open_backend(CONFIG, index), CONFIG)
        await service.start()
        first, second = await asyncio.gather(service.search("Emma", 1), service.search("lighthouses", 1))
        assert ids(first + second) == ["emma", "untitled"]
        assert await service.search("???", 3) == ()
        await service.close()

    asyncio.run(run())


@pytest.mark.slow
def test_a_process_with_a_jvm_is_quiet_and_keeps_its_signals_and_environment(index: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from retrieval_service.rankers import open_backend\n"
        "from retrieval_service.config import RetrievalConfig\n"
        "before = dict(os.environ)\n"
        "backend = open_backend(RetrievalConfig(heap='128m', threads=1), Path(sys.argv[1]))\n"
        "assert backend.search_batch(['emma'], 1)[0][0].id == 'emma'\n"
        "assert dict(os.environ) == before\n"
        "assert not {'torch', 'transformers', 'openai'} & set(sys.modules)\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    signal.pause()\n"
        "except KeyboardInterrupt:\n"
        "    backend.close()\n"
        "    sys.exit(7)\n"
    )
    done = run([sys.executable, "-c", code, str(index)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


@pytest.mark.slow
def test_a_library_that_takes_the_signals_of_the_jvm_does_not_keep_them(index: Path) -> None:
    """Java would end the process at its next null pointer."""
    code = (
        "import ctypes, signal, sys\n"
        "from pathlib import Path\n"
        "from retrieval_service import jvm\n"
        "from retrieval_service.config import RetrievalConfig\n"
        "from retrieval_service.rankers import open_backend\n"
        "backend = open_backend(RetrievalConfig(heap='128m', threads=1), Path(sys.argv[1]))\n"
        "before = [jvm._action(number)[:8] for number in jvm.SIGNALS]\n"
        "calls = ('search_batch', 'emma'), ('following_batch', 'twin-3'), ('document_batch', 'twin-3')\n"
        "for method, asked in calls:\n"
        "    for number in jvm.SIGNALS:\n"
        "        ctypes.CDLL(None).signal(int(number), 0)\n"
        "    assert getattr(backend, method)([asked], 2)[0], method\n"
        "    assert [jvm._action(number)[:8] for number in jvm.SIGNALS] == before, method\n"
    )
    done = run([sys.executable, "-c", code, str(index)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_names_of_files_are_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    """A container's locale is often C, and Java takes the names of files from it."""
    corpus = tmp_path / "größer 世界" / "corpus.jsonl"
    corpus.parent.mkdir()
    corpus.write_text('{"id": "a", "contents": "\\"A\\"\\nOne passage."}\n')
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from retrieval_service.config import RetrievalConfig\n"
        "from retrieval_service.rankers import index_for\n"
        "corpus = Path(sys.argv[1])\n"
        "index_for(corpus, RetrievalConfig(heap='128m', threads=1), corpus.parent)\n"
    )
    done = run(
        [sys.executable, "-c", code, str(corpus)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.skipif(not HOTPOT.is_dir(), reason="the HotpotQA sample is not here")
def test_recall_on_hotpotqa_is_that_of_its_table(tmp_path: Path) -> None:
    """At 3, 5 and 10 passages the mean share of a question's documents, and the share of questions with both."""
    index = index_for(HOTPOT / "corpus.jsonl", CONFIG, tmp_path)
    questions = [json.loads(line) for line in (HOTPOT / "questions.jsonl").read_text().splitlines()]
    found = {}
    for k1, b in ((0.9, 0.4), (1.2, 0.75)):
        backend = Bm25(index, RetrievalConfig(k1=k1, b=b))
        hits = backend.search_batch([question["question"] for question in questions], 10)
        backend.close()
        found[k1, b] = [number for k in (3, 5, 10) for number in recall(questions, hits, k)]
    assert len(questions) == 60
    assert found == {
        (0.9, 0.4): [0.608, 0.267, 0.708, 0.467, 0.850, 0.700],
        (1.2, 0.75): [0.658, 0.350, 0.733, 0.483, 0.875, 0.750],
    }


def recall(questions: list[dict[str, Any]], hits: list[tuple[Passage, ...]], k: int) -> tuple[float, float]:
    shares = []
    for question, found in zip(questions, hits, strict=True):
        supporting = {title.lower() for title in question["metadata"]["supporting_titles"]}
        shares.append(len(supporting & {hit.title.lower() for hit in found[:k]}) / len(supporting))
    return round(sum(shares) / len(shares), 3), round(sum(share == 1 for share in shares) / len(shares), 3)


# --- reading on ------------------------------------------------------------------------------------


def test_reading_on_gives_the_next_passages_of_the_same_document(bm25: Bm25) -> None:
    following = bm25.following_batch(["twin-3", "twin-2", "twin-10", "emma", "untitled"], 2)
    assert [ids(f) for f in following] == [["twin-1", "twin-2"], ["twin-10"], [], [], []]
    assert following[0][0] == Passage(id="twin-1", title="Twin", text="The very same marmalade.")


def test_an_id_that_is_not_there_has_no_following(bm25: Bm25) -> None:
    with pytest.raises(RetrievalError, match="the index holds no passage 'twin-99'"):
        bm25.following_batch(["twin-99"], 2)
    with pytest.raises(ValueError, match="k=0"):
        bm25.following_batch(["twin-3"], 0)


@pytest.mark.slow
def test_an_index_of_many_parts_is_one_of_a_single_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long documents are read in the corpus's order, whatever parts and threads they came through."""
    parts = [
        Passage(
            id=f"{name}.txt#{n}" if name % 2 else f"{name}-{n}", title="" if name % 2 else f"Book {name}", text=f"{n}"
        )
        for name in range(40)
        for n in range(50)
    ]
    write_corpus(tmp_path / "corpus.jsonl", parts)
    queries = ["book 7", "12", "3 4 5", "book"]
    single = Bm25(index_for(tmp_path / "corpus.jsonl", CONFIG, tmp_path / "single"), CONFIG)
    expected = single.search_batch(queries, 20)
    single.close()
    monkeypatch.setattr(names, "PART", 130)
    backend = Bm25(index_for(tmp_path / "corpus.jsonl", CONFIG, tmp_path / "cache"), CONFIG)
    try:
        assert backend.search_batch(queries, 20) == expected
        for name in range(40):
            whole = [p.id for p in parts[50 * name : 50 * name + 50]]
            assert ids(backend.following_batch([whole[0]], 100)[0]) == whole[1:]
            assert ids(backend.following_batch([whole[47]], 5)[0]) == whole[48:]
    finally:
        backend.close()
