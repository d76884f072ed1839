"""The layouts of a machine's cards, and what the plan chooses for a learner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import settings

from actors import inference
from actors.plan import layouts as module
from actors.plan.fit import problems, refusal
from actors.plan.layouts import chosen, comparison, layouts, recommended, settled, settled_and_said
from actors.plan.machine import Gpu
from agent.errors import UserError
from conf.schema import RunConfig
from tracking.console import Console

LEARNERS, ENGINES = ("1 learner", "2 learners", "3 learners"), ("3 engines", "2 engines", "1 engine")


def composed(*overrides: str) -> RunConfig:
    return settings.composed("model=qwen1.5b", *overrides)


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets which cards this machine has."""

    def set_to(*cards: Gpu) -> None:
        monkeypatch.setattr(module, "gpus", lambda: (cards, "580.1"))

    return set_to


def test_every_way_to_divide_the_cards_is_compared_and_uses_all_of_them() -> None:
    found = layouts(composed("cluster=auto", "cluster.cards=4"))
    assert [str(layout) for layout in found] == [
        "every card plays, then learns",
        "1 learner, 3 engines",
        "1 learner, 3 engines, overlapped",
        "2 learners, 2 engines",
        "2 learners, 2 engines, overlapped",
        "3 learners, 1 engine",
        "3 learners, 1 engine, overlapped",
    ]
    for layout in found:
        assert layout.config.cluster.gpus == 4
        assert problems(layout.config) == []
        assert layout.step is not None
    best = recommended(found)
    assert best.step is not None
    shortest = min(layout.step.seconds for layout in found if layout.step)
    assert shortest <= best.step.seconds <= shortest / module.WORTH


@pytest.mark.parametrize("gib", ["1", "1e-10"])
def test_an_engine_has_a_share_of_any_card(gib: str) -> None:
    """Of one that holds nothing, too: else a share would be refused that nobody has given."""
    tiny = composed("cluster=2x24gb", f"cluster.gpu_memory_gib={gib}")
    assert module._share(tiny) == module.LEAST_SHARE
    assert len(problems(tiny)) > 0


@pytest.mark.parametrize(
    ("cards", "among"),
    [
        (("cluster.cards=4",), ()),
        (("cluster.cards=2", "cluster.gpu_memory_gib=20"), ("cluster.gpu_memory_gib=20",)),
        (("cluster.cards=2", "cluster.gpu_memory_gib=12"), ("algorithm.optimizer.offload=true",)),
    ],
)
def test_what_is_recommended_can_be_typed_and_is_then_the_same(cards: tuple[str, ...], among: tuple[str, ...]) -> None:
    best = recommended(layouts(composed("cluster=auto", *cards)))
    assert {*among} <= {*best.settings}
    given = sorted(line.partition("=")[0] for line in best.settings)
    again = settled(composed("cluster=auto", *best.settings, f"cluster.auto_keeps=[{','.join(given)}]"))
    assert (again.cluster, again.pool, again.algorithm) == (
        replace(best.config.cluster, auto_keeps=given),
        best.config.pool,
        best.config.algorithm,
    )
    assert module.step(again) == best.step


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (("cluster.learners=2",), ["2 learners, 2 engines", "2 learners, 2 engines, overlapped"]),
        (("cluster.rollout_workers=4",), ["every card plays, then learns"]),
        (("cluster.colocated=true",), ["every card plays, then learns"]),
        (("cluster.learners=3", "pool.max_staleness=2"), ["3 learners, 1 engine, overlapped"]),
        (
            ("cluster.auto_keeps=[pool.max_staleness]",),
            ["every card plays, then learns", *(f"{a}, {b}" for a, b in zip(LEARNERS, ENGINES, strict=True))],
        ),
    ],
)
def test_what_is_given_of_a_layout_stays(given: tuple[str, ...], found: list[str]) -> None:
    assert [str(x) for x in layouts(composed("cluster=auto", "cluster.cards=4", *given))] == found


CARDS = ("cluster=auto", "cluster.card=rtx3090", "cluster.cards=2")


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("cluster.engine.gpu_memory_utilization=0.5", lambda c: c.cluster.engine.gpu_memory_utilization == 0.5),
        ("algorithm.optimizer.kind=adamw8bit", lambda c: c.algorithm.optimizer.kind == "adamw8bit"),
        ("algorithm.logits_chunk=4096", lambda c: c.algorithm.logits_chunk == 4096),
    ],
)
def test_what_is_given_is_never_chosen(given: str, kept: Callable[[RunConfig], bool]) -> None:
    """As a command line gives it (``conf/implied.py``): on cards, too, where other settings have to change."""
    keeps = f"cluster.auto_keeps=[{given.partition('=')[0]}]"
    for gib in (24, 16):
        found = layouts(composed(*CARDS, f"cluster.gpu_memory_gib={gib}", given, keeps))
        assert all(kept(layout.config) for layout in found)
        assert gib < 24 or any(layout.step for layout in found)


