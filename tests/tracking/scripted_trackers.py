"""``torch.utils.tensorboard`` and ``trackio`` as far as they are used here, for machines that don't have them.

Names, arguments and refusals are those of tensorboard 2.21 (torch 2.13) and trackio 0.43; what isn't known is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any


class SummaryWriter:
    """Writes a line of JSON for each call into ``log_dir``."""

    def __init__(self, log_dir: str, purge_step: int | None = None) -> None:
        assert purge_step is None or purge_step >= 0
        Path(log_dir).mkdir(parents=True, exist_ok=True)
        self._file = (Path(log_dir) / "events.out.tfevents.scripted").open("a", encoding="utf-8")
        self._put(purge_step=purge_step)

    def _put(self, **row: Any) -> None:
        self._file.write(json.dumps(row) + "\n")  # a closed file raises, as the writer does

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        assert isinstance(tag, str)
        assert isinstance(global_step, int)
        self._put(tag=tag, value=float(scalar_value), step=global_step)

    def add_text(self, tag: str, text_string: str, global_step: int) -> None:
        self._put(tag=tag, text=text_string.encode("utf-8").decode(), step=global_step)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def tensorboard() -> ModuleType:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    return module


class Table:
    """A table of trackio."""

    def __init__(self, columns: list[str], data: list[list[Any]]) -> None:
        assert all(len(row) == len(columns) for row in data)
        self.data = [dict(zip(columns, row, strict=True)) for row in data]


class Run:
    """What ``trackio.init`` returns; ``logged`` has what came."""

    def __init__(self, project: str, name: str, config: dict[str, Any], resume: str) -> None:
        json.dumps(config)
        self.project, self.name, self.resume = project, name, resume
        self.logged: list[tuple[int | None, dict[str, Any]]] = []
        self.open = True

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        assert self.open
        assert isinstance(metrics, dict)
        json.dumps([value.data if isinstance(value, Table) else value for value in metrics.values()], allow_nan=False)
        self.logged.append((step, metrics))

    def finish(self) -> None:
        self.open = False


def trackio(runs: list[Run]) -> ModuleType:
    """The module; ``runs`` gets what is opened."""

    def init(
        *, project: str, name: str, config: dict[str, Any], resume: str, embed: bool, auto_log_cpu: bool,
        auto_log_gpu: bool,
    ) -> Run:  # fmt: skip
        assert resume in ("must", "allow", "never")
        runs.append(Run(project, name, config, resume))
        return runs[-1]

    module = ModuleType("trackio")
    module.init, module.Table = init, Table  # type: ignore[attr-defined]
    return module
