"""Copies of live tensors in the host's memory: what is to be written while training goes on."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


def copied(state: T) -> T:
    """``state``, nested dicts, lists and tuples, with copies on the CPU in the place of its tensors.

    Tensors that share their memory, as tied weights do, share that of their copies; all else is taken as it is.
    """
    # By where they are: all of them live as long as ``state`` does, so no place is used twice.
    copies: dict[tuple[Any, ...], Tensor] = {}

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            place = value.device, value.data_ptr(), value.dtype, value.shape, value.stride()
            if place not in copies or not value.numel():
                copies[place] = value.detach().to("cpu", copy=True)
            return copies[place]
        if isinstance(value, dict):
            return {name: copy(part) for name, part in value.items()}
        if type(value) in (list, tuple):
            return type(value)(map(copy, value))
        return value

    return copy(state)
