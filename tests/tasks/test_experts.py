"""Expert trajectories: read from a file exactly, refused with a reason, walked through the world."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.config import AgentConfig
from agent.dialogue import Dialogue
from agent.errors import UserError
from agent.protocol import PROTOCOLS
from agent.records import NO_VERSION, StopReason
from agent.rewards.evidence import evidence_recall
from agent.tools.catalogue import tool_classes
from tasks.config import DataConfig
from tasks.demonstrations import as_trajectory, encode
from tasks.experts import check_fits, cut_blocks, passages_of, read_experts, split_response, world_experts
from tasks.load import Task, load
from tasks.notices import Notice
from tasks.world import World

SEARCH, AUTOCOA = PROTOCOLS["search"], PROTOCOLS["autocoa"]
SHARED = Path(__file__).parents[3] / "shared" / "data" / "expert_seed" / "trajectories.jsonl"

EMMA = (
    'I look it up.\n<search>Emma novel</search>\n\n<result> Result 1: "Emma (novel)"\nEmma is by Jane Austen.\n'
    'Result 2: "Emma (film)"\nEmma is a film.\n</result>\n\nThere it is. <search>Austen</search><result></result>'
    "\nSo <answer>Jane Austen</answer>\n"
)
ROW = {
    "id": "q1",
    "question": "Who wrote Emma?",
    "golden_answers": ["Jane Austen"],
    "metadata": {"supporting_titles": ["Emma (novel)", "Jane Austen"]},
    "trajectory": EMMA,
}


class Characters:
    """One token per character, so that ids can be read."""

    special_tokens: tuple[str, ...] = ()
    special_ids: frozenset[int] = frozenset()
    beginning: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()
    has_template = False

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids) -> str:
        return "".join(map(chr, ids))

    def render(self, messages, **how) -> str:
        raise AssertionError("plain prompts only")


def dialogue(protocol: str = "search") -> Dialogue:
    return Dialogue.of(Characters(), AgentConfig(protocol=protocol, prompt="plain", chat=False, max_passage_chars=2000))


@pytest.fixture
def read(tmp_path):
    def make(*rows, protocol=SEARCH, evidence_match="title"):
        path = tmp_path / "experts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_experts(path, protocol, key="data.experts", evidence_match=evidence_match)

    return make


# --- from text to turns ----------------------------------------------------------------------------


def test_a_response_is_split_into_actions_and_blocks():
    assert split_response(EMMA, SEARCH) == (
        (
            "I look it up.\n<search>Emma novel</search>",
            'Result 1: "Emma (novel)"\nEmma is by Jane Austen.\nResult 2: "Emma (film)"\nEmma is a film.',
        ),
        ("There it is. <search>Austen</search>", ""),
        ("So <answer>Jane Austen</answer>", None),
    )


def test_a_boxed_answer_may_hold_braces():
    text = "<begin_search> a </end_search>\n<search_result>b</search_result> so \\boxed{x_{1} {y}} \n"
    assert split_response(text, AUTOCOA) == (
        ("<begin_search> a </end_search>", "b"),
        ("so \\boxed{x_{1} {y}}", None),
    )


BLOCK = "<result>r</result>"
MALFORMED = [
    ("search", "I know it.", "it ends without an answer"),
    ("search", f"<search>a</search>{BLOCK} hm", "it ends without an answer"),
    ("search", "<answer>a</answer> or b", "something comes after the answer: 'or b'"),
    ("search", f"<answer>a</answer><search>b</search>{BLOCK}", "something comes after the answer: '<search>b"),
    ("search", "<answer>a</answer><answer>b</answer>", "something comes after the answer"),
    ("search", "<answer>a", "the answer at character 8 is not closed by '</answer>'"),
    ("search", "<answer>a<search>b</search></answer>", "the answer at character 8 is not closed"),
    ("search", "<answer> </answer>", "the answer is empty"),
    ("search", "a</search><answer>a</answer>", "'</search>' at character 1 is neither a search nor an answer"),
    ("search", "<result>mine</result><answer>a</answer>", "'<result>' at character 0 is neither"),
    ("search", "a</answer>", "'</answer>' at character 1 is neither"),
    ("search", "<search>a<answer>b</answer>", "the search at character 0 is not closed by '</search>'"),
    ("search", "<search>a", "the search at character 0 is not closed"),
    ("search", f"<search> </search>{BLOCK}<answer>a</answer>", "the search at character 0 has no query"),
    ("search", f"<search>\u200b</search>{BLOCK}<answer>a</answer>", "the search at character 0 has no query"),
    ("search", "<search>a</search><answer>b</answer>", "the search at character 0 is not followed by a result block"),
    ("search", f"<search>a</search> so {BLOCK}<answer>b</answer>", "is not followed by a result block"),
    ("search", f"<search>a</search><search>b</search>{BLOCK}<answer>b</answer>", "is not followed by a result block"),
    (
        "search",
        "<search>a</search><result>r<answer>b</answer>",
        "not closed by '</result>', but followed by '<answer>'",
    ),
    ("search", "<search>a</search><result>r", "the result block at character 18 is not closed by '</result>'"),
    ("autocoa", "\\boxed{a", "the answer at character 7 is not closed by '}'"),
    ("autocoa", "\\boxed{a} and \\boxed{b}", "something comes after the answer: 'and"),
    ("autocoa", "\\boxed{<begin_search>}", "the answer at character 7 is not closed"),
    ("autocoa", "\\boxed{}", "the answer is empty"),
]


@pytest.mark.parametrize(("protocol", "response", "reason"), MALFORMED, ids=[m[1] for m in MALFORMED])
def test_what_no_episode_could_be_is_refused(protocol, response, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        split_response(response, PROTOCOLS[protocol])


@pytest.mark.parametrize(
    ("block", "passages"),
    [
        ("", []),
        ("No passage matches this query.", []),
        ('Result 1: "A"\nx\ny', [("A", "x\ny")]),
        ('result 1: "A"\nx\nRESULT 2: "B"\ny', [("A", "x"), ("B", "y")]),
        ('Result 1: "A"\nx\nResult 1: "B"\ny', [("A", 'x\nResult 1: "B"\ny')]),
        ("Result 1: x\nResult 2: y", [("", "x"), ("", "y")]),
        ('Result 1: "A" is a letter\nx', [("", '"A" is a letter\nx')]),
        ("some other list", [("", "some other list")]),
        ('Result 1(Title: "A (b)") x\nResult 2(Title: "B") y\nz', [("A (b)", "x"), ("B", "y\nz")]),
        ("result 1(Title: A (b)) x\nResult 2(Title: ) y", [("A (b)", "x"), ("", "y")]),
        ('Result 1 (Title: "A (b)")\nx\ny\n\nResult 2 (Title: B)\nz', [("A (b)", "x\ny"), ("B", "z")]),  # verl
        ('Result 1: "A"\nx\n\nResult 2: "B"\ny', [("A", "x\n"), ("B", "y")]),  # ours, of a passage that was cut
        ("see Result 1: x", [("", "see Result 1: x")]),
        (f"Result {'1' * 5000}: x", [("", f"Result {'1' * 5000}: x")]),
    ],
)
def test_passages_of_a_block(block, passages):
    assert passages_of(block, SEARCH) == passages


def test_an_expert_writes_no_control_token(read):
    """There the engine would have ended the turn: no policy plays such an episode."""
    (expert,) = read(ROW)
    played = as_trajectory(expert, dialogue())
    inside = int(played.token_ids[1])
    with pytest.raises(UserError, match=r"question q1 has the model's control token '<end>' within"):
        check_fits(played, AgentConfig(), {inside: "<end>"})
    last = {int(played.token_ids[turn.action_end - 1]) for turn in played.turns}
    others = {int(i) for turn in played.turns for i in played.token_ids[turn.action_start : turn.action_end - 1]}
    check_fits(played, AgentConfig(), dict.fromkeys(last - others, "<end>"))


# --- files -----------------------------------------------------------------------------------------


def test_a_file_of_experts_becomes_trajectories(read):
    (expert,) = read(ROW)
    assert (expert.question.id, expert.question.supporting) == ("q1", ("Emma (novel)", "Jane Austen"))
    t = as_trajectory(expert, dialogue())
    codec = Characters()
    assert codec.decode(t.prompt_ids.tolist()) == "Question: Who wrote Emma?\n"
    pieces = [
        (codec.decode(t.token_ids[a:b].tolist()), bool(t.action_mask[a:b].all()), bool(t.action_mask[a:b].any()))
        for turn in t.turns
        for a, b in ((turn.action_start, turn.action_end), (turn.action_end, turn.observation_end))
        if a < b
    ]
    assert pieces == [
        ("I look it up.\n<search>Emma novel</search>", True, True),
        (
            '\n<result>\nResult 1: "Emma (novel)"\nEmma is by Jane Austen.\n'
            'Result 2: "Emma (film)"\nEmma is a film.\n</result>\n',
            *(False, False),
        ),
        ("There it is. <search>Austen</search>", True, True),
        ("\n<result>\nNo passage matches this query.\n</result>\n", False, False),
        ("So <answer>Jane Austen</answer>", True, True),
    ]
    assert (t.expert, t.stop_reason, t.answer, t.searches) == (True, StopReason.ANSWERED, "Jane Austen", 2)
    assert [turn.query for turn in t.turns] == ["Emma novel", "Austen", None]
    assert t.turns[0].titles == ("Emma (novel)", "Emma (film)")
    assert set(t.versions.tolist()) == {NO_VERSION}
    assert evidence_recall(t, expert.question) == 0.5
    ids, mask = encode(expert, dialogue())
    np.testing.assert_array_equal(ids, [*t.prompt_ids, *t.token_ids])
    np.testing.assert_array_equal(mask, [*[False] * len(t.prompt_ids), *t.action_mask])


def test_line_ends_of_windows_are_no_matter(read):
    assert read({**ROW, "trajectory": ROW["trajectory"].replace("\n", "\r\n")}) == read(ROW)


def test_document_ids_are_read_when_they_are_there(read):
    row = {**ROW, "metadata": {"supporting_ids": ["d7"]}, "document_ids": [["d7", "d8"], []]}
    (expert,) = read(row, evidence_match="id")
    t = as_trajectory(expert, dialogue())
    assert t.turns[0].document_ids == ("d7", "d8")
    assert evidence_recall(t, expert.question) == 1.0
    (without,) = read({**row, "document_ids": None}, evidence_match="id")
    assert evidence_recall(as_trajectory(without, dialogue()), without.question) == 0.0


def test_the_response_is_found_under_either_name(read):
    row = {"expert_response" if name == "trajectory" else name: value for name, value in ROW.items()}
    assert read(row) == read(ROW)


def test_an_autocoa_answer_ends_with_the_end_token(read):
    text = "<begin_search>a</end_search><search_result>b</search_result>\\boxed{Jane Austen}"
    (expert,) = read({**ROW, "trajectory": text}, protocol=AUTOCOA)
    t = as_trajectory(expert, dialogue("autocoa"), end_ids=[7])
    assert t.token_ids[-1] == 7
    assert t.action_mask[-1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"trajectory": "<search>a</search>"},
            "line 2, id 'q2': the search at character 0 is not followed by a result",
        ),
        ({"trajectory": "\\boxed{x}"}, "line 2, id 'q2': it ends without an answer"),
        (
            {"trajectory": "<begin_search>a</end_search><search_result>b</search_result>\\boxed{x}"},
            "it has the tags of agent=autocoa",
        ),
        ({"trajectory": "<answer>Jane Eyre</answer>"}, "it answers 'Jane Eyre', which is none of its golden answers"),
        ({"trajectory": "<answer>Jane</answer>", "golden_answers": ["Jane B"]}, "it answers 'Jane', which is none of"),
        (
            {"trajectory": "<answer>the city of New York</answer>", "golden_answers": ["New York City"]},
            "it answers 'the city of New York', which is none of its golden answers ['New York City']",
        ),
        (
            {
                "trajectory": "<answer>Johann Sebastian Bach</answer>",
                "golden_answers": ["Johann Sebastian Bach", "Vivaldi"],
                "answers_mean": "all",
            },
            "it answers 'Johann Sebastian Bach', which is none of its golden answers [",
        ),
        ({"trajectory": None}, "line 2, id 'q2': has no 'trajectory' (it has golden_answers, id"),
        ({"trajectory": 3}, "'trajectory' must be a text, not the number 3"),
        ({"question": None}, "line 2: has no 'question'"),
        ({"id": "q1"}, "line 2, id 'q1': this id is already taken"),
        ({"document_ids": [["d"]]}, "'document_ids' has 1 lists for 2 result blocks"),
        ({"document_ids": [["d"], []]}, "'document_ids' names 1 documents for a result block of 2"),
        ({"document_ids": ["d"]}, "'document_ids' must be a list of lists of texts"),
        ({"document_ids": [["d", " "], []]}, "one for each result block, and no text empty"),
    ],
)
def test_a_wrong_line_is_named_with_its_reason(read, changed, message):
    with pytest.raises(UserError) as error:
        read(ROW, {**ROW, "id": "q2", **changed})
    assert str(error.value).startswith("data.experts=")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_experts_of_questions_that_can_not_be_played_are_left_out_as_questions_are(read, tmp_path):
    many = {"golden_answers": [f"a{i}" for i in range(9)], "answers_mean": "all"}
    both = {"golden_answers": ["Austen", "Emma"], "answers_mean": "all", "trajectory": "<answer>Emma, Austen</answer>"}
    both["question"] = "Who wrote what?"
    rows = [ROW, {**ROW, "id": "none", "answerable": False}, {**ROW, "id": "many", **many}, {**ROW, "id": "b", **both}]
    assert [e.question.id for e in read(*rows)] == ["q1", "b"]
    notices: list[Notice] = []
    read_experts(tmp_path / "experts.jsonl", SEARCH, key="data.experts", notices=notices)
    assert [n.items for n in notices] == [
        (("none", "answerable is false"),),
        (("many", "needs all of 9 answers"),),
    ]
    with pytest.raises(UserError, match=r"1 rows are marked answerable=false \(none\); data\.strict=true allows none"):
        read_experts(tmp_path / "experts.jsonl", SEARCH, key="data.experts", strict=True)
    with pytest.raises(UserError, match="the file holds no trajectories with an answer"):
        read(rows[1])


def test_a_file_without_trajectories(read):
    with pytest.raises(UserError, match="the file holds no trajectories"):
        read()


@pytest.mark.skipif(not SHARED.is_file(), reason="the shared data is not here")
def test_davids_own_expert_trajectories():
    experts = read_experts(SHARED, AUTOCOA, key="data.experts")
    assert [e.question.golden_answers[0] for e in experts] == [
        *("Creation Ministries International", "CCB Media", "2015", "Jessica Alba"),
    ]
    rows = [json.loads(line) for line in SHARED.read_text().splitlines()]
    recalls = []
    for expert, row in zip(experts, rows, strict=True):
        t = as_trajectory(expert, dialogue("autocoa"), end_ids=[0])
        recalls.append(evidence_recall(t, expert.question))
        # The environment's form differs from the file's in white space alone; actions have every character.
        said = [Characters().decode(t.token_ids[turn.action_start : turn.action_end].tolist()) for turn in t.turns]
        assert all(action.rstrip("\0") in row["expert_response"] for action in said)
        shown = Characters().decode(t.token_ids[:-1].tolist())
        assert shown.split() == row["expert_response"].split()
    assert recalls == [0.5, 0.5, 0.5, 0.5]
    with pytest.raises(UserError, match="it has the tags of agent=autocoa"):
        read_experts(SHARED, SEARCH, key="data.experts")


# --- the world's expert ----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [SEARCH, AUTOCOA])
def test_the_worlds_expert_is_exact(protocol):
    world = World(0)
    questions = world.train_questions(90, evidence_match="id")
    experts = world_experts(world, questions, 12, 3, protocol, 2)
    assert len({e.question.id for e in experts}) == 12
    assert {e.question for e in experts} <= set(questions)
    for expert in experts:
        t = as_trajectory(expert, dialogue(protocol.name), end_ids=[0] if protocol.braced_answer else [])
        assert t.answer == expert.question.golden_answers[0]
        assert f"{t.searches}-hop" == expert.question.kind
        assert evidence_recall(t, expert.question) == 1.0


def test_the_worlds_experts_depend_on_the_seed_alone():
    world = World(0)
    questions = world.train_questions(60)
    four = world_experts(world, questions, 4, 0, SEARCH, 2)
    assert world_experts(world, questions[::-1], 4, 0, SEARCH, 2) == four
    assert world_experts(world, questions, 5, 0, SEARCH, 2)[:4] == four
    assert world_experts(world, questions, 4, 1, SEARCH, 2) != four
    assert [e.question.kind for e in four] == ["3-hop", "2-hop", "1-hop", "3-hop"]
    with pytest.raises(UserError, match=r"algorithm\.seeding\.experts=61, but the world's expert solves"):
        world_experts(world, questions, 61, 0, SEARCH, 2)


# --- as a task's -----------------------------------------------------------------------------------


@pytest.fixture
def task(tmp_path) -> Task:
    def write(name, *rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    config = DataConfig(
        source="jsonl",
        questions=write("ask.jsonl", *({"question": f"who is {i}?", "answer": "x"} for i in range(4))),
        corpus=write("corpus.jsonl", {"id": "d", "contents": '"t"\nx'}),
        experts=write("experts.jsonl", *({**ROW, "id": f"e{i}", "question": f"who wrote {i}?"} for i in range(3))),
    )
    return load(config, 0, tmp_path)


def test_a_tasks_experts_are_those_of_the_file(task):
    assert [d.question.id for d in task.demonstrations(SEARCH, 2)] == ["e0", "e1", "e2"]
    assert {d.question.id for d in task.experts(SEARCH, 2, 3, 0)} == {"e0", "e1", "e2"}
    two = task.experts(SEARCH, 2, 2, 0)
    assert two == task.experts(SEARCH, 2, 3, 0)[:2]
    with pytest.raises(UserError, match=r"algorithm\.seeding\.experts=4, but .* holds trajectories of 3 questions"):
        task.experts(SEARCH, 2, 4, 0)


@pytest.mark.parametrize(("side", "what"), [("eval", "held out for evaluation"), ("held_back", "kept for calibration")])
def test_an_experts_question_must_not_be_held_out(task, side, what):
    kept = replace(task.eval[0], text="Who wrote 1?")
    with pytest.raises(UserError, match=f"the question of 'e1' is {what}; leave that trajectory out"):
        replace(task, **{side: (kept,)}).experts(SEARCH, 2, 3, 0)


def test_a_task_without_experts(task):
    bare = replace(task, config=replace(task.config, experts=None))
    with pytest.raises(UserError, match=r"brings no expert trajectories; set algorithm\.seeding\.steps=0 or data\."):
        bare.experts(SEARCH, 2, 1, 0)


def test_the_world_takes_no_file_of_experts():
    with pytest.raises(UserError, match=r"^data\.experts: data=world makes its own expert trajectories"):
        DataConfig(experts="experts.jsonl")


def test_the_worlds_task_has_experts(tmp_path):
    task = load(DataConfig(train_questions=30, evidence_match="id"), 0, tmp_path)
    experts = task.experts(SEARCH, 2, 4, 0)
    assert len(experts) == 4
    assert {e.question for e in experts} <= set(task.train)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_searches": 1}, r"question q1 has 2 searches, more than agent\.max_searches=1"),
        ({"max_prompt_tokens": 9}, r"prompt tokens, more than agent\.max_prompt_tokens=9"),
        (
            {"max_new_tokens_first": 9},
            r"has \d+ tokens in turn 1, more than agent\.max_new_tokens_first=9; raise the limit",
        ),
        ({"max_new_tokens": 9}, r"has \d+ tokens in turn 2, more than agent\.max_new_tokens=9; raise the limit"),
        ({"max_response_tokens": 99}, r"response tokens, more than agent\.max_response_tokens=99"),
    ],
)
def test_an_expert_must_fit_the_agents_limits(read, changed, message):
    (expert,) = read(ROW)
    check_fits(as_trajectory(expert, dialogue()), AgentConfig(), {})
    with pytest.raises(UserError, match=message):
        check_fits(as_trajectory(expert, dialogue()), AgentConfig(**changed), {})


# --- files -----------------------------------------------------------------------------------------


def test_a_file_may_be_compressed_or_one_list(tmp_path):
    wanted = None
    for name, content in (
        ("plain", json.dumps(ROW).encode()),
        ("marked", b"\xef\xbb\xbf" + json.dumps(ROW).encode()),
        ("packed", gzip.compress(json.dumps(ROW).encode())),
        ("list", json.dumps([ROW]).encode()),
    ):
        (tmp_path / name).write_bytes(content)
        read = read_experts(tmp_path / name, SEARCH, key="data.experts")
        wanted = wanted or read
        assert read == wanted, name
    (tmp_path / "cut").write_bytes(gzip.compress(json.dumps(ROW).encode())[:-9])
    with pytest.raises(UserError, match=r"^data\.experts=.*cut: the gzip file is cut short or damaged"):
        read_experts(tmp_path / "cut", SEARCH, key="data.experts")


def test_a_misspelt_field_is_said(tmp_path):
    notices: list[Notice] = []
    (tmp_path / "e").write_text(json.dumps({**ROW, "metadata": {"supporting_title": ["x"]}}))
    read_experts(tmp_path / "e", SEARCH, key="data.experts", notices=notices)
    assert "in 1 of 1 rows 'metadata.supporting_title' isn't read; did you mean" in notices[0].text


def test_trajectories_of_one_question_are_taken_and_those_that_contradict_each_other_said(tmp_path):
    """A teacher's file has several of one question; for the seeding a task takes one of them."""
    path, notices = tmp_path / "experts.jsonl", []
    other = {**ROW, "id": "c", "golden_answers": ["Emma"], "trajectory": "<answer>Emma</answer>"}
    rows = ({**ROW, "id": "a"}, {**ROW, "id": "b", "question": f"{ROW['question']} "}, other)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read_experts(path, SEARCH, key="data.experts", notices=notices)) == 3
    (notice,) = notices
    assert notice.items == (("c", "has the text of 'a' and none of its answers"),)
    assert notice.text.startswith(f"data.experts={path}: 1 questions have the text of another one and none of its")


