"""Settings of the model, the algorithm, the optimizer and the two kinds of warm start. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.errors import UserError, one_of
from agent.own import told
from agent.settings import PATH, TEXT, bounded, check_bounds
from learner.losses.base import KEY, Choices, Loss, loss_class

SHIFTED_MISMATCH = 0.5
"""Share of the tokens that differ which fit the token beside them: above it, the mask or the tokens are shifted. By
chance it is under 0.3."""
BFLOAT16_MISMATCH = 0.05
"""Nats: a bfloat16 run whose train-inference mismatch is above this is warned."""
BFLOAT16_ROUNDING = 0.02
"""Nats: the most mismatch that rounding alone makes; the least is 0.001."""
KL = ("none", "k1", "k2", "k3")
SCHEDULES = ("constant", "linear", "cosine")
CHECKPOINTING = ("auto", "layers", "mlp", "none")
DEFAULT_CONSTANT_LENGTH = 1024


_TINY = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 256,
}


@dataclass
class ModelConfig:
    """The policy: a model in Hugging Face format or GGUF, or ``tiny``, built from scratch."""

    name: str = field(default="tiny", metadata=TEXT)
    """Label in logs and folders; "" takes the last part of ``path``."""
    path: str | None = field(default=None, metadata=PATH)
    """Folder, hub name or GGUF file of pretrained weights; None builds a random model of ``architecture``."""
    architecture: dict[str, int] | None = bounded(_TINY, "at least 0")
    """Sizes (hidden_size, num_hidden_layers, num_attention_heads, ...): of the Qwen2 that ``path: null`` builds, and
    of a model whose folder isn't at hand when it is planned for. None leaves them to the folder's ``config.json``."""
    vocab_size: int = bounded(1024, "at least 1")
    """For ``path: null``: size of the byte-level BPE trained on the task's text."""
    family: str = "qwen2"
    """``qwen2``, ``qwen3`` or ``llama``: which tensors ``architecture`` stands for, in the plan."""
    dtype: str = "float32"
    """``float32`` or ``bfloat16``, in the learner and in the engine; ``auto`` is bfloat16 on a GPU and float32 on a
    CPU."""
    lora_rank: int = bounded(0, "at least 0")
    """Train low-rank changes of this rank to every linear layer, and nothing else; 0 trains all weights. Wants a
    learning rate 10 to 100 times higher."""

    def __post_init__(self) -> None:
        check_bounds(self, "model")
        one_of(self.family, ("qwen2", "qwen3", "llama"), "model.family")
        one_of(self.dtype, ("auto", "float32", "bfloat16"), "model.dtype")
        if self.path is None and self.architecture is None:
            raise UserError("model: nothing says which; give model.path=FOLDER, a hub name or a GGUF file")
        if not self.name and self.path is not None:
            self.name = Path(self.path).absolute().name.removesuffix(".gguf")


@dataclass
class WarmStartConfig:
    """Supervised steps on expert trajectories before RL. The defaults are a pretrained model's
    (``docs/results/real_mini.md``); one that is made from scratch has its own (``conf/model/tiny.yaml``)."""

    steps: int = bounded(0, "at least 0")
    """0 leaves the policy as it is."""
    batch_size: int = bounded(8, "at least 1")
    lr: float = bounded(5.0e-5, "above 0 and at most 1")
    muon_lr: float = bounded(0.0, "at least 0 and at most 1")
    """Learning rate of Muon on the hidden matrices; 0 leaves them to AdamW. A model trained from scratch
    learns in half the steps with it (0.03); a pretrained one is better off without."""
    warmup_steps: int = bounded(5, "at least 0")
    max_grad_norm: float = bounded(1.0, "at least 0")
    context_weight: float = bounded(0.0, "at least 0")
    """Weight of the loss on all tokens beside the loss on action tokens (1)."""
    cache: bool = True
    """Keep the result, keyed by everything that determines it, and load it the next time."""

    def __post_init__(self) -> None:
        check_bounds(self, "algorithm.warm_start")


@dataclass
class SeedingConfig:
    """Expert seeding (DAVID-GRPO's few-shot warm start): GRPO steps on the experts' questions, before the main ones and
    after the supervised warm start if there is one.

    Each step plays all of the questions, ``pool.group_size`` rollouts each; where none of a question's is perfect,
    the expert's trajectory takes the place of the worst. What isn't set here is the algorithm's.
    """

    steps: int = bounded(0, "at least 0")
    """0 leaves it out; DAVID-GRPO takes 50."""
    experts: int = bounded(4, "at least 1")
    """Expert trajectories, one per question: from ``data.experts``, or the built-in world's."""
    lr: float = bounded(1.0e-5, "above 0 and at most 1")
    kl: str = "none"
    """``none``, ``k1``, ``k2`` or ``k3``, against the policy that the seeding starts with."""
    kl_coefficient: float = bounded(0.001, "at least 0")

    def __post_init__(self) -> None:
        check_bounds(self, "algorithm.seeding")
        one_of(self.kl, KL, "algorithm.seeding.kl")


