"""A reward of the user's own: found before the start, asked for one trajectory or a group, its failures faults."""

from __future__ import annotations

import asyncio
import re
import sys
import types
from pathlib import Path

import pytest

from agent.config import GroupConfig, RewardConfig
from agent.environment import Environment
from agent.errors import UserError
from agent.group import Player, play_group
from agent.own import resolve
from agent.records import Completion, Finish, StopReason
from agent.rewards.scorer import Scorer
from agent.tickets import Ticket

OWN = """
import asyncio

seen = []

def by_length(question, trajectory):
    return min(len(trajectory.answer or ""), 10) / 10

async def later(question, trajectory):
    await asyncio.sleep(0)
    return by_length(question, trajectory)

def ranked(question, trajectories):
    seen.append(len(trajectories))
    longest = max(len(t.answer or "") for t in trajectories)
    return [float(len(t.answer or "") == longest) for t in trajectories]

async def ranked_later(question, trajectories):
    await asyncio.sleep(0)
    return ranked(question, trajectories)

def named(*, question, trajectory):
    return 1.0

def picky(question, trajectory):
    if trajectory.answer == "bad":
        raise TimeoutError("the judge is away")
    return 1.0

def groups_are_hard(question, trajectories):
    raise RuntimeError("no group today")

def one_short(question, trajectories):
    return [1.0] * (len(trajectories) - 1)

def no_list(question, trajectories):
    return 1.0

def too_much(question, trajectory):
    return 1.5

def not_a_number(question, trajectory):
    return float("nan")

def a_word(question, trajectory):
    return "good"

def a_digit(question, trajectory):
    return "1"

def digits_apart(question, trajectories):
    return ["0"] * len(trajectories)

def no_tensor(question, trajectory):
    class Tensor:
        def __float__(self):
            raise RuntimeError("2 elements")
    return Tensor()

def too_large(question, trajectory):
    return 10 ** 400

def by_key(question, trajectories):
    return {number: 0.5 for number, _ in enumerate(trajectories)}

def digits(question, trajectories):
    return "0" * len(trajectories)

def breaks_off(question, trajectories):
    for trajectory in trajectories:
        yield 1.0
        1 / 0

def nothing(question, trajectory):
    return None

class Mute(Exception):
    def __repr__(self):
        raise RuntimeError("not even that")
    __str__ = __repr__

waiting = []

async def waits(question, trajectories):
    waiting.append(question)
    await asyncio.Event().wait()

async def gives_up(question, trajectory):
    raise asyncio.CancelledError("the client is gone")

async def gives_all_up(question, trajectories):
    raise asyncio.CancelledError

def says_nothing(question, trajectory):
    raise Mute

def shows_nothing(question, trajectory):
    return Mute()

def leaves(question, trajectory):
    raise SystemExit("no key")

def with_more(question, trajectory, *, strict=False):
    return 1.0

def other_names(q, t):
    return 1.0

def one_more(question, trajectory, threshold):
    return 1.0

class AClass:
    def __call__(self, question, trajectory):
        return 0.5

an_instance = AClass()
a_number = 3
"""


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("1 / 0")
    (tmp_path / "own_empty.py").write_text("")
    (tmp_path / "own_lacking.py").write_text("import a_package_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def answers(make_trajectory):
    return [make_trajectory({"text": "", "answer": a}) for a in ("four", "sixsix", "bad")]


def scored(name, protocol, question, trajectories, **config):
    return asyncio.run(
        Scorer(RewardConfig(outcome=f"own_rewards:{name}", **config), protocol).score(question, trajectories)
    )


@pytest.mark.parametrize(
    ("name", "outcomes"),
    [
        ("by_length", [0.4, 0.6, 0.3]),
        ("later", [0.4, 0.6, 0.3]),
        ("ranked", [0.0, 1.0, 0.0]),
        ("ranked_later", [0.0, 1.0, 0.0]),
        ("with_more", [1.0, 1.0, 1.0]),
        ("an_instance", [0.5, 0.5, 0.5]),
    ],
)
def test_of_one_or_of_a_group_at_once_or_later(search_protocol, emma, answers, name, outcomes):
    found = scored(name, search_protocol, emma, answers, evidence_weight=0.5)
    assert [m.score.outcome for m in found.members] == outcomes
    assert [m.score.reward for m in found.members] == [o / 2 for o in outcomes], "the rest of the reward is as ever"
    assert [m.trajectory for m in found.members] == answers
    assert not found.excluded


def test_a_shipped_file_may_judge_a_group_at_once(monkeypatch, search_protocol, emma, answers):
    from agent.rewards import outcome as table

    shipped = types.ModuleType("agent.rewards.outcomes.longest")
    shipped.outcome = lambda question, trajectories: [1.0, *(0.0 for _ in trajectories[1:])]
    monkeypatch.setitem(sys.modules, shipped.__name__, shipped)
    monkeypatch.setattr(table, "outcome_names", lambda: ["longest"])
    scorer = Scorer(RewardConfig(outcome="longest"), search_protocol)
    assert scorer.groupwise
    assert [m.score.outcome for m in asyncio.run(scorer.score(emma, answers)).members] == [1.0, 0.0, 0.0]


def test_what_cant_be_judged_is_excluded_with_its_reason(search_protocol, emma, answers, make_trajectory):
    broken = make_trajectory("s", stop_reason=StopReason.RETRIEVAL_FAILED)
    found = scored("picky", search_protocol, emma, [broken, *answers])
    assert [m.trajectory for m in found.members] == answers[:2]
    lost, unjudged = found.excluded
    assert lost is broken
    assert unjudged.stop_reason is StopReason.REWARD_FAILED
    assert unjudged.fault == "reward.outcome=own_rewards:picky raised TimeoutError: the judge is away"
    assert unjudged.token_ids is answers[2].token_ids


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("groups_are_hard", "raised RuntimeError: no group today"),
        ("one_short", "returned 2 numbers for 3 trajectories"),
        ("no_list", "returned something that is no list of numbers"),
        ("too_much", r"returned 1.5; an outcome is a number in \[0, 1\]"),
        ("not_a_number", "returned nan"),
        ("a_word", "returned 'good'"),
        ("a_digit", "returned '1'"),
        ("digits_apart", "returned '0'"),
        ("nothing", "returned None"),
        ("no_tensor", "returned <own_rewards.no_tensor"),
        ("too_large", "returned 1000"),
        ("by_key", "returned a dict, which is no list of numbers"),
        ("digits", "returned a str, which is no list of numbers"),
        ("breaks_off", "raised ZeroDivisionError"),
        ("leaves", "raised SystemExit: no key"),
        ("says_nothing", "raised Mute: Mute$"),
        ("gives_up", "raised CancelledError: the client is gone$"),
        ("gives_all_up", "raised CancelledError: CancelledError$"),
        ("shows_nothing", "returned a Mute; an outcome"),
    ],
)
def test_a_failure_is_never_a_zero(search_protocol, emma, answers, name, why):
    found = scored(name, search_protocol, emma, answers)
    assert not found.members
    assert [t.stop_reason for t in found.excluded] == [StopReason.REWARD_FAILED] * 3
    for trajectory in found.excluded:
        assert trajectory.fault.startswith(f"reward.outcome=own_rewards:{name} ")
        assert re.search(why, trajectory.fault), trajectory.fault


