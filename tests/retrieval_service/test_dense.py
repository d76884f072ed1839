"""Dense retrieval over a small random encoder: vectors, stores, indexes, and what they refuse."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import PASSAGES as GIVEN
from encoders import encoder, ids, overlap
from huggingface_hub import constants

from agent.errors import Fault, RetrievalError, UserError
from agent.records import Passage
from retrieval_service import encoder as encoders_module
from retrieval_service import jvm, names, vectors
from retrieval_service.backends import dense, hybrid
from retrieval_service.backends.dense import Dense, Settings
from retrieval_service.config import RetrievalConfig
from retrieval_service.corpus import Record, join_contents, write_corpus
from retrieval_service.encoder import Encoder, Manner, encoder_of, manner_of
from retrieval_service.index import FORMAT, Manifest, write_manifest
from retrieval_service.rankers import index_for, models_of, open_backend
from retrieval_service.store import PASSAGES, PassageStore, join_parts, write_part
from retrieval_service.vectors import FLAT, PART, Faiss, Flat, default_lists, join_vectors, open_vectors
from retrieval_service.watch import Watch

PASSAGES_OF = [
    *GIVEN,
    *(
        Passage(id=f"twin-{n}", title="Twin", text=f"marmalade {word}")
        for n, word in enumerate(("one", "two", "three"))
    ),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def config(model: Path) -> Settings:
    return Settings(encoder=str(model))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus.jsonl", PASSAGES_OF)
    return tmp_path / "corpus.jsonl"


@pytest.fixture(scope="module")
def built(config: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of parts of three passages, for all who only read it."""
    folder = tmp_path_factory.mktemp("built")
    write_corpus(folder / "corpus.jsonl", PASSAGES_OF)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(names, "PART", 3)
        return index_for(folder / "corpus.jsonl", config, folder)


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return shutil.copytree(built, tmp_path / "index")


@pytest.fixture
def backend(built: Path, config: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dense]:
    """Searched in blocks of two."""
    monkeypatch.setattr(vectors, "BLOCK", 2)
    opened = open_backend(config, built)
    assert isinstance(opened, Dense)
    yield opened
    opened.close()


# --- the encoder -----------------------------------------------------------------------------------


def test_the_files_beside_a_model_say_how_it_is_used(model: Path) -> None:
    manner = manner_of(model, "given", {})
    assert (manner.pooling, manner.normalise, manner.max_tokens) == ("mean", True, 32)
    assert (manner.query_prefix, manner.passage_prefix) == ("query: ", "passage: ")
    asked = manner_of(model, "given", {"pooling": "cls", "normalise": None, "query_prefix": ""})
    assert (asked.pooling, asked.normalise, asked.query_prefix) == ("cls", True, "")
    assert asked.weights == manner.weights
    assert asked.key != manner.key
    assert replace(manner, query_prefix="x", encoder="y").key == manner.key, "passages don't depend on these"


