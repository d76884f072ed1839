"""What the service needs of a ranker: one file in ``backends/`` (``backends/__init__.py`` checks it).

It has a class ``Backend``, made as ``Backend(index, config)``, and

- ``ensure(corpus: Path, config: RetrievalConfig, cache: Path, watch: Watch) -> Path``: the folder of the index of
  ``corpus``, which is built below ``cache`` if it isn't there. Raises ``UserError`` for a bad corpus;
- or ``REMOTE = True`` in its place: it asks a service, at ``retrieval.url``, and has no index;
- where it has settings of its own, a dataclass ``Settings`` made from ``RetrievalConfig``. ``config`` is one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from agent.errors import Fault, RetrievalError
from agent.records import Passage


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Which passages are searched, and how: what makes two results comparable."""

    name: str
    backend: str
    documents: int | None = None
    """Passages; None where a server doesn't say."""
    checksum: str | None = None
    """Of the corpus; None for an index that was built elsewhere."""
    analyser: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """What the ranking depends on besides, such as ``k1`` and ``b``."""


def check_same(first: Identity, now: Identity) -> None:
    """Raises ``Fault`` where ``now`` isn't what was searched ``first``: results of the two can't be compared."""
    was, found = asdict(first), asdict(now)
    if differing := [name for name in was if was[name] != found[name]]:
        said = ", ".join(f"{name} {found[name]!r} in place of {was[name]!r}" for name in differing)
        raise Fault(f"what is searched has changed since the start: {said}; put it back, or start a new run")


SEARCH, FOLLOWING, DOCUMENT = "search_batch", "following_batch", "document_batch"
"""A backend's methods that answer a batch."""
Read = Callable[[], list[tuple[Passage, ...]]]
"""Reads what a batch has found."""


class Unavailable(RetrievalError):
    """Nothing can be answered at the moment: the backend needn't be asked for each query by itself."""


class Backend(Protocol):
    """A ranker. It is made, called and closed by one and the same thread.

    It may have attributes: ``lanes = 2`` says that it is cheap to open once more, for a second thread; ``most`` is the
    largest batch that makes sense; ``device`` where it computes, if that isn't ``cpu``, None where nobody knows; a
    method ``until`` is told before each batch when nobody waits for it any more, by ``time.monotonic``; a method
    ``check_depth(k, setting)``, which is called once after opening, raises ``UserError`` that names ``setting`` if it
    gives no ``k`` passages of a search; and those of ``Parted``. A batch that raises is asked again in halves, so that
    one query fails alone, unless it is ``Unavailable`` that is raised, or the time is over.
    """

    def __init__(self, index: Path | None, config: Any) -> None:
        """Over the folder ``index``; None for a remote one. ``config`` is the ``RetrievalConfig``.

        Raises ``UserError`` for an index that it can't use, or a service that doesn't answer.
        """

    def search_batch(self, queries: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """For each query, in order, its at most ``k`` best passages, best first.

        A query that matches nothing has no passages.
        """
        ...

    def following_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """For each passage, in order, the at most ``k`` ones that come after it in the same document
        (``retrieval_service.corpus.document_of``), in the order of the corpus. Raises for an id that isn't there.
        """
        ...

    def document_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """For each id, in order, its passage and the at most ``k - 1`` that come after it in the same document.

        An id that isn't there has none.
        """
        ...

    def identity(self) -> Identity:
        """What is searched. It doesn't change."""
        ...

    def close(self) -> None:
        """Lets go of files; called once, last."""
        ...


class Parted:
    """What a backend has, too, that can search on while another thread reads what it found."""

    def begin_batch(self, queries: Sequence[str], k: int) -> Read:
        """Searches as ``search_batch`` does, and gives what reads it, for the other thread."""
        raise NotImplementedError

    def end_reading(self) -> None:
        """The other thread calls it last."""
