"""What a setting names that may be several files of questions: the files, and what their sets are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from agent.errors import UserError
from retrieval_service.textfile import stem

SPLITS = frozenset(("train", "training", "dev", "valid", "val", "validation", "eval", "test"))
"""What files are called that are parts of one set: the folder says which."""
KEYS = ("questions", "eval_questions", "dev_questions")
"""Settings of the data that may."""
_LIST = re.compile(r"\[(.*)\]", re.DOTALL)
_FILE = re.compile(r"""\s*(?:'([^']*)'|"([^"]*)"|([^,'"]*?))\s*(,|$)""")


GITHUB = "github:"
"""Before the name of a set that its authors publish there."""
WIKI_18 = "wiki-18"
"""A corpus by name (``tasks/named.py``); a file of this name is ``./wiki-18``."""


def read_by(mode: str, eval_questions: str | None) -> tuple[str, ...]:
    """The settings of the data whose files of questions ``mode`` reads (``tasks/sets.py``)."""
    if mode in ("ask", "index", "serve"):
        return ()
    if mode == "eval":
        return ("questions", "dev_questions") if eval_questions is None else ("eval_questions",)
    return KEYS


def is_named(file: str) -> bool:
    """Whether ``file`` is the name of a published set, which is fetched (``tasks/named.py``), and no path."""
    return file.startswith(("flashrag:", GITHUB))


def files_of(value: str, key: str) -> tuple[str, ...]:
    """The files that the setting ``key`` names: one, or several in brackets (a file ``[x]`` is ``./[x]``).

    Raises ``UserError`` for a list that can't be read, or that names a file twice.

    >>> files_of("[a.jsonl, 'b,c.jsonl']", "data.questions")
    ('a.jsonl', 'b,c.jsonl')
    """
    inside = _LIST.fullmatch(value)
    if not inside:
        return (value,)
    files: list[str] = []
    at, more = 0, True
    while more:
        match = _FILE.match(inside[1], at)
        file = match and (match[1] or match[2] or match[3])
        if not match or not file:
            raise UserError(
                f"{key}={value}: a list of files is written [A,B]; a name with a comma or a quote in quotes"
            )
        if file in files:
            raise UserError(f"{key}={value}: names {file} twice")
        files.append(file)
        at, more = match.end(), match[4] == ","
    return tuple(files)


def listed(files: Sequence[str]) -> str:
    """The setting that names ``files``: what ``files_of`` reads.

    >>> listed(["a.jsonl", "b,c.jsonl"])
    "['a.jsonl','b,c.jsonl']"
    """
    marks = ["'" if "'" not in file else '"' for file in files]
    return files[0] if len(files) == 1 else f"[{','.join(m + f + m for m, f in zip(marks, files, strict=True))}]"


def set_names(files: Sequence[Path]) -> tuple[str, ...]:
    """What the sets in different ``files`` are called: of each the shortest end of its path that no other has, and that
    says more than which split it is, unless these are the splits of one folder.

    >>> set_names([Path("data/nq/train.jsonl"), Path("popqa/dev.jsonl.gz"), Path("own.jsonl")])
    ('nq', 'popqa', 'own')
    """
    parts = [[*file.absolute().parts[1:-1], stem(file)] for file in files]
    if len({*map(tuple, parts)}) < len(files):
        parts = [[*file.absolute().parts[1:]] for file in files]
    if len(files) == 1 or len({file.absolute().parent for file in files}) > 1:
        parts = [_without_split(each, parts) for each in parts]
    if len(files) > 1:
        while len({each[-1] for each in parts}) == 1 and all(len(each) > 1 for each in parts):
            parts = [each[:-1] for each in parts]
    return tuple("-".join(_end_of_its_own(each, parts)) for each in parts)


def _without_split(path: list[str], paths: Sequence[list[str]]) -> list[str]:
    """``path`` without its last part, if that names a split; of a folder with several files, with both as one."""
    *folder, split = path
    if split.lower() not in SPLITS or not folder:
        return path
    alone = sum(each[:-1] == folder for each in paths) == 1
    return folder if alone else [*folder[:-1], f"{folder[-1]}-{split}"]


def _end_of_its_own(path: list[str], paths: Sequence[list[str]]) -> list[str]:
    """The shortest end of ``path`` that no other of ``paths`` has. Other files don't lengthen it: a name is what a
    question's id begins with, and with it what is held out."""
    for length in range(1, len(path)):
        if sum(each[-length:] == path[-length:] for each in paths) == 1:
            return path[-length:]
    return path
