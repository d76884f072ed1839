"""Passages' vectors on disk, and the search for the nearest: exact, by Lucene, or by Faiss where that is installed.

| kind | what | at 21M passages of 768 numbers |
| --- | --- | --- |
| ``flat`` | all of them, compared one after the other: exact | 65 GB, read for each batch |
| ``hnsw`` | Lucene: along a graph of near neighbours, at ``beam`` candidates (``hnsw.py``) | 70 GB, a part of it read |
| ``ivf`` | Faiss: in lists around centres, of which ``probes`` are looked through | 65 GB, a part of it read |
| ``ivf_sq8`` | the same with a byte for each number | 16 GB, a part of it read |

Nearness is the inner product; with normalised vectors that is the cosine. Files are mapped into memory: the system
reads what is needed and keeps what it has room for.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from agent.errors import UserError, shortened
from retrieval_service.arrays import mapped
from retrieval_service.encoder import Vectors
from retrieval_service.hnsw import Hnsw, write_graph
from retrieval_service.index import read_manifest

LISTED = ("ivf", "ivf_sq8")
"""Faiss's, in lists."""
KINDS = ("flat", "hnsw", *LISTED)
PART = "vectors.npy"
FLAT = "vectors.npy"
GRAPH = "vectors.lucene"
FAISS = "vectors.faiss"
LISTS = "vectors.lists"
"""What Faiss keeps the lists' contents in."""
BLOCK = 1 << 16
"""Vectors that are compared at once."""
PER_LIST = 64
"""Vectors that Faiss learns each centre from; it wants at least 39."""

Numbers = npt.NDArray[np.int64]


class How(Protocol):
    """How vectors are kept and searched: of the settings of ``retrieval=dense``."""

    beam: int
    lists: int
    probes: int
    heap: str
    threads: int


class Nearest(Protocol):
    """The vectors of an index."""

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Numbers]:
        """(n, k) scores, highest first, and numbers of the passages; -1 where there are fewer."""
        ...

    def close(self) -> None:
        """Lets its files go."""
        ...

    def __len__(self) -> int: ...


