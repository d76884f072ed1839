"""Each loss by hand, what it takes unasked and what it refuses, and a loss of the user's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import tiny_policy

from agent.errors import UserError
from learner.batch import loss_weights
from learner.config import AlgorithmConfig
from learner.loss import LossMetrics, loss_input, policy_loss, try_loss
from learner.losses.base import Choices, loss_class, loss_names
from learner.update import Updater

DEFAULTS = {
    "cispo": ("std", "token_mean", 1.0, 4.0),
    "dapo": ("std", "token_mean", 0.2, 0.28),
    "dapo_david": ("std", "prompt_balanced", 0.2, 0.28),
    "david": ("std", "prompt_balanced", 0.2, 0.2),
    "dr_grpo": ("mean", "constant_length", 0.2, 0.2),
    "grpo": ("std", "sequence_mean", 0.2, 0.2),
    "gspo": ("std", "sequence_mean", 3e-4, 4e-4),
}


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rows(
    config: AlgorithmConfig,
    sequences: list[list[float]],
    advantages: list[float],
    packing: list[list[int]],
    gaps: list[list[float]] | None = None,
    questions: list[int] | None = None,
) -> tuple[float, list[list[float]]]:
    """The loss of ``sequences`` (each token's ratio), and the gradient by its log-probability.

    ``packing`` says which sequences are in which row. The old log-probabilities are -1.
    """
    lengths = np.array([len(s) for s in sequences])
    weights = loss_weights(
        lengths,
        np.array(questions or [0] * len(sequences)),
        lengths > 0,
        config.choices.aggregation,
        config.sequence_constant,
    )
    leaves = [(tensor(*s).log() - 1).requires_grad_() for s in sequences]
    total = torch.zeros((), dtype=torch.float64)
    for members in packing:
        counts = [len(sequences[m]) for m in members]

        def spread(values: Any, counts: list[int] = counts, members: list[int] = members) -> torch.Tensor:
            return tensor(*[v for m, n in zip(members, counts, strict=True) for v in [float(values[m])] * n])

        logprobs, weighted = torch.cat([leaves[m] for m in members]), spread(weights)
        mismatch = torch.cat([tensor(*(gaps[m] if gaps else [0.0] * len(sequences[m]))) for m in members])
        row = loss_input(logprobs, torch.full_like(logprobs, -1), mismatch, spread(advantages), weighted, counts)
        total = total + policy_loss(config.build_loss(), row, logprobs, weighted, config)[0]
    total.backward()
    return total.item(), [[] if leaf.grad is None else leaf.grad.tolist() for leaf in leaves]


def alone(name: str, sequences: list[list[float]], advantages: list[float], **changes: Any) -> Any:
    gaps = changes.pop("gaps", None)
    return rows(
        AlgorithmConfig(loss=name, **changes), sequences, advantages, [[i] for i in range(len(sequences))], gaps
    )


# --- by hand ---------------------------------------------------------------------------------------


def test_what_each_takes_unasked() -> None:
    assert sorted(DEFAULTS) == loss_names()
    for name, (advantage, aggregation, low, high) in DEFAULTS.items():
        expected = Choices(advantage=advantage, aggregation=aggregation, clip_low=low, clip_high=high)
        assert AlgorithmConfig(loss=name).choices == expected, name


def test_what_is_set_comes_before_what_the_paper_has() -> None:
    choices = AlgorithmConfig(loss="gspo", clip_high=0.1, aggregation="prompt_balanced").choices
    assert (choices.clip_low, choices.clip_high, choices.aggregation) == (3e-4, 0.1, "prompt_balanced")


def test_grpo_by_hand() -> None:
    """Two sequences of one and two tokens: 1/2 each, then 1/2 of it for each of the two tokens."""
    loss, gradient = alone("grpo", [[1.25], [0.9, 0.5]], [1.0, -2.0])
    first = -1.2  # clipped at 1.2
    second = [2 * 0.9, 2 * 0.8]  # a ratio of 0.5 with a negative advantage is clipped at 0.8
    assert loss == pytest.approx(first / 2 + sum(second) / 4)
    assert gradient == [[0.0], [pytest.approx(2 * 0.9 / 4), 0.0]]


def test_dapo_by_hand() -> None:
    """Each of three tokens weighs a third, and 1.25 is within DAPO's range."""
    loss, gradient = alone("dapo", [[1.25], [0.9, 0.5]], [1.0, -2.0])
    assert loss == pytest.approx((-1.25 + 2 * 0.9 + 2 * 0.8) / 3)
    assert gradient == [[pytest.approx(-1.25 / 3)], [pytest.approx(2 * 0.9 / 3), 0.0]]


def test_dr_grpo_by_hand() -> None:
    loss, _ = alone("dr_grpo", [[1.25], [0.9, 0.5]], [0.5, -0.5], constant_length=10)
    assert loss == pytest.approx((-0.5 * 1.2 + 0.5 * 0.9 + 0.5 * 0.8) / 20)
    assert AlgorithmConfig(loss="dr_grpo").sequence_constant == 1024


@pytest.mark.parametrize(("name", "bound"), [("david", 1.2), ("dapo_david", 1.25)])
def test_davids_questions_weigh_the_same(name: str, bound: float) -> None:
    """A question with one sequence, and one with two of one token each."""
    sequences, advantages = [[1.25, 1.0], [1.0], [1.0]], [1.0, 1.0, -1.0]
    config = AlgorithmConfig(loss=name)
    loss, _ = rows(config, sequences, advantages, [[0, 1, 2]], questions=[0, 1, 1])
    assert loss == pytest.approx(-(bound + 1.0) / 4 - 1 / 4 + 1 / 4)


def test_gspo_by_hand() -> None:
    """The ratio of a sequence is the geometric mean of its tokens'; a token far out is made up for by another."""
    within = math.exp(2e-4)
    loss, gradient = alone("gspo", [[2.0, within**2 / 2.0], [1.01]], [1.0, 3.0])
    # s = sqrt(2 * within^2 / 2) = within, in the range; 1.01 is clipped at 1 + 4e-4.
    assert loss == pytest.approx(-(within * 1.0 + 3 * (1 + 4e-4)) / 2, rel=1e-12)
    # d s / d logpi_t = s / T
    assert gradient == [[pytest.approx(-within / 4)] * 2, [0.0]]


def test_gspos_importance_is_the_sequences() -> None:
    gaps = [[0.4, -0.2], [5.0]]
    loss, _ = alone("gspo", [[1.0, 1.0], [1.0]], [1.0, 1.0], gaps=gaps)
    assert loss == pytest.approx(-(math.exp(0.1) + 2.0) / 2)


def test_cispo_by_hand() -> None:
    """-sg(min(rho, 5)) A logpi: a token beyond the bound keeps a gradient, of the bound's size."""
    loss, gradient = alone("cispo", [[8.0], [0.01, 1.0]], [1.0, -2.0])
    logs = [math.log(8.0) - 1, math.log(0.01) - 1, -1.0]
    assert loss == pytest.approx((-5 * logs[0] + 2 * 0.01 * logs[1] + 2 * logs[2]) / 3)
    assert gradient == [[pytest.approx(-5 / 3)], [pytest.approx(0.02 / 3), pytest.approx(2 / 3)]]


def test_cispos_lower_bound_if_there_is_one() -> None:
    _, gradient = alone("cispo", [[0.01]], [1.0], clip_low=0.5)
    assert gradient == [[pytest.approx(-0.5)]]


def test_cispo_counts_the_tokens_whose_weight_is_bounded() -> None:
    config = AlgorithmConfig(loss="cispo")
    logprobs, weights = tensor(math.log(8), 0.0, math.log(0.01)).requires_grad_(), tensor(1, 1, 1)
    row = loss_input(logprobs, tensor(0, 0, 0), tensor(0, 0, 0), tensor(1, 1, 1), weights, [3])
    sums = policy_loss(config.build_loss(), row, logprobs, weights, config)[1]
    assert LossMetrics.of(sums.tolist()).clipped == 1


@pytest.mark.parametrize("name", loss_names())
@pytest.mark.parametrize("advantage", [1.0, 0.0])
def test_a_ratio_that_no_number_holds_is_clipped_as_any_other(name: str, advantage: float) -> None:
    """0 * inf = NaN, in the loss or in its gradient, would cost the whole update."""
    logprobs = torch.tensor([-0.1, -1.0], requires_grad=True)
    row = loss_input(
        logprobs, torch.tensor([-200.0, -1.0]), torch.zeros(2), torch.tensor([advantage, 1.0]), torch.ones(2), [1, 1]
    )
    config = AlgorithmConfig(loss=name)
    total, _ = policy_loss(config.build_loss(), row, logprobs, torch.ones(2), config)
    total.backward()
    assert math.isfinite(total.item())
    assert logprobs.grad is not None
    weight = config.choices.clip_high + 1 if name == "cispo" else 0.0  # where a clipped token keeps its gradient
    assert logprobs.grad.tolist() == pytest.approx([-weight * advantage, -1.0])


# --- packing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", loss_names())
@pytest.mark.parametrize("packing", [[[0, 1, 2, 3]], [[3, 1], [0, 2]], [[2, 3, 0], [1]]])
def test_packed_rows_lose_what_their_sequences_lose_alone(name: str, packing: list[list[int]]) -> None:
    sequences = [[1.5, 0.7, 1.0], [0.9], [], [1.0003, 1.3]]
    gaps = [[0.1, -0.3, 2.0], [0.0], [], [0.5, 0.2]]
    advantages = [1.0, -0.5, 2.0, -1.5]
    config = AlgorithmConfig(loss=name)
    expected, gradients = rows(config, sequences, advantages, [[0], [1], [3]], gaps)
    loss, packed = rows(config, sequences, advantages, packing, gaps)
    assert loss == pytest.approx(expected, rel=1e-12)
    for ours, theirs in zip(packed, gradients, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "grpp"}, r"algorithm\.loss=grpp is not known; did you mean 'grpo'\?"),
        ({"loss": "clipped"}, r"algorithm\.loss=clipped is not known"),
        ({"loss": "base"}, r"algorithm\.loss=base is not known"),
        ({"loss": "dr_grpo", "advantage": "std"}, r"algorithm\.advantage=std .* set algorithm\.advantage=mean"),
        ({"loss": "dr_grpo", "aggregation": "sequence_mean"}, r"algorithm\.aggregation=sequence_mean .*length"),
        ({"loss": "dr_grpo", "aggregation": "prompt_balanced"}, r"set algorithm\.aggregation=constant_length"),
        ({"loss": "gspo", "aggregation": "token_mean"}, r"algorithm\.loss=gspo is of whole sequences"),
        ({"loss": "gspo", "aggregation": "constant_length"}, r"algorithm\.aggregation=constant_length"),
        ({"loss": "grpo", "clip_low": 1.0}, r"algorithm\.clip_low must lie in \(0, 1\)"),
        ({"loss": "gspo", "clip_high": 0.0}, r"algorithm\.clip_high=0\.0 must be above 0"),
        ({"loss": "cispo", "clip_low": 1.1}, r"algorithm\.clip_low=1\.1 must lie in \(0, 1\]"),
        ({"loss": "cispo", "clip_high": -1.0}, r"algorithm\.clip_high=-1\.0 must be above 0"),
        ({"advantage": "grpo"}, r"algorithm\.advantage=grpo is not known"),
        ({"aggregation": "mean"}, r"algorithm\.aggregation=mean is not known"),
        ({"importance_cap": 0.5}, r"algorithm\.importance_cap=0\.5 is below 1, .* set at least 1, or 0 to turn it off"),
        ({"constant_length": 512}, r"algorithm\.constant_length=512 is for algorithm\.aggregation=constant_length"),
        ({"loss": "dr_grpo", "constant_length": 0}, r"algorithm\.constant_length=0 must be at least 1"),
    ],
)
def test_what_has_no_meaning_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        AlgorithmConfig(**changes)
    assert "\n" not in str(error.value)


