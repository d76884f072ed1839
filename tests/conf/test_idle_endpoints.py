"""Settings of a teacher, an endpoint, an early exit, a start or a search limit that would do nothing, by the table
alone; and those of a sweep, of which no job has a use for one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from agent.errors import UserError
from agent.pool.search_limits import OF_RULES
from conf import needs
from conf.idle import check_idle
from conf.schema import RunConfig

CONDITIONS = {
    "seeded": ("algorithm.seeding.steps", 20),
    "annealed": ("search_limit.rule", "anneal"),
    "plain": ("seed", 1),
}
ZERO = "algorithm.kl_zero_variance=true"
TEACHER, ENDPOINT = "experts.teacher.url=http://x/v1", "evaluation.endpoint.url=http://x/v1"


def refusal(*lines: str) -> str:
    """What ``check_idle`` says of the command line of these settings, mode and choices among them; nothing if they are
    taken."""
    try:
        check_idle(OverridesParser.create().parse_overrides(list(lines)), composed)
    except UserError as error:
        return str(error)
    return ""


@cache  # a tenth of a second for each
def _defaults() -> DictConfig:
    made = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(RunConfig), enum_to_str=True))
    assert isinstance(made, DictConfig)
    return made


def composed(lines: Sequence[str]) -> DictConfig:
    """What ``lines`` make of the defaults; a ``condition`` sets what its name says."""
    made = copy.deepcopy(_defaults())
    for override in OverridesParser.create().parse_overrides(list(lines)):
        key, value = str(override.key_or_group), override.value()
        if key == "exit":
            key, value = "exit.threshold", 0.9 if value == "early" else None
        elif key == "search_limit":
            key = "search_limit.rule"
        elif key == "pool":
            key = "pool.name"
        elif key == "condition":
            key, value = CONDITIONS[str(value)]
        OmegaConf.update(made, key, value)
    return made


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["mode=experts", "experts.teacher.episodes=8"], "there is no teacher; set experts.teacher.url, too"),
        (["data.experts=auto", "experts.teacher.temperature=1"], "there is no teacher; set experts.teacher.url, too"),
        (["mode=experts", TEACHER, "experts.thoughts=[Hm.]"], "a teacher thinks and asks for itself; leave it out"),
        (["mode=experts", TEACHER, "experts.guess_titles=true"], "a teacher thinks and asks for itself; leave it out"),
        (["mode=eval", "checkpoint=x", "evaluation.endpoint.parallel=32"], "nothing is behind an endpoint; set eval"),
        (["mode=eval", "checkpoint=x", "exit.max_tokens=8"], "there is no early exit; set exit=early, exit.threshold"),
        (["mode=ask", "checkpoint=x", "exit.before_first_search=true"], "there is no early exit; set exit=early, "),
        (
            ["algorithm.warm_start.lr=1e-4"],
            "there is no warm start with algorithm.warm_start.steps=0; set that",
        ),
        (
            ["algorithm.steps=20", "algorithm.optimizer.warmup_steps=21"],
            "the warm-up is longer than algorithm.steps, so",
        ),
        (
            ["algorithm.warm_start.steps=9", "algorithm.warm_start.warmup_steps=10"],
            "the warm-up is longer than algorithm.warm_start.steps, so that the learning rate is never reached; ",
        ),
        (["mode=plan", "algorithm.seeding.experts=8"], "there is no seeding with algorithm.seeding.steps=0; set that "),
        (["search_limit.start=2"], "it is of search_limit=anneal; set that, too, or leave it out"),
        (["search_limit=anneal", "search_limit.spare=2"], "it is of search_limit=adaptive; set that, too, or leave it"),
        (["search_limit=adaptive", "search_limit.steps=9"], "it is of search_limit=anneal; set that, too, or leave it"),
        (
            ["search_limit=fixed", "search_limit.most=2"],
            "it is of search_limit=adaptive; set that, too, or leave it out",
        ),
        (["exit.confidence=mean"], "there is no early exit; set exit=early, exit.threshold or exit.calibration, too"),
        *(
            (
                [f"pool={rule}", "algorithm.kl=k2", ZERO],
                "the pool's rule trains on no group without variance; set pool=",
            )
            for rule in ("recycle", "dynamic", "adaptive")
        ),
    ],
)
def test_what_an_endpoint_a_teacher_or_an_exit_lacks_is_told(lines: list[str], why: str) -> None:
    assert refusal(*lines).startswith(f"{lines[-1]}: {why}")


@pytest.mark.parametrize(
    "lines",
    [
        ["mode=experts", TEACHER, "experts.teacher.episodes=8", "experts.search_shares=[1,1,1]"],
        ["mode=experts", "experts.thoughts=[Hm.]", "experts.teacher.url=null", "experts.teacher.episodes=8"],
        ["mode=eval", ENDPOINT, "evaluation.endpoint.parallel=32"],
        ["mode=eval", "checkpoint=x", "exit=early", "exit.max_tokens=8"],
        ["mode=eval", "checkpoint=x", "exit.calibration=c.json", "exit.max_tokens=8"],
        ["mode=eval", "checkpoint=x", "exit=none", "exit.max_tokens=8"],
        ["mode=calibrate", "checkpoint=x", "exit.max_tokens=8"],
        ["algorithm.warm_start.steps=5", "algorithm.warm_start.lr=1e-4"],
        ["algorithm.warm_start.steps=0", "algorithm.warm_start.lr=1e-4"],  # a script turns it off
        ["algorithm.warm_start.steps=0", "algorithm.warm_start.warmup_steps=10"],
        ["algorithm.steps=20", "algorithm.optimizer.warmup_steps=20"],
        ["algorithm.seeding.steps=5", "algorithm.seeding.experts=8"],
        ["search_limit=anneal", "search_limit.start=2", "search_limit.steps=9"],
        ["search_limit=adaptive", "search_limit.spare=2"],
        ["mode=eval", "checkpoint=x", "algorithm.seeding.experts=8", "search_limit.start=2"],  # left of its training
        ["pool=epoch", "algorithm.kl=k2", ZERO],
        ["pool=my_package.rules:Rule", "algorithm.kl=k2", ZERO],
        ["pool=recycle", "algorithm.kl=k2", "algorithm.kl_zero_variance=false"],
        ["pool=recycle", "algorithm.kl=k2", "algorithm.seeding.kl=k2", "algorithm.seeding.steps=5", ZERO],
    ],
)
def test_with_these_they_are_taken(lines: list[str]) -> None:
    assert refusal(*lines) == ""


def test_a_setting_may_be_of_several_rules_of_the_search_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OF_RULES, "mine", ("fewest",))
    need = needs._of_a_limit("fewest")
    idle = {rule: need.idle({"search_limit.rule": rule}.get) for rule in ("adaptive", "mine", "fixed")}
    assert idle == {"adaptive": False, "mine": False, "fixed": True}
    assert need.why.startswith("it is of search_limit=adaptive and mine; ")


SEEDS = "seed=1,2,3"


@pytest.mark.parametrize(
    ("lines", "value"),
    [
        (["condition=plain,annealed", SEEDS, "algorithm.seeding.lr=1e-5"], "algorithm.seeding.lr=1e-5"),
        (["search_limit.spare=1,2", "search_limit=fixed,anneal"], "search_limit.spare=1"),
        (["algorithm.kl_coefficient=0.1", "model.dtype=float32,bfloat16", SEEDS], "algorithm.kl_coefficient=0.1"),
        (["evaluation.samples=1,4"], "evaluation.samples=4"),
    ],
)
def test_a_value_that_no_job_of_a_sweep_has_a_use_for_is_refused(lines: list[str], value: str) -> None:
    said = refusal(*lines)
    assert said.startswith(f"{value}: ")
    assert said.endswith("; no job of the sweep has a use for it")


@pytest.mark.parametrize(
    "lines",
    [
        ["condition=plain,seeded", SEEDS, "algorithm.seeding.lr=1e-5"],
        ["condition=seeded,plain", "search_limit=fixed,anneal", "search_limit.start=2,3"],
        ["algorithm.kl=none,k1", "algorithm.kl_coefficient=0.1"],
        # Of use where both have their second values.
        [
            "model.dtype=float32,bfloat16",
            "algorithm.optimizer.kind=adamw,adamw8bit",
            "algorithm.optimizer.exact_master=true",
        ],
    ],
)
def test_one_that_a_job_has_a_use_for_is_taken(lines: list[str]) -> None:
    assert refusal(*lines) == ""


def test_only_what_may_matter_is_tried() -> None:
    """A sweep may have hundreds of jobs, and each takes a while to compose."""
    tried: list[tuple[str, ...]] = []

    def compose(lines: Sequence[str]) -> DictConfig:
        tried.append(tuple(lines))
        return composed(lines)

    seeds = f"seed={','.join(map(str, range(100)))}"
    given = OverridesParser.create().parse_overrides([seeds, "condition=plain,annealed", "algorithm.seeding.lr=1e-5"])
    with pytest.raises(UserError):
        check_idle(given, compose)
    assert len(tried) == len(CONDITIONS) - 1
