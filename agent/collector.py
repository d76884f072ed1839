"""Python's garbage collector, kept out of what makes no garbage."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Nothing is collected while the context lasts: for imports of torch, transformers and vLLM.

    They make up to a million objects that stay, and looking among these for garbage is a third of what torch and
    transformers take, and a quarter of vLLM (``bench/imports.py``). If anything was imported, it isn't looked at later
    either.
    """
    was_on, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        if was_on:
            gc.enable()


def settle() -> None:
    """What there is by now stays to the end of the process and is never looked at for garbage again.

    For a process that has started and answers from now on: a full look takes a tenth of a second or more, and everybody
    who asked waits for it.
    """
    gc.collect()
    gc.freeze()
