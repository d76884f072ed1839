"""Small random models, as folders: an encoder and a cross-encoder. Words that two texts share make their vectors
alike; ``overlap`` says how alike two searches are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.records import Passage

WORDS = ("emma", "novel", "by", "jane", "austen", "persuasion", "album", "berlin", "lighthouse", "marmalade")
PASSAGES = [
    Passage(id="emma", title="Emma", text="novel by jane austen"),
    Passage(id="persuasion", title="Persuasion", text="novel by jane austen"),
    Passage(id="berlin", title="Album", text="berlin album one"),
    Passage(id="light.txt#0", title="", text="lighthouse one"),
    Passage(id="light.txt#1", title="", text="lighthouse two"),
]
"""Texts of such words; the last two are of one document."""
MORE = ("one", "two", "three", "four", "query", "passage")


def _model(folder: Path, kind: str, seed: int, **sizes: Any) -> Path:
    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", ":", *WORDS, *MORE])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        initializer_range=0.5,
        **sizes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, kind)(config)
    model.save_pretrained(folder)
    return folder


def encoder(folder: Path, seed: int = 0) -> Path:
    """An encoder with the files of sentence-transformers: mean pooling, normalised, with prompts."""
    _model(folder, "BertModel", seed)
    (folder / "1_Pooling").mkdir()
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": n, "path": path, "type": f"sentence_transformers.models.{kind}"}
            for n, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling"), ("2_N", "Normalize")])
        ],
        "1_Pooling/config.json": {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", "document": "passage: "}},
        "sentence_bert_config.json": {"max_seq_length": 32},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    return folder


def cross_encoder(folder: Path, seed: int = 0) -> Path:
    """A sequence classifier of one score."""
    return _model(folder, "BertForSequenceClassification", seed, num_labels=1)


def masked_model(folder: Path, seed: int = 0) -> Path:
    """A masked language model."""
    return _model(folder, "BertForMaskedLM", seed)


def ids(hits: tuple[Passage, ...]) -> list[str]:
    return [hit.id for hit in hits]


def overlap(found: npt.NDArray[np.int64], truth: npt.NDArray[np.int64]) -> float:
    """Of two searches of the same queries, (n, k) numbers each: the mean share of the second that is in the first."""
    shares = [len({*a} & {*b}) / len(b) for a, b in zip(found.tolist(), truth.tolist(), strict=True)]
    return float(np.mean(shares))
