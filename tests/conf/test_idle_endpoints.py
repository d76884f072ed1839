"""Settings of a teacher, an endpoint or an early exit that would do nothing, by the table alone."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from agent.errors import UserError
from conf.idle import check_idle
from conf.schema import RunConfig

TEACHER, ENDPOINT = "experts.teacher.url=http://x/v1", "evaluation.endpoint.url=http://x/v1"


def refusal(*lines: str) -> str:
    """What ``check_idle`` says of the command line of these settings, mode and choices among them; nothing if they are
    taken."""
    overrides = OverridesParser.create().parse_overrides(list(lines))
    composed = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(RunConfig), enum_to_str=True))
    assert isinstance(composed, DictConfig)
    for override in overrides:
        key, value = str(override.key_or_group), override.value()
        if key == "exit":
            key, value = "exit.threshold", 0.9 if value == "early" else None
        OmegaConf.update(composed, key, value)
    try:
        check_idle(overrides, composed)
    except UserError as error:
        return str(error)
    return ""


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
        (["exit.confidence=mean"], "there is no early exit; set exit=early, exit.threshold or exit.calibration, too"),
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
    ],
)
def test_with_these_they_are_taken(lines: list[str]) -> None:
    assert refusal(*lines) == ""
