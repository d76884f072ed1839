"""Dense retrieval: passages and queries as vectors of one encoder, the nearest first (``encoder.py``,
``vectors.py``)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import RetrievalError, UserError, one_of
from agent.records import Passage
from agent.settings import PATH, TEXT, bounded
from agent.visible import printable
from retrieval_service import jvm
from retrieval_service.backend import Identity
from retrieval_service.config import RetrievalConfig
from retrieval_service.corpus import Record
from retrieval_service.encoder import KEY, POOLINGS, Encoder, encoder_folder, encoder_of, manner_of
from retrieval_service.hnsw import LONGEST
from retrieval_service.index import Builder, aside, check_index, ensure_index, keep_part, part_of
from retrieval_service.store import PassageStore, join_parts, write_part
from retrieval_service.vectors import KINDS, LISTED, PART, import_faiss, join_vectors, open_vectors
from retrieval_service.watch import SILENT, Watch

AT_ONCE = 1024
"""Passages of a part that are encoded together."""


@dataclass
class Settings(RetrievalConfig):
    """Settings of ``retrieval=dense``. What isn't set of an encoder is taken from its own files."""

    backend: str = "dense"
    encoder: str | None = field(default=None, metadata=PATH)
    """A folder with a transformers encoder in safetensors, or its name on the hub. An index that is named says its
    own."""
    query_prefix: str | None = field(default=None, metadata=TEXT)
    """What goes before a query, such as ``query:`` with a space after it."""
    passage_prefix: str | None = field(default=None, metadata=TEXT)
    pooling: str | None = None
    """How the tokens' vectors become one: ``mean``, ``cls`` or ``last``."""
    normalise: bool | None = None
    """Whether vectors are made as long as 1: nearness is then the cosine."""
    max_tokens: int | None = bounded(None, "at least 8")
    """Where a passage is cut off."""
    vectors: str = "flat"
    """How they are kept and searched: ``flat``, exact; ``hnsw``, Lucene's; with Faiss ``ivf`` and ``ivf_sq8``
    (``retrieval_service/vectors.py``)."""
    beam: int = bounded(100, "at least 1")
    """Candidates that a search of ``hnsw`` keeps, at least: more find more, and take longer."""
    lists: int = bounded(0, "at least 0")
    """Lists of ``ivf``; 0: 4 √n for n passages."""
    probes: int = bounded(32, "at least 1")
    """Lists that are looked through for a query."""

    def __post_init__(self) -> None:
        RetrievalConfig.__post_init__(self)
        one_of(self.vectors, KINDS, "retrieval.vectors")
        if self.encoder is None and self.index is None:
            raise UserError(
                f"retrieval={self.backend} needs {KEY}=FOLDER or a name on the hub, such as intfloat/e5-base-v2"
            )
        if self.pooling is not None:
            one_of(self.pooling, POOLINGS, "retrieval.pooling")

    @property
    def asked(self) -> dict[str, Any]:
        """What is set of the encoder's manner."""
        return {
            name: getattr(self, name)
            for name in ("query_prefix", "passage_prefix", "pooling", "normalise", "max_tokens")
        }


class DenseRecipe:
    """How the indexes of ``retrieval=dense`` are made. Reads the encoder's files. Raises ``UserError`` without one."""

    backend = "dense"
    slow = True

    def __init__(self, config: Settings) -> None:
        if config.encoder is None:
            raise UserError(f"building an index of vectors needs {KEY}=FOLDER or a name on the hub")
        if config.vectors in LISTED:
            import_faiss()  # it is needed last, hours after the first passage
        self._config = config
        self._folder = encoder_folder(config.encoder, KEY)
        self._manner = manner_of(self._folder, config.encoder, config.asked)
        lists = f"-{config.lists}" if config.lists and config.vectors in LISTED else ""
        self.key = f"dense-{self._manner.key}-{config.vectors}{lists}"
        self.made_with: dict[str, Any] = {**asdict(self._manner), "vectors": config.vectors}

    def builder(self, work: Path) -> Builder:
        """Loads the encoder."""
        config = self._config
        encoder = Encoder(self._folder, self._manner, threads=config.threads, device=config.device)
        if config.vectors == "hnsw" and encoder.size > LONGEST:
            raise UserError(
                f"retrieval.vectors=hnsw takes vectors of at most {LONGEST} numbers; those of {config.encoder} have "
                f"{encoder.size}: take flat or ivf"
            )
        if config.vectors == "hnsw":
            jvm.start_jvm(config.heap, config.threads)  # it is needed last, too
        return DenseBuilder(work, encoder, config)


