"""The commands of the documentation are right: each is composed and checked as if it were typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import launch

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*python launch\.py (.+)")
NOT_HERE = re.compile(r"…|--help|mode=calibrate|[\w.]+=\w+(\.\w+)*:[A-Za-z_]\w*")
"""An argument that stands for others, or for what a test hasn't got: a run's checkpoint, a class of the user's own."""


def commands() -> Iterator[tuple[str, list[str]]]:
    """Page and arguments of each command that is written out, without what is in brackets."""
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in text.replace("\\\n", "").splitlines() if not language else ():
                if found := COMMAND.match(line):
                    typed = re.sub(r"\[[^\]]*=…\]", "", re.split(r"\s#\s", found[1])[0])
                    arguments = shlex.split(typed)
                    if not any(NOT_HERE.fullmatch(argument) for argument in arguments):
                        yield str(page.relative_to(ROOT)), arguments


@pytest.mark.slow
def test_every_command_of_the_documentation_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = [*commands()]
    assert len(given) > 60
    refused = []
    for page, arguments in given:
        try:
            launch.check_overrides(arguments)
        except ValueError as error:
            refused.append(f"{page}: {shlex.join(arguments)}: {error}")
    assert not refused, "\n".join(refused)
