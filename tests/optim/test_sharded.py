"""Clipping of parameters that are split over processes: as in one process where it can be, refused where it cannot."""

import functools
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from normfree import UsageError
from normfree.optim import AGC, LAMB, LARS, FusedStep, LaProp, Muon, RMSProp, agc_, param_groups
from normfree.optim.sharded import norm_of_all, whole

WORLD = 2
UNIT, ONE = dict(clipping=0.5), dict(clipping=0.5, one_unit=True)
LAYER, NORM = dict(clipping=0.5, clipping_kind="layer"), dict(clipping=5.0, clipping_kind="norm")
# (mesh, placements by tensor dimension of the split or None for a copy, how it is clipped)
LAYOUTS = {
    "rows": ((2,), (0,), UNIT),
    "columns": ((2,), (1,), UNIT),
    "copies": ((2,), (None,), UNIT),
    "copies of rows": ((2, 1), (None, 0), UNIT),  # HSDP
    "rows of copies": ((1, 2), (None, 0), UNIT),
    "rows, one unit": ((2,), (0,), ONE),
    "rows, by layer": ((2,), (0,), LAYER),
    "copies of rows, by layer": ((2, 1), (None, 0), LAYER),
    "rows, by norm": ((2,), (0,), NORM),
    "columns, by norm": ((2,), (1,), NORM),
    "copies, by norm": ((2,), (None,), NORM),
    "copies of rows, by norm": ((2, 1), (None, 0), NORM),
}
SPLIT = ("rows", "columns", "copies of rows")
SHAPES = [(1, 4), (5, 3), (4, 2, 3, 3), (1,), (7,)]  # of the first and the fourth a process has nothing


def parameters():
    torch.manual_seed(1)
    params = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in SHAPES]
    for number, p in enumerate(params):
        p.grad = 10.0 ** (number - 2) * torch.randn_like(p)
    return params


def split(tensor, mesh, dims):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    placements = [Replicate() if d is None else Shard(min(d, tensor.ndim - 1)) for d in dims]
    return distribute_tensor(tensor.detach(), mesh, placements)


def clipped(layout):
    """Gradients after clipping, and (units, clipped units, fraction) of this process."""
    shape, dims, clipping = LAYOUTS[layout]
    mesh, params = dist.init_device_mesh("cpu", shape), []
    for p in parameters():
        params.append(nn.Parameter(split(p, mesh, dims)))
        params[-1].grad = split(p.grad, mesh, dims)
    statistics = agc_([dict(params=params, **clipping)], error_if_nonfinite=True)
    grads = [p.grad.full_tensor() for p in params]
    count = int(statistics.clipped_units["params"])
    return grads, (statistics.units["params"], count, statistics.fraction["params"], statistics.total_fraction)


def norm_of_several_meshes():
    """Of tensors that are split, copied, and whole in each process."""
    meshes = dist.init_device_mesh("cpu", (2,)), dist.init_device_mesh("cpu", (2, 1))
    params = parameters()
    split_up = [split(params[0], meshes[0], (0,)), split(params[1], meshes[1], (None, 0)), params[2]]
    norms = torch.stack([p.detach().norm() for p in params[:3]])
    return norm_of_all(norms, split_up), norms.norm()


OPTIMIZERS = {
    "clipped updates": lambda params: AGC(torch.optim.SGD(params, lr=0.1, momentum=0.9), 0.05, on="update"),
    "lars": lambda params: LARS(params, lr=1.0, nesterov=True, weight_decay=0.1, trust_coefficient=0.1),
    "lamb": lambda params: LAMB(params, lr=0.1, weight_decay=0.1),
    "laprop": lambda params: LaProp(params, lr=0.1, weight_decay=0.1),
    "muon": lambda params: Muon(params, lr=0.1, weight_decay=0.1),
    "muon, not relative": lambda params: Muon(params, lr=0.1, relative=False),
    "rmsprop": lambda params: RMSProp(params, lr=0.1, weight_decay=0.1),
}


def stepped(name, layout=None):
    """Parameters after three steps, in one process or split."""
    params = parameters()
    grads = [p.grad for p in params]
    if layout is not None:
        shape, dims, _ = LAYOUTS[layout]
        mesh = dist.init_device_mesh("cpu", shape)
        params = [nn.Parameter(split(p, mesh, dims)) for p in params]
        grads = [split(grad, mesh, dims) for grad in grads]
    optimizer = OPTIMIZERS[name](params)
    for factor in (1.0, -0.5, 2.0):
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad * factor
        optimizer.step()
    return [whole(p.detach()) for p in params]