class DenseBuilder:
    """A ``Builder``. Memory: the vectors of one part."""

    def __init__(self, work: Path, encoder: Encoder, config: Settings) -> None:
        self._work, self._encoder, self._config = work, encoder, config
        self._parts: list[Path] = []

    def take(self, number: int, part: Sequence[Record], told: Callable[[int], None]) -> None:
        """Encodes the part."""
        done = part_of(self._work, number)
        self._parts.append(done)
        if done.exists():
            return
        busy = aside(self._work, done.name)
        shutil.rmtree(busy, ignore_errors=True)
        busy.mkdir()
        vectors = []
        for at in range(0, len(part), AT_ONCE):
            vectors.append(self._encoder.passages([record.contents for record in part[at : at + AT_ONCE]]))
            told(at + len(vectors[-1]))
        np.save(busy / PART, np.concatenate(vectors))
        write_part(busy, part)
        keep_part(busy, done)

    def finish(self, out: Path) -> None:
        """Joins the parts."""
        out.mkdir()
        join_parts(self._parts, out)
        join_vectors(self._parts, out, self._config.vectors, self._config)

    def close(self) -> None:
        """Nothing goes on behind it."""


class Dense:
    """A ``Backend``: the passages whose vectors have the highest inner product with the query's. For one thread.

    Raises ``UserError`` that names the folder if ``index`` is no complete dense index, or was made by another encoder.
    """

    def __init__(self, index: Path | None, config: Settings) -> None:
        if index is None:
            raise ValueError("dense retrieval needs an index")
        manifest = check_index(index, "dense")
        if manifest is None:
            raise UserError(
                f"{index}: not a dense index of this program's (it has no manifest); build it with mode=index"
            )
        self._index, self._manifest = index, manifest
        self._manner, folder = encoder_of(
            index, manifest.made_with, config.encoder, config.asked, named=config.index is not None
        )
        kind = str(manifest.made_with["vectors"])
        try:
            self._store = PassageStore(index)
            self._vectors = open_vectors(index, kind, config)
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{index}: can't be read ({error}); delete it and build it again") from error
        if not len(self._store) == len(self._vectors) == manifest.documents:
            self.close()
            raise UserError(
                f"{index}: holds {len(self._store)} passages and {len(self._vectors)} vectors, not "
                f"{manifest.documents}; delete it and build it again"
            )
        looked = {"probes": config.probes} if kind in LISTED else {"beam": config.beam} if kind == "hnsw" else {}
        self._settings = {"vectors": kind, **looked}
        self._encoder = Encoder(folder, self._manner, threads=config.threads, device=config.device)
        self.device = self._encoder.device

    def search_batch(self, queries: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """For each query its ``k`` nearest passages with their inner products; none for one without a character.

        Raises ``ValueError`` for ``k < 1``, and ``Fault`` for a vector or a score that isn't finite.
        """
        _check(k)
        asked = [at for at, query in enumerate(queries) if query.strip()]
        found: list[tuple[Passage, ...]] = [()] * len(queries)
        if not asked:
            return found
        vectors = self._encoder.queries([printable(queries[at]) for at in asked])
        scores, numbers = self._vectors.search(vectors, min(k, len(self._store)))
        if not np.isfinite(scores[numbers >= 0]).all():
            raise RetrievalError(
                f"{self._index}: a score is no finite number: its vectors are damaged; delete it and build it again"
            )
        for at, row, places in zip(asked, scores, numbers, strict=True):
            found[at] = tuple(self._hit(int(n), float(s)) for s, n in zip(row, places, strict=True) if n >= 0)
        return found

    def _hit(self, number: int, score: float) -> Passage:
        passage = self._store.passage(number)
        return Passage(id=passage.id, title=passage.title, text=passage.text, score=score)

    def document_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """See ``Backend``. Raises ``ValueError`` for ``k < 1``."""
        _check(k)
        found = []
        for name in document_ids:
            number = self._store.number(printable(name))
            following = () if number is None else islice(self._store.following(number), k - 1)
            found.append(() if number is None else (self._store.passage(number), *following))
        return found

    def following_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """See ``Backend``. Raises ``ValueError`` for ``k < 1`` and ``RetrievalError`` for an id that isn't there."""
        _check(k)
        found = self.document_batch(document_ids, k + 1)
        for name, passages in zip(document_ids, found, strict=True):
            if not passages:
                raise RetrievalError(f"the index holds no passage {name!r}")
        return [passages[1:] for passages in found]

    def identity(self) -> Identity:
        """The index's, by its manifest, with the encoder and its manner."""
        return Identity(
            name=self._manifest.corpus,
            backend="dense",
            documents=self._manifest.documents,
            checksum=self._manifest.corpus_checksum,
            settings={**asdict(self._manner), **self._settings},
        )

    def close(self) -> None:
        """Closes its files."""
        self._vectors.close()
        self._store.close()


def _check(k: int) -> None:
    if k < 1:
        raise ValueError(f"k={k}: must be at least 1")


def ensure(corpus: Path, config: Settings, cache: Path, watch: Watch = SILENT) -> Path:
    """See ``retrieval_service.rankers.index_for``."""
    return ensure_index(corpus, DenseRecipe(config), cache, watch)


Backend = Dense
"""What ``retrieval.backend=dense`` opens."""