# --- a loss of the user's own ----------------------------------------------------------------------

OWN = """
from learner.losses.base import Choices, Loss, Surrogate

class Reinforce(Loss):
    defaults = Choices(advantage="mean", aggregation="token_mean", clip_low=0.2, clip_high=0.2)

    def surrogate(self, row):
        ones = row.logprobs.detach() * 0 + 1
        return Surrogate(values=-row.advantages * row.logprobs, clipped=ones < 0, ratio=ones)

class Meant(Reinforce):
    def surrogate(self, row):
        found = super().surrogate(row)
        return Surrogate(values=found.values.mean(), clipped=found.clipped, ratio=found.ratio)

class Plain(Reinforce):
    def surrogate(self, row):
        found = super().surrogate(row)
        return Surrogate(values=found.values, clipped=found.clipped, ratio=1.0)

class Weighed(Reinforce):
    def importance(self, row, cap):
        return row.mismatch.exp().mean()

class Bared(Reinforce):
    def surrogate(self, row):
        return row.logprobs

class Broken(Reinforce):
    def surrogate(self, row):
        return row.nothing

class Frozen(Reinforce):
    def surrogate(self, row):
        found = super().surrogate(row)
        return Surrogate(values=found.values.detach(), clipped=found.clipped, ratio=found.ratio)

class Counted(Reinforce):
    def surrogate(self, row):
        found = super().surrogate(row)
        return Surrogate(values=found.values, clipped=found.clipped.float(), ratio=found.ratio)

class Whole(Reinforce):
    def importance(self, row, cap):
        return row.sequence

class Unweighed(Reinforce):
    def importance(self, row, cap):
        raise RuntimeError("no weight\\nat all")

class Turned(Reinforce):
    def surrogate(self, row):
        found = super().surrogate(row)
        found.values.register_hook(lambda gradient: 1 / 0)
        return found

class Odd(Reinforce):
    def surrogate(self, row):
        found = super().surrogate(row)
        return Surrogate(values=found.values * float("nan"), clipped=found.clipped, ratio=found.ratio)

class Steep(Reinforce):
    def surrogate(self, row):
        found = super().surrogate(row)
        at_its_edge = (row.logprobs - row.logprobs.detach()).sqrt()
        return Surrogate(values=found.values + at_its_edge, clipped=found.clipped, ratio=found.ratio)

class Divided(Reinforce):
    def surrogate(self, row):
        found = super().surrogate(row)
        return Surrogate(values=found.values / row.trained.sum(), clipped=found.clipped, ratio=found.ratio)

class Centred(Reinforce):
    def importance(self, row, cap):
        factor = row.mismatch.exp()
        return factor / factor.mean()

class Drawn(Reinforce):
    def surrogate(self, row):
        found = super().surrogate(row)
        kept = row.logprobs.detach().new_empty(len(row.old)).uniform_(0.5, 1.5)
        return Surrogate(values=found.values * kept, clipped=found.clipped, ratio=found.ratio)

class Unmade(Reinforce):
    def __init__(self, choices):
        self.scale = choices.scale

class Unsure(Reinforce):
    @classmethod
    def check(cls, choices):
        raise KeyError("clip")

class Alone(Reinforce):
    def surrogate(self):
        return None

class Capless(Reinforce):
    def importance(self, row):
        return None

class Bound(Reinforce):
    @staticmethod
    def surrogate(row):
        return None

class Checked(Reinforce):
    def check(self, choices):
        return None

class Unclipped(Reinforce):
    defaults = Choices(advantage="mean", aggregation="token_mean", clip_low=None, clip_high=0.2)

class Averaged(Reinforce):
    defaults = Choices(advantage="grpo", aggregation="token_mean", clip_low=0.2, clip_high=0.2)

class Unfinished(Loss):
    defaults = Reinforce.defaults

class Bare(Loss):
    def surrogate(self, row):
        return None

class Nothing:
    pass
"""


