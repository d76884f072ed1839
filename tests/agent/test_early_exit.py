"""Early exit and query selectivity by hand: when a probe is made, what it is sure of, what ends and what is skipped."""

from __future__ import annotations

import asyncio
import math

import pytest

from agent.confidences import CONFIDENCES
from agent.config import AgentConfig, ExitConfig, RewardConfig, SelectivityConfig
from agent.dialogue import Dialogue
from agent.environment import Environment
from agent.errors import GenerationError, UserError
from agent.group import Player
from agent.inference.early_exit import Probe
from agent.inference.evaluation import ScoredProbe, eval_row, evaluate, summarise
from agent.inference.infer import Inference, Inferred, infer
from agent.inference.scaling import Scale
from agent.records import Completion, Finish, Passage, Question, Repeat, StopReason
from agent.rewards.scorer import Scorer
from agent.tools.search import LIMIT_NOTICE, REPEAT_NOTICES

QUESTION = Question(id="q", text="Who?", golden_answers=("right",))
RECORD = ExitConfig()


def search(query: str) -> str:
    return f"<search>{query}</search>"


class Script:
    """Writes ``turns`` in turn, and the probes of ``probes``: (what follows the forced tag, its log-probabilities).

    ``openings`` are the chances that it would have written the tag by itself.
    """

    def __init__(self, codec, turns, probes=(), answer_close="</answer>", openings=()):
        self._codec, self._turns, self._probes = codec, iter(turns), iter(probes)
        self._openings = iter(openings)
        self.scored: list[tuple[list[int], list[int]]] = []
        self._answer_close = answer_close
        self.episode: list[list[int]] = []
        self.probed: list[tuple[list[int], int]] = []

    async def score(self, prompt_ids, token_ids):
        self.scored.append((list(prompt_ids), list(token_ids)))
        return math.log(next(self._openings))

    async def generate(self, prompt_ids, *, max_new_tokens, stop, temperature, seed):
        assert temperature == 0.0
        if stop == (self._answer_close,):
            self.probed.append((list(prompt_ids), max_new_tokens))
            text, logprobs = next(self._probes)
            if isinstance(text, Exception):
                raise text
        else:
            self.episode.append(list(prompt_ids))
            text, logprobs = next(self._turns), None
        ids = tuple(self._codec.encode(text))[:max_new_tokens]
        whole = len(ids) == len(self._codec.encode(text))
        spread = logprobs if logprobs is not None else [-0.1] * len(ids)
        # Given for the whole text: on its first tokens, and 0 on the others.
        logprobs = tuple([*spread, *([0.0] * len(ids))][: len(ids)])
        finish = Finish.STOP if whole else Finish.LENGTH
        return Completion(token_ids=ids, logprobs=logprobs, versions=(0,) * len(ids), finish=finish)


class Shelf:
    """A query finds a document for each of its letters."""

    def __init__(self):
        self.queries: list[str] = []

    async def search(self, query, k):
        self.queries.append(query)
        return tuple(Passage(id=letter, title=letter.upper(), text="text") for letter in query if letter.isalpha())


@pytest.fixture
def run(codec, search_protocol):
    def run(turns, probes=(), *, exit=None, selectivity=None, protocol="search", openings=(), scale=None, **changed):
        config = AgentConfig(protocol=protocol, **changed)
        dialogue = Dialogue.of(codec, config)
        script, shelf = Script(codec, turns, probes, dialogue.protocol.answer_close, openings), Shelf()
        player = Player(
            dialogue=dialogue,
            config=config,
            generator=script,
            environment=Environment.of(config, shelf),
            scorer=Scorer(RewardConfig(), search_protocol),
        )
        inference = Inference(exit=exit, scale=scale, selectivity=selectivity)
        return asyncio.run(infer(player, QUESTION, inference)), script, shelf

    return run


def repeats(trajectory):
    """What each turn's only call, if there is one, would have repeated."""
    return [turn.calls[0].repeat if turn.calls else None for turn in trajectory.turns]