def test_a_table_of_experts_that_is_not_utf_8_is_said(tmp_path):
    path, notices = tmp_path / "experts.csv", []
    path.write_bytes("question,answer,trajectory\nWho?,Capé,<answer>Capé</answer>\n".encode("cp1252"))
    (expert,) = read_experts(path, SEARCH, key="data.experts", notices=notices)
    assert expert.question.golden_answers == ("Capé",)
    assert [notice.text.partition(": ")[2] for notice in notices] == [
        "1 lines are not UTF-8 and were read as Windows-1252 (line 2)"
    ]


def test_a_block_that_is_cut_as_one_passage_is_said(read):
    block = "1. Emma (novel): " + "x" * 40
    row = ROW | {"trajectory": f"<search>Emma</search><result>{block}</result><answer>Jane Austen</answer>"}
    experts = read(ROW, row | {"id": "q2"})
    (notice,) = cut_blocks(experts, 40)
    assert notice.items == (("q2", "a result block of 57 characters is one passage"),)
    assert (
        "1 trajectories (q2) have result blocks that are read as one passage without a title, and cut at" in notice.text
    )
    assert cut_blocks(experts, 57) == []


def test_a_passage_may_hold_the_tag_of_another_tool_and_an_expert_may_not_call_one(read):
    """A passage is neutralised before it is shown. ``data.experts=auto`` plays with the search alone."""
    protocol = SEARCH.with_tools(tool_classes(["search", "open"]))
    block = '<result>\nResult 1: "Emma (novel)"\nIt has <open> in it.\n</result>\n'
    row = ROW | {"trajectory": f"<search>Emma</search>\n{block}<answer>Jane Austen</answer>"}
    (expert,) = read(row, protocol=protocol)
    assert expert == read(row)[0]
    assert expert.moves[0].passages[0].text == "It has <open> in it."
    for action in ("<open>x</open> <search>Emma</search>", "<search>Emma <open></search>"):
        with pytest.raises(UserError, match=r"line 1, id 'q1': '<open>' in '.*' is neither a search nor an answer"):
            read(row | {"trajectory": f"{action}\n{block}<answer>Jane Austen</answer>"}, protocol=protocol)


def test_an_expert_makes_one_call_a_turn(read):
    row = ROW | {"trajectory": "<search>Emma\nAusten</search><result>r</result><answer>Jane Austen</answer>"}
    (expert,) = read(row)
    check_fits(as_trajectory(expert, dialogue()), AgentConfig(), {})
    with pytest.raises(
        UserError, match=r"several lines in a call of turn 1, .* with agent\.max_parallel=3; .* one line"
    ):
        check_fits(as_trajectory(expert, dialogue()), AgentConfig(max_parallel=3), {})