@pytest.mark.parametrize(
    ("name", "prefixes"),
    [
        ("intfloat/e5-base-v2", ("query: ", "passage: ")),
        ("/models/multilingual-e5-small", ("query: ", "passage: ")),
        ("BAAI/bge-base-en-v1.5", ("Represent this sentence for searching relevant passages: ", "")),
        ("other/model-e5x", ("", "")),
        ("/models/e5_base_v2", ("query: ", "passage: ")),
        ("/data/e5-base-experiments/all-MiniLM-L6-v2", ("", "")),
        ("intfloat/multilingual-e5-large-instruct", ("", "")),
        (
            "/hub/models--BAAI--bge-base-en-v1.5/snapshots/abc",
            ("Represent this sentence for searching relevant passages: ", ""),
        ),
    ],
)
def test_families_whose_prefixes_are_in_no_file(
    model: Path, tmp_path: Path, name: str, prefixes: tuple[str, str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "config_sentence_transformers.json").unlink()
    manner = manner_of(folder, name, {})
    assert (manner.query_prefix, manner.passage_prefix) == prefixes


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (
            "modules.json",
            None,
            "nothing in it says how its tokens become one vector; set retrieval.pooling to one of mean",
        ),
        ("1_Pooling/config.json", "{}", "set retrieval.pooling"),
        ("modules.json", '[{"type": "sentence_transformers.models.Dense"}]', "has a dense layer after its pooling"),
        ("modules.json", "[", "modules.json: not valid JSON"),
        ("config.json", None, "needs config.json and weights in safetensors"),
        ("model.safetensors", None, "needs config.json and weights in safetensors"),
    ],
)
def test_a_folder_that_does_not_say_enough_is_named(
    model: Path, tmp_path: Path, file: str, content: str | None, said: str
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    with pytest.raises(UserError) as caught:
        manner_of(folder, "given", {} if "pool" in said.lower() or content == "[" else {"pooling": "mean"})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("told", "pooling"),
    [
        ({"embedding_dimension": 16, "pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, None),
        ({"pooling_mode": ["cls", "mean"]}, None),
        ({"pooling_mode_max_tokens": True}, None),
    ],
)
def test_poolings_as_sentence_transformers_has_written_them(
    model: Path, tmp_path: Path, told: dict[str, Any], pooling: str | None
) -> None:
    """Since its 5.4 as one name, and the length in the tokenizer's file."""
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(told))
    (folder / "sentence_bert_config.json").write_text("{}")
    (folder / "config_sentence_transformers.json").write_text('{"prompts": null}')
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"model_max_length": 384}))
    if pooling is None:
        with pytest.raises(UserError, match=r"config\.json: pools by .*, and one of mean, cls, last can be read here$"):
            manner_of(folder, "given", {})
        assert manner_of(folder, "given", {"pooling": "cls"}).pooling == "cls", "what is asked for counts"
    else:
        manner = manner_of(folder, "given", {})
        assert (manner.pooling, manner.max_tokens, manner.query_prefix) == (pooling, 384, "")


def test_an_encoder_whose_files_do_not_fit_is_refused(model: Path, tmp_path: Path) -> None:
    """What is missing would be made up at random, anew in each process."""
    from safetensors.numpy import load_file, save_file

    manner, weights = manner_of(model, "given", {}), load_file(model / "model.safetensors")
    folder = shutil.copytree(model, tmp_path / "model")

    def refusal() -> str:
        with pytest.raises(UserError, match=r"^retrieval\.encoder=given: ") as caught:
            Encoder(folder, manner, threads=2)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    save_file({f"encoder_model.{name}": each for name, each in weights.items()}, folder / "model.safetensors")
    assert "its files lack embeddings." in refusal()
    save_file({k: v for k, v in weights.items() if not k.startswith("pooler.")}, folder / "model.safetensors")
    Encoder(folder, manner, threads=2)
    whole = (model / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "can't be loaded" in refusal()
    (folder / "model.safetensors").write_bytes(whole)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"hidden_size": 32}))
    assert "can't be loaded" in refusal()
    (folder / "config.json").write_text(json.dumps(told))
    kept = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in kept.items() if k != "pad_token"}))
    for file in ("special_tokens_map.json",):
        (folder / file).unlink(missing_ok=True)
    assert "its tokenizer has no pad token" in refusal()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalise", [True, False])
def test_vectors_are_those_of_the_model_by_hand(model: Path, pooling: str, normalise: bool) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    manner = replace(manner_of(model, "given", {}), pooling=pooling, normalise=normalise)
    texts = ["emma", "novel by jane austen " * 3, "", "one two"]
    found = Encoder(model, manner, threads=2).passages(texts)
    tokenizer, bare = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    for text, vector in zip(texts, found, strict=True):  # alone, without padding
        with torch.no_grad():
            hidden = bare(**tokenizer(f"passage: {text}", return_tensors="pt")).last_hidden_state[0]
        by_hand = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
        wanted = by_hand / by_hand.norm() if normalise else by_hand
        np.testing.assert_allclose(vector, wanted.numpy(), atol=1e-5)


def test_a_device_that_is_not_there_is_named(model: Path) -> None:
    for device in ("cuda:99", "nonsense"):
        with pytest.raises(UserError, match=rf"^retrieval\.device={device}: not to be had here \(.*\); set") as caught:
            Encoder(model, manner_of(model, "given", {}), threads=2, device=device)
        assert "\n" not in str(caught.value)


