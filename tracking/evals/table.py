"""The tables of an evaluation: a line for all questions and for each type, as Markdown, CSV and LaTeX (booktabs).

Shares are in percent, as the papers give them; in brackets the 95 % interval. The CSV has the numbers as they are.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.visible import visible
from agent.writing import write_text

COLUMNS = {
    "em": "EM",
    "f1": "F1",
    "cover_em": "cover EM",
    "evidence_recall": "evidence",
    "answerable": "answerable",
    "searches": "searches",
    "tokens": "tokens",
}
SHARES = ("em", "f1", "cover_em", "evidence_recall", "answerable")
"""Columns in percent, as are those of pass@k."""
_DECIMALS = {"searches": 2}
_LATEX = re.compile(r"[&%$#_{}~^\\<>|–±]|-(?=-)")
_ESCAPED = {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "-": "-{}",
    "±": r"$\pm$",
}
_MARKUP = re.compile(r"[\\`*<~]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|\](?=[\[(:])")
"""What GitHub's Markdown takes for markup within a line. An underscore in a word, and brackets alone, are none."""

Line = Mapping[str, Any]


def columns(lines: Sequence[Line]) -> dict[str, str]:
    """Name and heading of each measure that the lines have: pass@k stands behind EM."""
    passes = [name for name in (lines[0] if lines else {}) if name.startswith("pass@")]
    found: dict[str, str] = {}
    for name, heading in COLUMNS.items():
        found[name] = heading
        if name == "em":
            found |= {name: name for name in passes}
    return {name: heading for name, heading in found.items() if lines and name in lines[0]}


def header(lines: Sequence[Line]) -> list[str]:
    """Headings of the table for people; EM of several episodes a question is their mean: Pass@1, where it is of the
    same questions as the other pass@k are."""
    headings = columns(lines)
    passes = [name for name in headings if name.startswith("pass@")]
    if passes and all(line[name]["n"] == line["em"]["n"] for line in lines for name in passes):
        headings["em"] = "pass@1 (EM)"
    return ["", "questions", *headings.values(), *(["faults"] if lines and "faults" in lines[0] else [])]


def cells(lines: Sequence[Line], *, signed: bool = False) -> list[list[str]]:
    """The table for people; ``signed`` shows differences."""
    rows = []
    for line in lines:
        name = str(line["name"]) if line["by"] != "documents" else f"{line['name']} supporting documents"
        row = [name, f"{line['questions']:,}"]
        row += [_cell(line[measure], measure, signed) for measure in columns(lines)]
        rows.append(row + ([str(line["faults"])] if "faults" in line else []))
    return rows


def markdown(lines: Sequence[Line], *, signed: bool = False) -> str:
    """A table of GitHub's Markdown."""
    rows = [header(lines), ["---", *["---:"] * (len(header(lines)) - 1)], *cells(lines, signed=signed)]
    return "".join(map(markdown_row, rows))


def markdown_row(cells: Sequence[str]) -> str:
    """A line of a table of GitHub's Markdown. An indent of a cell is kept."""
    return f"| {' | '.join(map(_markdown_cell, cells))} |\n"


def _markdown_cell(text: str) -> str:
    indent = "&nbsp;" * (len(text) - len(text.lstrip(" ")))
    return indent + markdown_text(text).replace("|", "&#124;")


def markdown_text(text: str) -> str:
    """``text`` as Markdown shows it as it is, in one line.

    >>> markdown_text("a <b> *c* d_e")
    'a \\\\<b> \\\\*c\\\\* d_e'
    """
    return _MARKUP.sub(r"\\\g<0>", _in_a_line(text))


def latex(lines: Sequence[Line], *, signed: bool = False) -> str:
    """A tabular of the package booktabs."""
    rows = map(latex_row, cells(lines, signed=signed))
    head = latex_row(header(lines))
    alignment = "l" + "r" * (len(header(lines)) - 1)
    text = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*text, r"\end{tabular}"]) + "\n"


def latex_row(cells: Sequence[str]) -> str:
    """A line of a tabular. LaTeX would take ``[`` or ``*`` at its beginning for an option of the line before."""
    row = " & ".join(map(escaped, cells))
    return ("{}" if row.startswith(("[", "*")) else "") + row + r" \\"


def comma_separated(lines: Sequence[Line]) -> str:
    """CSV with each number and the ends of its interval as they are; nothing where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = columns(lines)
    more = ["faults"] if lines and "faults" in lines[0] else []
    writer.writerow(["by", "name", "questions", *(f"{n}{end}" for n in names for end in ("", "_low", "_high")), *more])
    for line in lines:
        numbers = [line[name][key] for name in names for key in ("mean", "low", "high")]
        writer.writerow(
            [line["by"], no_formula(str(line["name"])), line["questions"], *numbers, *(line[name] for name in more)]
        )
    return out.getvalue()


def no_formula(text: str) -> str:
    """``text`` as a spreadsheet takes it for text: one that it would compute gets an apostrophe before it. Control
    characters are escapes, as in all tables."""
    text = visible(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def write(folder: Path, name: str, lines: Sequence[Line], about: str, *, signed: bool = False) -> None:
    """Writes ``name.md``, ``name.csv`` and ``name.tex``. ``about`` says what the table is of."""
    texts = {
        "md": "\n".join(map(markdown_text, about.splitlines())) + f"\n\n{markdown(lines, signed=signed)}",
        "csv": comma_separated(lines),
        "tex": "".join(f"% {visible(line)}\n" for line in about.splitlines()) + latex(lines, signed=signed),
    }
    for ending, text in texts.items():
        write_text(folder / f"{name}.{ending}", text)


def _cell(found: Mapping[str, Any], measure: str, signed: bool) -> str:
    if found["mean"] is None:
        return "–"
    share = measure in SHARES or measure.startswith("pass@")
    decimals = _DECIMALS.get(measure, 1)

    def number(value: float) -> str:
        return f"{value * (100 if share else 1):{'+' if signed else ''}.{decimals}f}"

    ends = "" if found["low"] is None else f" [{number(found['low'])}, {number(found['high'])}]"
    return number(found["mean"]) + ends


def escaped(text: str) -> str:
    """``text`` as LaTeX has it."""
    return _LATEX.sub(lambda match: _ESCAPED.get(match[0], "\\" + match[0]), _in_a_line(text))


def _in_a_line(text: str) -> str:
    """``text`` in one line, with control characters as escapes: a table may be read in a terminal."""
    return visible(" ".join(text.split()))