def default_lists(vectors: int) -> int:
    """How many lists so many vectors are put into: about 4 √n, as Faiss's guidelines have it."""
    return max(1, min(round(4 * math.sqrt(vectors)), vectors // PER_LIST or 1))


class Flat:
    """Exact search, by torch, on ``threads`` processors: numpy has all of them, and within Ray one.

    Memory: ``BLOCK`` scores for each query, and the pages of the file that the system keeps.
    """

    def __init__(self, file: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor is anything written
            self._vectors: Any = torch.from_numpy(mapped(file, np.float32, 2))

    def __len__(self) -> int:
        return len(self._vectors)

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Numbers]:
        """See ``Nearest``. Passages of equal scores are in the corpus's order; where not all of them are among the
        ``k``, it isn't defined which ones are."""
        torch, asked = self._torch, self._torch.from_numpy(queries)
        scores = torch.full((len(queries), 0), -math.inf)
        numbers = torch.full((len(queries), 0), -1)
        for start in range(0, len(self._vectors), BLOCK):
            found = asked @ self._vectors[start : start + BLOCK].T
            here = torch.arange(found.shape[1]).expand(found.shape)
            if found.shape[1] > k:
                here = found.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
                found = found.gather(1, here)
            scores, numbers = torch.cat((scores, found), 1), torch.cat((numbers, here + start), 1)
            # Stable: those of lower number stay before their equals.
            order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
            scores, numbers = scores.gather(1, order), numbers.gather(1, order)
        return scores.numpy(), numbers.numpy()

    def close(self) -> None:
        """The system unmaps the file with the last reference."""


class Faiss:
    """Approximate search in lists around centres."""

    def __init__(self, file: Path, probes: int, threads: int) -> None:
        faiss = import_faiss()
        faiss.omp_set_num_threads(threads)
        # Lists on disk are mapped without a further flag; with IO_FLAG_MMAP they are left out, and a search crashes.
        flags = faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_ONDISK_SAME_DIR
        try:
            self._index: Any = faiss.read_index(str(file), flags)
        except RuntimeError as error:
            raise UserError(
                f"{file}: Faiss cannot open it ({shortened(error)}); delete the index and build it again"
            ) from error
        faiss.ParameterSpace().set_index_parameter(self._index, "nprobe", min(probes, self._index.nlist))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Numbers]:
        """See ``Nearest``."""
        scores, numbers = self._index.search(queries, k)
        return scores, numbers

    def close(self) -> None:
        """Faiss closes the index with the last reference."""


def open_vectors(folder: Path, kind: str, how: How) -> Nearest:
    """The vectors of an index in ``folder``. Raises ``UserError`` that names the file that can't be opened."""
    if kind == "flat":
        return Flat(folder / FLAT, how.threads)
    if kind == "hnsw":
        return Hnsw(folder / GRAPH, how.beam, how.heap, how.threads)
    if kind not in LISTED:
        raise UserError(f"{folder}: keeps its vectors as {kind}, which isn't one of {', '.join(KINDS)}; build it again")
    return Faiss(folder / FAISS, how.probes, how.threads)


def vectors_of(index: Path) -> str | None:
    """How an index keeps its vectors, a hybrid one in its folder ``dense``. None for one that has none or can't be
    read: what is wrong with it is said where it is opened."""
    with suppress(UserError, OSError):
        for folder in (index, index / "dense"):
            if (manifest := read_manifest(folder)) is not None and "vectors" in manifest.made_with:
                return str(manifest.made_with["vectors"])
    return None


def import_faiss() -> Any:
    """Faiss. Raises ``UserError`` where it isn't installed."""
    try:
        import faiss
    except ImportError:
        raise UserError(
            "retrieval.vectors=ivf and ivf_sq8 need Faiss: `pip install faiss-cpu`; flat and hnsw do without"
        ) from None
    return faiss


def join_vectors(parts: Sequence[Path], out: Path, kind: str, how: How) -> None:
    """Makes the vectors' files in the folder ``out`` of those of ``parts``, one part in memory at a time."""
    loaded = _Parts(parts)
    if kind == "hnsw":
        write_graph(loaded, out / GRAPH, how.heap, how.threads)
    elif kind == "flat":
        _join_flat(loaded, out)
    else:
        _join_lists(loaded, out, kind, how.lists or default_lists(sum(map(len, loaded))))


class _Parts(Sequence[Vectors]):
    """The vectors of each part, mapped when they are asked for: a mapping keeps a file open, of which a process has a
    thousand or so."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self._files = [part / PART for part in parts]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, at: Any) -> Any:
        return mapped(self._files[at], np.float32, 2)


def _join_flat(loaded: Sequence[Vectors], out: Path) -> None:
    shape = (sum(map(len, loaded)), loaded[0].shape[1])
    # Written, not mapped: on a full disk a write raises, and a page that can't be kept ends the process (SIGBUS).
    with open(out / FLAT, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for vectors in loaded:
            file.write(np.ascontiguousarray(vectors, "<f4").data)


def _join_lists(loaded: Sequence[Vectors], out: Path, kind: str, lists: int) -> None:
    faiss = import_faiss()
    from faiss.contrib.ondisk import merge_ondisk

    total, size = sum(map(len, loaded)), loaded[0].shape[1]
    # An equal share of each part, so that the centres are those of the whole corpus.
    share = min(1.0, PER_LIST * lists / total)
    rng = np.random.default_rng(0)
    sample = np.concatenate(
        [
            np.asarray(vectors[np.sort(rng.choice(len(vectors), max(1, int(share * len(vectors))), replace=False))])
            for vectors in loaded
        ]
    )
    empty = faiss.index_factory(
        size, f"IVF{min(lists, len(sample))},{'SQ8' if kind == 'ivf_sq8' else 'Flat'}", faiss.METRIC_INNER_PRODUCT
    )
    empty.train(sample)
    files, at = [], 0
    for number, vectors in enumerate(loaded):
        index = faiss.clone_index(empty)
        index.add_with_ids(np.ascontiguousarray(vectors), np.arange(at, at + len(vectors)))
        at += len(vectors)
        files.append(str(out / f"part-{number:05}.faiss"))
        faiss.write_index(index, files[-1])
    merge_ondisk(empty, files, str(out / LISTS))
    faiss.write_index(empty, str(out / FAISS))
    for file in files:
        Path(file).unlink()
