"""Several learners in processes of their own, over gloo, against one learner on the same batches."""

from __future__ import annotations

import copy
import multiprocessing
import os
import re
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import MIXED, random_groups, tiny_policy
from patience import HANG_S

from agent.errors import ActorLost
from agent.groups import Group
from learner import optimizer as optimizer_module
from learner.config import AlgorithmConfig, OptimizerConfig
from learner.optimizer import ClippedAdamW, merged
from learner.packing import pack_rows, shares
from learner.ranks import ALONE, Parted, Ranks, join
from learner.update import Updater

STEPS = 5
BATCHES = [
    random_groups(4, MIXED),
    random_groups(5, [[1, 0]]),  # two rows at most: a third learner has nothing
    random_groups(6, [[1, 1], [0, 0, 0]]),  # nothing for anybody
    random_groups(7, MIXED),
    random_groups(8, MIXED),
]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "several updates": {"minibatch_questions": 2, "epochs": 2, "kl": "k2", "kl_zero_variance": True},
    "sharded": {"shard": True},
}


def settings(*, shard: bool = False, kind: str = "adamw", **changes: Any) -> AlgorithmConfig:
    optimizer = OptimizerConfig(lr=1e-3, eps=1e-3, shard=shard, kind=kind)
    return AlgorithmConfig(optimizer=optimizer, mismatch_limit=0.0, microbatch_tokens=40, logits_chunk=7, **changes)


def learner(folder: Path, config: AlgorithmConfig, ranks: Ranks) -> Updater:
    reference = tiny_policy(1).frozen_copy() if config.kl != "none" else None
    rng = np.random.default_rng(3)
    return Updater(tiny_policy(), config, rng=rng, fault_folder=folder, reference=reference, ranks=ranks)


def weights(updater: Updater) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in updater.policy.parameters()]).numpy()


def trained(updater: Updater, batches: list[list[Group]]) -> list[tuple[float, ...]]:
    """What each step reports, the time apart."""
    reports = [updater.update(groups, step=step, version=0) for step, groups in enumerate(batches)]
    return [tuple(float(getattr(replace(r, seconds=0.0), name)) for name in type(r).__slots__) for r in reports]


# --- in the other processes ------------------------------------------------------------------------


def train(ranks: Ranks, folder: Path, case: str) -> Any:
    torch.set_num_threads(1)
    updater = learner(folder, settings(**CASES[case]), ranks)
    reports = trained(updater, BATCHES)
    return weights(updater), reports, updater.optimizer.state() if updater.config.optimizer.shard else None


def end_in_the_sum(ranks: Ranks, folder: Path, how: str) -> str:
    """Rank 1 doesn't add its gradient; what the others then say."""
    updater = learner(folder, settings(), ranks)
    if ranks.rank == 1:
        if how == "killed":
            updater.optimizer.add_up = lambda: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        else:
            return "absent"
    with pytest.raises(Parted) as parted:
        updater.update(BATCHES[0], step=0, version=0)
    return str(parted.value)


def differ(ranks: Ranks) -> str:
    with pytest.raises(ActorLost) as error:
        ranks.check_equal([torch.ones(3), torch.full((2,), float(ranks.rank))], "weights")
    return f"{error.value.actor} is lost: {error.value}"


def count_otherwise(ranks: Ranks, folder: Path) -> np.ndarray:
    """As a machine of another kind does: its norms and sums of floats differ in their last bits."""
    torch.set_num_threads(1)
    here = optimizer_module._norm
    optimizer_module._norm = lambda gradients: here(gradients) * (1 + ranks.rank * 1e-7)
    config = settings()
    updater = learner(folder, replace(config, optimizer=replace(config.optimizer, max_grad_norm=1e-3)), ranks)
    trained(updater, BATCHES[:3])
    return weights(updater)


def _run(rank: int, world: int, port: int, timeout_s: float, end: Any, pipe: Any, work: Any, given: Any) -> None:
    ranks = join(f"127.0.0.1:{port}", rank, world, device="cpu", timeout_s=timeout_s)
    pipe.send(work(ranks, *given))
    end.wait(HANG_S)  # the connections of a process that has ended would tell the others


