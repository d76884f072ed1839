"""Who works on which card: what the plan chooses for a learner, and the layouts that a machine allows, compared.

cards ──► layouts (learners, engines, colocated or not, overlapped or not) ──► fit ──► step ──► the shortest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from actors.plan.cards import CARDS, nominal_gib, usable_bytes
from actors.plan.engine import CONTEXT
from actors.plan.fit import changed, fitted, most_alone, problems, smallest_change
from actors.plan.learner import RESERVE, learner_memory
from actors.plan.machine import NEARLY, Gpu, gpus, shown
from actors.plan.measured import assumptions, basis
from actors.plan.roofline import Step, step
from agent.errors import UserError
from conf.schema import INFERENCE, RunConfig
from conf.topology import AUTO, ClusterConfig
from learner.config import AlgorithmConfig

SIDE_BY_SIDE = 0.88
"""vLLM's share of a card of its own, as in the shipped clusters."""
LEAST_SHARE = 0.1
"""Its least share: where that is too much for a card, nothing fits."""
SHARE = "cluster.engine.gpu_memory_utilization"
KIND = "algorithm.optimizer.kind"
OPEN = frozenset({"cluster.learners", "cluster.rollout_workers", SHARE, KIND, "pool.max_staleness"})
"""What ``cluster=auto`` chooses, as far as it isn't given."""
METHOD = frozenset({"model.lora_rank", "agent.max_response_tokens"})
"""Settings that make another training of it."""
WORTH = 0.97
"""A layout with more parts, or with overlap, is recommended if a step takes at most this share of a simpler one's."""