@pytest.fixture
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_losses.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("_own")
def test_a_loss_by_import_path() -> None:
    loss, gradient = alone("own_losses:Reinforce", [[3.0], [1.0]], [1.0, -1.0])
    assert loss == pytest.approx((-(math.log(3) - 1) - 1) / 2)
    assert gradient == [[-0.5], [0.5]]
    assert loss_class("own_losses:Reinforce").__name__ == "Reinforce"
    assert loss_class("own_losses:Bound").__name__ == "Bound"  # it needs no self


@pytest.mark.usefixtures("_own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Meant", r"surrogate\(\) returned values of shape \(\), and \(1,\) is needed: one for each token$"),
        ("Plain", r"surrogate\(\) returned ratio as float, and a tensor of shape \(1,\) is needed$"),
        ("Weighed", r"importance\(\) returned factors of shape \(\), and \(1,\) is needed: one for each token$"),
        ("Bared", r"surrogate\(\) returned Tensor, and a Surrogate is needed$"),
        ("Counted", r"surrogate\(\) returned clipped of type torch\.float32, and torch\.bool is needed$"),
        ("Whole", r"importance\(\) returned factors of type torch\.int64, and a float is needed$"),
        ("Frozen", r"surrogate\(\) returned values without a gradient; .* from row\.logprobs$"),
        ("Broken", r"surrogate\(\) raised AttributeError: .*nothing"),
        ("Unweighed", r"importance\(\) raised RuntimeError: no weight at all$"),
        ("Unmade", r"__init__\(\) raised AttributeError: .*scale"),
    ],
)
def test_a_loss_that_gives_something_else_than_a_value_for_each_token(name: str, message: str) -> None:
    """A mean would be broadcast: each token's loss would depend on the other sequences of its row."""
    with pytest.raises(UserError, match=rf"^algorithm\.loss=own_losses:{name}: {message}"):
        alone(f"own_losses:{name}", [[3.0], [1.0]], [1.0, -1.0])


