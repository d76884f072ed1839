"""Indexes of Wikipedia that others have built and published, by their names in Pyserini (``retrieval.prebuilt=NAME``).

Names, addresses, checksums and sizes are those of the installed Pyserini's own tables, which
``tests/retrieval_service/test_prebuilt.py`` compares: reading them there would start a JVM.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

AUTO = "auto"
"""``retrieval.prebuilt=auto``: the one that fits the questions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prebuilt:
    """A Lucene index with its documents stored, packed as a tar.gz file."""

    name: str
    about: str
    place: str
    """A server and a folder on it; or ``hub:``, a repository of data sets on the hub, and a folder in it."""
    archive: str
    """The file's name."""
    md5: str
    size: int
    """Bytes of the archive."""
    documents: int

    @property
    def unpacked(self) -> int:
        """Bytes that are kept free for what is in it, which nobody publishes: 1.5 times the archive. Stored text is
        packed in the index already; one that was built in the same way of 11,791 passages unpacks to 1.22 times its
        archive."""
        return self.size * 3 // 2

    @property
    def folder(self) -> str:
        """What its folder is called: another archive of the same name has another."""
        return f"{self.name}-{self.md5[:8]}"

    @property
    def url(self) -> str:
        """Where the archive is; of the hub's it follows HF_ENDPOINT."""
        if not self.place.startswith("hub:"):
            return f"{self.place}/{self.archive}"
        from retrieval_service.download import hub_url

        owner, repository, *inside = PurePosixPath(self.place.removeprefix("hub:")).parts
        return hub_url(f"{owner}/{repository}", "/".join([*inside, self.archive]), "main")


HOTPOTQA = Prebuilt(
    name="beir-v1.0.0-hotpotqa.flat",
    about="the first paragraphs of all of Wikipedia's pages in October 2017, which HotpotQA was made of",
    place="hub:castorini/prebuilt-indexes-beir/lucene-inverted/flat",
    archive="lucene-inverted.beir-v1.0.0-hotpotqa.flat.20221116.505594.tar.gz",
    md5="3f41d640a8ebbcad4f598140750c24f8",
    size=2_019_088_696,
    documents=5_233_329,
)
WIKI_18 = Prebuilt(
    name="wikipedia-dpr-100w",
    about="Wikipedia of December 2018 in passages of a hundred words, wiki-18",
    place="https://rgw.cs.uwaterloo.ca/pyserini/indexes",
    archive="lucene-index.wikipedia-dpr-100w.20210120.d1b9e6.tar.gz",
    md5="7b58c08da992b2ea7e96667f0b176651",
    size=9_177_917_732,
    documents=21_015_324,
)
PREBUILT = {each.name: each for each in (HOTPOTQA, WIKI_18)}


def index_of(name: str, cache: Path) -> Path:
    """Where the index ``name`` is, or will be."""
    return cache / "indexes" / PREBUILT[name].folder


def fitting(files: Collection[str]) -> Prebuilt:
    """The index for the questions in ``files``, by their names: HotpotQA's own for HotpotQA alone, else wiki-18's.

    wiki-18 lacks a part of the supporting documents of HotpotQA, 2WikiMultihopQA and MuSiQue (arXiv 2605.27881); it is
    what the papers search.
    """
    return HOTPOTQA if files and all(file.startswith("flashrag:hotpotqa/") for file in files) else WIKI_18
