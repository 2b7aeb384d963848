"""The processes of a run: one, or those that torchrun started."""

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..data import Share
from ..errors import UsageError
from ..optim.sharded import is_sharded


@dataclass(frozen=True)
class Replicas:
    """Which process this is, of how many, and what they tell each other.

    Numbers and objects go through a group of their own on the CPU (gloo), so that nothing waits for a device.

    Attributes:
        rank, world: this process and their number, over all machines.
        local_rank: this process on its machine; the number of its GPU.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    control: Any = None

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """What it loads of each batch."""
        return Share(self.rank, self.world)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes."""
        if self.world == 1:
            return list(values)
        totals = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(totals, group=self.control)
        return totals.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.control)
        return values

    def from_main(self, value: Any) -> Any:
        """What the main process has for ``value``."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def replicate(self, model: nn.Module, device: torch.device) -> nn.Module:
        """What to call in training: gradients are the mean over all processes."""
        if self.world == 1 or any(is_sharded(p) for p in model.parameters()):
            return model
        return DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            process_group=dist.group.WORLD,
        )

    def shard(self, model: nn.Module, device: torch.device) -> None:
        """Split the parameters by rows over all processes (FSDP2); in place.

        They are gathered block by block of the ``stages`` of the network and of the networks in it; the rest at once.
        """
        if self.world == 1:
            return
        from torch.distributed.fsdp import fully_shard  # on demand: it takes a second

        mesh = dist.init_device_mesh(device.type, (self.world,))
        stages = [stage for part in model.modules() for stage in getattr(part, "stages", ())]
        for block in itertools.chain(*stages):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Whole parameters of a sharded network (FSDP2) in every process, inside, as plain tensors of the modules.

    They are copies: what each process changes in its own is seen by its forward and backward passes and forgotten at
    the end. Gradients are exchanged as usual.
    """
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.set_reshard_after_backward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.set_reshard_after_backward(True, recurse=False)
            part.reshard()


@contextlib.contextmanager
def replicas(device: str = "auto") -> Iterator[Replicas]:
    """The process group of a run that torchrun started; a single process otherwise.

    Args:
        device: where the networks are: NCCL between GPUs, gloo between CPUs.

    Raises:
        UsageError: torchrun's variables are incomplete, or there are fewer GPUs than processes on this machine.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield Replicas()
        return
    try:
        rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except (KeyError, ValueError) as error:
        raise UsageError(f"WORLD_SIZE is set, but {error} is not; start several processes with torchrun") from error
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        if local >= torch.cuda.device_count():
            raise UsageError(f"LOCAL_RANK (={local}) has no GPU: {torch.cuda.device_count()} are there")
        torch.cuda.set_device(local)
    # torchrun may restart the processes over one store, in which the addresses of the dead ones still are
    store, _, _ = next(dist.rendezvous("env://", rank, world))
    attempt = dist.PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=attempt, rank=rank, world_size=world)
    try:
        yield Replicas(rank, world, local, dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()
