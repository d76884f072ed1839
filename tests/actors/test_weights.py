"""Weights on their way: packed and unpacked bit for bit, and refused when a bit has changed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patience import HANG_S
from safetensors.torch import save_file

from actors.weights import (
    CHANNELS,
    Digest,
    FolderChannel,
    NcclChannel,
    ObjectStoreChannel,
    Published,
    TensorSpec,
    checksum,
    pack,
    unpack,
)
from agent.errors import Fault, UserError
from conf.topology import ClusterConfig


def _odd_tensors() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    square = torch.randn(6, 6, generator=random)
    return {
        "float32": torch.randn(3, 5, generator=random),
        "bfloat16": torch.randn(7, 3, generator=random).bfloat16(),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "one byte": torch.tensor([7], dtype=torch.uint8),
        "view": square.t()[::2],
        "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "trained": torch.nn.Parameter(torch.randn(65, generator=random)),
        "last": torch.arange(5),
    }


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal names in equal order, and equal bits."""

    def bits(tensor: torch.Tensor) -> bytes:
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return list(a) == list(b) and all(
        (a[n].dtype, a[n].shape) == (b[n].dtype, b[n].shape) and bits(a[n]) == bits(b[n]) for n in a
    )


def test_the_tensors_come_back_bit_for_bit() -> None:
    tensors = _odd_tensors()
    buffer, specs = pack(tensors)
    assert _same(unpack(buffer, specs), tensors)


def test_each_tensor_starts_at_a_multiple_of_64_bytes_and_none_overlap() -> None:
    buffer, specs = pack(_odd_tensors())
    assert buffer.dtype == np.uint8
    ends = [s.offset + int(np.prod(s.shape)) * getattr(torch, s.dtype).itemsize for s in specs]
    assert all(s.offset % 64 == 0 for s in specs)
    assert all(end <= after.offset for end, after in zip(ends, specs[1:], strict=False))
    assert ends[-1] <= len(buffer) < ends[-1] + 64
    assert specs[0] == TensorSpec(name="float32", dtype="float32", shape=(3, 5), offset=0)


def test_unpacking_copies_nothing() -> None:
    buffer, specs = pack({"a": torch.zeros(4), "b": torch.zeros(4)})
    tensors = unpack(buffer, specs)
    buffer[specs[1].offset : specs[1].offset + 4] = np.frombuffer(np.float32(1.5).tobytes(), dtype=np.uint8)
    assert tensors["b"][0] == 1.5
    assert tensors["a"][0] == 0.0


@pytest.mark.filterwarnings("error")
def test_a_buffer_that_cannot_be_written_unpacks_without_a_warning() -> None:
    buffer, specs = pack({"a": torch.ones(3)})
    buffer.flags.writeable = False
    assert unpack(buffer, specs)["a"].tolist() == [1.0, 1.0, 1.0]


def test_nothing_packs_into_nothing() -> None:
    buffer, specs = pack({})
    assert (len(buffer), specs, unpack(buffer, specs)) == (0, (), {})
    assert checksum(buffer) != checksum(pack({"a": torch.zeros(1)})[0])


@pytest.mark.parametrize("at", [0, 64, -1])
def test_the_checksum_sees_one_bit(at: int) -> None:
    buffer, _ = pack({"a": torch.ones(16), "b": torch.ones(16)})
    before = checksum(buffer)
    buffer[at] ^= 1
    assert checksum(buffer) != before
    buffer[at] ^= 1
    assert checksum(buffer) == before


# --- through Ray's object store --------------------------------------------------------------------


def test_the_object_store_carries_what_was_published(local_ray: None) -> None:
    tensors = _odd_tensors()
    channel = ObjectStoreChannel()
    published = channel.publish(tensors, 4)
    with torch.no_grad():
        kept = {name: tensor.clone() for name, tensor in tensors.items()}
        tensors["float32"] += 1.0  # the learner goes on; what was published stays as it was
    assert published.version == 4
    assert CHANNELS[published.channel] is ObjectStoreChannel
    assert _same(asyncio.run(channel.receive(published)), kept)