def test_long_texts_are_cut(model: Path, tmp_path: Path) -> None:
    made = Encoder(model, manner_of(model, "given", {"max_tokens": 500}), threads=2)
    text = "one two three four " * 100
    assert np.array_equal(made.passages([text]), made.passages([text + "emma"])), "at the model's 64 positions"
    shorter = shutil.copytree(model, tmp_path / "shorter")
    told = json.loads((shorter / "tokenizer_config.json").read_text())
    (shorter / "tokenizer_config.json").write_text(json.dumps(told | {"model_max_length": 8}))
    made = Encoder(shorter, manner_of(shorter, "given", {"max_tokens": 500}), threads=2)
    text = "one two three four five six seven"
    assert np.array_equal(made.passages([text]), made.passages([text + " emma"])), "at its tokenizer's 8"


# --- searching -------------------------------------------------------------------------------------


def test_the_nearest_come_first_as_in_all_of_them_compared(backend: Dense, config: Settings, model: Path) -> None:
    made = Encoder(model, manner_of(model, "given", {}), threads=2)
    queries = ["emma novel", "lighthouse", "marmalade three", "one"]
    passages = made.passages([join_contents(p.title, p.text) for p in PASSAGES_OF])
    scores = made.queries(queries) @ passages.T
    for k in (1, 3, 8, 100):
        for hits, row in zip(backend.search_batch(queries, k), scores, strict=True):
            order = np.argsort(-row, kind="stable")[:k]
            assert ids(hits) == [PASSAGES_OF[n].id for n in order]
            np.testing.assert_allclose([hit.score for hit in hits], row[order], atol=1e-5)
            assert [replace(hit, score=None) for hit in hits] == [PASSAGES_OF[n] for n in order]


def test_a_query_without_a_character_has_no_hits_and_odd_ones_have(backend: Dense) -> None:
    found = backend.search_batch(["", " \n\t", "emma", "\ud800", "emma " * 5000], 2)
    assert [len(hits) for hits in found] == [0, 0, 2, 2, 2]
    assert backend.search_batch([], 3) == []
    with pytest.raises(ValueError, match="k=0"):
        backend.search_batch(["x"], 0)


def test_passages_are_read_by_id_and_on(backend: Dense) -> None:
    found = backend.document_batch(["emma", "none", "twin-0", "light.txt#0", "\ud800"], 3)
    assert [ids(f) for f in found] == [
        ["emma"],
        [],
        ["twin-0", "twin-1", "twin-2"],
        ["light.txt#0", "light.txt#1"],
        [],
    ]
    assert [ids(f) for f in backend.following_batch(["twin-0", "twin-1", "berlin"], 1)] == [["twin-1"], ["twin-2"], []]
    with pytest.raises(RetrievalError, match="the index holds no passage 'none'"):
        backend.following_batch(["none"], 1)


def test_the_identity_names_the_encoder_and_its_manner(backend: Dense, model: Path) -> None:
    told = backend.identity()
    assert (told.name, told.backend, told.documents) == ("corpus.jsonl", "dense", 8)
    assert told.settings["encoder"] == str(model)
    assert told.settings["vectors"] == "flat"
    assert backend.device == "cpu"
    assert {*Manner.__dataclass_fields__} <= {*told.settings}


def test_what_is_not_finite_is_a_fault(backend: Dense, model: Path) -> None:
    made = Encoder(model, manner_of(model, "given", {}), threads=2)
    made._model.embeddings.word_embeddings.weight.data[5] = np.nan  # "emma"
    assert np.isfinite(made.queries(["novel"])).all()
    with pytest.raises(Fault, match=r"^retrieval\.encoder=given makes no finite vector of 'query: by emma'$"):
        made.queries(["novel", "by emma"])
    assert isinstance(backend._vectors, Flat)
    backend._vectors._vectors = backend._vectors._vectors * np.nan
    with pytest.raises(
        RetrievalError, match=r"a score is no finite number: its vectors are damaged; delete it and build it again$"
    ):
        backend.search_batch(["emma"], 1)


def test_equal_scores_are_in_the_corpus_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BLOCK", 3)
    np.save(tmp_path / "v.npy", np.array([[1.0], [2.0], [1.0], [1.0], [2.0], [1.0], [1.0]], np.float32))
    scores, numbers = Flat(tmp_path / "v.npy", threads=2).search(np.array([[1.0], [-1.0]], np.float32), 4)
    assert numbers.tolist() == [[1, 4, 0, 2], [0, 2, 3, 5]]
    assert scores.tolist() == [[2, 2, 1, 1], [-1, -1, -1, -1]]


