"""Evaluations in the layout of the papers' tables: a row for each policy, a column for each data set, their average.

The published rows stand below, for comparison: of other index builds, prompts and samples than ours.
"""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import UserError
from agent.readable import content_of
from agent.writing import write_text
from tracking.differences import NOTHING, differences
from tracking.evals.result import RESULT, read_result
from tracking.evals.table import latex_row, markdown_row, no_formula

FILE = "benchmark"
AVERAGE = "Avg."
MISSING = "–"
MEASURES = ("em", "f1")
_FOUND = ("checkpoint", "weights", "data", "code", "episodes", "faults", "refused", "bootstrap", "slices")
"""Of eval.json, what isn't a setting, and what the rows of one policy differ in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Paper:
    """A published table."""

    name: str
    source: str
    columns: Mapping[str, str]
    """Headings by how a set's name begins."""
    measures: tuple[str, ...]
    published: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Cells of a row: of all columns and the average, or of the average alone."""


PAPERS = (
    Paper(
        name="DAVID-GRPO",
        source="EM / F1, Qwen2.5-1.5B, as in arXiv 2601.21699, January 2026; AntiLeak-m over a Wikipedia of 2024",
        columns={
            "hotpot": "HotpotQA",
            "2wiki": "2Wiki",
            "musique": "MuSiQue",
            "bamboogle": "Bamboogle",
            "bamtwoogle": "BamTwoogle",
            "antileak": "AntiLeak-m",
        },
        measures=("em", "f1"),
        published={
            "DAVID-GRPO": (
                *("24.8 / 33.8", "27.2 / 32.3", "7.1 / 12.6", "14.4 / 24.2", "22.0 / 25.4", "36.3 / 41.1"),
                "22.0 / 28.2",
            ),
            "Search-R1-v0.3 + retrieval reward": (
                *("19.0 / 26.5", "21.3 / 26.4", "3.6 / 9.2", "8.0 / 14.3", "3.0 / 5.5", "16.7 / 22.2"),
                "11.9 / 17.4",
            ),
            "Tree-GRPO": (
                *("12.9 / 18.6", "20.5 / 23.3", "2.1 / 7.2", "12.0 / 15.5", "5.0 / 8.2", "11.7 / 15.7"),
                "10.7 / 14.8",
            ),
            "StepSearch": (
                *("11.9 / 18.1", "13.5 / 18.1", "2.2 / 6.9", "3.2 / 8.7", "4.0 / 6.0", "12.1 / 17.3"),
                "7.8 / 12.5",
            ),
        },
    ),
    Paper(
        name="Query recycling",
        source="Pass@1, Qwen3-1.7B, as in arXiv 2606.10709",
        columns={
            "2wiki": "2Wiki",
            "bamboogle": "Bamboogle",
            "hotpot": "HotpotQA",
            "musique": "MuSiQue",
            "nq": "NQ",
            "popqa": "PopQA",
            "triviaqa": "TriviaQA",
        },
        measures=("em",),
        published={"query recycling": ("66.0",), "GRPO": ("64.9",), "bounded DAPO": ("64.1",)},
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One policy: each measure of each set, a number for each of the seeds that have it."""

    name: str
    seeds: int
    """Of all sets; where jobs of a sweep have failed, a set has fewer."""
    values: Mapping[str, Mapping[str, Mapping[str, float]]]
    """By set, measure and seed, as shares."""
    questions: Mapping[str, int]
    """Of each set: a published number is of all of them, or of a sample that its paper names."""

    def cell(self, sets: Sequence[str | None], measures: Sequence[str]) -> str:
        """The mean over ``sets`` and the seeds that have all of them, in percent; of several seeds ± their standard
        deviation, and how many there are where the row has more."""
        if any(name is None or name not in self.values for name in sets):
            return MISSING
        found = [self.values[str(name)] for name in sets]
        common = set.intersection(*(set(each[measures[0]]) for each in found))
        if not common:
            return MISSING
        cell = " / ".join(
            _number([statistics.mean(each[measure][seed] for each in found) for seed in sorted(common)])
            for measure in measures
        )
        return cell if len(common) == self.seeds else f"{cell} ({len(common)} seed{'s' if len(common) > 1 else ''})"


