"""Sequences laid end to end in rows: one row is one microbatch, without a token of padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.records import BoolArray, IntArray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedRow:
    """S sequences of N tokens in all, and the A tokens whose log-probabilities are wanted.

    Sequences of 3 and 2 tokens, the last of each selected, have ``lengths == [3, 2]`` and
    ``sources == [1, 3]``: the token at 2 is predicted at 1, the token at 4 at 3.
    """

    members: tuple[int, ...]
    """Index of each of the S sequences in the list that was packed."""
    token_ids: IntArray
    """(N,)"""
    lengths: IntArray
    """(S,) longest first, so that equal lengths are neighbours."""
    sources: npt.NDArray[np.int64]
    """(A,) positions whose hidden state predicts a selected token; all different."""
    selected: IntArray
    """(S,) selected tokens of each sequence."""

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """(A,) ids of the selected tokens."""
        return self.token_ids[self.sources + 1].astype(np.int64)

    @property
    def cu_seqlens(self) -> IntArray:
        """(S + 1,) where each sequence starts, and the end."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int32)

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """(N,) position of each token in its own sequence."""
        starts = np.repeat(self.cu_seqlens[:-1], self.lengths)
        return np.arange(len(self.token_ids), dtype=np.int64) - starts

    def concatenate(self, per_token: Sequence[npt.NDArray]) -> npt.NDArray:
        """(A,) from one array per packed sequence, each over that sequence's selected tokens."""
        return np.concatenate([per_token[m] for m in self.members])

    def repeat(self, per_sequence: npt.NDArray) -> npt.NDArray:
        """(A,) from one value per packed sequence."""
        return np.repeat(per_sequence[list(self.members)], self.selected)

    def split(self, values: npt.NDArray) -> list[npt.NDArray]:
        """The inverse of ``concatenate``: (A,) values as one array per member, in row order."""
        return np.split(values, np.cumsum(self.selected)[:-1])


def pack_rows(
    token_ids: Sequence[IntArray], selected: Sequence[BoolArray], limit: int, *, multiple: int = 1
) -> list[PackedRow]:
    """Packs sequences into rows of at most ``limit`` tokens: few rows, and those of nearly equal length.

    First-fit decreasing says how many rows there are. The last of them would be a stump, on average half empty; so
    the limit is then lowered as far as the same number of rows allows. The fullest row, and with it the memory that a
    step needs, gets smaller for nothing.

    The number of rows is a multiple of ``multiple``, if there are sequences enough: so many learners then get equally
    many, of nearly equal length.

    ``selected[i]`` (T_i,) marks the tokens of sequence i whose log-probabilities are wanted. A single
    sequence longer than the limit gets a row of its own. The outcome depends on the lengths and
    their order alone.

    Raises ``ValueError`` when a first token is selected: nothing precedes it.
    """
    lengths = [len(ids) for ids in token_ids]
    bins = _first_fit(lengths, limit)
    if bins:
        wanted = -(-len(bins) // multiple) * multiple
        low, high = max(-(-sum(lengths) // wanted), min(limit, max(lengths))), limit
        while low < high:
            middle = (low + high) // 2
            tried = _first_fit(lengths, middle)
            if len(tried) <= wanted:
                bins, high = tried, middle
            else:
                low = middle + 1
    return [_row(members, token_ids, selected) for members in bins]


def _first_fit(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Indices by row: each sequence, longest first, goes into the first row that has room for it."""
    bins: list[list[int]] = []
    space: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fit = next((b for b, free in enumerate(space) if free >= lengths[i]), None)
        if fit is None:
            bins.append([i])
            space.append(limit - lengths[i])
        else:
            bins[fit].append(i)
            space[fit] -= lengths[i]
    return bins


def _row(members: list[int], token_ids: Sequence[IntArray], selected: Sequence[BoolArray]) -> PackedRow:
    if any(selected[m][0] for m in members):
        raise ValueError("the first token of a sequence has no log-probability: nothing precedes it")
    return PackedRow(
        members=tuple(members),
        token_ids=np.concatenate([token_ids[m] for m in members]),
        lengths=np.array([len(token_ids[m]) for m in members], dtype=np.int32),
        sources=np.flatnonzero(np.concatenate([selected[m] for m in members])) - 1,
        selected=np.array([selected[m].sum() for m in members], dtype=np.int32),
    )


def shares(sizes: Sequence[int], among: int) -> list[int]:
    """Which of ``among`` each item goes to: the largest first, to whoever has least, the first of equals.

    >>> shares([5, 4, 3, 3], 2)
    [0, 1, 1, 0]
    """
    loads, where = [0] * among, [0] * len(sizes)
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        where[item] = loads.index(min(loads))
        loads[where[item]] += sizes[item]
    return where


def room(rows: Sequence[PackedRow]) -> int:
    """Tokens that the rows would hold if all were as full as the fullest."""
    return len(rows) * max((len(row.token_ids) for row in rows), default=0)


def packing_efficiency(rows: Sequence[PackedRow]) -> float:
    """Share of the rows' ``room`` that holds tokens; NaN when there are no rows.

    No token of padding is ever computed. What an emptier row wastes is a pass that could have done more in the
    memory that the fullest one needs anyway.
    """
    return sum(len(row.token_ids) for row in rows) / room(rows) if rows else float("nan")
