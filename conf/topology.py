"""Settings of the cluster: how many actors, on what, and how each engine is sized."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from agent.errors import UserError, one_of
from agent.settings import TEXT, bounded, check_bounds

AUTO = "auto"
"""The cluster whose layout the plan chooses."""
WEEK_S = 7 * 86_400.0
"""In the place of a deadline that is turned off."""
CPU_BLOCK = 32
"""Tokens in a block of the KV cache on a CPU, the fewest that vLLM's attention takes there. A prefix is found in whole
blocks: with vLLM's default of 128 little of an episode of 300 tokens is found."""


@dataclass
class EngineConfig:
    """One vLLM engine."""

    max_num_seqs: int = bounded(256, "at least 1")
    """Most sequences decoded together."""
    max_batched_tokens: int = bounded(2048, "at least 1")
    """Most tokens in one step of the engine, read and written together: more read a prompt faster, and take memory from
    the KV cache. On a CPU at least the longest episode."""
    gpu_memory_utilization: float = bounded(0.9, "in (0, 1]")
    """Share of the card that vLLM takes, weights and KV cache together."""
    kv_cache_gib: int = bounded(1, "at least 1")
    """KV cache on a CPU, where there is no share to take."""
    enforce_eager: bool = False
    """Skip CUDA graphs; always on without a GPU."""
    threads: int = bounded(1, "at least 1")
    """OpenMP threads of an engine on a CPU; a model this small is slower with more."""

    def __post_init__(self) -> None:
        check_bounds(self, "cluster.engine")
        if self.max_batched_tokens < self.max_num_seqs:
            raise UserError(
                f"cluster.engine.max_batched_tokens={self.max_batched_tokens} must be at least cluster.engine."
                f"max_num_seqs={self.max_num_seqs}: each sequence that is decoded takes one in every step"
            )


@dataclass
class DeadlineConfig:
    """Seconds without any progress, after which an actor hangs: its stacks are written to its log and it is replaced.

    Progress is work done: a token, a search, a microbatch. So a slow machine needs no longer ones. null: no deadline.
    """

    ping: float | None = bounded(8.0, "above 0")
    """To answer a ping, for a process that is stopped; six times as long for one that does nothing else."""
    answer: float | None = bounded(120.0, "above 0")
    """An actor's event loop gets round."""
    start: float | None = bounded(1800.0, "above 0")
    """An actor comes up: imports, a model's weights, CUDA graphs. An index that is built makes progress."""
    generate: float | None = bounded(600.0, "above 0")
    """An engine that has requests makes a step."""
    evaluate: float | None = bounded(900.0, "above 0")
    """A worker's part of an evaluation: a step of its engine, an answered search, or its end."""
    search: float | None = bounded(300.0, "above 0")
    """The retrieval actor, which has searches, answers one."""
    take: float | None = bounded(3600.0, "above 0")
    """The learner waits for a batch: anybody else makes progress meanwhile."""
    update: float | None = bounded(900.0, "above 0")
    """The learner computes a microbatch; so long, at least, several learners wait for one another's gradients."""
    publish: float | None = bounded(300.0, "above 0")
    """The learner puts the weights where the workers find them; a worker loads them."""
    save: float | None = bounded(1800.0, "above 0")
    """The learner or the pool writes its part of a checkpoint."""
    sleep: float | None = bounded(300.0, "above 0")
    """A colocated engine leaves the card."""
    wake: float | None = bounded(300.0, "above 0")
    """It comes back."""

    def __post_init__(self) -> None:
        check_bounds(self, "cluster.deadlines")

    def of(self, phase: str) -> float | None:
        """That of a phase, by its name here."""
        deadline: float | None = getattr(self, phase)
        return deadline


