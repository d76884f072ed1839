"""SPLADE: passages and queries as weights of a vocabulary's terms, which a masked language model gives (``sparse.py``),
in a Lucene index of impacts, as Anserini makes and searches it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import UserError
from agent.records import Passage
from agent.settings import PATH, bounded
from agent.visible import printable
from retrieval_service import jvm
from retrieval_service.backend import Identity, Read
from retrieval_service.config import RetrievalConfig
from retrieval_service.corpus import Record
from retrieval_service.encoder import KEY, encoder_folder, encoder_of, manner_of
from retrieval_service.index import Builder, ensure_index
from retrieval_service.lucene import LuceneBuilder
from retrieval_service.lucene_searcher import LuceneSearcher
from retrieval_service.sparse import SparseEncoder
from retrieval_service.watch import SILENT, Watch

AT_ONCE = 256
"""Passages of a part that are encoded together."""
NOTHING = "(nothing)"
"""The term of a passage without any: Lucene leaves out a text without terms, and no tokenizer has this token."""


@dataclass
class Settings(RetrievalConfig):
    """Settings of ``retrieval=splade``."""

    backend: str = "splade"
    encoder: str | None = field(default=None, metadata=PATH)
    """A folder with a SPLADE model in safetensors, or its name on the hub. An index that is named says its own."""
    max_tokens: int | None = bounded(None, "at least 8")
    """Where a passage is cut off; None: where the encoder's own files say, else at 256."""

    def __post_init__(self) -> None:
        RetrievalConfig.__post_init__(self)
        if self.encoder is None and self.index is None:
            raise UserError(f"retrieval=splade needs {KEY}=FOLDER or a name on the hub, such as naver/splade-v3")

    @property
    def asked(self) -> dict[str, Any]:
        """The encoder's manner, as ``encoder_of`` reads it: there are no prefixes, and the largest weight counts."""
        return {
            "pooling": "max",
            "normalise": False,
            "query_prefix": "",
            "passage_prefix": "",
            "max_tokens": self.max_tokens,
        }


class SpladeRecipe:
    """How the indexes of ``retrieval=splade`` are made. Reads the encoder's files. Raises ``UserError`` without one."""

    backend = "splade"
    slow = True

    def __init__(self, config: Settings) -> None:
        if config.encoder is None:
            raise UserError(f"building an index of SPLADE's needs {KEY}=FOLDER or a name on the hub")
        self._config = config
        self._folder = encoder_folder(config.encoder, KEY)
        self._manner = manner_of(self._folder, config.encoder, config.asked)
        anserini = jvm.anserini_version()
        self.key = f"splade-{self._manner.key}-anserini-{anserini}"
        self.made_with: dict[str, Any] = {**asdict(self._manner), "anserini": anserini}

    def builder(self, work: Path) -> Builder:
        """Loads the encoder, and starts the JVM."""
        config = self._config
        encoder = SparseEncoder(self._folder, self._manner, threads=config.threads, device=config.device)
        return SpladeBuilder(work, config, encoder)


class SpladeBuilder(LuceneBuilder):
    """A ``Builder``: Anserini indexes a part while the next one is encoded."""

    collection = "JsonVectorCollection"

    def __init__(self, work: Path, config: Settings, encoder: SparseEncoder) -> None:
        super().__init__(work, config)
        self._encoder = encoder

    def _lines(self, part: Sequence[Record], told: Callable[[int], None]) -> Iterator[str]:
        for at in range(0, len(part), AT_ONCE):
            records = part[at : at + AT_ONCE]
            for record, weights in zip(
                records, self._encoder.weights([record.contents for record in records]), strict=True
            ):
                said = {"id": record.id, "contents": record.contents, "vector": weights or {NOTHING: 1}}
                yield json.dumps(said, ensure_ascii=False) + "\n"
            told(at + len(records))

    def _terms(self, args: Any) -> None:
        args.impact = args.pretokenized = True


class Splade(LuceneSearcher):
    """A ``Backend``: the passages with the highest sum of products of their terms' weights and the query's, in whole
    numbers (``sparse.STEPS``). For one thread; starts the JVM.

    Raises ``UserError`` that names the folder if ``index`` is no complete SPLADE index, or was made by another encoder.
    """

    backend = "splade"
    java = "io.anserini.search.SimpleImpactSearcher"
    lanes = 1  # another one would load the encoder again

    _config: Settings

    def _check_asked(self) -> None:
        if self._manifest is None:
            raise UserError(
                f"{self._index}: not a SPLADE index of this program's (it has no manifest); build it with mode=index"
            )
        self._manner, self._folder = encoder_of(
            self._index, self._manifest.made_with, self._config.encoder, self._config.asked
        )

    def _set_up(self) -> None:
        config = self._config
        self._encoder = SparseEncoder(self._folder, self._manner, threads=config.threads, device=config.device)
        self.device = self._encoder.device
        self._array_list, self._hash_map = jvm.java_class("java.util.ArrayList"), jvm.java_class("java.util.HashMap")
        self._integer = jvm.java_class("java.lang.Integer")

    def begin_batch(self, queries: Sequence[str], k: int) -> Read:
        """See ``Backend``. A query without a character, or without a term that is indexed, has no hits.

        Raises ``ValueError`` for ``k < 1``, ``RetrievalError`` if Lucene fails, and ``Fault`` for weights that aren't
        finite.
        """
        if k < 1:
            raise ValueError(f"k={k}: must be at least 1")
        asked = [at for at, query in enumerate(queries) if query.strip()]
        if not asked:
            return lambda: [()] * len(queries)
        weights = self._encoder.weights([printable(queries[at]) for at in asked])
        with jvm.calling():
            maps = self._array_list()
            for weighed in weights:
                terms = self._hash_map()
                for term, weight in weighed.items():
                    terms.put(term, self._integer(weight))
                maps.add(terms)
        read = self._begin(maps, len(asked), k)

        def all_of_them() -> list[tuple[Passage, ...]]:
            found = dict(zip(asked, read(), strict=True))
            return [found.get(at, ()) for at in range(len(queries))]

        return all_of_them

    def identity(self) -> Identity:
        """The index's, by its manifest, with the encoder and its manner."""
        return self._identity(None, asdict(self._manner))


def ensure(corpus: Path, config: Settings, cache: Path, watch: Watch = SILENT) -> Path:
    """See ``retrieval_service.rankers.index_for``."""
    return ensure_index(corpus, SpladeRecipe(config), cache, watch)


Backend = Splade
"""What ``retrieval.backend=splade`` opens."""
