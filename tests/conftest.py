"""What all tests share."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import actors  # noqa: F401 - before any test imports Ray: see there

sys.path.insert(0, str(Path(__file__).parent))  # for patience.py: importlib mode adds no folder by itself

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


@pytest.hookimpl(tryfirst=True)  # before xdist's own, which reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several processes that share the tests one has all whole runs: they share a run, and two at once would need
    the memory of two. They take longest and come first. Other files are not cut, either.
    """
    runs = Path(__file__).parent / "e2e"
    items.sort(key=lambda item: runs not in item.path.parents)
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            item.add_marker(pytest.mark.xdist_group("e2e" if runs in item.path.parents else item.path.stem))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What has been imported by now stays to the end: the collector need not look at it after every test."""
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    shares = hasattr(config, "workerinput")  # a process of pytest-xdist: its output is a channel, its errors are shown
    if shares or not config.getoption("numprocesses", None):
        config.pluginmanager.register(StillRunning(os.dup(2 if shares else 1)), "still-running")