@pytest.mark.filterwarnings("error")
def test_vectors_are_compared_on_as_many_processors_as_are_set(tmp_path: Path) -> None:
    """Not on all, and in a run's process for searches on more than the one that Ray gives to numpy."""
    torch = pytest.importorskip("torch")
    before, rng = torch.get_num_threads(), np.random.default_rng(0)
    np.save(tmp_path / "v.npy", rng.standard_normal((50, 4), np.float32))
    try:
        for threads in (before + 1, before):
            flat = Flat(tmp_path / "v.npy", threads)
            assert torch.get_num_threads() == threads
            scores, numbers = flat.search(np.eye(4, dtype=np.float32), 50)
            everything = np.load(tmp_path / "v.npy").T
            assert numbers.tolist() == (-everything).argsort(axis=1).tolist()
            np.testing.assert_allclose(scores, -np.sort(-everything, axis=1))
    finally:
        torch.set_num_threads(before)


# --- building --------------------------------------------------------------------------------------


def test_vectors_that_the_disk_has_no_room_for_are_a_fault_and_end_no_process(tmp_path: Path) -> None:
    np.save(tmp_path / PART, np.ones((3, 2), np.float32))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / FLAT).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        join_vectors([tmp_path], tmp_path / "out", "flat", Settings(encoder="x"))


def test_an_interrupted_build_encodes_no_part_twice(
    corpus: Path, config: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "PART", 3)
    encoded: list[int] = []
    passages = Encoder.passages

    def counting(self: Encoder, texts: list[str]) -> Any:
        if len(encoded) == 2:
            encoded.append(-1)
            raise KeyboardInterrupt
        encoded.append(len(texts))
        return passages(self, texts)

    monkeypatch.setattr(Encoder, "passages", counting)
    with pytest.raises(KeyboardInterrupt):
        index_for(corpus, config, tmp_path)
    counted: list[tuple[int, int]] = []
    index = index_for(corpus, config, tmp_path, Watch(count=lambda done, total: counted.append((done, total))))
    assert encoded == [3, 3, -1, 2]
    assert [*dict.fromkeys(counted)] == [(3, 8), (6, 8), (8, 8)]
    opened = open_backend(config, index)
    assert ids(opened.search_batch(["lighthouse two"], 1)[0])
    assert sorted(file.name for file in index.iterdir()) == [
        *("ends.npy", "ids.npy", "manifest.json", names.FILE, "numbers.npy", "passages.jsonl", "vectors.npy")
    ]
    opened.close()


def test_an_index_says_its_encoder_and_takes_no_other(
    corpus: Path, config: Settings, model: Path, tmp_path: Path
) -> None:
    index = index_for(corpus, config, tmp_path)
    opened = open_backend(Settings(index=str(index)), index)
    opened.close()
    moved = shutil.copytree(model, tmp_path / "moved")
    open_backend(Settings(encoder=str(moved), query_prefix=""), index).close()
    other = encoder(tmp_path / "other", seed=1)
    with pytest.raises(
        UserError, match=r"was made with .*, and retrieval\.encoder=.*other differs in weights; use that"
    ):
        open_backend(Settings(encoder=str(other)), index)
    with pytest.raises(UserError, match="differs in pooling"):
        open_backend(Settings(index=str(index), pooling="cls"), index)
    assert index_for(corpus, Settings(encoder=str(other)), tmp_path) != index
    assert index_for(corpus, Settings(encoder=str(model), pooling="cls"), tmp_path) != index
    assert index_for(corpus, Settings(encoder=str(moved)), tmp_path) == index


def test_a_search_has_the_prefix_of_now_and_not_of_the_run_that_built_the_index(
    corpus: Path, config: Settings, model: Path, tmp_path: Path
) -> None:
    asked = Settings(encoder=str(model), query_prefix="two: ")
    index = index_for(corpus, asked, tmp_path)
    assert index_for(corpus, config, tmp_path) == index, "passages don't depend on it"

    def prefix(config: Settings) -> str:
        opened = open_backend(config, index)
        opened.close()
        return str(opened.identity().settings["query_prefix"])

    assert (prefix(config), prefix(asked)) == ("query: ", "two: ")
    assert prefix(Settings(index=str(index))) == "two: ", "an index that is named says how it is searched"


