"""vLLM's weight transfer over NCCL, at both ends: the learner's ``Sender`` and the engines' ``Receiver``.

Rank 0 is the learner, rank 1 + i the i-th engine. The group is opened from an id that the learner's NCCL makes, so no
port is chosen here, and all ranks have to come at once: ``actors/broadcast.py`` sees to that. Both ends cut the stream
of tensors into the same buckets (vLLM's packed broadcast). Without NVLink or peer-to-peer copies NCCL goes through
shared memory by itself. Brings vllm: import this file inside functions.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any, TypeVar

import torch

from actors.vllm_adapter import (
    NCCLLibrary,
    NCCLWeightTransferEngine,
    NCCLWeightTransferInitInfo,
    NCCLWeightTransferUpdateInfo,
    WeightTransferEngineFactory,
    packed_tensor,
    uid_init_process_group,
)
from actors.weights import Digest, Published, check
from agent.errors import Fault

T = TypeVar("T")

BACKEND = "slingshot"
"""The receiver's name among vLLM's transfer engines."""


def unique_id() -> bytes:
    """The id of a group that is to be opened by the process that asks. Raises what NCCL raises without a library."""
    return bytes(NCCLLibrary().ncclGetUniqueId())


def in_time(run: Callable[[], T], timeout_s: float, what: str) -> T:
    """The result of ``run``, which may hang in NCCL: its thread is then left behind, and a ``Fault`` names ``what``."""
    answer: list[Callable[[], T]] = []

    def call() -> None:
        try:
            value = run()
        except BaseException as error:
            caught = error

            def throw() -> T:
                raise caught

            answer.append(throw)
        else:
            answer.append(lambda: value)

    thread = Thread(target=call, name=what, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not answer:
        raise Fault(f"{what} was not done after {timeout_s:g} s")
    return answer[0]()


class Sender:
    """The learner's end. Opening it waits for all other ranks, at most ``timeout_s``."""

    def __init__(self, group: bytes, world: int, *, bucket: int, timeout_s: float) -> None:
        """``world`` counts the learner; ``bucket`` is in bytes."""
        device = torch.accelerator.current_device_index()
        torch.cuda.empty_cache()  # NCCL asks the card itself, of which torch keeps all that it ever had
        self._bucket = bucket
        self._left = Event()
        self._group = in_time(
            lambda: uid_init_process_group(group, 0, world, device), timeout_s, "opening the NCCL group"
        )
        if self._group.disabled:  # vLLM goes on without a library, and broadcasts nothing
            raise Fault("NCCL is not there or disabled (VLLM_DISABLE_PYNCCL)")

    def send(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Broadcasts ``tensors`` (by name) in their order, and returns when the last bucket has left."""
        made = torch.cuda.current_stream().record_event()

        def when_made() -> Iterator[tuple[str, torch.Tensor]]:
            coming = iter(tensors)
            while True:
                _check_open(self._left)
                # vLLM packs on streams of its own, which wait for nobody, and there adapters are merged: the update
                # that changes them may not have ended.
                torch.cuda.current_stream().wait_event(made)
                if (item := next(coming, None)) is None:
                    return
                yield item

        packed_tensor.packed_nccl_broadcast_producer(
            iterator=when_made(),
            group=self._group,
            src=0,
            post_iter_func=lambda item: item[1],
            buffer_size_bytes=self._bucket,
        )
        torch.cuda.empty_cache()  # buckets of other streams than the update's, which can't use them

    def abandon(self) -> None:
        """Ends the group without the others; a ``send`` that waits for them returns, or raises ``Fault`` at its next
        bucket."""
        self._left.set()  # first: NCCL's abort wakes a sender before it is done with the group
        self._group.destroy()


def _check_open(left: Event) -> None:
    if left.is_set():
        raise Fault("the broadcast was abandoned")


@dataclass
class Update(NCCLWeightTransferUpdateInfo):
    """What vLLM is told of one broadcast."""

    version: int = 0
    checksum: str = ""


def update_info(published: Published) -> dict[str, Any]:
    """``Update`` as vLLM's calls take it."""
    announced = published.handle
    return {
        "names": list(announced.names),
        "dtype_names": list(announced.dtypes),
        "shapes": [list(shape) for shape in announced.shapes],
        "version": published.version,
        "checksum": published.checksum,
    }


def init_info(group: bytes, rank: int, world: int, bucket: int) -> dict[str, Any]:
    """How an engine joins ``group`` as ``rank``, as vLLM's calls take it."""
    return {
        "nccl_unique_id_b64": base64.b64encode(group).decode(),
        "rank_offset": rank,
        "world_size": world,
        "packed": True,
        "packed_buffer_size_bytes": bucket,
    }


class Receiver(NCCLWeightTransferEngine):
    """vLLM's receiver, which checks what arrived before the engine may use it."""

    update_info_cls = Update
    _left: Event | None = None
    """Set as the group is given up."""

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        self._left = Event()
        super().init_transfer_engine(init_info)
        if self.model_update_group is None or self.model_update_group.disabled:
            raise Fault("NCCL is not there or disabled (VLLM_DISABLE_PYNCCL)")

    def receive_weights(self, update: NCCLWeightTransferUpdateInfo) -> None:
        """Loads bucket by bucket. Raises ``Fault`` for other bytes than were announced; they are in the model then."""
        assert isinstance(update, Update)
        arrived = Digest()
        loaded: torch.cuda.Event | None = None

        def expected() -> Iterator[tuple[str, tuple[list[int], torch.dtype]]]:
            for name, dtype, shape in zip(update.names, update.dtype_names, update.shapes, strict=True):
                if self._left is not None:
                    _check_open(self._left)
                yield name, (shape, getattr(torch, dtype))

        def load(tensors: list[tuple[str, torch.Tensor]]) -> None:
            # Buckets come on two streams by turns. Of a layer that is in two buckets vLLM keeps what came first and
            # reads it on the second one's stream, while its memory would be given out again on the first one's.
            nonlocal loaded
            stream = torch.cuda.current_stream()
            if loaded is not None:
                stream.wait_event(loaded)
            for name, tensor in tensors:
                arrived.add(name, tensor)
            self.model.load_weights(tensors)  # type: ignore[operator]  # a model's own method
            loaded = stream.record_event()

        packed_tensor.packed_nccl_broadcast_consumer(
            iterator=expected(),
            group=self.model_update_group,
            src=0,
            post_unpack_func=load,
            buffer_size_bytes=self.packed_buffer_size_bytes,
            device=self.device,
        )
        check(update.version, update.checksum, arrived.hex())

    def shutdown(self) -> None:
        if self._left is not None:
            self._left.set()
        super().shutdown()


def register() -> None:
    """Makes ``BACKEND`` known to vLLM, once in a process."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, Receiver)
