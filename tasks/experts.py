"""Expert trajectories: from a file of the user's, or of an exact expert in the built-in world.

A file is JSONL with one trajectory per line, in the tags of the run's protocol (``agent/protocol.py``)::

    {"id": "q1", "question": "Who wrote Emma?", "golden_answers": ["Jane Austen"],
     "metadata": {"supporting_titles": ["Emma (novel)"]},
     "trajectory": "I look it up. <search>Emma novel</search>\\n<result>\\nResult 1: \\"Emma (novel)\\"\\nEmma is …\\n</result>\\nSo <answer>Jane Austen</answer>"}

| field | taken from |
| --- | --- |
| question, golden answers, id, supporting documents, kind | as in a file of questions (``tasks/files.py``) |
| the response: actions and result blocks | ``trajectory``, else ``expert_response`` (DAVID-GRPO's own file) |
| passages | the result blocks: ``Result 1: "Title"``, a new line, the text, then ``Result 2: …`` (the protocol's label, in any case), or as Search-R1 has them, ``Doc 1(Title: "Title") text``, or verl, ``Doc 1 (Title: "Title")``, a new line, the text and an empty line; a block of another form is one passage without a title |
| document ids | ``document_ids``, a list of ids for each result block; without it no id is known |

It may be compressed, as any file of questions. Other fields (a ``prompt``, say) are left alone: the policy is trained on the prompt that it gets in its own
episodes, and sees passages in the form in which the environment shows them. White space between an action
and a result block is the environment's and in neither.
"""  # noqa: E501

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from agent.answers import exact_match, normalise_query
from agent.config import AgentConfig
from agent.errors import UserError
from agent.formats.catalogue import format_class
from agent.protocol import NO_RESULTS, PROTOCOLS, TagProtocol, ToolTags
from agent.records import Passage, Question, Trajectory
from agent.seeds import derive_seed
from retrieval_service.textfile import stem
from tasks.bm25 import Bm25
from tasks.demonstrations import Demonstration, Move, answer_text, search_text
from tasks.fields import first, text
from tasks.files import Unplayable, question_of
from tasks.notices import Notice, some
from tasks.rows import Row, rows
from tasks.several import contradicting
from tasks.unread import Unread
from tasks.world import World

_RESPONSE = ("trajectory", "expert_response")
_SEARCH_R1 = r' ?\(Title: ?(?:"(.*?)"|((?:[^()\n]|\([^()\n]*\))*))\)'
"""What stands behind a passage's number in the layout of Search-R1, and, after a blank, of verl."""


def read_experts(
    path: Path,
    protocol: TagProtocol,
    *,
    key: str,
    evidence_match: str = "title",
    strict: bool = False,
    notices: list[Notice] | None = None,
) -> tuple[Demonstration, ...]:
    """The expert trajectories of a file, in file order. ``key`` is the setting that names the file, ``evidence_match``
    what supporting documents are matched by; what is left out or not read is added to ``notices``, with ``strict`` as
    in a file of questions.

    Raises ``UserError`` with file, line, id and reason for one that is malformed, or whose answer is no exact match of
    a golden one: it is going to be imitated.
    """
    experts: dict[str, Demonstration] = {}
    unread, unplayable = Unread(), Unplayable()
    found: list[Notice] = []
    for line, number, row in rows(path, key, notices=found):
        if unplayable.has(row, line, f"{stem(path)}-{number}"):
            continue
        question = question_of(row, line, f"{stem(path)}-{number}", evidence_match)
        unread.look(row, question)
        where = f"{line}, id '{question.id}'"
        if question.id in experts:
            raise UserError(f"{where}: this id is already taken; one trajectory per question")
        experts[question.id] = Demonstration(question=question, moves=moves_of(row, question, protocol, where))
    found += unread.notices(f"{key}={path}")
    found += unplayable.notices(f"{key}={path}", strict=strict)
    found += contradicting([expert.question for expert in experts.values()], f"{key}={path}")
    if not experts:
        raise UserError(f"{key}={path}: the file holds no trajectories{unplayable.without}")
    if notices is not None:
        notices += found
    return tuple(experts.values())