@dataclass
class ClusterConfig:
    """What the actors run on."""

    name: str = field(default="local", metadata=TEXT)
    device: str = "cpu"
    """``cpu`` or ``cuda``, for the learner and the engines."""
    card: str = "rtx3090"
    """Kind of the GPUs, for the plan and the check before a start: a name in ``actors/plan/cards.py``; ``auto``, with
    ``cluster=auto``, is this machine's."""
    gpu_memory_gib: float = bounded(0.0, "at least 0")
    """Memory of each GPU, for a card that isn't in that table; 0 takes the card's."""
    cards: int = bounded(0, "in [0, 64]")
    """GPUs that ``cluster=auto`` divides among learners and engines; 0: all of this machine."""
    auto_keeps: list[str] = field(default_factory=list)
    """Settings that ``cluster=auto`` leaves as they are: those that a command line gives."""
    learners: int = bounded(1, "in [0, 64]")
    """Learners that share the rows of a batch, on a GPU each; their gradients are added up. 0, with ``cluster=auto``:
    as many as the plan chooses. Where nothing is trained there are none."""
    colocated: bool = False
    """A learner and an engine colocated on each GPU: the engines sleep while the learners learn."""
    rollout_workers: int = bounded(1, "in [0, 1000]")
    """Rollout workers, one engine each. 0, with ``cluster=auto``: as many as the plan chooses."""
    groups_per_worker: int = bounded(0, "at least 0")
    """Groups that a worker plays at once; 0 divides a batch among the workers."""
    learner_threads: int = bounded(2, "at least 1")
    """Processor threads of torch in each learner."""
    address: str | None = field(default=None, metadata=TEXT)
    """An existing Ray cluster; None starts one on this machine."""
    dashboard: bool = True
    weight_channel: str = "auto"
    """``nccl``, ``object_store``, or ``auto``: NCCL where every engine has a GPU of its own."""
    weight_timeout_s: float = bounded(300.0, "above 0")
    """Seconds that a worker may take to stop for new weights, to join the NCCL group, or to load the weights."""
    weight_bucket_mib: int = bounded(256, "at least 1")
    """Weights are broadcast in buckets. A tensor that takes one past this size ends it; two are sent at a time."""
    nccl_p2p: bool = True
    """False sets NCCL_P2P_DISABLE=1: for boards that report peer-to-peer copies and hang in them."""
    in_flight_updates: bool = True
    """New weights in mid-episode; False lets a worker finish its groups with the old ones first."""
    niceness: int = bounded(0, "in [0, 19]")
    """Of the actors' processes, 0 (the same priority as other programs) to 19. With Ray's own default of 15 a learner
    gets a fifth of a core beside other programs. Without effect on an existing Ray cluster."""
    start_timeout_s: float = bounded(600.0, "above 0")
    """Longest that Ray, or an actor, may take to start."""
    restarts_per_hour: int = bounded(12, "at least 0")
    """How often within an hour rollout workers are replaced, or the retrieval, before the run stops."""
    losses_in_a_row: int = bounded(5, "at least 1")
    """How often learner or pool are lost without a new step in between before the run stops. Each time it goes back to
    its last checkpoint. So often, too, each rollout worker is replaced while none comes to work for an hour."""
    deadlines: DeadlineConfig = field(default_factory=DeadlineConfig)
    object_store_mib: int = bounded(0, "at least 0")
    """Ray's object store on this machine; 0 makes room for two versions of the weights, and takes at least 512."""
    engine: EngineConfig = field(default_factory=EngineConfig)

    @property
    def gpus(self) -> int:
        """GPUs that the layout needs: one for each learner and each rollout worker, or one for a pair of them."""
        if self.device == "cpu":
            return 0
        return self.learners if self.colocated else self.learners + self.rollout_workers

    @property
    def channel(self) -> tuple[str, str]:
        """How weights travel, a name in ``actors.weights.CHANNELS``, and why."""
        if not self.learners:
            return "object_store", "there is no learner"
        if self.weight_channel != "auto":
            return self.weight_channel, f"cluster.weight_channel={self.weight_channel}"
        if self.device == "cpu":
            return "object_store", "there is no GPU"
        if self.colocated:
            return "object_store", "learner and engine are colocated on one card, and NCCL needs one for each"
        learners = "learner" if self.learners == 1 else f"{self.learners} learners"
        return "nccl", f"{learners} and {self.rollout_workers} engine(s) have a GPU each"

    @property
    def meeting_timeout_s(self) -> float:
        """How long learners wait for one another: one of them may have another microbatch to compute."""
        update = self.deadlines.update
        return max(self.weight_timeout_s, WEEK_S if update is None else update)

    @property
    def nccl_environment(self) -> dict[str, str]:
        """What all processes of a broadcast, or of a sum of gradients, have to agree on before NCCL starts."""
        return {} if self.nccl_p2p or self.device == "cpu" else {"NCCL_P2P_DISABLE": "1"}

    def for_inference(self) -> ClusterConfig:
        """The engines without a learner, each on a card of its own: what evaluating and asking need."""
        return replace(self, learners=0, colocated=False)

    def check_chosen(self, key: str) -> None:
        """Raises ``UserError`` for a number of 0 that nobody chooses."""
        if not getattr(self, key) and self.name != AUTO:
            raise UserError(f"cluster.{key}=0 leaves the number to cluster=auto; give one that is at least 1")

    def __post_init__(self) -> None:
        check_bounds(self, "cluster")
        one_of(self.device, ("cpu", "cuda"), "cluster.device")
        if self.name == AUTO and self.device == "cpu":
            raise UserError(
                "cluster=auto cluster.device=cpu: cluster=auto divides GPUs; without them use cluster=local"
            )
        self.check_chosen("rollout_workers")
        one_of(self.weight_channel, ("auto", "nccl", "object_store"), "cluster.weight_channel")
        if self.weight_channel == "nccl" and (self.device == "cpu" or self.colocated):
            raise UserError(
                "cluster.weight_channel=nccl needs a GPU for the learner and one for each engine (cluster.device=cuda, "
                "cluster.colocated=false); auto takes what there is"
            )
        if self.address is not None:
            check_address(self.address)
        if self.colocated and (self.device != "cuda" or self.rollout_workers != self.learners):
            raise UserError(
                "cluster.colocated=true shares each GPU between a learner and an engine: it needs cluster.device=cuda "
                f"and cluster.rollout_workers={self.learners}, as many as cluster.learners"
            )


_ADDRESS = re.compile(r"(ray://)?(?P<host>\[[^\]\s]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")


def check_address(address: str) -> None:
    """Raises ``UserError`` unless ``address`` is ``HOST:PORT``, ``ray://HOST:PORT`` or ``auto``."""
    if address == "auto":
        return
    if address == "local":
        raise UserError("cluster.address=local: leave it out (null) to start Ray on this machine")
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 2**16:
        raise UserError(
            f"cluster.address={address}: is written HOST:PORT, as `ray start --head` prints it, ray://HOST:PORT, or "
            "auto for the cluster that runs on this machine"
        )