Together = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def together() -> Together:
    """Calls a function on each rank in a process of its own; what they return, None from a rank that died."""
    context = multiprocessing.get_context("forkserver")  # PyTorch is imported once, for all of them
    context.set_forkserver_preload(["learner.update", "test_ranks"])

    def run(world: int, work: Any, *given: Any, timeout_s: float = HANG_S) -> list[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pipes, processes, end = [], [], context.Event()
        for rank in range(world):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(rank, world, port, timeout_s, end, theirs, work, given))
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        answers = []
        for pipe in pipes:
            assert pipe.poll(HANG_S)
            try:
                answers.append(pipe.recv())
            except EOFError:
                answers.append(None)
        end.set()
        for process in processes:
            process.join(HANG_S)
        return answers

    return run


# --- the same as one learner -----------------------------------------------------------------------


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("case", "world"),
    [
        ("plain", 2),
        ("sharded", 3),
        *(pytest.param(case, 3, marks=pytest.mark.slow) for case in CASES if case != "sharded"),
    ],
)
def test_any_number_of_learners_learns_what_one_does(together: Together, tmp_path: Path, case: str, world: int) -> None:
    alone = learner(tmp_path, settings(**CASES[case]), ALONE)
    expected = trained(alone, BATCHES)
    assert [row[0] > 0 for row in expected] == [True, True, case == "several updates", True, True]
    answers = together(world, train, tmp_path, case)
    for found, reports, _ in answers:
        assert np.array_equal(found, answers[0][0]), "the learners hold the same weights"
        assert np.abs(found - weights(alone)).max() < 1e-6
        for report, wanted in zip(reports, expected, strict=True):
            assert report[:15] == pytest.approx(wanted[:15], rel=1e-4, abs=1e-6, nan_ok=True)
    if case == "sharded":
        states = [state for _, _, state in answers]
        assert sum(len(s["optimizers"][0]["state"]) for s in states) == len(alone.optimizer.parameters)
        assert all(s["optimizers"][0]["state"] for s in states), "each has some"
        again = learner(tmp_path, settings(**CASES[case]), ALONE)
        with torch.no_grad():
            flat = torch.from_numpy(answers[0][0]).split([p.numel() for p in again.policy.parameters()])
            for parameter, values in zip(again.policy.parameters(), flat, strict=True):
                parameter.copy_(values.view_as(parameter))
        again.optimizer.load_state(merged(states))
        for updater in (alone, again):
            updater.update(BATCHES[3], step=STEPS, version=0)
        assert np.abs(weights(again) - weights(alone)).max() < 1e-6, "one learner goes on where several were"


