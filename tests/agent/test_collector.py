from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from agent.collector import without_collector


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    was_on = gc.isenabled()
    yield
    (gc.enable if was_on else gc.disable)()


@pytest.mark.parametrize("on", [True, False])
def test_it_is_off_meanwhile_and_then_as_before(on: bool) -> None:
    (gc.enable if on else gc.disable)()
    with without_collector():
        assert not gc.isenabled()
        with without_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled() is on


def test_an_import_that_fails_leaves_it_on() -> None:
    gc.enable()
    with pytest.raises(ImportError), without_collector():
        import no_such_module  # noqa: F401
    assert gc.isenabled()