def _number(seeds: Sequence[float]) -> str:
    percent = [100 * each for each in seeds]
    spread = f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else ""
    return f"{statistics.mean(percent):.1f}{spread}"


def rows_of(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row for each policy and setting of ``results``, contents of eval.json: those that differ in their seed alone
    are one row, and of those of one seed each set counts once, as the last of them has it.

    A seed is that of a sampled evaluation, or that of the run that made the checkpoint (``seed=0`` in its path). What
    was played on another number of questions is a row of its own.
    """
    found: dict[tuple[str, str, str], dict[str, dict[str, Mapping[str, Any]]]] = {}
    questions: dict[tuple[str, str, str], dict[str, int]] = {}
    played = [(policy, _setting(r), r) for policy, r in zip(_policies(results), results, strict=True)]
    for policy, setting, result in played:
        others = [other for name, other, _ in played if name == policy]
        seed = json.dumps([result["checkpoint"], result.get("played", {}).get("seed")])
        counts = {name: line["questions"] for name, line in _sets(result).items()}
        key = (policy, _apart(setting, others), "")
        if any(questions.get(key, {}).get(name, count) != count for name, count in counts.items()):
            key = (*key[:2], f"of {', '.join(sorted({f'{count:,}' for count in counts.values()}))} questions")
        sets = found.setdefault(key, {})
        questions.setdefault(key, {}).update(counts)
        for name, line in _sets(result).items():
            sets.setdefault(name, {})[seed] = line
    return [
        Row(
            name=", ".join(filter(None, key)),
            seeds=len(set().union(*sets.values())),
            values={
                name: {measure: {seed: line[measure]["mean"] for seed, line in seeds.items()} for measure in MEASURES}
                for name, seeds in sets.items()
            },
            questions=questions[key],
        )
        for key, sets in found.items()
        if sets
    ]


_SEED, _STEP = re.compile(r"(?<![\w.])seed=\d+"), re.compile(r"step-\d+")


def _policies(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each result is a policy of: its checkpoint, without the seed. The step is left out, too, where each seed has
    one checkpoint and their steps differ: runs of one budget end at steps of their own."""
    given = [str(result["checkpoint"]) for result in results]
    runs = [_STEP.sub("step-*", name) for name in given]
    policies = [_seedless(run) for run in runs]
    checkpoints: dict[str, dict[str, set[str]]] = {}  # policy -> run -> its checkpoints
    for policy, run, name in zip(policies, runs, given, strict=True):
        checkpoints.setdefault(policy, {}).setdefault(run, set()).add(name)
    found = []
    for policy, name in zip(policies, given, strict=True):
        of_runs = checkpoints[policy].values()
        one_each = all(len(own) == 1 for own in of_runs)
        same_steps = len({_seedless(each) for own in of_runs for each in own}) == 1
        found.append(policy if one_each and not same_steps else _seedless(name))
    return found


def _seedless(name: str) -> str:
    return _SEED.sub("seed=*", name)


def _setting(result: Mapping[str, Any]) -> dict[str, Any]:
    """What two evaluations of a policy have in common where they differ in their seed alone."""
    kept = {key: value for key, value in result.items() if key not in _FOUND}
    return kept | {"played": {k: v for k, v in result.get("played", {}).items() if k != "seed"}}


def _apart(setting: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """What tells a setting from the ``others`` of its policy, as a label; empty where nothing does."""
    found = {d.key: d.now for other in others for d in differences(other, setting) if d.now != NOTHING}
    return ", ".join(f"{key}={value}" for key, value in sorted(found.items()))


def _sets(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The line of each set; of an evaluation of one set that one's."""
    slices = [line for line in result["slices"] if line["by"] == "set"]
    named = {line["name"]: line for line in slices} or {result["data"]["name"]: result["slices"][0]}
    return {name: line for name, line in named.items() if all(line[each]["mean"] is not None for each in MEASURES)}


def _counts(rows: Sequence[Row], begins: str) -> list[str]:
    """How many questions of a column's set the rows played, each number once."""
    names = ((row, _set_of(row, begins)) for row in rows)
    played = dict.fromkeys(row.questions[name] for row, name in names if name is not None and name in row.questions)
    return [f"{count:,}" for count in played]


def _sets_of(row: Row, begins: str) -> list[str]:
    """What the row's evaluation calls the sets of a column: the authors' file has another name than the hub's."""
    return [name for name in sorted(row.values) if _bare(name).startswith(begins)]


def _set_of(row: Row, begins: str) -> str | None:
    """The one set of a column. Of several, such as two settings of HotpotQA, nobody knows which is the paper's."""
    names = _sets_of(row, begins)
    return names[0] if len(names) == 1 else None


def _cell(row: Row, begins: str, measures: Sequence[str]) -> str:
    """A column's cell; the names where the row has several sets of it."""
    names = _sets_of(row, begins)
    return f"{' or '.join(names)}?" if len(names) > 1 else row.cell([_set_of(row, begins)], measures)


def tables(rows: Sequence[Row]) -> Iterator[tuple[Paper, list[list[str]]]]:
    """The tables that ``rows`` have two sets of at least, each with its header."""
    for paper in PAPERS:
        if sum(any(_sets_of(row, begins) for row in rows) for begins in paper.columns) < 2:
            continue
        lines = [["", *paper.columns.values(), AVERAGE]]
        for row in rows:
            sets = [_set_of(row, begins) for begins in paper.columns]
            label = row.name if row.seeds == 1 else f"{row.name}, {row.seeds} seeds"
            own = [_cell(row, begins, paper.measures) for begins in paper.columns]
            lines.append([label, *own, row.cell(sets, paper.measures)])
        counts = [" / ".join(_counts(rows, begins)) or MISSING for begins in paper.columns]
        lines.append(["questions played", *counts, MISSING])
        for name, cells in paper.published.items():
            missing = [MISSING] * (len(paper.columns) + 1 - len(cells))
            lines.append([f"{name} (published)", *missing, *cells])
        yield paper, lines


def _bare(name: str) -> str:
    """A set's name as columns are compared with it: verl calls Search-R1's sets ``searchR1_nq``."""
    return name.lower().removeprefix("searchr1_")


def write(folder: Path, results: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[list[str]]]]:
    """Writes the tables of ``results`` as ``benchmark.md``, ``.csv`` and ``.tex``; returns each with its title.

    Nothing where they have no two sets of one table.
    """
    found = [(f"{paper.name}: {paper.source}", lines) for paper, lines in tables(rows_of(results))]
    if found:
        texts = {"md": _markdown(found), "tex": _latex(found), "csv": _comma_separated(found)}
        for ending, text in texts.items():
            write_text(folder / f"{FILE}.{ending}", text)
    return found


def of_jobs(folders: Sequence[Path], warn: Callable[[str], None]) -> list[dict[str, Any]]:
    """eval.json of each of ``folders``. One that isn't as ``mode=eval`` writes it is left out, and ``warn`` is told."""
    found = []
    for folder in folders:
        try:
            with content_of(f"{folder}: {RESULT}"):
                result = read_result(folder, str(folder))
                rows_of([result])
            found.append(result)
        except UserError as error:
            warn(f"left out of the tables: {error}; delete that file, and the same command makes it anew")
    return found


def _markdown(found: Sequence[tuple[str, list[list[str]]]]) -> str:
    text = []
    for title, (head, *body) in found:
        rows = [head, ["---", *["---:"] * (len(head) - 1)], *body]
        text.append(f"{title}\n\n" + "".join(map(markdown_row, rows)))
    return "\n".join(text)


def _latex(found: Sequence[tuple[str, list[list[str]]]]) -> str:
    text = []
    for title, (head, *body) in found:
        columns = "l" + "r" * (len(head) - 1)
        text.append(f"% {title}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{latex_row(head)}\n")
        text.append("\\midrule\n" + "\n".join(map(latex_row, body)) + "\n\\bottomrule\n\\end{tabular}\n")
    return "".join(text)


def _comma_separated(found: Sequence[tuple[str, list[list[str]]]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for title, (head, *body) in found:
        writer.writerows([["table", *head], *([title.partition(":")[0], *map(no_formula, row)] for row in body)])
    return out.getvalue()
