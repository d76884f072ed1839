"""One local Ray for the tests of this folder that need one, started by the first of them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import composed_once
import pytest
import tokenizer_once
from one_ray import shares_ray
from patience import HANG_S
from unmeasured import unmeasured

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers: importlib mode adds no folder by itself


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Ray ends with the last file that has tests on it: its processes are busy as long as they live."""
    result = yield
    if shares_ray(item.path) and (nextitem is None or not shares_ray(nextitem.path)):
        import ray

        ray.shutdown()
    return result


@pytest.fixture(scope="session", autouse=True)
def _unmeasured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        unmeasured(patch, tmp_path_factory.mktemp("measured"))
        yield


@pytest.fixture(scope="module", autouse=True)
def _made_once() -> Iterator[None]:
    """Most of what tests of the plan cost is composing, and most of that is the same in all of them. So is the
    tokenizer of the built-in world.
    """
    with pytest.MonkeyPatch.context() as patch:
        composed_once.remember(patch)
        tokenizer_once.remember(patch)
        yield


@pytest.fixture(scope="module")
def local_ray() -> None:
    """A Ray of two CPUs that writes nothing to the console, shared by the files of this folder."""
    import ray

    from actors.ray_start import ATTEMPTS, _Ended

    end, attempt = time.monotonic() + HANG_S, 1
    while not ray.is_initialized():
        try:
            _start(end)
        except _Ended:  # Ray gives its agents 15 s, which may be too few; a run tries as often
            ray.shutdown()
            if attempt == ATTEMPTS:
                raise
            attempt += 1


def _start(end: float) -> None:
    import ray
    from ray._private.node import Node

    from actors.process import QUIET
    from actors.ray_start import check_alive, children, of_a_local_cluster, waiting

    before = {*children()}

    def check() -> None:
        check_alive(before)
        assert time.monotonic() < end, f"Ray didn't start within {HANG_S:g} s"

    # As a run starts it: Ray's own default, niceness 15, starves its workers where other programs are busy. What a run
    # gives its workers as their environment they inherit here.
    settings = {**QUIET, **of_a_local_cluster(HANG_S), "RAY_worker_niceness": "0"}
    with pytest.MonkeyPatch.context() as environment:
        # Ray's processes inherit this; the tests' own process, and what it starts later, shall not.
        for name, value in settings.items():
            environment.setenv(name, value)
        for unused in ("start_monitor", "start_log_monitor", "start_api_server"):  # a process each
            environment.setattr(Node, unused, lambda self, **_: None)
        # The fake actors are in this folder's helpers, and Ray's workers import them by name.
        environment.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
        with waiting(check, end):  # for Ray's own processes; by itself it gives them seconds
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                object_store_memory=128 * 2**20,
            )
