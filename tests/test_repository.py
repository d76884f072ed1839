"""What lies around the code: links of the documentation, the public workflow, hooks and templates, the package list."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def committed(pattern: str) -> list[Path]:
    """The files that match, of those that git knows or would take in; all that match where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    names = listed.stdout.split() if listed.returncode == 0 else [str(p.relative_to(ROOT)) for p in ROOT.rglob(pattern)]
    return sorted(ROOT / name for name in names if (ROOT / name).is_file())


PAGES = committed("*.md")
CODE_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", CODE_BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    for link in LINK.findall(CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_of_the_documentation_is_linked_from_the_readme():
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall((ROOT / "README.md").read_text())}
    assert not {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - linked


def test_every_file_that_the_documentation_names_exists():
    """A name in code style that begins with a folder of the tree, such as ``agent/pool/`` or ``tests/patience.py``."""
    folders = "|".join(sorted(p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")))
    for page in PAGES:
        for name in re.findall(rf"`((?:{folders})/[\w./-]*(?:\.\w+|/))`", page.read_text(encoding="utf-8")):
            if "NAME" not in name and not name.startswith(("outputs/", "multirun/")):
                assert (ROOT / name).exists(), f"{page.relative_to(ROOT)}: {name}"


# --- workflow, hooks, templates ------------------------------------------------------------------


def targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


def read_yaml(path: Path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def make_targets(command: str) -> list[str]:
    """What ``command`` asks of make."""
    words = shlex.split(command)
    return words[1:] if words[:1] == ["make"] else []


def test_the_workflow_runs_the_two_commands_on_each_supported_python():
    jobs = read_yaml(ROOT / ".github/workflows/ci.yml")["jobs"]
    matrix = jobs["two-commands"]["strategy"]["matrix"]
    assert matrix["command"] == ["make demo", "make test"]
    import install

    assert matrix["python"] == list(install.PYTHONS)
    commands = [*matrix["command"], *(step["run"] for job in jobs.values() for step in job["steps"] if "run" in step)]
    asked = [target for command in commands for target in make_targets(command)]
    assert {"demo", "test", "check"} <= set(asked) <= targets()
    assert "${{ matrix.command }}" in commands


def test_the_slow_tests_are_run_each_night_and_none_is_left_out():
    workflow = read_yaml(ROOT / ".github/workflows/nightly.yml")
    (job,) = workflow["jobs"].values()
    (command,) = [step["run"] for step in job["steps"] if step.get("run", "").startswith("make")]
    assert command == 'make test-all TESTS="${{ matrix.tests }}"'
    assert "$(TESTS)" in (ROOT / "Makefile").read_text()
    *parts, others = [part["tests"] for part in job["strategy"]["matrix"]["include"]]
    assert others == " ".join(f"--ignore={part}" for part in parts)
    assert all((ROOT / part).is_dir() for part in parts)


def test_the_hooks_run_make_check_and_download_nothing():
    repos = read_yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    hooks = [hook for repo in repos for hook in repo["hooks"]]
    assert all(hook["language"] == "system" for hook in hooks)
    assert [make_targets(hook["entry"]) for hook in hooks] == [["check"]]
    assert "check" in targets()


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name)
def test_issue_templates_are_what_github_reads(path):
    template = read_yaml(path)
    if path.name == "config.yml":
        assert all({"name", "url", "about"} <= link.keys() for link in template["contact_links"])
        return
    assert {"name", "description", "body"} <= template.keys()
    ids = [field["id"] for field in template["body"]]
    assert len(set(ids)) == len(ids)
    for field in template["body"]:
        assert field["type"] in ("textarea", "input", "dropdown", "checkboxes", "markdown")
        assert field["attributes"]["label"]


def test_the_bug_template_asks_for_the_runs_facts():
    text = (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text()
    for fact in ("command line", "metrics.jsonl", "mode=plan", "--version", "lscpu", "nvidia-smi", "pip freeze"):
        assert fact in text


# --- packages ------------------------------------------------------------------------------------


def test_the_distribution_holds_every_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["packages"]
    rooms = {name.partition(".")[0] for name in listed}
    found = {".".join(p.parent.relative_to(ROOT).parts) for room in rooms for p in (ROOT / room).rglob("__init__.py")}
    assert set(listed) == found


def test_the_distribution_holds_all_parts_of_the_reports_page():
    from tracking.view.page import HERE, PROGRAM

    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "tracking.view"
    ]
    parts = {"report.html", "report.css", *PROGRAM}
    assert parts == {p.name for p in HERE.iterdir() if p.suffix not in (".py", "") and p.is_file()}
    assert all(any(Path(name).match(pattern) for pattern in patterns) for name in parts)
