"""What ``resume=`` means: from which checkpoint a run goes on, whether it is still the same, what it takes along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors import run_state
from actors.provenance import MODEL, TEXTS, Provenance, asked
from agent.errors import UserError, refused
from agent.paths import at_home
from agent.pool import saved
from agent.readable import content_of
from conf.schema import IF_ANY, RunConfig
from learner.checkpoint import BEST, checkpoints, go_back_to, latest, latest_sound, place, put_back, set_best
from tracking.differences import listed
from tracking.metrics import UNTRAINABLE, keep_lines, read, replace
from tracking.trajectories import EVALUATIONS, GROUPS, TRAJECTORIES

Check = Callable[[Path], Any]

OF_ONE_START = ("about", "fault", "failed")
"""Events of how a run started and ended: one that goes on has its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A checkpoint to go on from."""

    path: Path | None
    """None where ``resume=if_any`` found nothing."""
    refused: tuple[str, ...] = ()
    """What is wrong with newer ones."""


def find(
    resume: str, outputs: Path, run_dir: Path, settings: Mapping[str, Any], check: Check = run_state.check
) -> Found:
    """The checkpoint that ``resume=`` means: ``auto``, ``if_any``, a run's folder, or a checkpoint's.

    ``auto`` is the newest of the newest run under ``outputs`` whose settings make it the same experiment, ``if_any``
    the newest in ``run_dir``. Of a run, the newest that ``check`` lets pass. Raises ``UserError`` when there is none.
    """
    if resume == "auto":
        return _newest(outputs, settings, check)
    path = run_dir if resume == IF_ANY else at_home(resume)
    for root in (path.parent, path / "checkpoints"):
        put_back(root)
    if resume != IF_ANY and (path / "manifest.json").is_file():
        path = path.resolve() if path.is_symlink() else path  # checkpoints/best moves on
        check(path)
        return Found(path=path)
    found, wrong = latest_sound(path / "checkpoints", check)
    if found is None and wrong:
        raise UserError(f"resume={resume}: no checkpoint of {path} is whole: {'; '.join(wrong)}")
    if found is None and resume != IF_ANY:
        raise UserError(
            f"resume={resume}: neither a checkpoint nor a run with one; name a folder such as …/step-000100"
        )
    return Found(path=found, refused=tuple(wrong))


def _newest(outputs: Path, settings: Mapping[str, Any], check: Check) -> Found:
    folders = {m.parent.parent for m in outputs.glob("**/checkpoints/*step-*/manifest.json")}
    damaged: list[str] = []
    other: Path | None = None
    for folder in sorted(folders, key=lambda f: f.stat().st_mtime, reverse=True):
        put_back(folder)
        newest = latest(folder)
        made_with = next((told for path in reversed(checkpoints(folder)) if (told := Provenance.load(path))), None)
        if made_with is None or not made_with.same_experiment(settings):
            other = other or newest
            continue
        found, wrong = latest_sound(folder, check)
        damaged += wrong
        if found is not None:
            return Found(path=found, refused=tuple(damaged))
    if damaged:
        raise UserError(f"resume=auto: no checkpoint of this experiment is whole: {'; '.join(damaged)}")
    if other is None:
        raise UserError(f"resume=auto: no run under {outputs} has a checkpoint")
    raise UserError(
        f"resume=auto: no run under {outputs} with a checkpoint is this experiment; the newest, {other}, has other "
        f"settings{_why(other, settings)}; resume={other} names it"
    )


def _why(other: Path, settings: Mapping[str, Any]) -> str:
    made_with = Provenance.load(other)
    if made_with is None:
        return ""
    changes = made_with.changes(Provenance(settings=dict(settings), data=made_with.data))
    models = tuple(d for d in changes.harmless if d.key in MODEL)
    return f" ({listed((*models, *changes.others), TEXTS)})"


def resumed(
    config: RunConfig, run_dir: Path, outputs: Path, now: Provenance, say: Callable[[str, str], None]
) -> Path | None:
    """The checkpoint that the run in ``run_dir`` goes on from; None for one that starts.

    What differs from the run that wrote it is told to ``say``. Raises ``UserError`` for damage, and for differences
    that decide what is learned unless ``resume_allow_changes`` is set. Then ``run_dir`` gets the rows up to there;
    a checkpoint of its own counts as its newest.
    """
    if config.resume is None:
        return None
    found = find(config.resume, outputs, run_dir, asked(config))
    for why in found.refused:
        say(f"{why}: using {found.path}", "yellow")
    if found.path is None:
        for name in ("metrics.jsonl", TRAJECTORIES, GROUPS, EVALUATIONS):  # of a start that came to no checkpoint
            (run_dir / name).unlink(missing_ok=True)
        say(f"resume={IF_ANY}: {run_dir} has no checkpoint, the run starts", "")
        return None
    own = run_dir / "checkpoints"
    if config.resume == "auto" and own.is_dir() and found.path.parent.resolve() != own.resolve():
        raise UserError(
            f"output_dir={run_dir}: holds a run, and resume=auto goes on from {found.path}; resume={run_dir} goes on "
            "with what is there, another folder with the newest"
        )
    _compare(found.path, now, config.resume_allow_changes, say)
    if found.path.parent.resolve() == own.resolve():
        go_back_to(found.path)  # before its logs do
    carry_metrics(found.path, run_dir)
    try:
        carry_best(found.path, run_dir)
    except OSError as error:  # a file system without links, or a copy of a run with a folder in the link's place
        say(f"checkpoints/{BEST} doesn't lead to the best one: {refused(error)}", "yellow")
    return found.path


def _compare(checkpoint: Path, now: Provenance, allowed: bool, say: Callable[[str, str], None]) -> None:
    before = Provenance.load(checkpoint)
    if before is None:
        say(f"{checkpoint} doesn't say what it was made with: nothing can be compared", "yellow")
        return
    changes = before.changes(now)
    if changes.harmless:
        say(f"other settings from here on: {listed(changes.harmless, TEXTS)}", "")
    if not changes.others:
        return
    if not allowed:
        raise UserError(
            f"resume: {checkpoint} was made with other settings or data: {listed(changes.others, TEXTS)}; set them "
            "back, or resume_allow_changes=true goes on with them"
        )
    say(f"what is learned changes from here on: {listed(changes.others, TEXTS)}", "yellow")


def carry_metrics(checkpoint: Path, run_dir: Path) -> None:
    """Starts the resumed run's ``metrics.jsonl`` with the old run's rows up to the checkpoint's step, and its events.

    A run that is resumed in its own folder thereby forgets what came after the checkpoint, also the
    trajectories that it is going to play again.
    """
    old_dir, (step, released) = checkpoint.parent.parent, _held(checkpoint)
    if (old_dir / "metrics.jsonl").is_file():
        kept = [row for row in read(old_dir / "metrics.jsonl") if _is_before(row, step, released)]
        told = {"kind": "event", "event": "resumed", "step": step, "path": str(checkpoint)}
        replace(run_dir / "metrics.jsonl", [*kept, told])
    if old_dir.resolve() == run_dir.resolve():
        _forget_episodes(run_dir, step, released)


def carry_best(checkpoint: Path, run_dir: Path) -> None:
    """Lets ``checkpoints/best`` of ``run_dir`` lead to the best one up to ``checkpoint``: a later one may be worse.

    Where that isn't there any more, nothing stands for it.
    """
    best, own = run_state.load(checkpoint).best, run_dir / "checkpoints"
    if best is not None:
        named = place(checkpoint.parent, int(best["step"]))
        for there in (named, (checkpoint.parent / BEST).resolve()):  # a resumed run's best may lie in another folder
            if there.name == named.name and there.is_dir():
                set_best(there, own)
                return
    (own / BEST).unlink(missing_ok=True)


def rewind(run_dir: Path, checkpoint: Path | None) -> None:
    """Takes what came after the ``checkpoint`` (None: everything) out of the logs of a run that goes on from there.

    Events stay, for they have happened; but what a batch has cost that is played again counts once.
    """
    last, released = _held(checkpoint)

    def stays(row: Mapping[str, Any]) -> bool:
        return row["step"] <= last if row["kind"] in ("step", "eval") else _is_held(row, last, released)

    keep_lines(run_dir / "metrics.jsonl", stays)
    _forget_episodes(run_dir, last, released)


def _forget_episodes(run_dir: Path, step: int, released: int) -> None:
    """Takes out what was played after ``step``, and for later batches than the ``released`` ones."""
    for name in (TRAJECTORIES, GROUPS):
        keep_lines(run_dir / name, lambda row: row["batch"] < released)
    keep_lines(run_dir / EVALUATIONS, lambda row: row["step"] <= step)


def _held(checkpoint: Path | None) -> tuple[int, int]:
    """The last step that a checkpoint holds, and how many batches: one without a viable trajectory is no step.

    Without a checkpoint not even step 0, which is that of the first evaluation.
    """
    if checkpoint is None:
        return -1, 0
    step = run_state.load(checkpoint).step
    with content_of(f"checkpoint {checkpoint}: the pool"):
        return step, int(saved.load(checkpoint / run_state.TRAINING)["released"])


def _is_held(event: Mapping[str, Any], step: int, released: int) -> bool:
    """Whether a checkpoint of ``step`` with so many batches holds what was played for an ``event``, if anything was."""
    if event.get("event") == "seeding" or (event.get("event") == UNTRAINABLE and event.get("step") == 0):
        return step >= 0  # each checkpoint does: the seeding comes before the first step
    return event.get("event") != UNTRAINABLE or (isinstance(at := event.get("batch"), int) and at < released)


def _is_before(row: Mapping[str, Any], step: int, released: int) -> bool:
    """Whether a row is of a step up to ``step``, or an event that is of no later one: one that was damaged isn't."""
    of_step, event = row.get("step"), row.get("event")
    if row.get("kind") == "event":
        if event in ("seeding", UNTRAINABLE):  # they have numbers of their own: the seeding's steps, and batches
            return _is_held(row, step, released)
        return not ((isinstance(of_step, int) and of_step > step) or event in OF_ONE_START)
    return row.get("kind") in ("step", "eval") and isinstance(of_step, int) and of_step <= step
