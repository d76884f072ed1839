"""Episodes as they are played when a policy is evaluated or asked: greedy unless a temperature is set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agent.config import ExitConfig, SelectivityConfig
from agent.group import Player
from agent.inference.early_exit import EarlyExit, Probe
from agent.inference.scaling import Scale
from agent.records import Question, StopReason, Trajectory
from agent.seeds import derive_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class Inference:
    """How an episode is played, and what it may leave out."""

    exit: ExitConfig | None = None
    """None probes nothing; with no threshold in it, probes are recorded and end nothing."""
    scale: Scale | None = None
    """What the probes' confidences are worth."""
    selectivity: SelectivityConfig | None = None
    samples: int = 1
    """Episodes of each question."""
    temperature: float = 0.0
    """Of the turns; probes are greedy."""
    seed: int = 0
    """What samples are drawn from."""

    @property
    def ending(self) -> dict[str, Any] | None:
        """What decides where an episode ends early, wherever that was read from; None if it doesn't."""
        if self.exit is None or self.exit.threshold is None:
            return None
        scale = None if self.scale is None else self.scale.plain()
        return {"threshold": self.exit.threshold, "scale": scale, **self.exit.probing}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inferred:
    """An episode, and the probes beside it. After an early exit, the last one's answer is the answer."""

    trajectory: Trajectory
    probes: tuple[Probe, ...] = ()

    @property
    def answer(self) -> str | None:
        """The final answer's text, or None when there is none."""
        return self.probes[-1].answer if self.exited else self.trajectory.answer

    @property
    def exited(self) -> bool:
        """Whether a probe's answer ended the episode."""
        return self.trajectory.stop_reason is StopReason.EARLY_EXIT

    @property
    def probe_tokens(self) -> int:
        """Tokens generated for probes; the trajectory's are counted apart."""
        return sum(probe.cost() for probe in self.probes)


async def infer(player: Player, question: Question, inference: Inference, sample: int = 0) -> Inferred:
    """Episode ``sample`` of a question. What is drawn depends on the seed, the question's id and ``sample`` alone."""
    watcher = None
    if inference.exit is not None:
        watcher = EarlyExit(
            inference.exit,
            dialogue=player.dialogue,
            generator=player.generator,
            context=player.config.longest_episode,
            scale=inference.scale,
        )
    trajectory = await player.episode(
        question,
        temperature=inference.temperature,
        seed=derive_seed(inference.seed, question.id, sample) if inference.temperature else 0,
        selectivity=inference.selectivity,
        watcher=watcher,
    )
    return Inferred(trajectory=trajectory, probes=tuple(watcher.probes) if watcher else ())