# --- confidence ------------------------------------------------------------------------------------


def test_confidences_by_hand():
    logprobs = [math.log(0.5), math.log(0.8), 0.0]
    assert CONFIDENCES["product"](logprobs) == pytest.approx(0.4)
    assert CONFIDENCES["mean"](logprobs) == pytest.approx(0.4 ** (1 / 3))


def test_what_is_in_the_table_may_be_asked_for(monkeypatch):
    monkeypatch.setitem(CONFIDENCES, "least", lambda logprobs: math.exp(min(logprobs)))
    assert ExitConfig(confidence="least").probing["confidence"] == "least"
    with pytest.raises(UserError, match=r"^exit\.confidence=most is not known; "):
        ExitConfig(confidence="most")


# --- probes ----------------------------------------------------------------------------------------

EPISODE = [search("a"), search("b"), "<answer>right</answer>"]
PROBES = [("wrong</answer>", [math.log(0.5)]), ("right</answer>", [math.log(0.9)])]


def test_probes_are_recorded_beside_an_episode_that_goes_on_as_without_them(run, codec):
    probed, script, _ = run(EPISODE, PROBES, exit=RECORD)
    plain, unprobed, _ = run(EPISODE)
    assert not probed.exited
    assert (probed.answer, plain.answer, plain.probes) == ("right", "right", ())
    assert script.episode == unprobed.episode
    assert probed.trajectory.token_ids.tolist() == plain.trajectory.token_ids.tolist()
    cost = len(codec.encode("wrong</answer>"))
    first, second = len(codec.encode(search("a"))), len(codec.encode(search("b")))
    assert probed.probes == (
        Probe(searches=1, action_tokens=first, answer="wrong", confidence=pytest.approx(0.5), tokens=cost),
        Probe(searches=2, action_tokens=first + second, answer="right", confidence=pytest.approx(0.9), tokens=cost),
    )
    assert probed.probe_tokens == 2 * cost
    for (prompt, limit), turn in zip(script.probed, script.episode[1:], strict=True):
        assert prompt == [*turn, *codec.encode("<answer>")], "all that the next turn sees, and the tag"
        assert limit == 32


@pytest.mark.parametrize(
    ("threshold", "answer", "searches", "probes"), [(0.4, "wrong", 1, 1), (0.8, "right", 2, 2), (0.95, "right", 2, 2)]
)
def test_the_first_confident_probe_is_the_answer(run, threshold, answer, searches, probes):
    inferred, script, shelf = run(EPISODE, PROBES, exit=ExitConfig(threshold=threshold))
    assert (inferred.answer, inferred.trajectory.searches, len(inferred.probes)) == (answer, searches, probes)
    assert inferred.exited == (threshold < 0.9)
    assert (inferred.trajectory.stop_reason is StopReason.EARLY_EXIT) == inferred.exited
    assert len(shelf.queries) == searches
    assert len(script.episode) == searches + (not inferred.exited), "an exit leaves the next turn unsampled"
    assert (inferred.trajectory.answer is None) == inferred.exited


def test_a_probe_exactly_at_the_threshold_is_enough(run):
    inferred, _, _ = run(EPISODE, [("wrong</answer>", [0.0])], exit=ExitConfig(threshold=1.0))
    assert (inferred.exited, inferred.answer) == (True, "wrong")


def test_a_probe_before_the_first_search_only_when_asked(run):
    inferred, script, shelf = run(
        EPISODE, [("guess</answer>", [math.log(0.99)])], exit=ExitConfig(threshold=0.9, before_first_search=True)
    )
    assert (inferred.answer, inferred.exited, script.episode, shelf.queries) == ("guess", True, [], [])
    (probe,) = inferred.probes
    assert (probe.searches, probe.action_tokens) == (0, 0)
    assert (inferred.trajectory.action_tokens, inferred.trajectory.turns) == (0, ())


