"""The processes of a run: one, or those that torchrun started."""

import contextlib
import datetime
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from ..data import Share
from ..errors import RunFailed, UsageError
from ..optim.sharded import is_sharded
from ..words import counted

TIMEOUT = datetime.timedelta(minutes=30)  # of every wait for other processes
# messages of gloo, NCCL and the store about a process that has ended, or does not answer
_GONE = ("connection closed by peer", "connection reset by peer", "connection refused", "broken pipe", "gloo/transport")
_TIMED_OUT = ("timed out", "timeout")


@dataclass(frozen=True)
class Replicas:
    """The processes that train together: which one this is, how many there are, and how they exchange numbers.

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
        """The part of each batch that this process loads."""
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
        """The main process's ``value``, in every process."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def share_weights(self, model: nn.Module) -> None:
        """Give all processes the main one's parameters and buffers, in place."""
        if self.world > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0, group=self.control)

    def replicate(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The network to call in training, whose gradients are the means over all processes (DDP)."""
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

        They are gathered block by block in the ``stages`` of the network and of its subnetworks; the rest at once.
        """
        if self.world == 1:
            return
        from torch.distributed.fsdp import fully_shard  # on demand: it takes a second

        mesh = init_device_mesh(device.type, (self.world,))
        stages = [stage for part in model.modules() for stage in getattr(part, "stages", ())]
        for block in itertools.chain(*stages):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)


def exchange_gradients(model: nn.Module, exchange: bool) -> None:
    """Whether the next backward passes of a sharded network (FSDP2) exchange gradients between processes."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(model, FSDPModule)  # as Replicas.shard made it
    model.set_requires_gradient_sync(exchange)


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Whole parameters of a sharded network (FSDP2) in every process, inside, as plain tensors of the modules.

    They are copies: changes are seen by the forward and backward passes of their own process, and are lost at the end.
    Gradients are exchanged as usual.
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


def peer_failure(error: BaseException) -> str | None:
    """The message for an error that another process of the run caused by ending or not answering; None: it did not.

    Such errors have no common type: gloo raises RuntimeError, NCCL DistBackendError.
    """
    text = str(error).lower()
    known = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in text)
    if known and any(words in text for words in _TIMED_OUT):
        minutes = counted(round(TIMEOUT.total_seconds() / 60), "minute")
        return f"another process of this run has given no answer for {minutes}"
    if isinstance(error, RuntimeError) and (known or any(words in text for words in _GONE)):
        return "another process of this run has ended before its time; its own lines say why, unless it was killed"
    return None


@contextlib.contextmanager
def replicas(device: str = "auto") -> Iterator[Replicas]:
    """The process group of a run that torchrun started; a single process otherwise.

    >>> with replicas("cpu") as group:
    ...     group.main, group.sum([1.0, 2.0])
    (True, [1.0, 2.0])

    Args:
        device: where the networks are: NCCL between GPUs, gloo between CPUs.

    Raises:
        UsageError: torchrun's variables are incomplete; there are fewer GPUs than processes on a machine, or some
            processes have a GPU and others none. All processes raise the last two.
        RunFailed: another process has ended, or has not answered for ``TIMEOUT``.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield Replicas()
        return
    try:
        rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except (KeyError, ValueError) as error:
        raise UsageError(f"WORLD_SIZE is set, but {error} is not; start several processes with torchrun") from error
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    try:
        # torchrun may restart the processes with the same store, which still has the addresses of the old ones
        store, _, _ = next(rendezvous("env://", rank, world, timeout=TIMEOUT))
        attempt = PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        _same_backend(attempt, rank, world, _backend(on_gpu, local))
        if on_gpu:
            torch.cuda.set_device(local)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", store=attempt, rank=rank, world_size=world, timeout=TIMEOUT
        )
        try:
            yield Replicas(rank, world, local, dist.new_group(backend="gloo", timeout=TIMEOUT))
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        if isinstance(error, RunFailed) or (reason := peer_failure(error)) is None:
            raise
        raise RunFailed(reason) from error


def _backend(on_gpu: bool, local: int) -> str:
    """The kind of device on which this process exchanges gradients, or why it cannot."""
    if on_gpu and local >= torch.cuda.device_count():
        return f"LOCAL_RANK (={local}) has no GPU: {torch.cuda.device_count()} are there"
    return "GPU" if on_gpu else "CPU"


def _same_backend(store: Store, rank: int, world: int, own: str) -> None:
    """Raise in all processes if some are on GPUs and others on CPUs; they would wait for each other for ever."""
    names = [f"backend of {number}" for number in range(world)]
    store.set(names[rank], own)
    if rank == 0:
        store.set("backends", json.dumps([store.get(name).decode() for name in names]))
    backends = json.loads(store.get("backends"))
    for number, one in enumerate(backends):
        if one not in ("GPU", "CPU") or one != backends[0]:
            store.set(f"{names[rank]}, read", "")
            if rank == 0:  # this process may host the store
                store.wait([f"{name}, read" for name in names])
            raise UsageError(
                f"process {number}: {one}"
                if one not in ("GPU", "CPU")
                else f"process {number} computes on a {one} where process 0 does on a {backends[0]} (--train.device)"
            )
