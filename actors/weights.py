"""Weight channels: how a version of the policy gets from the learner to the engines.

A channel has two operations, publish and receive, and knows nothing of what is trained. The learner
publishes, the supervisor passes the small ``Published`` on, and each worker receives.

A broadcast (``nccl``) has all engines or none, and its bytes go straight into them: ``actors/broadcast.py`` directs it,
``actors/nccl.py`` does it. A worker that comes too late for it asks the learner for a copy through the object store.

Torch is imported where tensors are touched: pool and supervisor, which only pass a ``Published`` on, do without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import ray
import xxhash

from agent.errors import Fault, Unusable
from learner.model_folder import INDEX, WEIGHTS, weight_files

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """Where one tensor lies in the packed buffer."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the buffer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What a worker needs to receive one version; small, whatever the size of the weights."""

    channel: str
    """The name in ``CHANNELS`` of the channel that can receive it."""
    version: int
    checksum: str
    """xxh3-64 of the bytes, or of their ``Digest`` where they never leave the GPUs."""
    handle: Any
    """The channel's own."""


def pack(tensors: Mapping[str, torch.Tensor]) -> tuple[np.ndarray, tuple[TensorSpec, ...]]:
    """All tensors in one buffer of bytes, each at a multiple of 64 bytes, and where each lies."""
    import torch

    specs, offset = [], 0
    for name, tensor in tensors.items():
        specs.append(TensorSpec(name=name, dtype=str(tensor.dtype)[6:], shape=tuple(tensor.shape), offset=offset))
        offset += -(-tensor.nbytes // 64) * 64
    buffer = np.zeros(offset, dtype=np.uint8)
    for spec, tensor in zip(specs, tensors.values(), strict=True):
        flat = tensor.detach().contiguous().cpu().view(-1)
        if flat.numel():
            buffer[spec.offset : spec.offset + flat.nbytes] = flat.view(torch.uint8).numpy()
    return buffer, tuple(specs)


def unpack(buffer: np.ndarray, specs: tuple[TensorSpec, ...]) -> dict[str, torch.Tensor]:
    """The tensors as views of ``buffer``; read them, don't write them."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the buffer is read-only shared memory, and nothing writes to it
        whole = torch.from_numpy(buffer)
    tensors = {}
    for spec in specs:
        dtype: torch.dtype = getattr(torch, spec.dtype)
        size = int(np.prod(spec.shape, dtype=np.int64)) * dtype.itemsize
        tensors[spec.name] = whole[spec.offset : spec.offset + size].view(dtype).view(spec.shape)
    return tensors


def checksum(buffer: np.ndarray) -> str:
    """xxh3-64 of the bytes."""
    return xxhash.xxh3_64_hexdigest(buffer.data)


class Channel(Protocol):
    """A way for weights to travel, as a worker sees it.

    Each also has a ``publish``, which takes what is the channel's own. ``NcclChannel`` has no ``receive``: its weights
    come by the broadcast (``actors/broadcast.py``).
    """

    async def receive(self, published: Published) -> dict[str, torch.Tensor]:
        """The published tensors. Raises ``Fault`` (``Unusable`` of the learner) if they aren't what was published."""


class ObjectStoreChannel:
    """Through Ray's object store: any hardware, one copy per node."""

    def publish(self, tensors: Mapping[str, torch.Tensor], version: int) -> Published:
        """Puts the weights where every worker can read them."""
        buffer, specs = pack(tensors)
        # Inside a list, Ray passes the reference on instead of waiting for its value.
        handle = ([ray.put(buffer)], specs)
        return Published(channel="object_store", version=version, checksum=checksum(buffer), handle=handle)

    async def receive(self, published: Published) -> dict[str, torch.Tensor]:
        """See ``Channel``."""
        references, specs = published.handle
        buffer = await references[0]
        check(published.version, published.checksum, checksum(buffer))
        return unpack(buffer, specs)


class FolderChannel:
    """From a model's folder in Hugging Face format: how a checkpoint is served without a learner."""

    def publish(self, folder: Path, version: int) -> Published:
        """``folder`` must be readable where the workers run."""
        return Published(channel="folder", version=version, checksum=self._checksum(folder), handle=folder)

    async def receive(self, published: Published) -> dict[str, torch.Tensor]:
        """See ``Channel``."""
        from safetensors.torch import load_file

        if (found := self._checksum(published.handle)) != published.checksum:
            raise Fault(
                f"the weights in {published.handle} have changed since they were served: checksum {found}, not "
                f"{published.checksum}"
            )
        return {k: v for file in self._files(published.handle) for k, v in load_file(file).items()}

    def _checksum(self, folder: Path) -> str:
        digest = xxhash.xxh3_64()
        for file in self._files(folder):
            with file.open("rb") as stream:
                while block := stream.read(1 << 24):
                    digest.update(block)
        return digest.hexdigest()

    def _files(self, folder: Path) -> tuple[Path, ...]:
        """Those that a loader would read, where the folder says which; other copies may lie beside them."""
        says = any((folder / name).is_file() for name in (WEIGHTS, INDEX))
        return weight_files(folder) if says else tuple(sorted(folder.glob("*.safetensors")))


@dataclass(frozen=True, kw_only=True, slots=True)
class Announced:
    """What the bytes of a broadcast are, in the order in which they come."""

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    learner: Any
    """The learner's actor, whom a worker that isn't in the group asks for a ``copy``."""


class NcclChannel:
    """From the learner's GPU to all engines' at once. Publishing only announces: the broadcast follows."""

    def publish(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int, learner: Any) -> Published:
        """``tensors`` (by name) are those that ``learner`` is going to send; they must not change before."""
        whole, names, dtypes, shapes = Digest(), list[str](), list[str](), list[tuple[int, ...]]()
        for name, tensor in tensors:
            whole.add(name, tensor)
            names.append(name)
            dtypes.append(str(tensor.dtype)[6:])
            shapes.append(tuple(tensor.shape))
        announced = Announced(names=(*names,), dtypes=(*dtypes,), shapes=(*shapes,), learner=learner)
        return Published(channel="nccl", version=version, checksum=whole.hex(), handle=announced)

    async def copy(self, published: Published) -> Published:
        """For one worker alone: the newest version, which may be a later one, through the object store."""
        copied: Published = await published.handle.learner.copy.remote()
        return copied


class Digest:
    """A checksum that is computed where the tensors are, so that a broadcast's bytes needn't leave the GPU.

    Of each tensor the sum of its elements' bits, times 1, 3, 5, … by position, modulo 2^64: the factors are odd, so
    one flipped bit changes the sum, and so do two elements that have changed places. Integers add up to the same on
    every device and in every order.
    """

    CHUNK = 1 << 22
    """Elements that are widened to 8 bytes at a time."""

    def __init__(self) -> None:
        self._what: list[str] = []
        self._sums: list[torch.Tensor] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """``tensor`` as the next in order."""
        import torch

        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = tensor.detach().contiguous().view(-1).view(integers[tensor.dtype.itemsize])
        total = torch.zeros((), dtype=torch.int64, device=bits.device)
        for start in range(0, len(bits), self.CHUNK):
            part = bits[start : start + self.CHUNK].long()
            total += (part * torch.arange(2 * start + 1, 2 * (start + len(part)), 2, device=bits.device)).sum()
        self._what.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}")
        self._sums.append(total)

    def hex(self) -> str:
        """Of all tensors so far; waits for the GPU."""
        text = "\n".join(f"{what} {int(total)}" for what, total in zip(self._what, self._sums, strict=True))
        return xxhash.xxh3_64_hexdigest(text.encode())


CHANNELS: dict[str, type[Any]] = {
    "object_store": ObjectStoreChannel,
    "folder": FolderChannel,
    "nccl": NcclChannel,
}


def check(version: int, expected: str, found: str) -> None:
    """Raises ``Unusable`` unless the bytes that arrived are those that the learner has published."""
    if found != expected:
        raise Unusable("learner", f"weights of version {version} arrived damaged: checksum {found}, not {expected}")
