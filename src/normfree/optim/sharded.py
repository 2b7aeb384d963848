"""Tensors that are split by rows over processes (FSDP2): the part that is here, sums over all parts."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, of which this process has some rows."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """The rows that are here, in the same memory; an unsharded tensor itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All rows, in every process; all must call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if is_sharded(target):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(target.device, target.dtype), target.device_mesh, target.placements)
    target.copy_(value)


def first_part(tensor: Tensor) -> bool:
    """Whether this process has the first row: what is one unit as a whole is counted there."""
    return not is_sharded(tensor) or tensor.device_mesh.get_local_rank() == 0


def sum_over_parts(values: Tensor, of: Sequence[Tensor]) -> Tensor:
    """``values`` summed over the processes that share the tensors ``of``; as they are if those are not sharded."""
    sharded = next((tensor for tensor in of if is_sharded(tensor)), None)
    if sharded is not None:
        dist.all_reduce(values, group=sharded.device_mesh.get_group())
    return values
