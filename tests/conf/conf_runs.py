"""A training run that only writes metrics, for tests of whole commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_writing import write_checkpoint

import launch
from actors import resume, run_state
from actors.provenance import Provenance, asked
from agent.pool import saved
from conf.schema import RunConfig
from learner.manifest import Files, listed
from retrieval_service.names import digests
from tracking.metrics import MetricsLog

Command = Callable[..., tuple[int, str, str]]
"""Exit code, standard output and standard error of ``launch.py`` with some arguments."""


def exit_of(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``launch.py`` with these arguments, in this process."""
    monkeypatch.setattr(sys, "argv", ["launch.py", *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as main does, for longer
    code = 0
    try:
        launch.main()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else -1
    captured = capsys.readouterr()
    return code, captured.out, captured.err


class Training:
    """A ``mode=train`` of four steps, and what each job is to suffer."""

    def __init__(self) -> None:
        self.played: list[tuple[str, int]] = []
        """Folder and first step of each run that was started."""
        self.fate: dict[str, BaseException | str] = {}
        """What a job of that name ends with: an exception, or ``Ctrl-C``."""

    def __call__(self, config: RunConfig, run_dir: Path, console: Any) -> None:
        first = 1
        if config.resume is not None:
            checkpoint = resume.find(config.resume, Path("outputs"), run_dir, asked(config)).path
            if checkpoint is not None:
                resume.carry_metrics(checkpoint, run_dir)
                first = run_state.load(checkpoint).step + 1
        self.played.append((run_dir.name, first))
        log = MetricsLog(run_dir / "metrics.jsonl")
        if first == 1:
            log.write("eval", evaluation(0))
        fate = self.fate.pop(run_dir.name, None)
        for step in range(first, 5):
            log.write("step", played(step))
            if fate == "Ctrl-C" and step == 2:
                save(run_dir, step, config)
                log.write("summary", {"step": step, "stopped_early": True, "interrupted": True})
                return
            if isinstance(fate, BaseException) and step == 3:
                raise fate
        log.write("eval", evaluation(4))
        log.write("summary", {"step": 4, "stopped_early": False, "interrupted": fate == "Ctrl-C at the end"})


def evaluation(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "em": step / 10,
        "rollouts": 40 * step,
        "generated_tokens": 400 * step,
        "search/mean": 1.0,
        "action_tokens/mean": 9.0,
        "evidence_recall": None,
    }


def played(step: int) -> dict[str, Any]:
    counts = ("groups/too_hard", "groups/too_easy", "pool/recovered_too_hard", "pool/recovered_too_easy")
    return {
        "step": step,
        "rollout/trajectories": 40,
        "rollout/generated_tokens": 400,
        "groups/signal": 10,
        "groups/accepted": 10,
        "pool/recycled_share": 0.0,
        "pool/flipped_share": 0.0,
        **dict.fromkeys(counts, 0),
    }


def save(run_dir: Path, step: int, config: RunConfig | None = None) -> None:
    """A checkpoint that a run of ``config`` could go on from, but for its weights."""
    state = run_state.RunState(
        step=step, rollouts=40 * step, generated_tokens=400 * step, first_eval=None, last_eval=None
    )

    def write(folder: Path) -> Files:
        run_state.save(folder, state, digests(()))
        saved.save(folder / "training", {"released": step})
        for name in ("config.json", "model.safetensors", "training/learner.pt"):
            (folder / name).write_text("{}")
        if config is not None:
            Provenance(settings=asked(config), data={}).save(folder)
        return listed(folder)

    write_checkpoint(run_dir / "checkpoints", step, write)
