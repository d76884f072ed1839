"""The page of ``--help``: made from what exists, short, at once."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conf_runs import Command

import launch
from conf import help as help_page
from conf.schema import MODES
from tracking import about

CONF = Path(help_page.__file__).parent
PAGE = help_page.page({name: mode.__doc__ for name, mode in launch.MODES.items()})


def section(title: str) -> list[str]:
    """The lines below a title, to the next empty one."""
    lines = PAGE.splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(title)) + 1
    return lines[start : lines.index("", start)]


def test_every_mode_has_its_line() -> None:
    assert tuple(launch.MODES) == MODES
    lines = section("Modes")
    assert [line.split()[0] for line in lines] == list(MODES), "one line each"
    assert all(len(line.split()) > 3 for line in lines)


def test_every_group_of_conf_has_a_line_and_its_choices() -> None:
    folders = {path.name for path in CONF.iterdir() if any(path.glob("*.yaml"))}
    assert set(help_page.groups()) == folders, "each is in the defaults of conf/config.yaml, with what it decides"
    lines = section("Groups")
    starts = [at for at, line in enumerate(lines) if line[2] != " "]
    assert {lines[at].split()[0] for at in starts} == folders
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        group = lines[start].split()[0]
        listed = [word.strip("[]") for line in lines[start + 1 : end] for word in line.split()]
        assert listed[-len(help_page.choices(group)) :] == help_page.choices(group)
        default, about = help_page.groups()[group]
        assert default in ("null", *listed)
        assert about.split()[0] in lines[start]


def test_inner_names_are_not_shown() -> None:
    assert "_rule" not in PAGE
    assert "_settings" not in PAGE
    assert "``" not in PAGE


def test_the_page_fits_a_terminal() -> None:
    assert max(len(line) for line in PAGE.splitlines()) < 80
    assert len(PAGE.splitlines()) < 100


@pytest.mark.one_in(2)
@pytest.mark.parametrize("example", help_page.EXAMPLES)
def test_the_examples_are_right(example: str) -> None:
    program, script, *arguments = shlex.split(example)
    assert (program, script) == ("python", "launch.py")
    assert example in PAGE
    launch.check_overrides(arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], ["mode=plan", "--help"], ["-m", "sed=1", "-h"]])
def test_help_is_the_page_whatever_else_is_asked(command: Command, arguments: list[str]) -> None:
    assert command(*arguments) == (0, PAGE, "")
    assert list(Path().iterdir()) == []


def test_the_version_is_ours_and_what_it_runs_on(command: Command) -> None:
    """And not Hydra's."""
    code, out, err = command("--version")
    assert (code, err) == (0, "")
    own, packages, machine = out.splitlines()
    assert own == f"Slingshot {about.code()}"
    assert packages.startswith("Python 3.")
    assert "torch " in packages
    assert " GiB memory" in machine
    assert list(Path().iterdir()) == []


@pytest.mark.slow
def test_hydras_own_help_is_still_there(command: Command) -> None:
    code, out, err = command("--hydra-help")
    assert (code, err) == (0, "")
    assert out.startswith("Hydra (")


def test_help_loads_nothing_heavy() -> None:
    heavy = ("torch", "ray", "vllm", "transformers", "pyserini", "jnius", "wandb", "datasets", "httpx", "pydantic")
    code = f"import sys, launch; launch.main(); print(sorted(set({heavy!r}) & set(sys.modules)))"
    root = CONF.parent
    done = subprocess.run([sys.executable, "-c", code, "-h"], capture_output=True, text=True, cwd=root, check=False)
    assert (done.stdout, done.stderr) == (f"{PAGE}[]\n", "")


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error() -> None:
    """As ``| head`` does."""
    root = CONF.parent
    command = [sys.executable, str(root / "launch.py"), "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
