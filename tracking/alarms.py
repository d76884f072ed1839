"""Alarms: what somebody who has seen many runs would notice in this one, with what to look at and what to change.

A rule looks at the rows of ``metrics.jsonl`` up to now. It compares the last ``WINDOW`` steps with bounds or with the
run's own beginning; the mismatch alone is judged by each step. The same rules speak on the console and in the report
(docs/view.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from learner.config import SHIFTED_MISMATCH
from tracking.history import MISMATCH_FLOOR, WINDOW, History, Row, number

MISMATCH_GROWTH = 100.0
"""Times the least of the run, a median of ``WINDOW`` steps; bfloat16's rounding by itself varies by ten."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """A rule that holds."""

    name: str
    what: str
    """What is wrong, with the numbers."""
    look: str
    """What to look at."""
    change: str
    """What to change then."""
    step: int
    """The step at which it began to hold."""
    last: int
    """The newest step at which it held."""

    def __str__(self) -> str:
        return f"{self.name}: {self.what}; look at {self.look}. {self.change}"


# --- the rules: what is wrong, or None -----------------------------------------------------------------


def _mismatch(h: History) -> str | None:
    if h.last and (drifted := number(h.last[-1], "rollout/drifted_tokens")):
        return f"{drifted:,.0f} sampled tokens are no longer the text that was parsed and scored"
    newest = number(h.last[-1], "rollout/mismatch") if h.last else None
    if newest is None:
        return None
    if newest > h.mismatch_bound:
        first = number(h.first[0], "rollout/mismatch")
        at_first = "" if first is None else f", at first by {first:.1g}"
        if first is not None and first > h.mismatch_bound:
            at_first = ", from the first step on"
        if (number(h.last[-1], "rollout/mismatch_shifted") or 0.0) > SHIFTED_MISMATCH:
            at_first += "; most fit the token before or after"
        return f"engine and learner differ by {newest:.3g} nats a token{at_first}"
    if newest > MISMATCH_FLOOR and newest > MISMATCH_GROWTH * h.least_mismatch:
        return f"engine and learner differ by {newest:.2g} nats a token, before by {h.least_mismatch:.1g}"
    return None


def _entropy(h: History) -> str | None:
    now, then = h.now("learner/entropy"), h.then("learner/entropy")
    return f"entropy fell from {then:.3g} to {now:.3g} nats a token" if now < 0.1 * then else None


def _shorter(h: History) -> str | None:
    now, then = h.length(h.last), h.length(h.first)
    return f"an episode has {now:.1f} generated tokens, at first {then:.1f}" if now < 0.4 * then else None


def _longer(h: History) -> str | None:
    now, then = h.length(h.last), h.length(h.first)
    return f"an episode has {now:.1f} generated tokens, at first {then:.1f}" if now > 2.5 * then else None


def _no_searches(h: History) -> str | None:
    now, calls = h.now("search/mean"), h.now("tools/mean")
    return f"{now:.2f} searches an episode" if now < 0.1 and not calls >= 0.1 else None  # NaN in an older run


def _search_limit(h: History) -> str | None:
    ended, refused = h.share(["stop/search_limit"], ["rollout/trajectories"]), h.now("search/refused_share")
    if ended > 0.3:
        return f"{ended:.0%} of the episodes end at the search limit"
    if refused > 0.3 and math.isnan(h.now("search/limit_mean")):  # search_limit=… refuses searches on purpose
        return f"{refused:.0%} of the episodes ask for more searches than they have"
    return None


def _found_nothing(h: History) -> str | None:
    if h.full and h.now("search/mean") > 0.5 and h.now("evidence/recall") == 0.0:
        return f"{h.now('search/mean'):.1f} searches an episode, and none has found a supporting document"
    empty = h.now("search/empty_share")
    return f"{empty:.0%} of the searches found no passage" if empty > (0.5 if h.full else 0.99) else None


