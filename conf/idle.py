"""Settings that are given and would do nothing (``conf/needs.py``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from agent.errors import UserError
from conf.implied import sweep_lines
from conf.needs import NEEDS, Need


def check_idle(
    given: Sequence[Override], compose: Callable[[Sequence[str]], DictConfig], jobs: Sequence[Override] | None = None
) -> None:
    """Raises ``UserError`` for a setting among ``given`` that has no effect with the rest of them; in a sweep, for a
    value that has none in any of its jobs.

    ``compose`` makes the settings of a job's lines; ``jobs`` are all overrides that make the jobs, ``given`` if it is
    None.
    """
    said = {str(override.key_or_group): override for override in given}
    every = {str(override.key_or_group): override for override in (given if jobs is None else jobs)}
    made = _Jobs(every, compose)
    for need in NEEDS:
        if need.key not in said or (need.switched and any(key in said for key in need.ruled_by)):
            continue
        for line in sweep_lines(said[need.key]):
            if not made.serve(need, line):
                none = "; no job of the sweep has a use for it" if made.several else ""
                raise UserError(f"{line}: {need.why}{none}")


class _Jobs:
    """The jobs that ``overrides`` make, composed as they are asked for."""

    def __init__(self, overrides: Mapping[str, Override], compose: Callable[[Sequence[str]], DictConfig]) -> None:
        self._values = {key: sweep_lines(override) for key, override in overrides.items()}
        self._compose = compose
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self.several = any(len(lines) > 1 for lines in self._values.values())

    def serve(self, need: Need, line: str) -> bool:
        """Whether ``line`` does something in one of the jobs, or stands in one whose mode ``need`` says nothing of."""
        read: set[str] = {"mode"}
        first = self._made({key: lines[0] for key, lines in self._values.items()} | {need.key: line})

        def serves(job: DictConfig) -> bool:
            def of(key: str) -> Any:
                read.add(key)
                return OmegaConf.select(job, key)

            return job.mode not in need.modes or not need.idle(of)

        if serves(first):
            return True
        # A value of its own changes nothing but itself: seeds needn't be tried. A choice of a group may change all.
        varied = {
            key: [line] if key == need.key else lines if key in read or _chooses(first, key) else lines[:1]
            for key, lines in self._values.items()
        }
        jobs = (self._made(dict(zip(varied, lines, strict=True))) for lines in product(*varied.values()))
        return any(map(serves, jobs))

    def _made(self, lines: Mapping[str, str]) -> DictConfig:
        job = tuple(lines.values())
        if job not in self._composed:
            self._composed[job] = self._compose(job)
        return self._composed[job]


def _chooses(composed: DictConfig, key: str) -> bool:
    """Whether ``key`` is a group, and no value."""
    value = OmegaConf.select(composed, key)
    return value is None or isinstance(value, DictConfig)