@dataclass
class OptimizerConfig:
    """AdamW and its schedule."""

    kind: str = "adamw"
    """``adamw`` (float32 masters and moments) or ``adamw8bit`` (8-bit moments; bfloat16 weights as ``exact_master``
    says)."""
    exact_master: bool | None = None
    """Of ``adamw8bit``: keep beside each bfloat16 weight the 16 bits that its float32 master has more, 2 bytes a
    parameter; false rounds stochastically. null: wherever there is room for them, as ``mode=plan`` shows."""
    offload: bool = False
    """Keep the states of ``adamw`` in host memory and step there: seconds per step for 1.5B parameters."""
    float32_gradients: bool | None = None
    """Add the microbatches' gradients up in float32, 2 bytes a bfloat16 parameter more; false: in its own type. null:
    wherever there is room without recomputing more."""
    shard: bool = False
    """With several learners (``cluster.learners``), each keeps the states of its share of the weights alone, and sends
    the others what it has updated."""
    lr: float = bounded(1.0e-6, "above 0 and at most 1")
    betas: list[float] = bounded([0.9, 0.999], "in [0, 1)")
    eps: float = bounded(1.0e-8, "above 0 and at most 1")
    weight_decay: float = bounded(0.01, "at least 0 and at most 10")
    max_grad_norm: float = bounded(1.0, "at least 0")
    schedule: str = "constant"
    """``constant``, ``linear`` or ``cosine`` decay to 0 over the run, after the warm-up."""
    warmup_steps: int = bounded(0, "at least 0")

    def __post_init__(self) -> None:
        check_bounds(self, "algorithm.optimizer")
        one_of(self.kind, ("adamw", "adamw8bit"), "algorithm.optimizer.kind")
        one_of(self.schedule, SCHEDULES, "algorithm.optimizer.schedule")
        if self.offload and self.kind != "adamw":
            raise UserError(
                f"algorithm.optimizer.offload=true keeps float32 states in host memory, where there is room for them; "
                f"set algorithm.optimizer.kind=adamw, or offload=false for {self.kind}"
            )
        if len(self.betas) != 2:
            raise UserError("algorithm.optimizer.betas needs two numbers")