@pytest.mark.slow
def test_every_worker_reads_the_same_version(local_ray: None) -> None:
    import ray

    @ray.remote
    class Reader:
        async def receive(self, published: Published) -> tuple[int, float]:
            tensors = await CHANNELS[published.channel]().receive(published)
            return published.version, float(tensors["w"].sum())

    published = ObjectStoreChannel().publish({"w": torch.ones(1000)}, 9)
    readers = [Reader.remote() for _ in range(2)]
    assert ray.get([r.receive.remote(published) for r in readers], timeout=HANG_S) == [(9, 1000.0)] * 2


def test_the_object_store_refuses_damaged_weights(local_ray: None) -> None:
    channel = ObjectStoreChannel()
    published = channel.publish({"w": torch.ones(5)}, 7)
    other = channel.publish({"w": torch.zeros(5)}, 8)
    damaged = replace(published, handle=other.handle)
    with pytest.raises(
        Fault, match=r"^what the learner gave can't be used: weights of version 7 arrived damaged: checksum \w+, not"
    ):
        asyncio.run(channel.receive(damaged))


# --- from a folder ---------------------------------------------------------------------------------


def _folder(path: Path) -> Path:
    path.mkdir()
    save_file({"a": torch.ones(3), "b": torch.zeros(2, 2)}, path / "model-00001-of-00002.safetensors")
    save_file({"c": torch.full((4,), 2.0).bfloat16()}, path / "model-00002-of-00002.safetensors")
    (path / "config.json").write_text("{}")
    return path


def test_a_folder_is_served_whole(tmp_path: Path) -> None:
    channel = FolderChannel()
    published = channel.publish(_folder(tmp_path / "model"), 3)
    assert published.version == 3
    assert CHANNELS[published.channel] is FolderChannel
    expected = {"a": torch.ones(3), "b": torch.zeros(2, 2), "c": torch.full((4,), 2.0).bfloat16()}
    assert _same(asyncio.run(channel.receive(published)), expected)


def test_other_files_in_the_folder_are_no_weights(tmp_path: Path) -> None:
    channel = FolderChannel()
    published = channel.publish(_folder(tmp_path / "model"), 3)
    (tmp_path / "model" / "config.json").write_text('{"changed": true}')
    assert set(asyncio.run(channel.receive(published))) == {"a", "b", "c"}


def test_another_copy_beside_the_weights_is_none_of_them(tmp_path: Path) -> None:
    channel, folder = FolderChannel(), _folder(tmp_path / "model")
    save_file({"d": torch.ones(1)}, folder / "model.safetensors")
    published = channel.publish(folder, 3)
    save_file({"tok_embeddings": torch.ones(1)}, folder / "consolidated.safetensors")
    assert set(asyncio.run(channel.receive(published))) == {"d"}


@pytest.mark.parametrize("damage", ["bit", "missing", "more"])
def test_a_folder_that_has_changed_is_refused(tmp_path: Path, damage: str) -> None:
    channel = FolderChannel()
    published = channel.publish(_folder(tmp_path / "model"), 3)
    file = tmp_path / "model" / "model-00002-of-00002.safetensors"
    if damage == "bit":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    else:
        save_file({"d": torch.ones(1)}, tmp_path / "model" / "model-00003.safetensors")
    with pytest.raises(
        Fault, match=r"^the weights in \S*model have changed since they were served: checksum \w+, not \w+$"
    ):
        asyncio.run(channel.receive(published))