@pytest.mark.usefixtures("_own")
@pytest.mark.parametrize("name", ["Meant", "Plain", "Weighed", "Broken", "Frozen", "Counted", "Turned", "Odd", "Steep"])
def test_a_broken_loss_is_told_before_anything_is_played(name: str, tmp_path: Path) -> None:
    config = AlgorithmConfig(loss=f"own_losses:{name}", kl="k2")
    policy = tiny_policy()
    with pytest.raises(UserError, match=rf"^algorithm\.loss=own_losses:{name}: ") as error:
        Updater(policy, config, rng=np.random.default_rng(0), fault_folder=tmp_path, reference=policy)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("_own")
@pytest.mark.parametrize(("name", "wrong"), [("Divided", True), ("Centred", True), ("Drawn", False)])
def test_a_loss_in_which_a_token_depends_on_the_other_sequence_of_its_row_is_told(name: str, wrong: bool) -> None:
    config = AlgorithmConfig(loss=f"own_losses:{name}")
    if not wrong:  # it draws at random: nothing can be said of it
        try_loss(config.build_loss(), config, torch.device("cpu"))
        return
    with pytest.raises(UserError, match=rf"^algorithm\.loss=own_losses:{name}: .* something else beside another seq"):
        try_loss(config.build_loss(), config, torch.device("cpu"))