def test_a_decision_is_that_of_answering_now_and_so(run, codec):
    inferred, script, _ = run(EPISODE, PROBES, openings=[0.25, 0.75], exit=ExitConfig(confidence="decision"))
    first, second = inferred.probes
    assert (first.opening, first.confidence) == pytest.approx((0.25, 0.25 * 0.5))
    assert (second.opening, second.confidence) == pytest.approx((0.75, 0.75 * 0.9))
    tag = codec.encode("<answer>")
    assert [p.opening_tokens for p in inferred.probes] == [len(tag)] * 2
    assert script.scored == [(turn, tag) for turn in script.episode[1:]], "all that the next turn sees"
    assert inferred.probe_tokens == sum(len(tag) + p.tokens for p in inferred.probes)
    assert [p.cost(0.5) for p in inferred.probes] == [len(tag), len(tag) + second.tokens]


def test_a_decision_that_is_lost_with_the_tag_is_not_asked_further(run, codec):
    whole, _, _ = run(EPISODE, PROBES, openings=[0.25, 0.75], exit=ExitConfig(confidence="decision"))
    inferred, script, _ = run(
        EPISODE, PROBES[1:], openings=[0.25, 0.75], exit=ExitConfig(confidence="decision", threshold=0.5)
    )
    assert (inferred.answer, inferred.exited, inferred.trajectory.searches) == ("right", True, 2)
    assert len(script.probed) == 1
    unasked, asked = inferred.probes
    assert (unasked.answer, unasked.confidence, unasked.tokens) == (None, 0.0, 0)
    assert asked == whole.probes[1]
    assert inferred.probe_tokens == sum(p.cost(0.5) for p in whole.probes), "what calibration reckons with"


def test_a_scale_says_what_a_confidence_is_worth(run):
    scale = Scale(lines={1: (1.0, 0.0), 2: (1.0, 5.0)})
    how = ExitConfig(confidence="decision", threshold=0.9)
    inferred, _, _ = run(EPISODE, PROBES[1:], openings=[0.6, 0.1], exit=how, scale=scale)
    first, second = inferred.probes
    assert (first.opening, first.tokens) == (pytest.approx(0.6), 0)
    assert (second.opening, second.confidence) == pytest.approx((scale(2, 0.1), scale(2, 0.1 * 0.9)))
    assert (inferred.exited, inferred.answer) == (True, "right")
    raw, _, _ = run(EPISODE, PROBES, openings=[0.6, 0.1], exit=how)
    assert not raw.exited


@pytest.mark.parametrize("text", ["right", "</answer>", " </answer>", "right</search>", "right<answer"])
def test_a_probe_without_an_answer_has_no_confidence(run, text):
    inferred, _, _ = run([search("a"), "<answer>x</answer>"], [(text, [0.0])], exit=ExitConfig(threshold=1e-9))
    (probe,) = inferred.probes
    assert (probe.answer, probe.confidence, inferred.answer) == (None, 0.0, "x")
    assert probe.tokens > 0, "and costs as much"


def test_a_probe_that_does_not_end_in_time_is_no_answer(run, codec):
    inferred, script, _ = run(
        [search("a"), "<answer>x</answer>"],
        [("a very long answer</answer>", [0.0])],
        exit=ExitConfig(threshold=0.1, max_tokens=4),
    )
    assert script.probed[0][1] == 4
    assert (inferred.probes[0].answer, inferred.probes[0].tokens, inferred.answer) == (None, 4, "x")


def test_a_braced_answer_can_be_probed(run, codec):
    turns = ["<begin_search>a</end_search>", "<begin_search>b</end_search>", "\\boxed{x}"]
    inferred, script, _ = run(
        turns, [("\\text{no}", [0.0]), ("right}", [0.0])], exit=ExitConfig(threshold=0.9), protocol="autocoa"
    )
    nested, plain = inferred.probes
    assert (nested.answer, plain.answer, inferred.answer) == (None, "right", "right")
    assert codec.decode(script.probed[0][0]).endswith("\\boxed{")