def _reward_up_em_down(h: History) -> str | None:
    if h.scored is None or h.best is None:
        return None
    (em, n, reward, _), (best, best_n, reward_then, at) = h.scored, h.best
    if math.isnan(reward_then):  # before the first step
        reward_then = h.then("reward/mean")
    noise = 2 * math.sqrt(best * (1 - best) / best_n + em * (1 - em) / n)
    if em < best - max(noise, 0.02) and reward > reward_then:
        fell = f"held-out EM fell from {best:.3f} (step {at}) to {em:.3f}"
        return f"reward rose from {reward_then:.3f} to {reward:.3f} while {fell}"
    return None


def _zero_variance(h: History) -> str | None:
    flat = ["groups/too_easy", "groups/too_hard"]
    share = h.share(flat, [*flat, "groups/signal"])
    if not share > 0.8:
        return None
    easy = h.share(flat[:1], flat)
    return f"{share:.0%} of the groups have equal rewards, {easy:.0%} of these are too easy"


def _excluded(h: History) -> str | None:
    share = h.share(["rollout/excluded"], ["rollout/trajectories"])
    why = next((str(row["rollout/excluded_why"]) for row in reversed(h.last) if row.get("rollout/excluded_why")), "")
    return f"{share:.0%} of the episodes ended in a fault{': ' + why if why else ''}" if share > 0.05 else None


def _learner_idle(h: History) -> str | None:
    share = h.share(["learner/idle_s"], ["time/step_s"])
    return f"the learner waits for rollouts {share:.0%} of the time" if share > _idle_bound(h) else None


def _engines_idle(h: History) -> str | None:
    share = 1 - h.share(["rollout/seconds"], ["time/step_s"])
    return f"the engines play nothing {share:.0%} of the time" if share > _idle_bound(h) else None


def _idle_bound(h: History) -> float:
    """Half; where they take turns, one of the two is idle half the time in any run."""
    return 0.5 if h.overlaps else 0.75


def _slower(h: History) -> str | None:
    now, best = h.throughput, h.best_throughput
    return f"{now:,.0f} generated tokens a second, before {best:,.0f}" if now < 0.5 * best else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One thing that can be wrong."""

    name: str
    find: Callable[[History], str | None]
    look: str
    change: str
    follows: tuple[str, ...] = ()
    """The rules whose cause may be this one's, too."""
    at_once: bool = False
    """Fewer than ``WINDOW`` steps are enough."""

    def cure(self, found: Collection[str]) -> str:
        """What to change, while the rules of these names hold."""
        causes = [name for name in self.follows if name in found]
        return f"It may follow from {' and '.join(map(repr, causes))}: mend that first." if causes else self.change