@pytest.mark.parametrize("name", loss_names())
def test_the_trial_leaves_no_trace(name: str) -> None:
    config, before = AlgorithmConfig(loss=name), torch.get_rng_state()
    try_loss(config.build_loss(), config, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("_own")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_losses:Nothing", "must be a class made from learner.losses.base.Loss"),
        ("own_losses:OWN", "own_losses has no OWN"),
        ("own_losses:Unfinished", "lacks surrogate"),
        ("own_losses:Bare", "lacks defaults"),
        ("own_losses:Alone", r"surrogate must take \(self, row\), as Loss's does"),
        ("own_losses:Capless", r"importance must take \(self, row, cap\), as Loss's does"),
        ("own_losses:Checked", "check must be a class method, as Loss's is"),
        ("own_losses:Unsure", r"check\(\) raised KeyError: 'clip'"),
        ("own_losses:Unclipped", r"of its defaults, algorithm\.clip_low=None must be a number"),
        ("own_losses:Averaged", r"of its defaults, algorithm\.advantage=grpo is not known"),
        ("own_lossses:Reinforce", "there is no module own_lossses; set PYTHONPATH"),
        ("math:pi", "must be a class"),
    ],
)
def test_a_path_that_is_no_loss(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        AlgorithmConfig(loss=path)
    assert str(error.value).startswith(f"algorithm.loss={path}")