@pytest.mark.slow
def test_another_method_is_not_chosen_unasked() -> None:
    """Adapters and shorter answers are another training; they are named."""
    config = composed(*CARDS, "cluster.gpu_memory_gib=6")
    found = layouts(config)
    assert {layout.config.model.lora_rank for layout in found} == {0}
    assert {layout.config.agent.max_response_tokens for layout in found} == {config.agent.max_response_tokens}
    with pytest.raises(UserError, match=r"no layout fits with what is given; .*(lora_rank|max_response_tokens)"):
        recommended(found)


@pytest.mark.parametrize("given", ["algorithm.optimizer.offload=true", "cluster.weight_channel=nccl"])
def test_what_only_some_layouts_can_do_leaves_the_others(given: str) -> None:
    more = ["algorithm.optimizer.kind=adamw"] if "offload" in given else []
    assert recommended(layouts(composed(*CARDS, given, *more))).step


def test_a_run_says_what_was_chosen() -> None:
    config, said = settled_and_said(composed(*CARDS))
    assert said.startswith("cluster=auto: ")
    assert f"cluster.learners={config.cluster.learners} " in said
    assert settled_and_said(config) == (config, "")


def test_no_layout_may_be_left() -> None:
    config = composed("cluster=auto", "cluster.cards=4", "cluster.learners=5")
    with pytest.raises(UserError, match=r"no layout of 4 cards has cluster\.learners=5; leave it out"):
        layouts(config)


def test_of_what_leaves_no_layout_only_what_is_given_is_named() -> None:
    one = ("cluster=auto", "cluster.card=rtx3090", "cluster.cards=1")
    with pytest.raises(UserError, match=r"no layout of 1 card has pool\.max_staleness=1; leave it out"):
        layouts(composed(*one, "pool.max_staleness=1"))
    with pytest.raises(UserError, match=r"1 card has cluster\.learners=1 pool\.max_staleness=1; leave one of them out"):
        layouts(composed(*one, "cluster.learners=1", "pool.max_staleness=1"))


def test_of_layouts_that_take_nearly_as_long_the_simplest_is_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    found = layouts(composed("cluster=auto", "cluster.cards=4"))
    monkeypatch.setattr(module, "WORTH", 0.5)
    assert str(recommended(found)) == "every card plays, then learns"
    monkeypatch.setattr(module, "WORTH", 1.0)
    assert recommended(found).step == min((x.step for x in found if x.step), key=lambda s: s.seconds)


def test_a_run_takes_the_layout_of_this_machines_cards(box: Any) -> None:
    box(*[Gpu(total=24.0, name="NVIDIA GeForce RTX 3090")] * 2)
    run = settled(composed("cluster=auto"))
    assert (run.cluster.card, run.cluster.gpus) == ("rtx3090", 2)
    assert problems(run) == []
    box(Gpu(total=79.6, name="NVIDIA A100-SXM4-80GB"))
    assert settled(composed("cluster=auto")).cluster.card == "a100-80"
    other = composed("cluster=4x3090")
    assert settled(other) is other


def test_a_layout_of_ones_own_stays_and_the_rest_is_chosen(box: Any) -> None:
    box(*[Gpu(total=79.6, name="NVIDIA H100 80GB HBM3")] * 4)
    given = composed("cluster=auto", "cluster.learners=1", "cluster.rollout_workers=1")
    assert {str(layout) for layout in layouts(given)} == {"1 learner, 1 engine", "1 learner, 1 engine, overlapped"}
    run = settled(given)
    assert (run.cluster.card, run.cluster.cards, run.cluster.gpus) == ("h100", 2, 2)
    assert settled(run) == run
    (small,) = {
        c.cluster.cards for c in [settled(composed(*CARDS[:2], "cluster.learners=1", "cluster.rollout_workers=3"))]
    }
    assert small == 4, "where the cards are named, the machine isn't asked"


def test_cards_are_as_large_as_they_are_and_one_for_the_screen_is_none(box: Any) -> None:
    box(Gpu(total=16.0, name="NVIDIA GeForce RTX 4090 Laptop GPU"))
    run = settled(composed("cluster=auto"))
    assert (run.cluster.card, run.cluster.gpu_memory_gib, problems(run)) == ("rtx4090", 16, [])
    box(Gpu(total=4.0, name="NVIDIA GeForce GT 1030"), *[Gpu(total=23.7, name="NVIDIA GeForce RTX 3090")] * 2)
    run = settled(composed("cluster=auto"))
    assert (run.cluster.card, run.cluster.gpu_memory_gib, run.cluster.gpus) == ("rtx3090", 0, 2)


def test_cards_that_are_too_small_to_count_are_named(box: Any) -> None:
    cards = [Gpu(total=23.7, name="NVIDIA GeForce RTX 3090", index=index) for index in (0, 2)]
    box(cards[0], Gpu(total=4.0, name="NVIDIA GeForce GT 1030", index=1), cards[1])
    named = "left out: GPU 1 (NVIDIA GeForce GT 1030, 4 GiB); under half of the largest card's memory"
    first, second, *_ = comparison(composed("cluster=auto")).splitlines()
    assert ": 2 cards (rtx3090, 24 GiB), " in first
    assert second == f"  {named}"
    assert settled_and_said(composed("cluster=auto"))[1].endswith(f"; {named}")
    assert "left out" not in comparison(composed("cluster=auto", "cluster.cards=2")), "they were counted by the user"
    box(*cards)
    assert "left out" not in comparison(composed("cluster=auto"))


