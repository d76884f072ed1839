"""Weights on CUDA: vLLM with asynchronous scheduling, and NCCL between two processes with a card each.

NCCL refuses two processes on one card, so that a broadcast needs two.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "actors"))

import engine_room
from engine_room import BUCKET, RoomProcess

from actors.weights import NcclChannel
from agent.errors import Fault

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

CLOSE, FAR = 0.2, 0.8
"""Nats, on average: bfloat16 logits of a model this peaked against float32; another version's weights."""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoomProcess]:
    """An engine on the last card, so that the first is free for the learner's end."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = before.split(",") if before else [str(i) for i in range(torch.cuda.device_count())]
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[-1]
    process = RoomProcess(tmp_path_factory.mktemp("engine") / "model", "cuda")
    if before is None:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = before
    yield process
    process.end()


def right(rows: list[Any]) -> None:
    """Each token's label names the weights that sampled it."""
    for versions, fresh, stale in rows:
        assert versions == sorted(versions)
        assert len(set(versions)) > 1
        assert all(mean(gaps) < CLOSE for gaps in fresh.values())
        assert mean(stale) > FAR


def test_the_gap_between_engine_and_learner_in_bfloat16(room: RoomProcess, capsys: pytest.CaptureFixture[str]) -> None:
    gaps = torch.tensor(room.call(engine_room.learner_gaps, 5, "cuda", "bfloat16"))
    with capsys.disabled():
        quantiles = ", ".join(f"{q:g}: {gaps.quantile(q).item():.4f}" for q in (0.5, 0.9, 0.99))
        print(f"\nengine against learner, bfloat16: mean {gaps.mean():.4f}, max {gaps.max():.4f}, {quantiles}")
    assert gaps.mean() < CLOSE


def test_updates_in_flight_with_asynchronous_scheduling(room: RoomProcess) -> None:
    right(room.call(engine_room.update_in_flight))


def test_the_digest_on_the_card_is_that_on_the_cpu() -> None:
    random = torch.Generator().manual_seed(0)
    tensors = {str(n): torch.randn(1000, n + 1, generator=random).bfloat16() for n in range(3)}
    on_the_card = {name: tensor.cuda() for name, tensor in tensors.items()}
    ours, theirs = (NcclChannel().publish(each.items(), 1, None).checksum for each in (on_the_card, tensors))
    assert ours == theirs


def sender(group: bytes, timeout_s: float) -> Any:
    from actors.nccl import Sender

    torch.cuda.set_device(0)
    return Sender(group, 2, bucket=BUCKET, timeout_s=timeout_s)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_broadcast_in_flight_between_two_cards(room: RoomProcess, tmp_path: Path) -> None:
    """``Receiver`` raises unless the checksum of what arrived is the learner's."""
    from actors.nccl import unique_id

    group = unique_id()
    tensors = {name: t.cuda(0).bfloat16() for name, t in room.call(engine_room.weights, 22).items()}
    published = NcclChannel().publish(tensors.items(), 22, None)
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(room.call, engine_room.join, group, 60.0)
        opened = sender(group, 60.0)
        joining.result()
        playing = pool.submit(room.call, engine_room.over_nccl, published)
        opened.send(tensors.items())
        right(playing.result())
    opened.abandon()


@pytest.mark.skipif(torch.cuda.device_count() != 1, reason="needs exactly one GPU")
def test_a_group_on_one_card_is_refused_and_does_not_hang(room: RoomProcess) -> None:
    from actors.nccl import unique_id

    group = unique_id()
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(room.call, engine_room.join, group, 20.0)
        with pytest.raises((Fault, RuntimeError)):
            sender(group, 20.0)
        with pytest.raises(AssertionError, match="NCCL"):
            joining.result()
    assert mean(room.call(engine_room.gaps_after_update, 3, 1.0)[1]) < CLOSE, "the engine serves on"
