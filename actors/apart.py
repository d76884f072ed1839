"""A function in a process of its own, with its own environment: a device's memory is free again when it has ended."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from actors.process import last_lines, log_to
from agent.errors import Fault, shortened


class Apart:
    """``function(*arguments)``, which is running in another process. Its output goes to ``folder/name.log``."""

    def __init__(
        self, name: str, function: Callable[..., Any], *arguments: Any, env: Mapping[str, str], folder: Path
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, self._folder = name, folder
        self.answer, theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_run, args=(theirs, name, folder, dict(env), function, arguments), name=name, daemon=True
        )
        self._process.start()
        theirs.close()

    def result(self, limit_s: float) -> Any:
        """What the function returned. Raises ``Fault`` if it raised, died, or took longer than ``limit_s``."""
        try:
            if not self.answer.poll(limit_s):
                raise Fault(f"{self.name} took longer than {limit_s:.0f} s")
            fine, value = self.answer.recv()
        except EOFError:
            self._process.join()
            lines = last_lines(self._folder, self.name)
            raise Fault(f"{self.name} died with code {self._process.exitcode}; its last lines:\n{lines}") from None
        finally:
            self.end()
        if not fine:
            raise Fault(f"{self.name}: {value}")
        return value

    def end(self) -> None:
        """Kills the process, if it still runs."""
        self._process.kill()
        self._process.join()


def together(parts: Sequence[Apart], limit_s: float) -> list[Any]:
    """The results of processes that need one another: if one fails, all end. ``limit_s`` is for all of them."""
    deadline = time.monotonic() + limit_s
    results: dict[Apart, Any] = {}
    try:
        while len(results) < len(parts):
            left = [part for part in parts if part not in results]
            ended = wait([part.answer for part in left], max(0.0, deadline - time.monotonic()))
            if not ended:
                raise Fault(f"{', '.join(part.name for part in left)} took longer than {limit_s:.0f} s")
            results |= {part: part.result(0.0) for part in left if part.answer in ended}
        return [results[part] for part in parts]
    finally:
        for part in parts:
            part.end()


def _run(
    answer: Any, name: str, folder: Path, env: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(env)
    log_to(folder, name)
    try:
        value = (True, function(*arguments))
    except BaseException as error:
        traceback.print_exc()
        value = (False, f"{type(error).__name__}: {shortened(error)}")
    answer.send(value)
