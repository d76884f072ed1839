"""The trained tokenizer: what it keeps whole, what it gives back, and that every loader reads the same one."""

from __future__ import annotations

import random
import unicodedata

import numpy as np
import pytest

from agent.config import AgentConfig
from agent.dialogue import Dialogue
from agent.protocol import PROTOCOLS
from agent.tokens import Tokenizer
from tasks.config import DataConfig, Novice
from tasks.demonstrations import encode
from tasks.load import load
from tasks.novice import demonstrations
from tasks.tokenizer import END, train
from tasks.world import RELATIONS, World, name_words

SEARCH = PROTOCOLS["search"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> list[str]:
    task = load(DataConfig(demonstrations=1), 0, tmp_path_factory.mktemp("cache"))
    return list(task.tokenizer_text(SEARCH, 2))


@pytest.fixture(scope="module")
def folder(text, tmp_path_factory):
    return train(text, tags=SEARCH.tags, folder=tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return Tokenizer(folder)


@pytest.mark.slow
def test_names_keywords_and_tags_are_single_tokens(tokenizer):
    for word in (*name_words(), *RELATIONS):
        assert len(tokenizer.encode(f" {word}")) == 1
    assert max(len(tokenizer.encode(word)) for word in name_words()) <= 2
    for tag in (*SEARCH.tags, END):
        assert len(tokenizer.encode(tag)) == 1
        assert tokenizer.encode(tag)[0] in tokenizer.special_ids
        assert tokenizer.encode(f"x{tag}y")[1:-1] == tokenizer.encode(tag), "wherever it stands"


def test_a_name_has_one_form_wherever_it_is_copied_from_or_to(tokenizer):
    """The tokens of a name in the question, in a passage's sentence, in a query and in an answer are the same."""
    world = World(3)
    question = world.eval_questions(5)[0]
    name = question.id.split("/")[0].replace("-", " ")
    wanted = tokenizer.encode(f" {name}")
    sentence = next(p.text for p in world.passages if f" {name} is" in p.text)
    for text in (question.text, sentence, f"<search> {name} author</search>", f"<answer> {name}</answer>"):
        ids = tokenizer.encode(text)
        assert any(ids[i : i + 2] == wanted for i in range(len(ids)))


def test_vocabulary(tokenizer):
    vocabulary = tokenizer._tokenizer.get_vocab()
    assert 800 < len(vocabulary) <= 1024
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert tokenizer.eos_ids == tuple(tokenizer.encode(END))


def test_any_text_comes_back(tokenizer):
    rng = random.Random(0)
    ranges = [(0, 128), (0, 0x3000), (0xE000, 0x110000)]
    texts = ["".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(40)) for _ in range(300)]
    texts += ["", " ", "  two  spaces , and . dots !", "a\r\n\n\tb", "日本語 and 🙂", " \x00\x7f"]
    for text in texts:
        whole = unicodedata.normalize("NFC", text)
        assert tokenizer.decode(tokenizer.encode(text)) == whole
    # What text can't hold, ids can: every byte by itself is a token.
    assert len({tokenizer.decode([i]) for i in range(256)}) > 128


def test_tags_are_shown_when_special_tokens_are_skipped(tokenizer):
    ids = tokenizer.encode(f"<search> x</search>{END}")
    assert tokenizer._tokenizer.decode(ids, skip_special_tokens=True) == "<search> x</search>"


def test_equal_texts_give_equal_files(text, folder, tmp_path):
    again = train(text, tags=SEARCH.tags, folder=tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.slow
def test_the_text_does_not_depend_on_the_worlds_seed(text, tmp_path):
    other = load(DataConfig(world_seed=5, demonstrations=2), 1, tmp_path)
    assert list(other.tokenizer_text(SEARCH, 2)) == text


def test_beside_a_qwen2_configuration_it_is_the_same_tokenizer(tokenizer, tmp_path, text, monkeypatch):
    """transformers puts a splitter of its own in place of the saved one there."""
    from transformers import Qwen2Config

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer.save(tmp_path)
    Qwen2Config(vocab_size=1024, hidden_size=8, num_attention_heads=1).save_pretrained(tmp_path)
    again = Tokenizer(tmp_path)
    for sample in (*text[:3], 'x "é" 12  \n\n y</search>日本'):
        assert again.encode(sample) == tokenizer.encode(sample)
    assert again.eos_ids == tokenizer.eos_ids


def test_other_tags_and_an_instructing_prompt(tmp_path):
    autocoa = PROTOCOLS["autocoa"]
    text = [p.text for p in World(0).passages[:200]]
    tokenizer = Tokenizer(train(text, tags=autocoa.tags, folder=tmp_path, vocab_size=400))
    assert len(tokenizer._tokenizer) == 400
    assert [tokenizer.decode([tokenizer.encode(tag)[0]]) for tag in autocoa.tags] == list(autocoa.tags)
    prompt = Dialogue.of(tokenizer, AgentConfig(protocol="autocoa", chat=False)).prompt_ids("who?")
    assert "Question: who?" in tokenizer.decode(prompt)


@pytest.mark.slow
def test_how_long_episodes_are(tokenizer):
    """An expert's episodes of 1, 2 and 3 hops fit the tiny model's context many times over."""
    dialogue = Dialogue.of(tokenizer, AgentConfig(prompt="plain", chat=False))
    expert = Novice(hop_shares=[1, 1, 1], answers_early=0, omits_keyword=0)
    lengths: dict[str, list[int]] = {}
    for d in demonstrations(0, 300, SEARCH, 2, expert):
        lengths.setdefault(d.question.kind, []).append(len(encode(d, dialogue)[0]))
    means = [float(np.mean(lengths[f"{hops}-hop"])) for hops in (1, 2, 3)]
    assert means == pytest.approx([60, 109, 158], abs=2)
    assert max(max(some) for some in lengths.values()) <= 165