def moves_of(row: Row, question: Question, protocol: TagProtocol, where: str) -> tuple[Move, ...]:
    """The moves that ``row`` holds for its ``question``. Raises ``UserError`` that starts with ``where``, the line."""
    response = text(first(row, _RESPONSE, where), where).replace("\r\n", "\n")  # as an editor of Windows ends lines
    others, protocol = protocol.others, replace(protocol, others=())
    try:
        turns = split_response(response, protocol)
        _check_searches_alone((action for action, _ in turns), others)
    except ValueError as error:
        best = max(PROTOCOLS.values(), key=lambda p: _tags_in(response, p))
        more = _tags_in(response, best) > _tags_in(response, protocol)
        hint = f"; it has the tags of agent={best.name}" if more else ""
        raise UserError(f"{where}: {error}{hint}") from error
    answer = protocol.parse(turns[-1][0]).answer or ""
    if exact_match(answer, question.golden_answers) < 1:
        raise UserError(
            f"{where}: it answers '{answer}', which is none of its golden answers {list(question.golden_answers)}; "
            "correct it, or add the answer to them"
        )
    blocks = [block for _, block in turns if block is not None]
    ids = _document_ids(row, len(blocks), where)
    passages = [
        _passages(block, protocol, f"{question.id}/{number}", ids[number] if ids else None, where)
        for number, block in enumerate(blocks)
    ]
    actions = [action for action, _ in turns]
    return (*(Move(action=a, passages=p) for a, p in zip(actions, passages, strict=False)), Move(action=actions[-1]))


def _check_searches_alone(actions: Iterable[str], others: Sequence[ToolTags]) -> None:
    """An expert calls no other tool. What stands in a passage is no call: it is neutralised before it is shown.

    Raises ``ValueError`` with the reason.
    """
    for action in actions:
        for tag in (tag for tool in others for tag in (tool.opening, tool.closing)):
            if tag in action:
                raise ValueError(
                    f"'{tag}' in '{action[:80]}' is neither a search nor an answer, all that an expert may write"
                )


def _tags_in(response: str, protocol: TagProtocol) -> int:
    """How many of the tags that tell protocols apart are in ``response``."""
    return (protocol.search_open in response) + (protocol.result_open in response)


def split_response(response: str, protocol: TagProtocol) -> tuple[tuple[str, str | None], ...]:
    """``(action, result block)`` of each turn of a written-out episode; the last one answers and has no block.

    Tags are part of the action and not of the block. Raises ``ValueError`` with the reason for a response that no
    episode could be: unbalanced tags, tags in a wrong order, a search without a result block or a query, no answer
    at the end, or something after it.

    >>> split_response("<search>a</search> <result>b</result> <answer>c</answer>", PROTOCOLS["search"])
    (('<search>a</search>', 'b'), ('<answer>c</answer>', None))
    """
    tag = re.compile("|".join(map(re.escape, protocol.tags)))
    turns: list[tuple[str, str | None]] = []
    begin = 0
    while True:
        opening = tag.search(response, begin)
        if opening is None:
            raise ValueError(f"it ends without an answer ('{protocol.answer_open}…{protocol.answer_close}')")
        if opening[0] == protocol.answer_open:
            end = _answer_end(response, opening.end(), protocol, tag)
            if rest := response[end:].strip():
                raise ValueError(f"something comes after the answer: '{rest[:40]}'")
            return (*turns, (response[begin:end].strip(), None))
        if opening[0] != protocol.search_open:
            raise ValueError(
                f"'{opening[0]}' at character {opening.start()} is neither a search nor an answer, all that an expert "
                "may write"
            )
        closing = tag.search(response, opening.end())
        if closing is None or closing[0] != protocol.search_close:
            raise ValueError(f"the search at character {opening.start()} is not closed by '{protocol.search_close}'")
        if not normalise_query(response[opening.end() : closing.start()]):
            raise ValueError(f"the search at character {opening.start()} has no query")
        block = tag.search(response, closing.end())
        if block is None or block[0] != protocol.result_open or response[closing.end() : block.start()].strip():
            raise ValueError(
                f"the search at character {opening.start()} is not followed by a result block "
                f"('{protocol.result_open}…{protocol.result_close}')"
            )
        after = tag.search(response, block.end())
        if after is None or after[0] != protocol.result_close:
            raise ValueError(
                f"the result block at character {block.start()} is not closed by '{protocol.result_close}'"
                + (f", but followed by '{after[0]}'" if after else "")
            )
        turns.append((response[begin : closing.end()].strip(), _inside(response[block.end() : after.start()])))
        begin = after.end()