@dataclass
class AlgorithmConfig:
    """The loss, and all else that makes an update of a batch. What is null here is as the loss's paper has it."""

    steps: int = bounded(100, "at least 1")
    """Most learner steps, one batch from the pool each. A schedule of the learning rate decays over all of them."""
    rollout_budget: int = bounded(0, "in [0, 9223372036854775807]")
    """Trajectories to play: the run ends with the step that reaches it, if ``steps`` don't end it before; 0: any."""
    token_budget: int = bounded(0, "in [0, 9223372036854775807]")
    """The same for tokens to generate. Both count the expert seeding, continuations and what was excluded."""
    loss: str = "grpo"
    """A module of ``learner/losses`` (``grpo``, ``dr_grpo``, ``dapo``, ``gspo``, ``cispo``, …), or a class of your own:
    ``package.module:Class``."""
    advantage: str | None = None
    """``std`` (reward less the group's mean, over its standard deviation), ``mean`` (without the division) or ``rloo``
    (less the mean of the others)."""
    clip_low: float | None = bounded(None, "in (0, 1]")
    """Ratios are clipped to [1 - ``clip_low``, 1 + ``clip_high``]."""
    clip_high: float | None = bounded(None, "above 0")
    old_logprobs: str = "learner"
    """``learner`` (recomputed before the update) or ``engine``."""
    importance_cap: float = bounded(2.0, "at least 0")
    """C of the truncated importance weight min(pi_learner_old / pi_engine, C); 0 turns it off."""
    mismatch_limit: float = bounded(1.0e-3, "at least 0")
    """Nats. A float32 run stops before an update whose train-inference mismatch is above it: mean |learner - engine|
    log-probability of the tokens that the current weights sampled, 1e-7 to 1e-5 when all is well. Above it the engine
    holds other weights than the learner, or computes wrongly. 0 turns it off; a bfloat16 run is only warned."""
    kl: str = "none"
    """``none``, ``k1``, ``k2`` or ``k3``, against the policy the run started RL with. On policy ``k1`` restrains
    nothing: its gradient has mean zero."""
    kl_coefficient: float = bounded(0.001, "at least 0")
    reference: str = "device"
    """Where the KL term's reference policy is kept: ``device``, or ``cpu`` (host memory; it comes to the device to be
    asked)."""
    kl_zero_variance: bool = False
    """Also apply the KL term to zero-variance groups, where the pool's rule trains on them (``pool=epoch``)."""
    aggregation: str | None = None
    """``token_mean``, ``sequence_mean``, ``constant_length`` or ``prompt_balanced`` (``learner/batch.py``)."""
    constant_length: int | None = bounded(None, "at least 1")
    """Denominator per sequence of ``aggregation=constant_length``; null is 1024."""
    minibatch_questions: int = bounded(0, "at least 0")
    """Most questions per optimizer update, among which a batch is shared out evenly; 0 takes all of it in one."""
    epochs: int = bounded(1, "at least 1")
    """Passes over the batch."""
    microbatch_tokens: int = bounded(16384, "at least 1")
    """Most tokens in one forward and backward; changes memory, never the result."""
    logits_chunk: int = bounded(1024, "at least 1")
    """Most action tokens whose logits exist at once."""
    gradient_checkpointing: str = "auto"
    """What backward computes again: ``layers`` (all but each layer's input is made again: a third more work), ``mlp``
    (the feed-forward parts; attention is kept) or ``none``. ``auto`` takes the least that there is room for, as
    ``mode=plan`` shows, and ``layers`` on a CPU. The result is the same."""
    whole_layers: int = bounded(0, "at least 0")
    """With ``mlp``, so many layers keep the wide projections of their feed-forward parts, too."""
    compile: bool = False
    """Compile the layers with torch.compile, attention apart: norms, RoPE and activations pass through memory fewer
    times. On a CPU it needs a C++ compiler. The first step is half a minute later. Differs in the last digits only."""
    dry_run: str = "cuda"
    """Play the largest possible microbatch before the first step, so that memory normally runs out then:
    ``cuda`` (on a GPU), ``always`` or ``never``."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    seeding: SeedingConfig = field(default_factory=SeedingConfig)

    def __post_init__(self) -> None:
        check_bounds(self, "algorithm")
        one_of(self.old_logprobs, ("learner", "engine"), "algorithm.old_logprobs")
        one_of(self.kl, KL, "algorithm.kl")
        if 0 < self.importance_cap < 1:
            raise UserError(
                f"algorithm.importance_cap={self.importance_cap:g} is below 1, the weight of a token on which engine "
                "and learner agree: set at least 1, or 0 to turn it off"
            )
        one_of(self.reference, ("device", "cpu"), "algorithm.reference")
        one_of(self.gradient_checkpointing, CHECKPOINTING, "algorithm.gradient_checkpointing")
        one_of(self.dry_run, ("cuda", "always", "never"), "algorithm.dry_run")
        self._check_loss()

    def _check_loss(self) -> None:
        loss, choices = loss_class(self.loss), self.choices
        choices.check()
        with told(f"{KEY}={self.loss}: check()"):
            loss.check(choices)
        self.build_loss()  # one of the user's own may fail at it, and the learner would only find out later
        if self.constant_length is None:
            return
        if choices.aggregation != "constant_length":
            raise UserError(
                f"algorithm.constant_length={self.constant_length} is for algorithm.aggregation=constant_length, "
                f"and it is {choices.aggregation}; leave it out"
            )

    def check_old_logprobs(self, dtype: str) -> None:
        """Raises ``UserError`` where engine and learner differ by more than the clip range, in a model of ``dtype``:
        ratios that should be 1 would be clipped, and the gradient of whole sequences lost."""
        choices = self.choices
        narrowest = min(choices.clip_low, choices.clip_high)
        if self.old_logprobs == "engine" and dtype != "float32" and narrowest < BFLOAT16_ROUNDING:
            raise UserError(
                f"algorithm.old_logprobs=engine: in {dtype} engine and learner differ by up to {BFLOAT16_ROUNDING:g} "
                f"nats a token, and algorithm.loss={self.loss} clips at {narrowest:g}; set "
                "algorithm.old_logprobs=learner, or a wider algorithm.clip_low and clip_high"
            )

    @property
    def choices(self) -> Choices:
        """Advantage, aggregation and clip range: as they are set, else as the loss's paper has them."""
        own = loss_class(self.loss).defaults
        given = {name: value for name in Choices.__slots__ if (value := getattr(self, name)) is not None}
        return replace(own, **given)

    @property
    def sequence_constant(self) -> int:
        """What ``aggregation=constant_length`` divides the sum over a sequence's tokens by."""
        return DEFAULT_CONSTANT_LENGTH if self.constant_length is None else self.constant_length

    def build_loss(self) -> Loss:
        """The loss with these settings. Raises ``UserError`` for what making one of the user's own raises."""
        with told(f"{KEY}={self.loss}: __init__()"):
            return loss_class(self.loss)(self.choices)

    @property
    def backend(self) -> str:
        """Of torch.compile, as ``learner/lean.py`` takes it."""
        return "inductor" if self.compile else ""

    @property
    def needs_reference(self) -> bool:
        """Whether a part of the run has a KL term: its steps, or its seeding's."""
        return self.kl != "none" or (self.seeding.steps > 0 and self.seeding.kl != "none")

    def of_seeding(self) -> AlgorithmConfig:
        """The algorithm of the seeding's steps: this one, with the seeding's own steps, learning rate and KL term."""
        s = self.seeding
        optimizer = replace(self.optimizer, lr=s.lr)
        return replace(self, steps=s.steps, kl=s.kl, kl_coefficient=s.kl_coefficient, optimizer=optimizer)