def test_a_judge_that_is_given_up_ends(search_protocol, emma, answers):
    async def given_up():
        scorer = Scorer(RewardConfig(outcome="own_rewards:waits"), search_protocol)
        scoring = asyncio.ensure_future(scorer.score(emma, answers))
        while not sys.modules["own_rewards"].waiting:
            await asyncio.sleep(0)
        scoring.cancel()
        await scoring

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(given_up())


def test_no_trajectory_is_no_question_to_a_judge(search_protocol, emma, make_trajectory):
    broken = make_trajectory("s", stop_reason=StopReason.GENERATION_FAILED)
    found = scored("groups_are_hard", search_protocol, emma, [broken])
    assert found.excluded == (broken,)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_rewards:by_lenght", "own_rewards has no by_lenght; did you mean 'by_length'?"),
        ("own_reward:by_length", "there is no module own_reward; set PYTHONPATH to the folder that holds it"),
        ("own_rewards.inner:by_length", "there is no module own_rewards.inner; set PYTHONPATH"),
        ("own_empty:judge", "own_empty has no judge; valid names: none"),
        ("own_broken:judge", "importing own_broken raised ZeroDivisionError: division by zero"),
        ("own_lacking:judge", "own_lacking imports a_package_that_nobody_has, which isn't installed"),
        ("own_rewards:a_number", "is no function; it is of type int"),
        ("own_rewards:AClass", "is a class; name a function (question, trajectory) or (question, trajectories)"),
        ("own_rewards:other_names", "takes (q, t); it must take (question, trajectory) or"),
        ("own_rewards:one_more", "takes (question, trajectory, threshold); it must take (question"),
        (
            "own_rewards:named",
            "takes (*, question, trajectory); it must take (question, trajectory) or (question, traj",
        ),
        ("own_rewards:named", " by position"),
        ("own_rewards:", "is no import path; write package.module:name"),
        (":judge", "is no import path"),
        ("own rewards:judge", "is no import path"),
        ("a:b:c", "is no import path"),
    ],
)
def test_what_is_no_reward_is_said_before_the_start(search_protocol, path, message):
    with pytest.raises(UserError) as error:
        Scorer(RewardConfig(outcome=path), search_protocol)
    assert str(error.value).startswith(f"reward.outcome={path}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_users_mistake_in_the_module_keeps_its_words(tmp_path):
    (tmp_path / "own_needy.py").write_text("from agent.errors import UserError\nraise UserError('set JUDGE_URL')")
    with pytest.raises(UserError, match=r"^reward\.outcome=own_needy:judge: set JUDGE_URL$"):
        resolve("own_needy:judge", "reward.outcome")


# --- in a group ------------------------------------------------------------------------------------


class Policy:
    """Answers at once, with as many letters as it was asked before."""

    def __init__(self, codec):
        self._codec, self._asked = codec, 0

    async def generate(self, prompt_ids, *, max_new_tokens, stop, temperature, seed):
        self._asked += 1
        ids = tuple(self._codec.encode(f"<answer>{'x' * self._asked}</answer>"))
        return Completion(token_ids=ids, logprobs=(-1.0,) * len(ids), versions=(0,) * len(ids), finish=Finish.STOP)


def play(codec, make_dialogue, protocol, question, name, **ticket):
    from agent.config import AgentConfig

    policy = Policy(codec)
    player = Player(
        dialogue=make_dialogue(codec),
        config=AgentConfig(),
        generator=policy,
        environment=Environment.of(AgentConfig(), policy),
        scorer=Scorer(RewardConfig(outcome=name), protocol),
    )
    given = Ticket(claim_id=0, query=0, batch=0, order=0, seed=1, **ticket)
    return asyncio.run(play_group(player, question, given, size=4, worker="w"))


def test_a_group_counts_what_its_judge_failed_on(codec, make_dialogue, search_protocol, emma):
    group = play(codec, make_dialogue, search_protocol, emma, "own_rewards:too_much")
    assert (len(group.members), len(group.excluded), group.outcome().all_trajectories) == (0, 4, 4)
    assert {t.stop_reason for t in group.excluded} == {StopReason.REWARD_FAILED}
    assert group.outcome().all_tokens > 0, "they cost as much"


@pytest.mark.parametrize(("name", "calls"), [("ranked", [2, 4]), ("by_length", [])])
def test_a_probe_is_judged_with_the_whole_group_if_it_has_to_be(
    codec, make_dialogue, search_protocol, emma, name, calls
):
    module = resolve("own_rewards:seen", "x")
    module.clear()
    group = play(codec, make_dialogue, search_protocol, emma, f"own_rewards:{name}", pilot=2, cut_hard=True)
    assert module == calls
    expected = {"ranked": (0.0, 0.0, 0.0, 1.0), "by_length": (0.1, 0.2, 0.3, 0.4)}[name]
    assert group.rewards == expected


def test_a_group_wise_reward_is_not_compared_across_groups():
    from agent.pool.rules.epoch import Rule
    from conf.schema import RunConfig

    def run(name: str, strategy: str) -> None:
        RunConfig(pool=Rule(), reward=RewardConfig(outcome=f"own_rewards:{name}"), group=GroupConfig(strategy=strategy))

    run("ranked", "plain")
    run("by_length", "continuation")
    with pytest.raises(UserError, match=r"^reward\.outcome=own_rewards:ranked judges .*use group=plain"):
        run("ranked", "continuation")
