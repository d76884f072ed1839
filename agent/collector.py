"""Python's garbage collector, kept out of what makes no garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Nothing is collected while the context lasts: for imports of torch, transformers and vLLM.

    They make up to a million objects that stay, and looking among these for garbage is a third of what torch and
    transformers take, and a quarter of vLLM (``bench/imports.py``).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