@pytest.mark.parametrize(("kind", "dtype"), [("adamw", torch.bfloat16), ("adamw8bit", torch.float32)])
def test_a_rank_has_the_states_of_its_share_and_all_of_them_are_the_whole(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(Ranks, "agreed", lambda self, value, device: value)  # nobody else is there
    parameters = [torch.nn.Parameter(torch.ones(n, dtype=dtype)) for n in (8192, 4096, 4096, 3)]
    config = OptimizerConfig(kind=kind, shard=True)

    def stepped(rank: int, world: int) -> ClippedAdamW:
        optimizer = ClippedAdamW(parameters, config, rng=np.random.default_rng(0), ranks=Ranks(rank=rank, world=world))
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.clip()
        for torchs, _ in optimizer._rates:
            torchs.step()
        optimizer.drop()
        return optimizer

    parts = [stepped(rank, 2) for rank in range(2)]
    assert parts[0].owners == [0, 1, 1, 0]
    one, whole = stepped(0, 1), merged([part.state() for part in parts])
    assert [m.numel() for m in whole["masters"]] == [m.numel() for m in one.state()["masters"]]
    for part in parts:
        part.load_state(whole)
    again = merged([part.state() for part in parts])
    for ours, theirs in zip(again["optimizers"], one.state()["optimizers"], strict=True):
        assert ours.keys() == theirs.keys()
        if "moments" in ours:
            assert [sorted(m) for m in ours["moments"]] == [sorted(m) for m in theirs["moments"]]
        else:
            assert ours["state"].keys() == theirs["state"].keys()


def test_each_rank_of_as_many_goes_on_with_its_own_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """8-bit states without exact masters are rounded by chance, and each rank has drawn for its share alone."""
    monkeypatch.setattr(Ranks, "agreed", lambda self, value, device: value)  # nobody else is there
    config = OptimizerConfig(kind="adamw8bit", shard=True, lr=1e-5)
    starts = [torch.full((n,), 0.02, dtype=torch.bfloat16) for n in (12288, 4096, 4096)]

    def made(rank: int, world: int, values: list[torch.Tensor]) -> ClippedAdamW:
        parameters = [torch.nn.Parameter(v.clone()) for v in values]
        return ClippedAdamW(parameters, config, rng=np.random.default_rng(0), ranks=Ranks(rank=rank, world=world))

    def stepped(optimizer: ClippedAdamW) -> list[torch.Tensor]:
        """Without the meeting of the ranks at its end."""
        for parameter in optimizer.parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.clip()
        optimizer._rates[0][0].step()
        optimizer.drop()
        return [p.detach().clone() for p in optimizer.parameters]

    ranks = [made(rank, 2, starts) for rank in range(2)]
    assert ranks[0].owners == [0, 1, 1]
    held = [stepped(optimizer) for optimizer in ranks]
    saved = copy.deepcopy(merged([optimizer.state() for optimizer in ranks]))
    expected = [stepped(optimizer) for optimizer in ranks]
    for rank in range(2):
        again = made(rank, 2, held[rank])
        again.load_state(copy.deepcopy(saved))
        assert all(map(torch.equal, stepped(again), expected[rank])), rank
    alone = made(0, 1, held[0])
    alone.load_state(copy.deepcopy(saved))
    assert torch.equal(stepped(alone)[0], expected[0][0]), "of another number: rank 0's"
    config = replace(config, shard=False)
    together = [made(rank, 2, held[0]) for rank in range(2)]
    for optimizer in together:
        optimizer.load_state(copy.deepcopy(saved))
    ours, theirs = (stepped(optimizer) for optimizer in together)
    assert all(map(torch.equal, ours, theirs)), "each steps all of them, and rounds them alike"


def test_rows_are_dealt_evenly_and_none_is_lost() -> None:
    assert shares([5, 4, 3, 3], 2) == [0, 1, 1, 0]
    assert shares([], 3) == []
    lengths = np.random.default_rng(0).integers(5, 60, 101)
    ids = [np.zeros(n, np.int32) for n in lengths]
    masks = [np.arange(n) > 0 for n in lengths]
    for world in (1, 2, 3, 4):
        rows = pack_rows(ids, masks, 256, multiple=world)
        assert len(rows) % world == 0
        assert sorted(m for row in rows for m in row.members) == list(range(101))
        sizes = [len(row.token_ids) for row in rows]
        loads = np.bincount(shares(sizes, world), weights=sizes, minlength=world)
        assert loads.max() < 1.03 * loads.mean()


# --- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_waiting_of_the_others(together: Together, tmp_path: Path) -> None:
    """Mostly by the connection. Where that is yet to be made as the rank dies, gloo waits out its time."""
    first, killed, third = together(3, end_in_the_sum, tmp_path, "killed", timeout_s=30.0)
    assert killed is None
    assert first.startswith("rank 0 of 3 learners waited in vain for the others")
    assert third.startswith("rank 2 of 3 learners waited in vain for the others")


def test_a_rank_that_does_not_come_is_waited_for_as_long_as_it_may_take(together: Together, tmp_path: Path) -> None:
    first, absent = together(2, end_in_the_sum, tmp_path, "absent", timeout_s=3.0)
    assert absent == "absent"
    assert "waited in vain" in first
    assert re.search("timed out|timeout", first, re.IGNORECASE), "in the words of gloo, which has two"


def test_learners_on_machines_that_count_otherwise_take_the_same_step(together: Together, tmp_path: Path) -> None:
    """An update would end with ``ActorLost`` if their weights differed."""
    first, second = together(2, count_otherwise, tmp_path)
    assert np.array_equal(first, second)


def test_what_is_compared_is_bits_and_no_sum_of_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of floats depend on the order of adding up, which processors of two kinds have of their own."""
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(Ranks, "most", lambda self, tensors: seen.extend(t.clone() for t in tensors))
    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for each in (numbers, numbers.flip(0)):
            Ranks(rank=0, world=2).check_equal([each.to(dtype)], "weights")
        assert torch.equal(*seen)
        seen.clear()


def test_learners_that_have_drifted_apart_are_lost(together: Together) -> None:
    found = "learner is lost: the 2 learners no longer hold the same weights"
    assert together(2, differ) == [found] * 2
