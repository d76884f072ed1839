"""Which room may know what: nothing heavy is imported where a rule should be readable and testable without it."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("actors", "agent", "conf", "learner", "retrieval_service", "tasks", "tracking")
HEAVY = ("ray", "torch", "vllm", "jnius", "transformers", "pyserini")
FORBIDDEN = {
    "agent": HEAVY,
    "tasks": HEAVY,
    "retrieval_service": HEAVY,
    "learner": ("ray", "vllm"),
    "tracking": ("ray", "torch", "vllm"),
    "conf": ("ray", "torch", "vllm"),
    "launch": ("ray", "torch", "vllm"),
}
FLOORS = (
    ("agent",),
    ("learner", "retrieval_service"),
    ("tasks",),
    ("tracking",),
    ("conf",),
    ("actors",),
    ("launch",),
)
"""Each floor may import from the floors before it, and from itself."""
INNER_FLOORS = (
    ("agent", "agent.pool", "agent.inference", "agent.simulation"),
    ("tasks", "tasks.making"),
    ("tracking", "tracking.evals", "tracking.experiments", "tracking.view", "tracking.trackers"),
    ("actors.plan", "actors"),
    ("retrieval_service", "retrieval_service.documents", "retrieval_service.server"),
)
"""The same inside a room that has rooms of its own."""
WITHOUT_TORCH = ("agent", "retrieval_service", "tasks", "tracking", "conf", "launch", "actors")
"""In the order of the floors; the actors come last, since they bring ray."""
IMPORT_ALL = """
import importlib, json, sys
for names in json.loads(sys.argv[1]):
    for name in names:
        importlib.import_module(name)
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def sources(place: str) -> list[Path]:
    """The Python files of a package, or of a module at the root; none where it doesn't exist yet."""
    alone = ROOT / f"{place}.py"
    return [alone] if alone.is_file() else sorted((ROOT / place).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def statements(path: Path, *, lazily: bool = True) -> Iterator[ast.Import | ast.ImportFrom]:
    """What a source file imports; without ``lazily``, only what runs when it is imported."""
    waiting: list[ast.AST] = [parsed(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazily:
            continue
        elif not isinstance(node, ast.expr):  # no statement is within an expression
            waiting += ast.iter_child_nodes(node)


@functools.cache
def imported(path: Path, *, lazily: bool = True) -> set[str]:
    """Top-level names of these."""
    found: set[str] = set()
    for node in statements(path, lazily=lazily):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif node.module and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


def loaded_with(*modules: list[str]) -> list[set[str]]:
    """The packages that a fresh process has once it has imported the first list of ``modules``, then the next, …"""
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps(modules)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return [set(json.loads(line)) for line in run.stdout.splitlines()[-len(modules) :]]


@functools.cache
def loaded_by_floors() -> dict[str, set[str]]:
    """The same for the rooms that are to do without torch, each with those before it: one process for all of them."""
    brings = {"actors.nccl", "actors.vllm_adapter"}
    modules = [[n for path in sources(place) if (n := module_name(path)) not in brings] for place in WITHOUT_TORCH]
    return dict(zip(WITHOUT_TORCH, loaded_with(*modules), strict=True))


@pytest.mark.parametrize(
    "place",
    # The learner's are torch and transformers: seconds.
    [pytest.param(place, marks=pytest.mark.slow) if place == "learner" else place for place in FORBIDDEN],
)
def test_importing_a_room_does_not_import(place):
    if place == "learner":
        (loaded,) = loaded_with([module_name(path) for path in sources(place)])
    else:
        loaded = loaded_by_floors()[place]
    assert not loaded.intersection(FORBIDDEN[place])


def test_an_actor_imports_torch_when_it_touches_a_tensor():
    """It is a second and 200 MB for each process; those of supervisor, pool and retrieval never touch one."""
    assert not loaded_by_floors()["actors"].intersection({"torch", "transformers", "vllm", "jnius"})


def test_the_agent_knows_numpy_and_the_standard_library_only():
    for path in sources("agent"):
        strange = imported(path, lazily=False) - {"agent", "numpy"} - sys.stdlib_module_names
        assert not strange, path.relative_to(ROOT)


def test_only_actors_and_launch_import_ray():
    users = {place for place in (*ROOMS, "launch") for path in sources(place) if "ray" in imported(path)}
    assert users <= {"actors", "launch"}


def test_one_file_imports_vllm():
    users = {path for place in (*ROOMS, "launch") for path in sources(place) if "vllm" in imported(path)}
    assert users == {ROOT / "actors" / "vllm_adapter.py"}


@pytest.mark.parametrize("module", ["actors.vllm_adapter", "actors.nccl"])
def test_what_brings_vllm_is_imported_where_it_is_needed(module):
    users = [path for path in sources("actors") if module in path.read_text(encoding="utf-8")]
    assert users
    for path in users:
        body = parsed(path).body
        at_once = any(isinstance(node, ast.ImportFrom) and node.module == module for node in body)
        assert not at_once or path.name == "nccl.py", path


# --- the whole house ---------------------------------------------------------------------------------


@functools.cache
def arrows() -> dict[str, set[str]]:
    """For each module of the product, the modules of it that it imports anywhere, under TYPE_CHECKING too."""
    modules = {module_name(path): path for place in (*ROOMS, "launch") for path in sources(place)}
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        named: set[str] = set()
        for node in statements(path):
            if isinstance(node, ast.ImportFrom) and node.module:
                each = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= each & modules.keys() or {node.module}
            elif isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
        found[name] = (named & modules.keys()) - {name}
    return found


def test_no_modules_import_each_other_in_a_circle():
    waiting = dict(arrows())
    while free := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert not waiting, f"a circle, or what depends on one: {sorted(waiting)}"


def test_no_arrow_runs_upwards():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    assert set(floor) == {*ROOMS, "launch"}
    for name, needs in arrows().items():
        for other in needs:
            here, there = name.partition(".")[0], other.partition(".")[0]
            assert here == there or floor[there] < floor[here], f"{name} imports {other}"


@pytest.mark.parametrize("rooms", INNER_FLOORS)
def test_no_arrow_runs_upwards_inside_a_room(rooms):
    def place(module):
        """The innermost of ``rooms`` that it is in; its number, or None."""
        inside = [n for n, room in enumerate(rooms) if f"{module}.".startswith(f"{room}.")]
        return max(inside, key=lambda n: len(rooms[n]), default=None)

    for name, needs in arrows().items():
        for other in needs:
            here, there = place(name), place(other)
            assert here is None or there is None or there <= here, f"{name} imports {other}"


def test_no_file_of_the_product_is_longer_than_400_lines():
    long = {
        module_name(path): lines
        for place in (*ROOMS, "launch")
        for path in sources(place)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long