def _inside(block: str) -> str:
    """What stands in a result block. One on lines of its own is as the environment shows it: a passage that was cut may
    end with white space. Otherwise white space at its ends is nobody's."""
    whole = block.lstrip()
    return whole[:-1] if whole and block.startswith("\n") and block.endswith("\n") else whole.rstrip()


def _answer_end(response: str, begin: int, protocol: TagProtocol, tag: re.Pattern[str]) -> int:
    """Where the answer that was opened before ``begin`` ends, its closing tag included."""
    if protocol.braced_answer:
        depth, end = 1, begin
        while depth and end < len(response):
            depth += {"{": 1, "}": -1}.get(response[end], 0)
            end += 1
        inside, closed = response[begin : end - 1], depth == 0
    else:
        closing = tag.search(response, begin)
        closed = closing is not None and closing[0] == protocol.answer_close
        inside, end = (response[begin : closing.start()], closing.end()) if closing else ("", begin)
    if not closed or tag.search(inside):
        raise ValueError(f"the answer at character {begin} is not closed by '{protocol.answer_close}'")
    if not inside.strip():
        raise ValueError("the answer is empty")
    return end


def _document_ids(row: Row, blocks: int, where: str) -> list[list[str]] | None:
    ids = row.get("document_ids")
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(
        isinstance(i, list) and all(isinstance(d, str) and d.strip() for d in i) for i in ids
    ):
        raise UserError(
            f"{where}: 'document_ids' must be a list of lists of texts, one for each result block, and no text empty"
        )
    if len(ids) != blocks:
        raise UserError(f"{where}: 'document_ids' has {len(ids)} lists for {blocks} result blocks")
    return ids


def _passages(
    block: str, protocol: TagProtocol, name: str, ids: Sequence[str] | None, where: str
) -> tuple[Passage, ...]:
    """The passages that a result block shows. Without ``ids`` they get made-up ones, which match no document's."""
    found = passages_of(block, protocol)
    if ids is None:
        ids = [f"{name}.{i}" for i in range(len(found))]
    if len(ids) != len(found):
        raise UserError(f"{where}: 'document_ids' names {len(ids)} documents for a result block of {len(found)}")
    return tuple(Passage(id=d, title=title, text=body) for d, (title, body) in zip(ids, found, strict=True))


def passages_of(block: str, protocol: TagProtocol) -> list[tuple[str, str]]:
    """``(title, text)`` of each passage of a result block; the title may be empty.

    >>> passages_of('Result 1: "Emma (novel)"\\nEmma is a novel.\\nResult 2: So it is.', PROTOCOLS["search"])
    [('Emma (novel)', 'Emma is a novel.'), ('', 'So it is.')]
    >>> passages_of('Doc 1(Title: "Emma (novel)") Emma is a novel.', PROTOCOLS["search_r1"])
    [('Emma (novel)', 'Emma is a novel.')]
    """
    if not block or block == NO_RESULTS:
        return []
    label = re.compile(
        rf'^{re.escape(protocol.result_label)} (\d{{1,9}})(?:: ?(?:"(.+)"[ \t]*$)?|{_SEARCH_R1})',
        re.IGNORECASE | re.MULTILINE,
    )
    # A passage may quote another result list: only the next number in turn starts the next passage.
    starts: list[re.Match[str]] = []
    for match in label.finditer(block):
        if int(match[1]) == len(starts) + 1:
            starts.append(match)
    if not starts or starts[0].start() > 0:
        return [("", block)]
    ends = [*(match.start() for match in starts[1:]), len(block)]
    found: list[tuple[str, str]] = []
    for match, end in zip(starts, ends, strict=True):
        text = block[match.end() : end].lstrip()
        if end < len(block):  # the next label stands on a line of its own; verl has an empty one before it
            text = text.removesuffix("\n").removesuffix("\n" if match[0].endswith(")") else "")
        found.append((match[2] or match[3] or match[4] or "", text))
    return found


