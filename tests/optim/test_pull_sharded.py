"""Weights that are split over processes: pulled as in one where units stay whole, refused where they are cut."""

import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from normfree import UsageError
from normfree.nn import DecoupledWSConv2d, SoftWSConv2d
from normfree.optim import WeightPull

WORLD = 2
# (mesh, the split tensor dimension by mesh dimension, or None for a copy)
LAYOUTS = {
    "rows": ((2,), (0,)),
    "copies": ((2,), (None,)),
    "copies of rows": ((2, 1), (None, 0)),  # HSDP
    "inputs": ((2,), (1,)),
    "places": ((1, 2), (None, 2)),
}
WHOLE = ("rows", "copies", "copies of rows")


def network():
    """The first layer has five units, the second one: the second process has none of it."""
    torch.manual_seed(0)
    layers = [DecoupledWSConv2d(2, 5, 3, dtype=torch.float64), SoftWSConv2d(5, 1, 3, dtype=torch.float64)]
    return nn.Sequential(*layers, nn.Flatten())


def loss_of(model):
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return model(x).square().sum()


def split(model, layout):
    """The weights of a network as DTensors, with the gradients of a loss."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    loss_of(model).backward()
    shape, dims = LAYOUTS[layout]
    mesh = dist.init_device_mesh("cpu", shape)
    placements = [Replicate() if d is None else Shard(d) for d in dims]
    for layer in model[:2]:
        grad, weight = layer.weight.grad, layer.weight.detach()
        layer.weight = nn.Parameter(distribute_tensor(weight, mesh, placements))
        layer.weight.grad = distribute_tensor(grad, mesh, placements)
    return model


def after_a_step(model):
    sgd = torch.optim.SGD([layer.weight for layer in model[:2]], lr=0.05)
    try:
        WeightPull(sgd, model, 0.3)
    except UsageError as error:
        return str(error)
    sgd.step()
    weights = [layer.weight.detach() for layer in model[:2]]
    return [w.full_tensor() if hasattr(w, "full_tensor") else w for w in weights]


def of_fsdp2():
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (WORLD,)))
    loss_of(model).backward()
    return after_a_step(model)


def of_fsdp1(original):
    from torch.distributed.fsdp import FullyShardedDataParallel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FSDP1 is deprecated
        model = FullyShardedDataParallel(network(), use_orig_params=original, device_id=torch.device("cpu"))
    try:
        WeightPull(torch.optim.SGD(model.parameters(), lr=0.05), model, 0.3)
    except UsageError as error:
        return str(error)
    return None


def process(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    told = {layout: after_a_step(split(network(), layout)) for layout in LAYOUTS}
    told |= dict(fsdp2=of_fsdp2(), fsdp1=[of_fsdp1(original) for original in (False, True)])
    torch.save(told, f"{store}.{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    store = tmp_path_factory.mktemp("pull") / "store"
    mp.spawn(process, (str(store),), nprocs=WORLD)
    return [torch.load(f"{store}.{rank}", weights_only=False) for rank in range(WORLD)]


@pytest.mark.parametrize("layout", [*WHOLE, "fsdp2"])
def test_weights_are_those_of_one_process(told, layout):
    alone = network()
    loss_of(alone).backward()
    expected = after_a_step(alone)
    assert alone[0].weight.mean((1, 2, 3)).abs().max() < 1e-12 < alone[1].weight.mean().abs()
    for here in told:
        for got, weight in zip(here[layout], expected, strict=True):
            torch.testing.assert_close(got, weight, rtol=1e-12, atol=1e-15)  # float64, sums in another order


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout not in WHOLE])
def test_cut_units_are_refused(told, layout):
    for here in told:
        assert here[layout].startswith("0.weight is split over processes within its units, which WeightPull cannot")


def test_flat_parameters_are_refused(told):
    for here in told:
        for refusal in here["fsdp1"]:
            assert "is split over processes within its units" in refusal