# --- by broadcast ----------------------------------------------------------------------------------


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Of all of them, in their order."""
    whole = Digest()
    for name, tensor in tensors.items():
        whole.add(name, tensor)
    return whole.hex()


def test_a_broadcast_is_announced_by_what_will_come_and_nothing_is_copied() -> None:
    tensors = _odd_tensors()
    published = NcclChannel().publish(tensors.items(), 5, "the learner")
    announced = published.handle
    assert (published.channel, published.version, announced.learner) == ("nccl", 5, "the learner")
    assert CHANNELS[published.channel] is NcclChannel
    assert announced.names == tuple(tensors)
    assert [getattr(torch, d) for d in announced.dtypes] == [t.dtype for t in tensors.values()]
    assert list(announced.shapes) == [tuple(t.shape) for t in tensors.values()]
    assert published.checksum == digest(tensors)


def test_the_digest_is_the_sum_of_the_bits_by_their_places() -> None:
    whole = Digest()
    whole.add("a", torch.tensor([1.0, -2.0]).bfloat16())  # 0x3f80 and 0xc000, as signed numbers of two bytes
    (total,) = whole._sums
    assert int(total) == 1 * 0x3F80 + 3 * (0xC000 - 0x10000)
    assert digest({}) == Digest().hex()


def test_the_digest_does_not_depend_on_how_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = _odd_tensors()
    whole = digest(tensors)
    monkeypatch.setattr(Digest, "CHUNK", 2)
    assert digest(tensors) == whole


@pytest.mark.parametrize("bit", range(16))
def test_the_digest_sees_any_one_bit(bit: int) -> None:
    tensor = torch.zeros(33, dtype=torch.bfloat16)
    before = digest({"a": tensor})
    tensor.view(torch.int16)[32] ^= -(1 << 15) if bit == 15 else 1 << bit
    assert digest({"a": tensor}) != before


def test_the_digest_sees_places_names_and_shapes() -> None:
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 1.0, 3.0, 4.0])
    variants = [{"x": a}, {"x": b}, {"y": a}, {"x": a.view(2, 2)}, {"x": a, "y": b}, {"y": b, "x": a}]
    assert len({digest(v) for v in variants}) == len(variants)


@pytest.mark.parametrize(
    ("cluster", "channel", "why"),
    [
        ({}, "object_store", "there is no GPU"),
        ({"device": "cuda", "colocated": True}, "object_store", "learner and engine are colocated"),
        ({"device": "cuda"}, "nccl", "learner and 1 engine(s) have a GPU each"),
        ({"device": "cuda", "rollout_workers": 3}, "nccl", "learner and 3 engine(s) have a GPU each"),
        ({"device": "cuda", "weight_channel": "object_store"}, "object_store", "cluster.weight_channel=object_store"),
        ({"device": "cuda", "weight_channel": "nccl"}, "nccl", "cluster.weight_channel=nccl"),
    ],
)
def test_the_channel_is_chosen_by_the_cards(cluster: dict[str, Any], channel: str, why: str) -> None:
    chosen, reason = ClusterConfig(**cluster).channel
    assert chosen == channel
    assert reason.startswith(why)


def test_the_environment_of_nccl_is_left_alone_unless_asked() -> None:
    assert ClusterConfig(device="cuda").nccl_environment == {}
    assert ClusterConfig(device="cuda", nccl_p2p=False).nccl_environment == {"NCCL_P2P_DISABLE": "1"}
    assert ClusterConfig(nccl_p2p=False).nccl_environment == {}
    shared = ClusterConfig(device="cuda", nccl_p2p=False, learners=4, rollout_workers=4, colocated=True)
    assert shared.nccl_environment == {"NCCL_P2P_DISABLE": "1"}, "learners add up their gradients through NCCL, too"
    lost = ClusterConfig(device="cuda", nccl_p2p=False, weight_channel="object_store")
    assert lost.nccl_environment == {"NCCL_P2P_DISABLE": "1"}


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"weight_channel": "nccl"}, "weight_channel=nccl needs a GPU for the learner and one for each engine"),
        (
            {"weight_channel": "nccl", "device": "cuda", "colocated": True},
            "weight_channel=nccl needs a GPU for the learner and one for each engine",
        ),
        ({"weight_channel": "ncl"}, "cluster.weight_channel"),
        ({"weight_timeout_s": 0.0}, r"cluster\.weight_timeout_s=0\.0 must be above 0"),
        ({"weight_bucket_mib": 0}, r"cluster\.weight_bucket_mib=0 must be at least 1"),
    ],
)
def test_a_channel_that_cannot_be_is_refused(cluster: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClusterConfig(**cluster)