def chosen(config: RunConfig) -> AlgorithmConfig:
    """The algorithm of ``config`` with what it leaves to the plan, as ``learner_memory`` chooses it."""
    memory, algorithm = learner_memory(config), config.algorithm
    optimizer = replace(algorithm.optimizer, exact_master=memory.exact, float32_gradients=memory.wide)
    return replace(
        algorithm, gradient_checkpointing=memory.checkpointing, whole_layers=memory.whole, optimizer=optimizer
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """One way to use the cards."""

    config: RunConfig
    settings: tuple[str, ...]
    """What makes it of ``cluster=auto``, as one types it."""
    step: Step | None
    """None: it doesn't fit, whatever is changed."""

    @property
    def parts(self) -> tuple[int, int]:
        """The simpler the smaller."""
        return self.config.pool.max_staleness, self.config.cluster.learners

    def __str__(self) -> str:
        cluster = self.config.cluster
        each = "1 card plays, then learns" if cluster.learners == 1 else "every card plays, then learns"
        apart = f"{_count(cluster.learners, 'learner')}, {_count(cluster.rollout_workers, 'engine')}"
        return (each if cluster.colocated else apart) + (", overlapped" if self.config.pool.max_staleness else "")


def layouts(config: RunConfig) -> list[Layout]:
    """All layouts of the cards that ``config`` has (``cluster.cards``, or those of this machine), as far as it leaves
    them open.

    Raises ``UserError`` if there are none.
    """
    found, _ = _with_cards(config)
    return [_layout(found, *shape) for shape in _shapes(found)]


def _layout(config: RunConfig, learners: int, engines: int, colocated: bool, staleness: int) -> Layout:
    """The learners keep exact float32 masters, in 8-bit AdamW where those of AdamW don't fit. What was given stays, and
    so does the method: no adapters and no shorter answers that nobody has asked for."""
    given = frozenset(config.cluster.auto_keeps)
    cluster = replace(config.cluster, learners=learners, rollout_workers=engines, colocated=colocated)
    tried = replace(config, cluster=cluster, pool=replace(config.pool, max_staleness=staleness))
    kinds = [tried]
    if not tried.algorithm.optimizer.offload and KIND not in given:
        kinds.append(changed(tried, KIND, "adamw8bit"))
    sized = [each if SHARE in given else changed(each, SHARE, _share(each)) for each in kinds]
    fitting, changes = next(
        ((each, ()) for each in sized if not problems(each)), fitted(sized[-1], given | METHOD) or (sized[-1], None)
    )
    settings = (
        f"cluster.card={cluster.card}",
        *([f"cluster.gpu_memory_gib={cluster.gpu_memory_gib:g}"] if cluster.gpu_memory_gib else []),
        f"cluster.learners={learners}",
        f"cluster.rollout_workers={engines}",
        *(["cluster.colocated=true"] if colocated else []),
        f"{SHARE}={fitting.cluster.engine.gpu_memory_utilization}",
        f"{KIND}={fitting.algorithm.optimizer.kind}",
        f"pool.max_staleness={staleness}",
        *(one for one in " ".join(changes or ()).split() if not one.startswith((SHARE, KIND))),
    )
    return Layout(
        config=fitting, settings=settings, step=None if changes is None else step(fitting, assumptions(fitting))
    )


def _share(config: RunConfig) -> float:
    """What vLLM may have of a card: beside an idle learner with exact masters, what that leaves."""
    limit = usable_bytes(config.cluster)
    if not config.cluster.colocated:
        return max(LEAST_SHARE, min(SIDE_BY_SIDE, most_alone(config, limit)))
    rest = CONTEXT + replace(learner_memory(config), exact=True).at_rest + RESERVE
    return max(LEAST_SHARE, int((limit - rest) / limit * 100) / 100)


def recommended(found: list[Layout]) -> Layout:
    """The shortest step; of those that are nearly as short, the simplest. Raises ``UserError`` if none fits."""
    best: Layout | None = None
    for layout in sorted((x for x in found if x.step), key=lambda x: x.parts):
        if best is None or _seconds(layout) < WORTH * _seconds(best):
            best = layout
    if best is None:
        change = next((c for layout in found if (c := smallest_change(layout.config))), ())
        cure = f"{' '.join(change)} makes one fit" if change else "take a smaller model or larger cards"
        raise UserError(f"cluster=auto: no layout fits with what is given; {cure}")
    return best


def comparison(config: RunConfig) -> str:
    """``mode=plan cluster=auto``: the layouts, the shortest step first, and the one that is recommended."""
    config, small = _with_cards(config)
    found = layouts(config)
    best = recommended(found)
    cluster = best.config.cluster
    lines = [
        f"cluster=auto model={config.model.name}: {_count(cluster.cards, 'card')} ({cluster.card}, "
        f"{nominal_gib(cluster):g} GiB), {basis(best.config)}"
    ]
    if small:
        lines.append(f"  {_left_out(small)}")
    for layout in sorted(found, key=_seconds):
        said = f"{layout.step.seconds:8.1f} s a step, {layout.step.limit}" if layout.step else "   does not fit"
        lines.append(f"  {layout!s:<40}{said}")
    lines.append(f"recommended: {best}. As one types it, and as cluster=auto trains here:")
    lines.append(f"  cluster=auto {' '.join(best.settings)}")
    return "\n".join(lines)


def left_open(config: RunConfig) -> bool:
    """Whether ``config`` is ``cluster=auto`` and doesn't say itself all that makes a layout."""
    return config.cluster.name == AUTO and not {*config.cluster.auto_keeps} >= OPEN


def settled(config: RunConfig) -> RunConfig:
    """``config`` with its card known and, as far as it leaves that open, in the recommended layout.

    Of ``cluster=auto``; any other is returned as it is. Without a learner where nothing is trained.
    """
    return settled_and_said(config)[0]


def settled_and_said(config: RunConfig) -> tuple[RunConfig, str]:
    """See ``settled``; and what was chosen, as one types it, if anything was."""
    if config.mode in INFERENCE:
        return _engines_alone(config), ""
    if config.cluster.name != AUTO:
        return config, ""
    config, small = _with_cards(config)
    if not left_open(config):
        return config, ""
    best = recommended(layouts(config))
    kept = replace(best.config.cluster, auto_keeps=sorted(OPEN.union(config.cluster.auto_keeps)))
    said = [f"cluster=auto: {best}: {' '.join(best.settings)}", *([_left_out(small)] if small else [])]
    return replace(best.config, cluster=kept), "; ".join(said)


def _engines_alone(config: RunConfig) -> RunConfig:
    """Of ``cluster=auto`` an engine on every card."""
    if config.cluster.name == AUTO:
        config, _ = _with_cards(config)
        engines = config.cluster.rollout_workers or config.cluster.cards
        config = replace(config, cluster=replace(config.cluster, rollout_workers=engines))
        if SHARE not in config.cluster.auto_keeps:
            config = changed(config, SHARE, SIDE_BY_SIDE)
    return replace(config, cluster=config.cluster.for_inference())


def _shapes(config: RunConfig) -> list[tuple[int, int, bool, int]]:
    """Learners, engines, whether they are colocated, and staleness: those that agree with what ``config`` gives."""
    cluster, given = config.cluster, config.pool.max_staleness
    cards = cluster.cards
    overlaps = (0, 1) if "pool.max_staleness" not in cluster.auto_keeps and not given else (given,)
    apart = [(n, cards - n, False, staleness) for n in range(1, cards) for staleness in overlaps]
    found = [
        (learners, engines, colocated, staleness)
        for learners, engines, colocated, staleness in [(cards, cards, True, 0), *apart]
        if cluster.learners in (0, learners)
        and cluster.rollout_workers in (0, engines)
        and (colocated or not cluster.colocated)
        and not (colocated and cluster.weight_channel == "nccl")
        and staleness in overlaps
    ]
    if not found:
        said = {
            f"cluster.learners={cluster.learners}": cluster.learners,
            f"cluster.rollout_workers={cluster.rollout_workers}": cluster.rollout_workers,
            "cluster.colocated=true": cluster.colocated,
            "cluster.weight_channel=nccl": cluster.weight_channel == "nccl",
            f"pool.max_staleness={given}": len(overlaps) == 1,
        }
        wanted = [line for line, is_given in said.items() if is_given]
        raise UserError(
            f"cluster=auto: no layout of {_count(cards, 'card')} has {' '.join(wanted)}; leave "
            f"{'one of them' if len(wanted) > 1 else 'it'} out"
        )
    return found


def _with_cards(config: RunConfig) -> tuple[RunConfig, tuple[Gpu, ...]]:
    """``config`` with its number and kind of cards known, and those of this machine that are too small to count.

    Where both are given the machine isn't asked.
    """
    cluster = config.cluster
    count, named = cluster.cards or _asked_for(cluster), cluster.card != AUTO
    if named and count:
        return replace(config, cluster=replace(cluster, cards=count)), ()
    found, _ = gpus()
    if not found and not count:
        raise UserError(
            f"cluster=auto: this machine has no GPU{shown()}; use cluster=local, or say which ones mode=plan plans "
            "for: cluster.card=rtx3090 cluster.cards=4"
        )
    usable = [gpu for gpu in found if gpu.total >= max(g.total for g in found) / 2]  # no small one for the screen
    smallest = min(usable, key=lambda gpu: gpu.total, default=None)
    kind = cluster.card if named else _kind(smallest) if smallest else ClusterConfig.card
    gib = cluster.gpu_memory_gib
    if smallest and not gib and smallest.total < NEARLY * CARDS[kind].gib:  # a laptop's, by the same name
        gib = int(smallest.total)
    small = () if count else tuple(gpu for gpu in found if gpu not in usable)
    return replace(config, cluster=replace(cluster, cards=count or len(usable), card=kind, gpu_memory_gib=gib)), small


def _left_out(small: Sequence[Gpu]) -> str:
    named = ", ".join(f"GPU {gpu.index} ({gpu.name}, {gpu.total:.0f} GiB)" for gpu in small)
    return f"left out: {named}; under half of the largest card's memory"


def _asked_for(cluster: ClusterConfig) -> int:
    """The cards of a layout whose numbers are both given; 0 where one of them is left open."""
    both = cluster.learners and cluster.rollout_workers
    return (cluster.learners if cluster.colocated else cluster.learners + cluster.rollout_workers) if both else 0


def _kind(gpu: Gpu) -> str:
    """The name of a card in ``cards.py``."""
    name = gpu.name.lower().replace(" ", "")
    alike = [kind for kind in CARDS if kind.split("-")[0] in name]
    if not alike:
        raise UserError(f"cluster=auto: {gpu.name} is not known here; name one that is like it: cluster.card=…")
    return min(alike, key=lambda kind: abs(CARDS[kind].gib - gpu.total))


def _seconds(layout: Layout) -> float:
    return layout.step.seconds if layout.step else float("inf")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
