"""What a learner's process holds: the policy, what trains it, and its place among the ranks.

Rank 0's is inside the learner's actor, which also has a version, a pool and a log; the others' are inside followers
(``actors/followers.py``) that do the same calls in the same order. No ray here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.run_state import LEARNER, TRAINING
from agent.collector import without_collector
from agent.config import AgentConfig
from agent.errors import UserError
from agent.groups import Group
from agent.readable import content_of
from agent.seeds import derive_seed
from conf.schema import RunConfig
from learner.config import AlgorithmConfig, ModelConfig
from learner.report import UpdateReport
from tasks.demonstrations import Encoded
from tracking.progress import Progress
from tracking.trajectories import TrajectoryLog

if TYPE_CHECKING:
    from learner.policy import Policy
    from learner.ranks import Ranks
    from learner.update import Updater


def learner_environment(config: RunConfig) -> dict[str, str]:
    """The variables of a learner's process: those that its speed and memory depend on."""
    cluster = config.cluster
    # A step of a small model is thousands of parallel sections with little between them: threads that sleep there
    # cost a third of its speed. Threads that spin on would take the cores that the engines need: a millisecond.
    env = {"OMP_NUM_THREADS": str(cluster.learner_threads), "GOMP_SPINCOUNT": "300000", **cluster.nccl_environment}
    if cluster.device == "cuda":
        # Rows of all lengths leave holes in fixed blocks; NCCL and a neighbour that sleeps don't mind pages.
        env["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    if config.algorithm.compile:
        # Found again by the other ranks and by the next run. A pool of compiling processes isn't worth it: there are
        # some ten kernels, and it would outlive the compiling.
        env |= {"TORCHINDUCTOR_CACHE_DIR": str(config.cache / "compiled"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    return env


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerSettings:
    """What a learner is made from."""

    model_path: str
    """A model's folder or hub name; one without weights is built at random from its configuration."""
    model: ModelConfig
    algorithm: AlgorithmConfig
    agent: AgentConfig
    device: str
    colocated: bool
    """An engine has the card whenever this learner doesn't work."""
    threads: int
    weight_channel: str
    weight_bucket: int
    """Bytes in a bucket of a broadcast."""
    weight_timeout_s: float
    meeting_timeout_s: float
    """Longest that a rank waits for the others, each of which may have another microbatch to compute."""
    seed: int
    run_dir: Path
    log: TrajectoryLog
    """Of the episodes that it is given; those of the expert seeding aren't in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """Where the main run begins."""

    version: int | None = None
    """Of the checkpoint's weights; None without one."""
    step: int = 0
    """Steps that are done."""
    otherwise: str = ""
    """What this run keeps of the checkpoint otherwise than its own did."""


class Training:
    """One rank's policy and optimizer, with the rest that an update needs."""

    policy: Policy
    updater: Updater
    """Of the main run, from ``begin`` on."""

    def __init__(
        self,
        settings: LearnerSettings,
        ranks: Ranks,
        show: Callable[[Progress], None],
        did: Callable[[], None],
    ) -> None:
        """``show`` is told what goes on, for a person, and ``did`` is called after each microbatch."""
        self.settings = settings
        self.ranks = ranks
        self.reference: Policy | None = None
        self.seeding: Updater | None = None
        """Between ``begin_seeding`` and ``begin``."""
        self._show, self._did = show, did

    def start(self) -> int:
        """Loads or builds the policy and tries the largest step; returns the policy's number of parameters."""
        with without_collector():
            import torch

            from learner.dry_run import due, try_largest
            from learner.policy import Policy

        settings = self.settings
        self._show(Progress(what="the learner loads the policy"))
        torch.set_num_threads(settings.threads)
        self.policy = Policy.from_folder(
            settings.model_path,
            seed=derive_seed(settings.seed, "policy"),
            dtype=settings.model.dtype,
            device=settings.device,
            gradient_checkpointing=settings.algorithm.gradient_checkpointing,
            whole_layers=settings.algorithm.whole_layers,
            backend=settings.algorithm.backend,
            lora_rank=settings.model.lora_rank,
        )
        if due(settings.algorithm, settings.device):
            self._show(Progress(what="the learner tries the largest step"))
            worst = try_largest(
                self.policy,
                settings.algorithm,
                longest=settings.agent.longest_episode,
                temperature=settings.agent.temperature,
                ranks=self.ranks,
            )
            print(
                f"dry run: {worst.tokens} tokens in a row, {worst.seconds:.1f} s, "
                f"peak {worst.peak_bytes / 2**30:.2f} GiB",
                flush=True,
            )
        self.leave_card()
        return sum(p.numel() for p in self.policy.model.parameters())

    def warm_start(self, imitated: Encoded) -> list[float]:
        """The supervised warm start on ``imitated``, by this rank alone; the loss of each step."""
        from learner.memory import named_knobs
        from learner.warm_start import Demonstration, warm_start

        algorithm = self.settings.algorithm
        config = algorithm.warm_start

        def progress(step: int, loss: float) -> None:
            print(f"warm start step {step} loss {loss:.4f}", flush=True)
            self._did()
            self._show(Progress(done=step + 1, total=config.steps, unit="steps"))

        where, lora = "the warm start", self.policy.adapted
        with named_knobs(where, algorithm, longest=self.settings.agent.longest_episode, lora=lora, error=UserError):
            return warm_start(
                self.policy,
                [Demonstration(token_ids=ids, action_mask=mask) for ids, mask in imitated.split()],
                config,
                rng=np.random.default_rng(derive_seed(self.settings.seed, "warm start")),
                optimizer=algorithm.optimizer,
                microbatch_tokens=algorithm.microbatch_tokens,
                logits_chunk=algorithm.logits_chunk,
                progress=progress,
            )

    def begin_seeding(self) -> None:
        """Makes what the expert seeding needs: an optimizer (and a KL reference) of its own."""
        self._share_weights()
        self.seeding = self._updater(self.settings.algorithm.of_seeding(), "seeding")

    def begin(self, checkpoint: Path | None) -> Begun:
        """Ends the preparation: reference and optimizer are made, or loaded from ``checkpoint``.

        The policy was already started from it.
        """
        from learner.checkpoint import load_state

        self.seeding = None  # its optimizer's moments make room for those of the main one
        self._share_weights()
        self.updater = self._updater(self.settings.algorithm, "learner")
        self.reference = self.updater.reference
        if checkpoint is None:
            return Begun()
        if self.reference is not None and (saved := checkpoint / TRAINING / "reference").is_dir():
            self.reference.load_weights(saved)  # else the KL term is new in this run, and its reference is this policy
        with content_of(f"checkpoint {checkpoint}: {TRAINING}/{LEARNER}"):
            state = load_state(checkpoint / TRAINING / LEARNER)
            self.policy.load_adapters(state["adapters"])
            otherwise = self.updater.load_state(state["updater"])
            return Begun(version=int(state["version"]), step=int(state["step"]), otherwise=otherwise)

    def update(self, groups: Sequence[Group], step: int, version: int) -> UpdateReport:
        """One step on ``groups`` with all ranks, of the seeding while there is one."""
        updater = self.updater if self.seeding is None else self.seeding
        try:
            return updater.update(groups, step=step, version=version)
        except BaseException:
            self.ranks.leave()  # the others are not to wait for what doesn't come
            raise

    @property
    def changed(self) -> bool:
        """Whether the newest update of the main run has touched the weights."""
        return self.updater.changed

    def optimizer_state(self) -> dict[str, Any]:
        """This rank's part of a sharded optimizer's state, on the CPU."""
        from learner.host_copy import copied

        return copied(self.updater.optimizer.state())

    def leave_card(self) -> None:
        """Gives back what torch's allocator holds and doesn't use; weights and optimizer states stay."""
        if self.settings.colocated:
            import torch

            torch.cuda.empty_cache()

    def _updater(self, algorithm: AlgorithmConfig, rng: str) -> Updater:
        """With the reference of its KL term: the policy as it is now."""
        from learner.update import Updater

        settings = self.settings
        return Updater(
            self.policy,
            algorithm,
            rng=np.random.default_rng(derive_seed(settings.seed, rng)),
            fault_folder=settings.run_dir,
            temperature=settings.agent.temperature,
            reference=self.policy.reference_for(algorithm),
            ranks=self.ranks,
            progress=self._did,
        )

    def _share_weights(self) -> None:
        """Every rank begins with rank 0's weights: it alone has made the warm start."""
        self.ranks.spread([p.data for p in self.policy.model.parameters()])
