"""A process's standard streams, which whoever starts it may have closed (``>&-``, some schedulers)."""

from __future__ import annotations

import os
import sys


def stand_in() -> None:
    """Opens nothing (``/dev/null``) in the place of each standard stream that is closed.

    Python's own is None then, and the next file that is opened, a log or a lock, gets the stream's number: what native
    code, the launcher or a child writes to it would stand in that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