def statistics_of_fsdp2():
    """Of a network whose bias, and whose weight of one row, the second process does not have."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (WORLD,)))
    groups = param_groups(model, clipping=0.01, roles={"weight": "weight"})
    model(torch.ones(2, 3)).sum().backward()
    statistics = agc_(groups)
    return statistics.fraction, statistics.total_fraction, [counts for _, counts in statistics.by_tensor()]


def refusal(function):
    try:
        function()
    except UsageError as error:
        return str(error)
    return None


def refusals_of_fsdp1():
    from torch.distributed.fsdp import FullyShardedDataParallel

    told = {}
    for original in (False, True):
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FSDP1 is deprecated
            model = FullyShardedDataParallel(net, use_orig_params=original, device_id=torch.device("cpu"))
        groups = [dict(params=list(model.parameters()), clipping=0.01, name="weight")]
        sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        told[original] = [
            refusal(f)
            for f in (
                lambda sgd=sgd: AGC(sgd),
                lambda sgd=sgd: FusedStep(sgd),
                lambda groups=groups: agc_(groups),
                lambda model=model: agc_(model.parameters(), 0.01),
            )
        ]
    return told


def process(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    told = {layout: clipped(layout) for layout in LAYOUTS}
    steps = {(name, layout): stepped(name, layout) for name in OPTIMIZERS for layout in SPLIT}
    others = statistics_of_fsdp2(), refusals_of_fsdp1(), (*norm_of_several_meshes(), steps)
    torch.save((told, *others), f"{store}.{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    store = tmp_path_factory.mktemp("sharded") / "store"
    mp.spawn(process, (str(store),), nprocs=WORLD)
    return [torch.load(f"{store}.{rank}", weights_only=False) for rank in range(WORLD)]


@functools.cache
def alone(layout):
    params = parameters()
    statistics = agc_([dict(params=params, **LAYOUTS[layout][2])])
    return [p.grad for p in params], statistics.units["params"], int(statistics.clipped_units["params"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_and_counts_are_those_of_one_process(told, layout):
    grads, units, count = alone(layout)
    assert 0 < count < units or (LAYOUTS[layout][2] is NORM and count == units)
    for here, *_ in told:
        for got, expected in zip(here[layout][0], grads, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)  # float64, sums in another order
    assert sum(here[layout][1][0] for here, *_ in told) == units
    assert sum(here[layout][1][1] for here, *_ in told) == count
    for here, *_ in told:
        units_here, count_here, fraction, total = here[layout][1]
        assert fraction == total == (count_here / units_here if units_here else 0.0)


def test_a_process_without_rows_has_fractions_of_zero(told):
    (_, (first, total, counted), *_), (_, second, *_) = told
    assert first == {"weight": 1.0, "bias": 1.0}
    assert total == 1.0
    assert [(one.units, one.clipped) for one in counted] == [(1, 1), (1, 1)]
    assert second == ({"weight": 0.0, "bias": 0.0}, 0.0, [])


def test_tensors_of_several_meshes_have_one_norm(told):
    for *_, (got, expected, _) in told:
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)  # float64, sums in another order


@pytest.mark.parametrize("layout", SPLIT)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_of_optimizers_are_those_of_one_process(told, name, layout):
    expected = stepped(name)
    for *_, (_, _, steps) in told:
        for got, own in zip(steps[name, layout], expected, strict=True):
            torch.testing.assert_close(got, own, rtol=1e-12, atol=1e-14)  # float64, sums in another order


@pytest.mark.parametrize("original", [False, True], ids=["flat", "use_orig_params"])
def test_parameters_of_fsdp1_are_refused_by_name(told, original):
    for _, _, refusals, _ in told:
        for number, message in enumerate(refusals[original]):
            assert "FullyShardedDataParallel (FSDP1)" in message
            assert "fully_shard (FSDP2)" in message
            assert number == 3 or message.startswith("group weight has parameters")


def test_one_unit_is_the_whole_tensor():
    p = nn.Parameter(torch.tensor([[[3.0]], [[4.0]]], dtype=torch.float64))  # a gain of shape (C, 1, 1)
    p.grad = torch.tensor([[[30.0]], [[0.0]]], dtype=torch.float64)
    statistics = agc_([dict(params=[p], clipping=0.1, one_unit=True)])
    torch.testing.assert_close(p.grad.flatten(), torch.tensor([0.5, 0.0], dtype=torch.float64))  # 0.1 * 5
    assert statistics.units == {"params": 1}
