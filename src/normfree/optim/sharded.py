"""Tensors that are split over processes (FSDP2, DTensor): the local part, sums over all parts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


def is_sharded(tensor: Tensor) -> "TypeIs[DTensor]":
    """Whether it is a DTensor, of which this process has a part."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """The rows of this process, in the same memory; an unsharded tensor itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All rows, in every process; all processes must call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def joined(part: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which each process has a part, split as ``like`` is; all processes must call it."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements, shape, stride = like.device_mesh, like.placements, like.shape, like.stride()
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=stride).full_tensor()


def part_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor that every process has, split as ``like`` is; nothing is sent."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    copies = [Replicate()] * like.device_mesh.ndim
    return (
        DTensor.from_local(value, like.device_mesh, copies, run_check=False)
        .redistribute(placements=like.placements)
        .to_local()
    )


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if is_sharded(target):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(target.device, target.dtype), target.device_mesh, target.placements)
    target.copy_(value)


FLAT = (
    "parameters of FullyShardedDataParallel (FSDP1), which cuts units apart, so that AGC cannot measure them; shard "
    "the network with torch.distributed.fsdp.fully_shard (FSDP2) instead"
)


def is_flat(tensor: Tensor) -> bool:
    """Whether FullyShardedDataParallel (FSDP1) has cut it without regard to rows."""
    if not getattr(tensor, "_fsdp_flattened", False):
        return False
    return (
        getattr(tensor, "_is_flat_param", False) or dist.get_world_size() > 1
    )  # with one process, parameters keep their shape


def _splits_units(tensor: Tensor, placement: Any, whole: bool) -> bool:
    """Whether a placement of a DTensor splits a unit (a row, or the ``whole`` tensor) over processes."""
    dim = getattr(placement, "dim", None)  # None: each process has all of it
    return dim is not None and (whole or tensor.ndim <= 1 or dim != 0)


def splits_units(tensor: Tensor) -> bool:
    """Whether processes have parts of a unit of it."""
    return is_sharded(tensor) and any(_splits_units(tensor, placement, False) for placement in tensor.placements)


def counts_units(tensor: Tensor, whole: bool = False) -> bool:
    """Whether this process counts its units; the first process counts units that several processes have.

    Args:
        whole: the tensor is one unit.
    """
    if not is_sharded(tensor):
        return True
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:  # a process outside of the mesh
        return False
    positions = zip(coordinate, tensor.placements, strict=True)
    rows = not whole and tensor.ndim > 1
    return all(at == 0 or (rows and getattr(placement, "dim", None) == 0) for at, placement in positions)


@torch.no_grad()
def add_parts(norms: list[Tensor], of: Sequence[Tensor], whole: bool = False) -> list[Tensor]:
    """Norms of whole units from norms of the local parts; one reduction for each way in which units are split.

    Args:
        norms: of the tensors ``of``, one entry per unit.
        whole: each tensor is one unit.
    """
    norms, split = list(norms), {}
    for number, tensor in enumerate(of):
        if is_sharded(tensor):
            dims = tuple(i for i, at in enumerate(tensor.placements) if _splits_units(tensor, at, whole))
            if dims:
                split.setdefault((tensor.device_mesh, dims), []).append(number)
    for (mesh, dims), numbers in split.items():
        squares = torch.cat([norms[i].flatten().square() for i in numbers])
        for dim in dims:
            dist.all_reduce(squares, group=mesh.get_group(dim))
        pieces = squares.sqrt().split([norms[i].numel() for i in numbers])
        for i, piece in zip(numbers, pieces, strict=True):
            norms[i] = piece.view(norms[i].shape)
    return norms


def sum_over_parts(values: Tensor, of: Sequence[Tensor]) -> Tensor:
    """``values`` summed over the processes that share the tensors ``of``; unchanged if these are not sharded."""
    sharded = next((tensor for tensor in of if is_sharded(tensor)), None)
    if sharded is not None:
        for dim in range(sharded.device_mesh.ndim):
            dist.all_reduce(values, group=sharded.device_mesh.get_group(dim))
    return values


def norm_of_all(norms: Tensor, of: Sequence[Tensor]) -> Tensor:
    """L2 norm of tensors together, over all processes; a tensor without dimensions.

    Args:
        norms: of the whole tensors ``of``, one each, as :func:`add_parts` returns them.
    """
    if norms.device.type != "mps":  # which has no float64; squares of large float32 norms overflow
        norms = norms.double()
    if not any(is_sharded(tensor) for tensor in of):
        return torch.linalg.vector_norm(norms)
    total, own = norms.new_zeros(()), norms.square()
    meshes = [tensor.device_mesh if is_sharded(tensor) else None for tensor in of]
    for mesh in dict.fromkeys(meshes):
        here = [i for i, tensor in enumerate(of) if meshes[i] == mesh and counts_units(tensor, whole=True)]
        square = own[here].sum()
        if mesh is not None:
            for dim in range(mesh.ndim):
                dist.all_reduce(square, group=mesh.get_group(dim))
        total = total + square
    return total.sqrt()