def test_a_thought_that_is_open_is_closed_before_the_answer(run, codec):
    turns = [f"<think>Hm. {search('a')}", f"So. {search('b')}", f"Yes.</think>{search('c')}", "<answer>x</answer>"]
    how = ExitConfig(confidence="decision")
    inferred, script, _ = run(turns, [("p</answer>", [0.0])] * 3, exit=how, openings=[0.5] * 3)
    closed = codec.encode("\n</think>\n\n<answer>")
    forced = [closed, closed, codec.encode("<answer>")]
    assert [prompt for prompt, _ in script.probed] == [
        [*turn, *ids] for turn, ids in zip(script.episode[1:], forced, strict=True)
    ]
    assert [ids for _, ids in script.scored] == forced
    assert [p.opening_tokens for p in inferred.probes] == [len(ids) for ids in forced]


def test_nothing_is_probed_without_new_passages(run):
    turns = [search("a"), search("a"), search("b"), "<answer>x</answer>"]
    inferred, _, _ = run(
        turns, [("p</answer>", [-9.0])], exit=RECORD, selectivity=SelectivityConfig(queries=True), max_searches=2
    )
    assert repeats(inferred.trajectory) == [None, Repeat.QUERY, None, None]
    assert [t.refused for t in inferred.trajectory.turns] == [False, False, True, False]
    assert len(inferred.probes) == 1


def test_nothing_is_probed_where_there_is_no_room(run, codec):
    question, _, _ = run([search("a"), "<answer>x</answer>"])
    t = question.trajectory
    used = len(t.prompt_ids) + t.turns[0].observation_end
    forced = len(codec.encode("<answer>"))
    for left, probes in ((0, 0), (1, 1)):
        config = {
            "max_prompt_tokens": len(t.prompt_ids),
            "max_response_tokens": used + forced + left - len(t.prompt_ids),
        }
        inferred, script, _ = run(
            [search("a"), "<answer>x</answer>"], [("right</answer>", [0.0])], exit=RECORD, **config
        )
        assert len(inferred.probes) == probes
        assert [limit for _, limit in script.probed] == [1] * probes


def test_a_probe_that_fails_is_a_fault_of_the_episode(run):
    inferred, _, _ = run(EPISODE, [(GenerationError("gone"), None)], exit=RECORD)
    assert inferred.trajectory.stop_reason is StopReason.GENERATION_FAILED
    assert inferred.answer is None


# --- rows ------------------------------------------------------------------------------------------


def test_a_row_of_an_early_exit(run):
    inferred, _, _ = run(EPISODE, PROBES, exit=ExitConfig(threshold=0.8))
    row = eval_row(QUESTION, inferred)
    assert (row.answer, row.em, row.searches, row.stop_reason, row.fault) == ("right", 1.0, 2, "early_exit", False)
    assert row.probes == tuple(ScoredProbe(probe=p, em=e) for p, e in zip(inferred.probes, (0.0, 1.0), strict=True))
    summary = summarise([row])
    assert (summary["probe_tokens/mean"], summary["stop"]) == (inferred.probe_tokens, {"early_exit": 1})
    assert summary["action_tokens/mean"] == inferred.trajectory.action_tokens


def test_an_evaluation_plays_as_it_is_told(codec, search_protocol):
    config = AgentConfig()
    player = Player(
        dialogue=Dialogue.of(codec, config),
        config=config,
        generator=Script(codec, [search("a")], [("right</answer>", [0.0])]),
        environment=Environment.of(config, Shelf()),
        scorer=Scorer(RewardConfig(), search_protocol),
    )
    how = Inference(exit=ExitConfig(threshold=0.5))
    ((_, row),) = asyncio.run(evaluate(player, [QUESTION], inference=how))
    assert (row.em, row.stop_reason) == (1.0, "early_exit")


def test_without_an_exit_the_answer_is_the_episodes(make_trajectory):
    trajectory = make_trajectory({"text": "a", "answer": "x"})
    assert (Inferred(trajectory=trajectory).answer, Inferred(trajectory=trajectory).probe_tokens) == ("x", 0)


