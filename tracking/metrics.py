"""metrics.jsonl: one JSON object per line, and the numbers of one step."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from agent.errors import commonest
from agent.groups import Group
from agent.pool.batches import TakenBatch
from agent.readable import json_of
from agent.records import NO_VERSION, SEARCH, Trajectory
from agent.tickets import QueryState
from agent.visible import json_line
from agent.writing import naming

SERIES = ("held_out", "played")
"""Of an evaluation's row: digests of its questions, and of how they were played. Where one changes, another series
begins: the numbers before and after it are no curve."""


def same_series(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two evaluations are of one series, as far as they say: those of earlier versions don't."""
    return all(one[name] == other[name] for name in SERIES if name in one and name in other)


def series_number(evals: Sequence[Mapping[str, Any]]) -> int:
    """Which series of a run's the last of ``evals``, all of them in their order, is of; 1 is the first."""
    return 1 + sum(not same_series(one, other) for one, other in pairwise(evals))


class MetricsLog:
    """Appends rows to ``path``, each on disk before ``write`` returns; NaN becomes null."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, kind: str, row: Mapping[str, Any]) -> None:
        """Adds one row; ``kind`` is ``step``, ``eval``, ``event`` or ``summary``."""
        append(self.path, [{"kind": kind, **{k: _plain(v) for k, v in row.items()}}])


def line_end(file: BinaryIO) -> bytes:
    """What has to be written first to a file of lines, opened with ``ab+``, whose last writer was killed within one."""
    torn = file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
    return b"\n" if torn else b""


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds lines to a file. If its writer was killed within a line, they start behind that.

    Raises ``OSError`` that names the file: of a full disk, the system itself doesn't say.
    """
    text = "".join(map(json_line, rows))
    with naming(path), path.open("ab+") as file:
        file.write(line_end(file) + text.encode())


