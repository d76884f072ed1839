"""The page of ``python launch.py --help``, made from what exists: the modes, and the groups of ``conf/``."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from conf.arguments import asks_for_help

CONF = Path(__file__).parent
WIDTH = 79
EXAMPLES = {
    "python launch.py tracker=none": "train on a laptop, in minutes",
    "python launch.py cluster=4x3090 model=qwen1.5b": "train on a box with four cards",
    "python launch.py model=qwen0.5b data=jsonl data.questions=Q data.corpus=C": "on your own data",
    'python launch.py mode=ask checkpoint=FOLDER question="…"': "ask what was trained",
    "python launch.py -m pool=epoch,recycle seed=0,1,2": "a sweep: all combinations",
}
_DEFAULT = re.compile(r"^  - (\w+): (\S+) +# (.+)$", re.MULTILINE)
"""A group in the list of defaults of ``config.yaml``: its name, its default, what it decides."""


def described(arguments: Sequence[str], modes: Mapping[str, str | None]) -> str:
    """What is shown in place of a run: the page of help, or the versions; nothing where neither is asked for."""
    if asks_for_help(arguments):
        return page(modes)
    if "--version" not in arguments:
        return ""
    from tracking import about

    return f"Slingshot {about.code()}\n{about.packages()}\n{about.hardware()}\n"


def page(modes: Mapping[str, str | None]) -> str:
    """The page. ``modes`` are their functions' docstrings by name, the default first."""
    return "\n".join((*_head(), *_modes(modes), *_examples(), *_groups(), *_foot())) + "\n"


def groups() -> dict[str, tuple[str, str]]:
    """Each group's default choice and what it decides, in the order of ``config.yaml``."""
    text = (CONF / "config.yaml").read_text(encoding="utf-8")
    return {name: (default, about) for name, default, about in _DEFAULT.findall(text)}


def choices(group: str) -> list[str]:
    """The files of a group."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def _head() -> Iterator[str]:
    yield from _wrapped(
        "Slingshot trains a small language model to answer multi-hop questions by searching, with reinforcement "
        "learning. Every setting is a key, nearly all have a default, and a group sets many at once.",
        "",
    )
    yield ""
    yield "  python launch.py [mode=MODE] [GROUP=CHOICE …] [KEY=VALUE …]"
    yield "  python launch.py -m …      a sweep: a comma separates the values of a key"


def _modes(modes: Mapping[str, str | None]) -> Iterator[str]:
    yield ""
    yield "Modes, the first is the default:"
    for name, docstring in modes.items():
        about = (docstring or "").splitlines()[0].partition(": ")[2]
        yield from _wrapped(about, f"  {name:<10} ")


def _examples() -> Iterator[str]:
    yield ""
    yield "Examples:"
    for command, about in EXAMPLES.items():
        yield f"  # {about}"
        yield f"  {command}"


def _groups() -> Iterator[str]:
    yield ""
    yield "Groups and their choices, the default in brackets:"
    for group, (default, about) in groups().items():
        yield from _wrapped(about, f"  {group:<12} ")
        listed = [f"[{name}]" if name == default else name for name in choices(group)]
        yield from _wrapped(" ".join(listed), " " * 15)


def _foot() -> Iterator[str]:
    yield ""
    yield "  python launch.py --cfg job [GROUP=CHOICE …]    all settings as they would be"
    yield "  python launch.py --version                     the versions, the machine"
    yield "  python launch.py --hydra-help                  the flags of Hydra"
    yield ""
    yield from _wrapped(f"README.md and docs/ in {CONF.parent} say more.", "")


def _wrapped(text: str, first: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_on_hyphens=False,
        break_long_words=False,
    ) or [first.rstrip()]