def test_an_index_names_the_encoder_that_is_to_be_fetched(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder by its whole path: the index is opened from another one."""
    monkeypatch.chdir(model.parent)
    recipe = dense.DenseRecipe(Settings(encoder=model.name))
    assert recipe.made_with["encoder"] == str(model)
    folder = tmp_path / "hybrid"
    (folder / "dense").mkdir(parents=True)
    told: dict[str, Any] = {"format": FORMAT, "documents": 1, "corpus": "c", "corpus_checksum": "0"}
    write_manifest(folder, Manifest(**told, backend="hybrid", made_with={"bm25": "a", "dense": "b"}))
    write_manifest(folder / "dense", Manifest(**told, backend="dense", made_with={"encoder": "org/name"}))
    for index in (folder, folder / "dense"):
        config = Settings(index=str(index), reranker="org/cross")
        assert models_of(config) == [("retrieval.encoder", "org/name"), ("retrieval.reranker", "org/cross")]
    assert models_of(Settings(index=str(folder), encoder="own")) == [("retrieval.encoder", "own")]
    assert models_of(Settings(index=str(tmp_path))) == []
    assert models_of(RetrievalConfig(index=str(folder))) == []


def test_an_index_of_the_hubs_encoder_outlives_its_next_commit(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = tmp_path / "models--org--name" / "snapshots"
    old = shutil.copytree(model, snapshots / "old")
    new = shutil.copytree(model, snapshots / "a newer one")
    (snapshots / "a part").mkdir()
    config = new / "config.json"
    config.write_text(config.read_text().replace("{", '{"note": 1,', 1))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(encoders_module, "encoder_folder", lambda given, key: new)
    made = manner_of(old, "org/name", {})
    found, folder = encoder_of(tmp_path / "index", asdict(made), None, {})
    assert (found, folder) == (made, old)
    shutil.rmtree(old)
    with pytest.raises(UserError, match=r"was made with org/name, and .*=org/name differs in weights; use that one"):
        encoder_of(tmp_path / "index", asdict(made), None, {})


def test_what_is_no_whole_dense_index_is_named(index: Path, config: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no manifest"):
        open_backend(config, tmp_path)
    (index / PASSAGES).write_bytes((index / PASSAGES).read_bytes()[:-1])
    with pytest.raises(
        UserError, match=r"can't be read \(passages\.jsonl has .* bytes, not .*\); delete it and build it again"
    ):
        open_backend(config, index)
    (index / "vectors.npy").unlink()
    with pytest.raises(UserError, match="can't be read"):
        open_backend(config, index)


ARCHIVE, PICKLE = b"PK\3\4", b"\x80\4N."


@pytest.mark.parametrize("file", ["ends.npy", "ids.npy", "numbers.npy", "vectors.npy"])
@pytest.mark.parametrize("content", [b"", ARCHIVE, PICKLE, np.array(3), np.zeros((3, 3, 3)), np.zeros(0), "short"])
def test_an_array_that_is_damaged_is_named(index: Path, config: Settings, file: str, content: Any) -> None:
    if isinstance(content, bytes):
        (index / file).write_bytes(content)
    else:
        np.save(index / file, np.load(index / file)[:-1] if isinstance(content, str) else content)
    with pytest.raises(UserError, match=r"(can't be read \(.*|holds .* vectors, not .*); delete it and build it again"):
        open_backend(config, index)


def test_a_way_to_keep_vectors_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"keeps its vectors as flatt, which isn.t one of flat, hnsw, ivf, ivf_sq8"):
        open_vectors(tmp_path, "flatt", Settings(encoder="x"))


def test_an_encoder_is_needed_and_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"retrieval=dense needs retrieval\.encoder=FOLDER or a name on the hub"):
        Settings()
    with pytest.raises(UserError, match=r"retrieval\.encoder=/no/where: no such folder, and not a hub's name"):
        dense.ensure(tmp_path / "c", Settings(encoder="/no/where"), tmp_path)
    with pytest.raises(UserError, match=r"retrieval\.vectors must be one of|did you mean"):
        Settings(encoder="x", vectors="flatt")


# --- the store -------------------------------------------------------------------------------------


def test_ids_with_the_same_digest_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval_service.store.name_digest", len)
    part = [Record(name, f"text {name}") for name in ("aa", "b", "cc", "dd", "e")]
    write_part(tmp_path, part)
    (tmp_path / "out").mkdir()
    join_parts([tmp_path], tmp_path / "out")
    store = PassageStore(tmp_path / "out")
    assert [store.number(name) for name in ("aa", "b", "cc", "dd", "e", "f", "gg", "hhh")] == [
        0,
        1,
        2,
        3,
        4,
        *[None] * 3,
    ]
    assert store.passage(3) == Passage(id="dd", title="", text="text dd")
    store.close()


# --- Faiss -----------------------------------------------------------------------------------------


def parts_of(folder: Path, sizes: list[int]) -> list[Path]:
    rng = np.random.default_rng(0)
    made = []
    for number, size in enumerate(sizes):
        (folder / f"{number}").mkdir(parents=True)
        drawn = rng.normal(size=(size, 16)).astype(np.float32)
        np.save(folder / f"{number}" / "vectors.npy", drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
        made.append(folder / f"{number}")
    return made


def test_more_parts_are_joined_than_a_process_may_have_files(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, [2] * 60)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, hard))
    try:
        join_vectors(parts, tmp_path, "flat", Settings(encoder="x"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(open_vectors(tmp_path, "flat", Settings(encoder="x"))) == 120


@pytest.mark.jvm
def test_lucenes_graph_finds_what_all_of_them_compared_give(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, [350, 450, 200])
    np.save(parts[2] / PART, 3 * np.load(parts[2] / PART))  # vectors of any length
    how = Settings(encoder="x")
    for kind in ("hnsw", "flat"):
        (tmp_path / kind).mkdir()
        join_vectors(parts, tmp_path / kind, kind, how)
    (tmp_path / "hnsw").rename(tmp_path / "moved")
    exact = open_vectors(tmp_path / "flat", "flat", how)
    queries = np.load(parts[1] / PART)[:50] + 0.1
    shares = {}
    for beam in (1, 100):
        found = open_vectors(tmp_path / "moved", "hnsw", replace(how, beam=beam))
        assert len(found) == len(exact) == 1000
        (scores, numbers), (true_scores, truth) = found.search(queries, 10), exact.search(queries, 10)
        shares[beam] = overlap(numbers, truth)
        found.close()
    assert shares[100] >= 0.98
    assert shares[1] < shares[100]
    agreeing = numbers == truth
    np.testing.assert_allclose(scores[agreeing], true_scores[agreeing], atol=1e-5)


@pytest.mark.jvm
def test_an_index_of_lucenes_graph_is_built_searched_and_refused_when_damaged(
    corpus: Path, config: Settings, tmp_path: Path
) -> None:
    asked = replace(config, vectors="hnsw")
    index = index_for(corpus, asked, tmp_path)
    opened, exact = open_backend(asked, index), open_backend(config, index_for(corpus, config, tmp_path))
    assert opened.identity().settings["beam"] == 100
    queries = ["emma novel", "", "marmalade three"]
    for k in (1, 8, 1000):
        found, wanted = opened.search_batch(queries, k), exact.search_batch(queries, k)
        for hits, true in zip(found, wanted, strict=True):
            assert {*ids(hits)} == {*ids(true)} if k > 1 else ids(hits) == ids(true)
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in true], abs=1e-5)
    opened.close()
    exact.close()
    for file in (index / "vectors.lucene").glob("segments_*"):
        file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(
        UserError, match=r"vectors\.lucene: Lucene cannot open it \(.*\); delete the index and build it again"
    ):
        open_backend(asked, index)
    shutil.rmtree(index / "vectors.lucene")
    with pytest.raises(UserError, match=r"vectors\.lucene: not a Lucene index"):
        open_backend(asked, index)


@pytest.mark.jvm
def test_both_rankings_of_a_hybrid_are_lucenes_in_one_process(corpus: Path, model: Path, tmp_path: Path) -> None:
    asked = hybrid.Settings(encoder=str(model), vectors="hnsw")
    opened = open_backend(asked, index_for(corpus, asked, tmp_path))
    assert "emma" in ids(opened.search_batch(["emma novel"], 3)[0])
    opened.close()


def test_vectors_that_lucene_cannot_take_are_refused_before_any_is_made(
    corpus: Path, config: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "LONGEST", 8)
    monkeypatch.setattr(Encoder, "passages", lambda self, texts: pytest.fail("encoded"))
    with pytest.raises(UserError, match=r"hnsw takes vectors of at most 8 numbers; those of .* have \d+: take flat or"):
        index_for(corpus, replace(config, vectors="hnsw"), tmp_path)
    monkeypatch.setattr(dense, "LONGEST", 1024)

    def refuse(heap: str, threads: int) -> None:
        raise UserError("no Java 21 or newer")

    monkeypatch.setattr(jvm, "start_jvm", refuse)
    with pytest.raises(UserError, match=r"^no Java 21 or newer"):
        index_for(corpus, replace(config, vectors="hnsw"), tmp_path)


@pytest.mark.parametrize(("kind", "least", "apart"), [("ivf", 1.0, 1e-5), ("ivf_sq8", 0.95, 0.06)])
def test_faiss_finds_what_all_of_them_compared_give(tmp_path: Path, kind: str, least: float, apart: float) -> None:
    """With all lists looked through; of quantised vectors nearly so. From the folder, wherever it is moved."""
    pytest.importorskip("faiss")
    parts = parts_of(tmp_path, [700, 900, 400])
    for name in (kind, "flat"):
        (tmp_path / name).mkdir()
        join_vectors(parts, tmp_path / name, name, Settings(encoder="x", lists=8))
    assert sorted(file.name for file in (tmp_path / kind).iterdir()) == ["vectors.faiss", "vectors.lists"]
    (tmp_path / kind).rename(tmp_path / "moved")
    found = Faiss(tmp_path / "moved" / "vectors.faiss", probes=100, threads=2)
    exact = Flat(tmp_path / "flat" / "vectors.npy", threads=2)
    assert len(found) == len(exact) == 2000
    queries = np.load(parts[1] / "vectors.npy")[:50] + 0.1
    (scores, numbers), (true_scores, truth) = found.search(queries, 10), exact.search(queries, 10)
    assert overlap(numbers, truth) >= least
    np.testing.assert_allclose(scores, true_scores, atol=apart)
    few = Faiss(tmp_path / "moved" / "vectors.faiss", probes=1, threads=2).search(queries, 10)[1]
    assert not np.array_equal(few, numbers)


def test_an_index_of_faiss_is_built_and_searched(corpus: Path, config: Settings, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    asked = replace(config, vectors="ivf", lists=2)
    opened = open_backend(asked, index_for(corpus, asked, tmp_path))
    exact = open_backend(config, index_for(corpus, config, tmp_path))
    assert opened.identity().settings["probes"] == 32
    queries = ["emma novel", "marmalade three"]
    for hits, wanted in zip(opened.search_batch(queries, 8), exact.search_batch(queries, 8), strict=True):
        assert {*ids(hits)} == {*ids(wanted)}
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in wanted], abs=1e-5)
    opened.close()
    exact.close()


def test_without_faiss_one_line_says_what_to_do(
    corpus: Path, config: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    encoded: list[int] = []
    monkeypatch.setattr(Encoder, "passages", lambda self, texts: encoded.append(1))
    with pytest.raises(UserError, match=r"need Faiss: `pip install faiss-cpu`; flat and hnsw do without"):
        index_for(corpus, replace(config, vectors="ivf"), tmp_path)
    assert not encoded, "it is said before the passages are encoded"


def test_lists_grow_with_the_root_of_the_passages() -> None:
    assert [default_lists(n) for n in (1, 1000, 100_000, 21_000_000)] == [1, 15, 1265, 18330]


def test_what_an_index_was_made_with_is_in_its_manifest(built: Path) -> None:
    told = json.loads((built / "manifest.json").read_text())
    assert told["backend"] == "dense"
    assert told["made_with"]["pooling"] == "mean"
    assert told["made_with"]["vectors"] == "flat"
