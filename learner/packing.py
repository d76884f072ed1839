"""Sequences laid end to end in rows: one row is one microbatch, without a token of padding.

The K trajectories of a question begin with the same prompt. What they share is laid down once, as a block of its own
that each of them sees before its own tokens (as Prefix Grouper does, arXiv 2506.05433):

    row:    [prompt] [rest of trajectory 1] [rest of trajectory 2] …       no token's result differs by it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from agent.records import BoolArray, IntArray

SHORTEST_SHARED = 16
"""Tokens that sequences must have in common to be worth a block of their own."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedRow:
    """S sequences in at least S blocks of N tokens in all, and the A tokens whose log-probabilities are wanted.

    Sequences of 3 and 2 tokens, the last of each selected, have ``lengths == [3, 2]`` and
    ``sources == [1, 3]``: the token at 2 is predicted at 1, the token at 4 at 3.
    """

    members: tuple[int, ...]
    """Index of each of the S sequences in the list that was packed."""
    token_ids: IntArray
    """(N,)"""
    lengths: IntArray
    """Of the blocks: first what is shared, then each member's own; longest first, so that equal ones are neighbours."""
    before: IntArray
    """For each block the one that comes before it in its sequence; -1 for none."""
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
        """(blocks + 1,) where each block starts, and the end."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int32)

    @property
    def seen(self) -> IntArray:
        """(blocks,) tokens that the last one of each block attends to: those before the block and its own."""
        return self.lengths + np.where(self.before < 0, 0, self.lengths[self.before])

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """(N,) position of each token in its own sequence."""
        starts = np.repeat(self.cu_seqlens[:-1] + self.lengths - self.seen, self.lengths)
        return np.arange(len(self.token_ids), dtype=np.int64) - starts

    @property
    def whole_tokens(self) -> int:
        """Tokens of all members, what they share counted for each."""
        return int(self.seen[len(self.lengths) - len(self.members) :].sum())

    def places(self) -> list[npt.NDArray[np.int64]]:
        """Where in the row each member's tokens are, from its first to its last."""
        starts, first = self.cu_seqlens, len(self.lengths) - len(self.members)
        spans = [np.arange(start, end) for start, end in pairwise(starts)]
        return [
            np.concatenate([spans[before], spans[block]]) if (before := int(self.before[block])) >= 0 else spans[block]
            for block in range(first, len(spans))
        ]

    def concatenate(self, per_token: Sequence[npt.NDArray]) -> npt.NDArray:
        """(A,) from one array per packed sequence, each over that sequence's selected tokens."""
        return np.concatenate([per_token[m] for m in self.members])

    def repeat(self, per_sequence: npt.NDArray) -> npt.NDArray:
        """(A,) from one value per packed sequence."""
        return np.repeat(per_sequence[list(self.members)], self.selected)

    def split(self, values: npt.NDArray) -> list[npt.NDArray]:
        """The inverse of ``concatenate``: (A,) values as one array per member, in row order."""
        return np.split(values, np.cumsum(self.selected)[:-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Item:
    """A sequence that is to be packed."""

    own: int
    """Tokens that no other has."""
    room: int
    """What it takes of a row, beside what it shares."""
    shared: int = 0
    """Tokens before them that its family has in common."""
    family: int = -1
    total: int = 0
    """Tokens of the whole family."""


def pack_rows(
    token_ids: Sequence[IntArray],
    selected: Sequence[BoolArray],
    limit: int,
    *,
    multiple: int = 1,
    families: Sequence[int] | None = None,
    seen_again: float = 0.0,
) -> list[PackedRow]:
    """Packs sequences into rows of at most ``limit`` tokens: few rows, and those of nearly equal length.

    First-fit decreasing says how many rows there are. The last of them would be a stump, on average half empty; so
    the limit is then lowered as far as the same number of rows allows. The fullest row, and with it the memory that a
    step needs, gets smaller for nothing.

    The number of rows is a multiple of ``multiple``, if there are sequences enough: so many learners then get equally
    many, of nearly equal length. Sequences of one of the ``families`` (one number each) are kept together where they
    begin alike, and what they share before the first selected token, but for the token that predicts that, is in the
    row once. For each sequence it takes ``seen_again`` of its tokens' room more.

    ``selected[i]`` (T_i,) marks the tokens of sequence i whose log-probabilities are wanted. A single
    sequence longer than the limit gets a row of its own. The outcome depends on the lengths, families and
    their order alone.

    Raises ``ValueError`` when a first token is selected: nothing precedes it.
    """
    items = _items(token_ids, selected, families, seen_again)
    bins = _first_fit(items, limit)
    if bins:
        wanted = -(-len(bins) // multiple) * multiple
        longest = max(item.room + item.shared for item in items)
        low, high = max(-(-sum(item.own for item in items) // wanted), min(limit, longest)), limit
        while low < high:
            middle = (low + high) // 2
            tried = _first_fit(items, middle)
            if len(tried) <= wanted:
                bins, high = tried, middle
            else:
                low = middle + 1
    return [_row(members, items, token_ids, selected) for members in bins]


def _items(
    token_ids: Sequence[IntArray], selected: Sequence[BoolArray], families: Sequence[int] | None, again: float
) -> list[_Item]:
    items = [_Item(own=len(ids), room=len(ids)) for ids in token_ids]
    together: dict[int, list[int]] = {}
    for i, family in enumerate(families or ()):
        together.setdefault(family, []).append(i)
    for family, members in together.items():
        shared = _shared([token_ids[m] for m in members], [selected[m] for m in members]) if len(members) > 1 else 0
        if shared >= SHORTEST_SHARED:
            total = shared + sum(len(token_ids[m]) - shared for m in members)
            for m in members:
                own = len(token_ids[m]) - shared
                room = own + int(again * shared)
                items[m] = _Item(own=own, room=room, shared=shared, family=family, total=total)
    return items


def _shared(token_ids: Sequence[IntArray], selected: Sequence[BoolArray]) -> int:
    """Tokens with which all sequences begin, and after which each still has the source of its first selected token."""
    first = token_ids[0]
    most = min((int(mask.argmax()) if mask.any() else len(mask)) - 1 for mask in selected)
    for ids in token_ids[1:]:
        differing = first[:most] != ids[:most]
        most = int(differing.argmax()) if differing.any() else most
    return max(0, most)


def _first_fit(items: Sequence[_Item], limit: int) -> list[list[int]]:
    """Indices by row: each sequence, longest first, goes into the first row that has room for it.

    Families take turns as their sizes say, and their members go where what they share is already, if there is room.
    """
    bins: list[list[int]] = []
    space: list[int] = []
    holding: dict[int, list[int]] = {}
    keys = [(-(item.total or item.own), item.family, -item.own) for item in items]
    for i in sorted(range(len(items)), key=lambda i: keys[i]):
        item = items[i]
        rows = holding.setdefault(item.family, []) if item.shared else []
        fit = next((b for b in rows if space[b] >= item.room), None)
        if fit is None:
            needed = item.room + item.shared
            fit = next((b for b, free in enumerate(space) if free >= needed), None)
            if fit is None:
                fit = len(bins)
                bins.append([])
                space.append(limit)
            space[fit] -= item.shared
            rows.append(fit)
        bins[fit].append(i)
        space[fit] -= item.room
    return bins


def _row(
    members: list[int], items: Sequence[_Item], token_ids: Sequence[IntArray], selected: Sequence[BoolArray]
) -> PackedRow:
    if any(selected[m][0] for m in members):
        raise ValueError("the first token of a sequence has no log-probability: nothing precedes it")
    alike = Counter(items[m].family for m in members if items[m].shared)
    shared = {m: items[m].shared if alike[items[m].family] > 1 else 0 for m in members}
    members = sorted(members, key=lambda m: (shared[m], shared[m] - len(token_ids[m])))  # equal shapes are neighbours
    of_family = {items[m].family: m for m in members if shared[m]}
    fronts = sorted(of_family, key=lambda family: -shared[of_family[family]])
    blocks = [token_ids[of_family[family]][: shared[of_family[family]]] for family in fronts]
    before = [-1] * len(blocks) + [fronts.index(items[m].family) if shared[m] else -1 for m in members]
    blocks += [token_ids[m][shared[m] :] for m in members]
    wanted = [np.zeros(len(ids), np.bool_) for ids in blocks[: len(fronts)]]
    wanted += [selected[m][shared[m] :] for m in members]
    return PackedRow(
        members=tuple(members),
        token_ids=np.concatenate(blocks),
        lengths=np.array([len(ids) for ids in blocks], dtype=np.int32),
        before=np.array(before, dtype=np.int32),
        sources=np.flatnonzero(np.concatenate(wanted)) - 1,
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


def seen_again(hidden: int, query: int, key: int) -> float:
    """Of the room of a token, what its keys and values take where they are there once more.

    ``hidden``, ``query`` and ``key`` are widths: of a layer, of all its query heads, of all its key heads. Compared
    with what a layer keeps whose feed-forward part is computed again (``learner/lean.py``).
    """
    return 2 * key / (3 * hidden + 2 * (query + key))


def room(rows: Sequence[PackedRow]) -> int:
    """Tokens that the rows would hold if all were as full as the fullest."""
    return len(rows) * max((len(row.token_ids) for row in rows), default=0)


def packing_efficiency(rows: Sequence[PackedRow]) -> float:
    """Share of the rows' ``room`` that holds tokens; NaN when there are no rows.

    No token of padding is ever computed. What an emptier row wastes is a pass that could have done more in the
    memory that the fullest one needs anyway.
    """
    return sum(len(row.token_ids) for row in rows) / room(rows) if rows else float("nan")