def read(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The rows of such a file, of one kind or of all (``rows_of``)."""
    return [row for row in rows_of(path) if kind is None or row.get("kind") == kind]


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of lines, one at a time: logs are larger than memory may be. Lines that their writer never
    finished are left out, and so are damaged ones (``damaged_lines``)."""
    return (row for row in _each_line(path) if row is not None)


def damaged_lines(path: Path) -> int:
    """How many lines of such a file are no objects; one at its end that its writer never finished isn't counted."""
    return sum(row is None for row in _each_line(path))


def _each_line(path: Path) -> Iterator[dict[str, Any] | None]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                try:
                    row = json_of(line.decode(errors="replace"))
                except ValueError:
                    row = None
                yield row if isinstance(row, dict) else None


def replace(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Puts ``rows`` (as ``read`` gives them) in the place of a file's, all or none. Raises as ``append``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _in_place_of(path) as new:
        new.writelines(json_line(row).encode() for row in rows)


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Takes the rows out of a log that ``keep`` refuses or raises at, and one that was never finished; all or none.

    A line at a time: logs are larger than memory may be. A log that isn't there stays so. Raises as ``append``.
    """
    if not path.is_file():
        return

    def kept(line: bytes) -> bool:
        try:
            return line.endswith(b"\n") and keep(json_of(line))
        except (ValueError, KeyError, TypeError):  # its writer never finished it
            return False

    with path.open("rb") as old, _in_place_of(path) as new:
        new.writelines(line for line in old if kept(line))


@contextmanager
def _in_place_of(path: Path) -> Iterator[BinaryIO]:
    """A file whose content becomes that of ``path`` with the end of the body, and that is gone if that raises."""
    aside = path.with_name(f".{path.name}")
    try:
        with naming(path):
            with aside.open("wb") as new:
                yield new
            aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)  # a full disk needs the room
        raise


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def batch_metrics(batch: TakenBatch[Group], version: int) -> dict[str, Any]:
    """What one batch of groups says, before the learner has touched it.

    Means are over the members of all groups, accepted or not (so a continuation that replaced a rollout
    counts and what was discarded doesn't); ``rollout/`` and ``stop/`` count everything that was played.
    ``tools/mean`` is of the calls of any tool that were answered, ``search/mean`` of the one called ``search``.
    ``search/empty_share`` is of the searches that the retriever has answered, those without a passage;
    ``search/refused_share`` of the members, those that asked for more searches than they had. A share of the
    accepted groups counts the signal-bearing ones: the others carry no gradient. ``recovered_…`` are those
    that this batch recycled from a zero-variance state: too hard before (the policy has improved), or too
    easy (it has drifted).
    """
    groups = batch.payloads
    members = [m for g in groups for m in g.members]
    excluded = [t for g in groups for t in g.excluded]
    discarded = [t for g in groups for t in g.discarded]
    extras = [g.extra for g in groups if g.before_continuation is not None]
    searches = [c for m in members for turn in m.trajectory.turns for c in turn.answered if c.tool == SEARCH]
    recalls = [m.score.evidence for m in members if m.score.evidence is not None]
    signal = [a for a in batch.accepted if a.outcome.state is QueryState.SIGNAL]
    versions = [p.outcome.oldest_version for p in (*batch.played, *(a.played for a in batch.accepted))]
    oldest = [v for v in versions if v != NO_VERSION]
    seconds = _rollout_seconds(groups)
    limits = [g.ticket.max_searches for g in groups if g.ticket.max_searches is not None]
    row: dict[str, Any] = {
        "reward/mean": mean([m.score.reward for m in members]),
        "outcome/mean": mean([m.score.outcome for m in members]),
        "evidence/recall": mean(recalls),
        "tools/mean": mean([sum(len(turn.answered) for turn in m.trajectory.turns) for m in members]),
        "search/mean": mean([m.trajectory.searches for m in members]),
        "search/limit_mean": mean(limits),
        "search/empty_share": mean([not call.titles for call in searches]),
        "search/refused_share": mean([_refused(m.trajectory) for m in members]),
        "groups/signal": batch.states[QueryState.SIGNAL],
        "groups/too_easy": batch.states[QueryState.TOO_EASY],
        "groups/too_hard": batch.states[QueryState.TOO_HARD],
        "groups/accepted": len(batch.accepted),
        "groups/kept": len(batch.kept),
        "groups/cut_short": sum(g.cut_short for g in groups),
        "pool/recycled_share": mean([a.recycled for a in signal]),
        "pool/recovered_too_hard": sum(a.before is QueryState.TOO_HARD for a in signal),
        "pool/recovered_too_easy": sum(a.before is QueryState.TOO_EASY for a in signal),
        "continuation/attempted": len(extras),
        "continuation/replaced": int(sum(e["replaced"] for e in extras)),
        "continuation/extra_tokens": int(sum(e["extra_tokens"] for e in extras)),
        "continuation/mean_gain": mean([e["gain"] for e in extras if e["replaced"]]),
        "rollout/trajectories": batch.rollouts,
        "rollout/excluded": len(excluded),
        "rollout/generated_tokens": batch.generated_tokens,
        "rollout/seconds": seconds,
        "rollout/tokens_per_s": batch.generated_tokens / seconds if seconds > 0 else math.nan,
        "rollout/staleness_max": version - min(oldest) if oldest else 0,
    }
    if excluded:
        row["rollout/excluded_why"] = commonest([f"{t.stop_reason}: {t.fault}" for t in excluded])
    row |= {f"groups/returned/{reason}": count for reason, count in sorted(batch.returned.items())}
    stops = Counter(str(t.stop_reason) for t in (*(m.trajectory for m in members), *excluded, *discarded))
    return row | {f"stop/{reason}": count for reason, count in sorted(stops.items())}


def drifted_tokens(groups: Iterable[Group], decode: Callable[[Sequence[int]], str]) -> int:
    """Sampled tokens of turns whose ids, as they were delivered, are no longer the text that the protocol has read.

    Always 0: text is made of the ids and never encoded again. Otherwise something is scored that is not what is
    trained on.
    """
    played = (t for g in groups for t in (*(m.trajectory for m in g.members), *g.excluded))
    return sum(
        turn.action_end - turn.action_start
        for trajectory in played
        for turn in trajectory.turns
        if decode(trajectory.token_ids[turn.action_start : turn.action_end].tolist()) != turn.text
    )


def _refused(trajectory: Trajectory) -> bool:
    """Whether a search came after the episode's last."""
    return any(call.refused for turn in trajectory.turns for call in turn.calls if call.tool == SEARCH)


def _rollout_seconds(groups: Sequence[Group]) -> float:
    """Seconds from the first group's start to the last one's end, by the slowest worker's own clock."""
    by_worker: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        by_worker.setdefault(group.worker, []).append((group.started_s, group.finished_s))
    spans = [max(end for _, end in times) - min(start for start, _ in times) for times in by_worker.values()]
    return max(spans, default=0.0)


UNTRAINABLE = "untrainable_batch"
"""The event of a batch that was skipped, with what it has cost."""
IDLE_PLACES = ("available", "resting", "consumed", "quarantined")
"""Where a query is that nobody works on. The others are drawn, and not yet back."""


def pool_metrics(report: dict[str, Any]) -> dict[str, Any]:
    """The pool's places, what it thinks of its queries, and its books, as metrics."""
    row: dict[str, Any] = {
        "pool/available": report["places"]["available"],
        "pool/in_use": sum(count for place, count in report["places"].items() if place not in IDLE_PLACES),
        "pool/resting": report["places"]["resting"],
        "pool/consumed": report["places"]["consumed"],
        "pool/quarantined": report["places"]["quarantined"],
        "pool/flipped_share": report["flipped_share"],
        "pool/late_groups": report["late_groups"],
    }
    row |= {f"pool/seen_{name}": count for name, count in report["seen"].items()}
    for name, account in report["accounts"].items():
        row |= {f"books/{name}/{key}": account[key] for key in ("received", "accepted", "in_flight")}
        row |= {f"books/{name}/returned/{reason}": count for reason, count in account["returned"].items()}
    return row


def mean(values: Sequence[float]) -> float:
    """NaN of nothing."""
    return sum(values) / len(values) if values else math.nan