# --- selectivity -----------------------------------------------------------------------------------


def notices(codec, inferred) -> list[str]:
    ids = inferred.trajectory.token_ids
    shown = [codec.decode(ids[t.action_end : t.observation_end]) for t in inferred.trajectory.turns]
    known = [LIMIT_NOTICE, *REPEAT_NOTICES.values()]
    return [next((n for n in known if n in text), "passages" if text else "") for text in shown]


def test_a_query_is_not_searched_twice(run, codec):
    turns = [search("a b"), search("A  b!"), search("ab"), "<answer>x</answer>"]
    inferred, _, shelf = run(turns, selectivity=SelectivityConfig(queries=True))
    assert shelf.queries == ["a b", "ab"], "ab is another query, if not other evidence"
    assert notices(codec, inferred) == ["passages", REPEAT_NOTICES[Repeat.QUERY], "passages", ""]
    t = inferred.trajectory
    assert (t.searches, t.repeats(Repeat.QUERY), t.repeats(Repeat.EVIDENCE)) == (2, 1, 0)
    assert t.turns[1].document_ids == ()
    assert (t.turns[1].query, t.turns[1].searches) == ("A  b!", 0)
    row = eval_row(QUESTION, inferred)
    assert (row.searches, row.skipped, row.withheld) == (2, 1, 0)


def test_evidence_is_not_shown_twice(run, codec):
    turns = [search("ab"), search("b"), search("bc"), search("1"), "<answer>x</answer>"]
    inferred, _, shelf = run(turns, selectivity=SelectivityConfig(evidence=True))
    assert shelf.queries == ["ab", "b", "bc", "1"], "only a search can tell"
    assert notices(codec, inferred)[:3] == ["passages", REPEAT_NOTICES[Repeat.EVIDENCE], "passages"]
    t = inferred.trajectory
    assert repeats(t) == [None, Repeat.EVIDENCE, None, None, None], "finding nothing is news"
    assert (t.searches, t.repeats(Repeat.EVIDENCE), t.turns[1].document_ids) == (4, 1, ("b",))
    row = eval_row(QUESTION, inferred)
    assert (row.searches, row.skipped, row.withheld) == (4, 0, 1)


def test_a_skipped_search_uses_up_one(run, codec):
    inferred, _, shelf = run([search("a")] * 5, selectivity=SelectivityConfig(queries=True), max_searches=3)
    assert shelf.queries == ["a"]
    assert inferred.trajectory.stop_reason is StopReason.SEARCH_LIMIT
    repeat = REPEAT_NOTICES[Repeat.QUERY]
    assert notices(codec, inferred) == ["passages", repeat, repeat, LIMIT_NOTICE, ""]


def test_off_by_default(run, codec):
    inferred, script, shelf = run([search("a"), search("a"), "<answer>x</answer>"], selectivity=SelectivityConfig())
    assert shelf.queries == ["a", "a"]
    assert (script.probed, notices(codec, inferred)) == ([], ["passages", "passages", ""])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, r"exit\.threshold=0\.0 must lie in \(0, 1\]"),
        ({"threshold": 1.5}, r"exit\.threshold=1\.5 must lie in"),
        ({"threshold": 0.5, "calibration": "c.json"}, r"exit\.threshold and exit\.calibration both give a threshold"),
        ({"confidence": "sum"}, r"exit\.confidence=sum is not known"),
        ({"max_tokens": 0}, r"exit\.max_tokens=0 must be at least 1"),
        ({"fit_share": 1.0}, r"exit\.fit_share=1\.0 must lie in \[0, 1\)"),
        ({"risk": 1e-17}, r"exit\.risk=1e-17 must lie in \[0\.000001, 1\)"),
        ({"delta": 1.0}, r"exit\.delta=1\.0 must lie in \(0, 1\)"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        ExitConfig(**settings)
