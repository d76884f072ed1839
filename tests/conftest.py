"""What all tests share."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import actors  # noqa: F401 - before any test imports Ray: see there

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers: importlib mode adds no folder by itself

from one_ray import shares_ray

# A shell that starts a job in the background has it ignore Ctrl-C, and its children inherit that; here are tests
# of what a Ctrl-C does.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def hangup_counts() -> Iterator[None]:
    """SIGHUP as a terminal's programs have it: under ``nohup`` it is ignored, and so it is by what runs there."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


SILENCE_S = 8.0
"""Longest that nothing is written while a test, or the collection, is under way."""


class StillRunning:
    """Says what runs, and for how long, whenever pytest has been silent for a while.

    ``output`` is a descriptor of pytest's own output: while a test runs, 1 is the file that it is captured in.
    """

    def __init__(self, output: int) -> None:
        self._output = output
        self._heard = self._began = time.monotonic()
        self._what = "collecting the tests"
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="still running", daemon=True).start()

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            now = time.monotonic()
            if now - self._heard >= SILENCE_S:
                self._heard = now
                os.write(self._output, f"\n… {self._what}, {now - self._began:.0f} s\n".encode())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._what, self._began = item.nodeid, time.monotonic()
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self._heard = time.monotonic()

    def pytest_sessionfinish(self) -> None:
        self._what, self._began = "ending the session", time.monotonic()

    def pytest_unconfigure(self) -> None:
        self._ended.set()


RUNS = "tests/e2e/"
"""The tests that play whole runs."""


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs take longest and come first, then what is on one Ray: processes that share the tests have something to
    do to the end.

    Of a test that is marked ``one_in(n)`` the first case and each n-th after it are for every day; the others are slow.
    """
    items.sort(key=lambda item: (not item.nodeid.startswith(RUNS), not shares_ray(item.path)))
    cases: Counter[str] = Counter()
    for item in items:
        if (mark := item.get_closest_marker("one_in")) is not None:
            test = item.nodeid.partition("[")[0]
            if cases[test] % mark.args[0]:
                item.add_marker(pytest.mark.slow)
            cases[test] += 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How the processes of ``pytest -n`` share the tests: a file is never cut, and one process has all whole runs,
    since two runs at once would need the memory of two. One has all that is on one Ray, too. Not by xdist's groups: its
    3.8 finds none under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if nodeid.startswith(RUNS):
                return RUNS
            return "one Ray" if shares_ray(config.rootpath / file) else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """The collector finds nothing while modules and tests come to stay, and looks at all of them again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What has been imported by now stays to the end: the collector need not look at it after every test."""
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    shares = hasattr(config, "workerinput")  # a process of pytest-xdist: its output is a channel, its errors are shown
    if shares or not config.getoption("numprocesses", None):
        config.pluginmanager.register(StillRunning(os.dup(2 if shares else 1)), "still-running")