RULES = (
    Rule(
        name="train–inference mismatch",
        find=_mismatch,
        look="the versions of an episode's tokens and the trained and masked parts of its turns",
        change="There from the first step on, or where most fit the token beside: the mask or the tokens are shifted. "
        "Near 0 at first and larger with each update: the engine keeps old weights (over NCCL, try "
        "cluster.weight_channel=object_store). In bfloat16, rounding alone makes a small one: model.dtype=float32 "
        "tells.",
        at_once=True,
    ),
    Rule(
        name="entropy collapses",
        find=_entropy,
        look="whether the episodes of a group are all alike",
        change="Lower algorithm.optimizer.lr, add a KL term (algorithm.kl), or take harder questions.",
    ),
    Rule(
        name="episodes get shorter",
        find=_shorter,
        look="whether they still search, and how they end",
        change="The policy answers early: check the reward, and costs of searches or tokens (cost=none).",
    ),
    Rule(
        name="episodes get longer",
        find=_longer,
        look="the best and the worst episode of some groups, and whether the longer one earns more for its length",
        change="The reward may pay for length: check reward.outcome, or take reward.token_cost.",
    ),
    Rule(
        name="no searches",
        find=_no_searches,
        look="the actions of some episodes, and whether a search is written as agent.format wants it",
        change="Warm-start or seed the policy with expert trajectories (data.experts): no reward teaches it.",
    ),
    Rule(
        name="search limit",
        find=_search_limit,
        look="what the last searches of such episodes ask",
        change="Raise agent.max_searches, or charge for each search (cost=search).",
        follows=("searches find nothing",),
    ),
    Rule(
        name="searches find nothing",
        find=_found_nothing,
        look="the observations of some episodes: whether passages are in them, and of the right corpus",
        change="The retrieval answers nothing of use, or data.corpus lacks the supporting documents, or "
        "data.evidence_match compares the wrong names.",
        at_once=True,
    ),
    Rule(
        name="reward up, held-out EM down",
        find=_reward_up_em_down,
        look="the comparison of the two evaluations, and episodes of a high reward",
        change="The policy earns reward without being right: check reward.outcome and reward.gates, or it memorises: "
        "more questions, an earlier checkpoint.",
    ),
    Rule(
        name="zero-variance groups",
        find=_zero_variance,
        look="whether the groups are too easy or too hard",
        change="Take pool=adaptive; harder questions if they are too easy; experts, reward=david or a "
        "larger pool.group_size if they are too hard.",
        follows=("train–inference mismatch", "no searches", "searches find nothing"),
    ),
    Rule(
        name="episodes left out",
        find=_excluded,
        look="the fault that is named, and logs/ in the run's folder",
        change="Fix its cause: these episodes cost as much as any and teach nothing.",
    ),
    Rule(
        name="learner idle",
        find=_learner_idle,
        look="the actors' timeline",
        change="More rollout workers (cluster.rollout_workers), or pool.max_staleness=1 so that rollouts and updates "
        "overlap.",
        follows=("zero-variance groups", "episodes left out", "rollouts get slower"),
    ),
    Rule(
        name="engines idle",
        find=_engines_idle,
        look="the actors' timeline and the time of each part of a step",
        change="Updates are what takes long: a larger algorithm.microbatch_tokens makes them faster, "
        "pool.max_staleness=1 lets rollouts go on meanwhile.",
    ),
    Rule(
        name="rollouts get slower",
        find=_slower,
        look="the length of the episodes, the retrieval's p99, and what else runs on the machine",
        change="Longer episodes are slower without anything being wrong; otherwise look at logs/ for an engine "
        "that was replaced.",
        follows=("episodes get longer",),
    ),
)


class Alarms:
    """The rules over one run. A rule speaks when it begins to hold, and again only after ``WINDOW`` steps without.

    ``dtype`` is the model's, empty where it isn't known.
    """

    def __init__(self, dtype: str = "") -> None:
        self._history = History(dtype)
        self._held: dict[str, Alarm] = {}
        self.past: list[Alarm] = []
        """Those that have ceased to hold."""
        self._steps = 0
        self._heard: dict[str, int] = {}
        """Each active alarm's newest step, counted in this run's rows."""

    @property
    def active(self) -> tuple[Alarm, ...]:
        return tuple(self._held.values())

    def all(self) -> list[Alarm]:
        """All that have fired, in the order of the rules: what makes a run wrong before what makes it slow."""
        places = {rule.name: place for place, rule in enumerate(RULES)}
        return sorted((*self.past, *self.active), key=lambda alarm: (places[alarm.name], alarm.step))

    def add(self, row: Row) -> list[Alarm]:
        """Takes in the next row, of a step or an evaluation; the alarms that begin with it."""
        self._history.add(row)
        self._steps += row.get("kind") != "eval"
        step = int(number(row, "step") or 0)
        new = []
        judged = [rule for rule in RULES if self._history.full or rule.at_once]
        found = {rule.name: what for rule in judged if (what := rule.find(self._history)) is not None}
        for rule in judged:
            what, held = found.get(rule.name), self._held.get(rule.name)
            if what is None:
                if held is not None and self._steps - self._heard[rule.name] >= WINDOW:
                    self.past.append(self._held.pop(rule.name))
                continue
            self._heard[rule.name] = self._steps
            began = held.step if held else step
            alarm = Alarm(name=rule.name, what=what, look=rule.look, change=rule.cure(found), step=began, last=step)
            self._held[rule.name] = alarm
            if held is None:
                new.append(alarm)
        return new