def cut_blocks(experts: Sequence[Demonstration], limit: int) -> list[Notice]:
    """What there is to say of result blocks in which no passages were found, and that are cut at ``limit`` characters
    (``agent.max_passage_chars``) as one: what their expert answers from may be behind that."""
    found = [
        (expert.question.id, f"a result block of {len(passage.text)} characters is one passage")
        for expert in experts
        for passages in (move.passages or () for move in expert.moves)
        for passage in passages[:1]
        if len(passages) == 1 and not passage.title and len(passage.text) > limit
    ]
    if not found:
        return []
    names = list(dict(found))
    return [
        Notice(
            kind="unread",
            text=f"data.experts: {len(names)} trajectories ({some(names)}) have result blocks that are read as one "
            f"passage without a title, and cut at agent.max_passage_chars={limit}; tasks/experts.py says how passages "
            "are written",
            items=tuple(found),
        )
    ]


def choose(questions: Sequence[Question], seed: int) -> list[Question]:
    """``questions`` in the order in which experts are taken from them; it depends on ``seed`` and their ids alone."""
    return sorted(questions, key=lambda q: (derive_seed("experts", seed, q.id), q.id))


def world_experts(
    world: World, questions: Sequence[Question], count: int, seed: int, protocol: TagProtocol, top_k: int
) -> tuple[Demonstration, ...]:
    """An exact expert's episodes for ``count`` of the world's training ``questions``, chosen by ``seed``.

    They alternate between the numbers of hops, most hops first: few experts are to show every depth.
    Each search names entity and relation and finds its fact among the ``top_k`` passages; the last object
    is the answer. A question for which BM25 ranks a fact lower is passed over. Raises ``UserError`` when
    too few are left.
    """
    engine = Bm25(world.passages)
    made: list[Demonstration] = []
    kinds = sorted({q.kind for q in questions}, reverse=True)
    chosen = ([q for q in choose(questions, seed) if q.kind == kind] for kind in kinds)
    for question in (q for turn in zip_longest(*chosen) for q in turn if q is not None):
        if len(made) == count:
            break
        walk = world.walk_of(question)
        queries = [f"{fact.subject} {fact.relation}" for fact in walk]
        found = [engine.search(query, top_k) for query in queries]
        if all(fact.id in {p.id for p in passages} for fact, passages in zip(walk, found, strict=True)):
            moves = [Move(action=search_text(protocol, q), passages=p) for q, p in zip(queries, found, strict=True)]
            answer = Move(action=answer_text(protocol, walk[-1].object))
            made.append(Demonstration(question=question, moves=(*moves, answer)))
    if len(made) < count:
        raise UserError(
            f"algorithm.seeding.experts={count}, but the world's expert solves {len(made)} training questions; "
            "lower it or raise data.train_questions or agent.top_k"
        )
    return tuple(made)


def check_fits(trajectory: Trajectory, agent: AgentConfig, control: Mapping[int, str]) -> None:
    """Raises ``UserError`` for an expert's trajectory that the policy could never play: beyond ``agent``'s limits, or
    with a token of ``control``, by id, within an action, where the engine would have ended the turn."""
    lines_are_calls = format_class(agent.format).in_tags and agent.max_parallel > 1
    for number, turn in enumerate(trajectory.turns, start=1):
        if lines_are_calls and any("\n" in call.argument for call in turn.calls):
            raise UserError(
                f"the expert's trajectory for question {trajectory.question_id} has several lines in a call of turn "
                f"{number}, each of which is a call of its own with agent.max_parallel={agent.max_parallel}; an expert "
                "makes one call a turn: write it on one line"
            )
        for token in trajectory.token_ids[turn.action_start : turn.action_end - 1].tolist():
            if token in control:
                raise UserError(
                    f"the expert's trajectory for question {trajectory.question_id} has the model's control token "
                    f"'{control[token]}' within what the policy writes; take it out"
                )
        limit = "max_new_tokens" if number > 1 else "max_new_tokens_first"
        if (tokens := turn.action_end - turn.action_start) > getattr(agent, limit):
            raise UserError(
                f"the expert's trajectory for question {trajectory.question_id} has {tokens} tokens in turn {number}, "
                f"more than agent.{limit}={getattr(agent, limit)}; raise the limit or leave that trajectory out"
            )
    for what, value, limit in (
        ("prompt tokens", len(trajectory.prompt_ids), "max_prompt_tokens"),
        ("response tokens", len(trajectory.token_ids), "max_response_tokens"),
        ("searches", trajectory.searches, "max_searches"),
    ):
        if value > getattr(agent, limit):
            raise UserError(
                f"the expert's trajectory for question {trajectory.question_id} has {value} {what}, more than "
                f"agent.{limit}={getattr(agent, limit)}; raise the limit or leave that trajectory out"
            )