def test_an_evaluation_has_an_engine_on_every_card_and_no_learner(box: Any) -> None:
    box(*[Gpu(total=24.0, name="NVIDIA GeForce RTX 3090")] * 4)
    for cluster, engines in (("auto", 4), ("4x3090-shared", 4), ("4x3090", 3), ("1x24gb", 1)):
        run = settled(composed(f"cluster={cluster}", "mode=eval", "checkpoint=somewhere"))
        assert (run.cluster.learners, run.cluster.rollout_workers, run.cluster.gpus) == (0, engines, engines)
        assert (run.cluster.colocated, run.cluster.channel[0]) == (False, "object_store")
        assert problems(run) == []


def test_a_card_that_is_named_counts_for_those_of_this_machine(box: Any) -> None:
    box(*[Gpu(total=16.0, name="Tesla T4")] * 2)
    run = settled(composed("cluster=auto", "cluster.card=rtx3090"))
    assert (run.cluster.card, run.cluster.gpus) == ("rtx3090", 2)


def test_an_evaluation_takes_this_machines_cards(box: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    box(Gpu(total=79.6, name="NVIDIA H100 80GB HBM3"))
    config = composed("cluster=auto", "mode=eval", "checkpoint=somewhere")
    monkeypatch.setattr(inference, "settle", lambda config, path, given, phase: path)
    monkeypatch.setattr(inference, "check_machine", refused)
    with (
        pytest.raises(UserError, match="1 engine on 1 h100"),
        inference.inference(config, tmp_path, "namespace", Console(quiet=True)),
    ):
        pass


def refused(config: RunConfig) -> None:
    cluster = config.cluster
    raise UserError(f"{cluster.rollout_workers} engine on {cluster.gpus} {cluster.card}")


def test_an_engine_that_is_too_small_is_refused_before_it_plays() -> None:
    given = ["mode=eval", "checkpoint=somewhere", "cluster=1x24gb", "cluster.engine.gpu_memory_utilization=0.1"]
    why = refusal(settled(composed("model=qwen1.5b", *given)))
    assert why is not None
    assert "an engine's KV cache of " in why
    assert why.endswith("cluster.engine.gpu_memory_utilization=0.92 makes it fit")


def test_cards_that_are_not_there_or_not_known_are_asked_for(box: Any) -> None:
    box()
    with pytest.raises(
        UserError,
        match=r"cluster=auto: this machine has no GPU; use cluster=local, or say which ones .* cluster\.cards=4",
    ):
        layouts(composed("cluster=auto"))
    box(Gpu(total=16.0, name="Tesla T4"))
    with pytest.raises(UserError, match=r"cluster=auto: Tesla T4 is not known here; .* cluster\.card="):
        layouts(composed("cluster=auto"))


@pytest.mark.slow
def test_where_nothing_fits_that_is_said() -> None:
    config = composed("cluster=auto", "cluster.cards=2", "cluster.gpu_memory_gib=3")
    assert all(layout.step is None for layout in layouts(config))
    with pytest.raises(UserError, match="no layout fits"):
        comparison(config)


def test_the_comparison_names_the_cards_and_the_shortest_first() -> None:
    lines = comparison(composed("cluster=auto", "cluster.cards=2")).splitlines()
    assert lines[0] == "cluster=auto model=qwen1.5b: 2 cards (rtx3090, 24 GiB), a projection that was never run"
    seconds = [float(line.split(" s a step")[0].split()[-1]) for line in lines if " s a step" in line]
    assert seconds == sorted(seconds)
    assert len(seconds) == 3
    assert lines[-1].startswith("  cluster=auto cluster.card=rtx3090 cluster.learners=")


# --- what is left to the plan -----------------------------------------------------------------------


def test_what_is_left_open_is_chosen_for_the_card() -> None:
    card = chosen(composed("cluster=4x3090"))
    assert (card.gradient_checkpointing, card.whole_layers > 0) == ("mlp", True)
    assert (card.optimizer.exact_master, card.optimizer.float32_gradients) == (True, False)
    large = chosen(composed("cluster=8xh100"))
    assert (large.gradient_checkpointing, large.optimizer.float32_gradients) == ("none", True)
    assert chosen(composed("cluster=local")).gradient_checkpointing == "layers"


def test_what_is_asked_for_stays() -> None:
    asked = ["algorithm.gradient_checkpointing=layers", "algorithm.optimizer.exact_master=false"]
    card = chosen(composed("cluster=4x3090", *asked, "algorithm.optimizer.float32_gradients=true"))
    assert (card.gradient_checkpointing, card.whole_layers) == ("layers", 0)
    assert (card.optimizer.exact_master, card.optimizer.float32_gradients) == (False, True)
