"""Merges in every notation and layout: what is measured is what numpy finds in the tensors that were added."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from spp.hand_made import LAYOUTS, Block, Net, SqueezeExcite, sequence, statistics
from torch import nn

from normfree.spp import record

# notation -> (the merge, what multiplies the branch's end: of the block)
MERGES = {
    "x + f": (lambda b, x, f: x + f, lambda b: 1),
    "f + x": (lambda b, x, f: f + x, lambda b: 1),
    "x += f": (lambda b, x, f: x.add_(f), lambda b: 1),
    "f += x": (lambda b, x, f: f.add_(x), lambda b: 1),
    "x - f": (lambda b, x, f: x - f, lambda b: -1),
    "sum": (lambda b, x, f: sum([x, f]), lambda b: 1),
    "out=": (lambda b, x, f: torch.add(x, f, out=torch.empty_like(x)), lambda b: 1),
    "alpha=": (lambda b, x, f: torch.add(x, other=f, alpha=0.2), lambda b: 0.2),
    "number * f": (lambda b, x, f: x + 0.2 * f, lambda b: 0.2),
    "f / number": (lambda b, x, f: f / 5 + x, lambda b: 0.2),
    "gain * f": (lambda b, x, f: x + b.gain * f, lambda b: b.gain),
    "f *= gain, number": (lambda b, x, f: f.mul_(b.gain).mul(0.2) + x, lambda b: 0.2 * b.gain),
    "gamma * f": (lambda b, x, f: x + f * b.gamma, lambda b: b.gamma),
    "layer scale 1e-6": (lambda b, x, f: x + f * b.tiny, lambda b: b.tiny),
    "gain 0": (lambda b, x, f: x + f * b.zero, lambda b: 0),
    "gain, gain 0, number": (lambda b, x, f: x + 0.2 * (b.zero * (f * b.gain)), lambda b: 0),
    "addcmul number": (lambda b, x, f: torch.addcmul(x, f, b.gain), lambda b: b.gain),
    "addcmul gain 0": (lambda b, x, f: torch.addcmul(x, f, b.zero), lambda b: 0),
    "addcmul gamma": (lambda b, x, f: torch.addcmul(x, f, b.gamma), lambda b: b.gamma),
    "addcmul value": (lambda b, x, f: torch.addcmul(x, f, b.gamma, value=0.2), lambda b: 0.2 * b.gamma),
    "addcmul gamma, f": (lambda b, x, f: torch.addcmul(x, b.gamma, f), lambda b: b.gamma),
    "addcmul in place": (lambda b, x, f: x.addcmul_(f, b.tiny), lambda b: b.tiny),
}


def check(row, x, f, out, factor, dim):
    """Of a row, against the tensors kept by the block; float32 rounding."""
    np.testing.assert_allclose((row.avg_sq_mean, row.avg_var), statistics(out, dim), rtol=2e-5)
    np.testing.assert_allclose((row.res_avg_sq_mean, row.res_avg_var), statistics(f, dim), rtol=2e-5)
    np.testing.assert_allclose(row.added_var, statistics(f * factor, dim)[1], rtol=2e-5)


@pytest.mark.sample(0.5, by=("merge",))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("merge", MERGES)
def test_every_notation_in_every_layout(merge, layout):
    layout, (write, factor) = LAYOUTS[layout], MERGES[merge]
    net = Net(layout, write)
    spp = record(net, layout.input())
    assert spp.blocks == ["blocks.0", "blocks.1"]
    for row, block in zip(spp.rows, net.blocks, strict=True):
        check(row, *block.kept, factor(block), layout.dim)
        assert not row.activated
        assert not row.transition
        before = statistics(block.kept[0], layout.dim)[1]
        if merge == "sum":  # 0 + x is another tensor
            np.testing.assert_allclose(row.shortcut_var, before, rtol=2e-5)
        else:
            assert row.shortcut_var is None  # the signal itself, also if it was added to in place
        np.testing.assert_allclose(row.expected_var, before + row.added_var, rtol=2e-5)
    np.testing.assert_allclose(spp.stem.avg_var, statistics(net.blocks[0].kept[0], layout.dim)[1], rtol=2e-5)


# SqueezeExcite's factor, then stochastic depth (off), a gain, alpha
class GatedBlock(Block):
    def __init__(self, write, **options):
        super().__init__(LAYOUTS["NCHW"], None)
        self.se, self.drop_path, self.write = SqueezeExcite(8, **options), nn.Identity(), write

    def forward(self, x):
        f = self.layer2(torch.relu(self.layer1(x)))
        self.kept = [x.clone(), f.clone() * self.se.factor * self.se.gate(f)]
        self.kept.append(self.write(self, x, f).clone())
        return self.kept[-1]


GATED = {
    "+": (lambda b, x, f: x + 0.2 * b.drop_path(b.se(f)), 0.2),
    "+ gain": (lambda b, x, f: x + 0.2 * (b.gain * b.drop_path(b.se(f))), 0.06),
    "+ gain 0": (lambda b, x, f: x + 0.2 * (b.zero * b.drop_path(b.se(f))), 0),
    "+ own 2": (lambda b, x, f: x + 0.2 * b.drop_path(b.se.factor * (f * b.se.gate(f))), 0.2),
}


@pytest.mark.parametrize("first", ["gate", "x", "in place"])
@pytest.mark.parametrize("merge", GATED)
def test_the_branch_ends_behind_squeeze_excite(merge, first):
    write, factor = GATED[merge]
    net = sequence(GatedBlock(write, first=first))
    (row,) = record(net, (4, 3, 8, 8)).rows
    check(row, *net[1].kept, factor, 1)
    bare = net[1].layer2(torch.relu(net[1].layer1(net[1].kept[0])))
    np.testing.assert_allclose(row.gate, 2 * net[1].se.gate(bare).mean().item(), rtol=1e-5)


@pytest.mark.parametrize("alpha", [None, 0.2, 0.0])
@pytest.mark.parametrize("batch", [4, 1])
def test_a_gate_in_the_merge(alpha, batch):
    """As our models write it: the gate's factor in a module of its own, alpha and skip gain in the merge."""

    class Gate(SqueezeExcite):
        def forward(self, x):
            return self.factor * self.gate(x)

    def write(b, x, f):
        gate = b.se(f)
        return torch.addcmul(x, f, gate if alpha is None else gate * torch.tensor([alpha]))

    block = GatedBlock(write)
    block.se = Gate(8)
    (row,) = record(sequence(block), (batch, 3, 8, 8)).rows
    check(row, *block.kept, 1.0 if alpha is None else alpha, 1)
    assert row.gate == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("size", [(4, 8, 1, 1), (4, 1, 1, 1), (1, 1, 8, 8), (4, 8, 8, 8), (1, 1, 1, 1)])
def test_addcmul_with_constants_of_any_shape(size):
    factor = torch.rand(size) + 0.5
    layout = LAYOUTS["NCHW"]
    net = Net(layout, lambda b, x, f: torch.addcmul(x, f, factor))
    for row, block in zip(record(net, layout.input()).rows, net.blocks, strict=True):
        check(row, *block.kept, factor, 1)


@pytest.mark.parametrize("size", [(4, 1, 8), (4, 1, 1), (1, 8, 1), (4, 8, 8)])
def test_addcmul_with_constants_on_tokens(size):
    factor = torch.rand(size) + 0.5
    layout = LAYOUTS["NLC"]
    net = Net(layout, lambda b, x, f: torch.addcmul(x, f, factor))
    for row, block in zip(record(net, layout.input()).rows, net.blocks, strict=True):
        check(row, *block.kept, factor, -1)


def test_a_gate_from_the_input_of_full_size():
    """GLU in a merge: the branch's end is the gated one."""
    layout = LAYOUTS["NCHW"]
    net = Net(layout, lambda b, x, f: torch.addcmul(x, f, b.layer1(x).sigmoid()))
    for row, block in zip(record(net, layout.input()).rows, net.blocks, strict=True):
        x, f, out = block.kept
        check(row, x, f * block.layer1(x).sigmoid(), out, 1, 1)


@pytest.mark.parametrize("shape", [(8,), (1, 1, 8), (1, 8, 1)])
def test_a_constant_along_another_dimension_is_part_of_the_branch(shape):
    """Eight numbers along the width or height of (4, 8, 8, 8) are no layer scale."""
    window = torch.linspace(0.1, 1.5, 8).view(shape)
    net = Net(LAYOUTS["NCHW"], lambda b, x, f: x + f * window)
    for row, block in zip(record(net, (4, 3, 8, 8)).rows, net.blocks, strict=True):
        x, f, out = block.kept
        check(row, x, f * window, out, 1, 1)


def test_float16_does_not_round_the_branch_away():
    """1e-6 is subnormal in float16: the branch is measured before the layer scale."""
    layout = LAYOUTS["NCHW"]
    net = Net(layout, MERGES["layer scale 1e-6"][0]).half()
    for row, block in zip(record(net, layout.input().half()).rows, net.blocks, strict=True):
        np.testing.assert_allclose(row.res_avg_var, statistics(block.kept[1])[1], rtol=1e-5)


class Rectified(Block):
    def __init__(self, write):
        super().__init__(LAYOUTS["NCHW"], lambda b, x, f: x + f)
        self.write, self.relu = write, nn.ReLU(inplace=True)

    def forward(self, x):
        return self.write(self, super().forward(x))


@pytest.mark.parametrize(
    "write",
    [
        lambda b, y: torch.relu(y),
        lambda b, y: torch.relu_(y),
        lambda b, y: b.relu(y),
        lambda b, y: F.relu(y.view(4, -1), inplace=True).view_as(y),
        lambda b, y: b.relu(y.permute(0, 2, 3, 1)).contiguous().permute(0, 3, 1, 2),
    ],
)
def test_activation_behind_the_merge(write):
    """The row is the block's output, as the next block finds it."""
    net = sequence(Rectified(write), Rectified(write))
    spp = record(net, (4, 3, 8, 8))
    for row, block in zip(spp.rows, net[1:], strict=True):
        np.testing.assert_allclose((row.avg_sq_mean, row.avg_var), statistics(block.kept[2].relu()), rtol=1e-5)
        assert row.activated
        assert row.expected_var is None
        assert row.shortcut_var is None  # the output of the block before


@pytest.mark.parametrize("write", [lambda y: y.flatten(2), lambda y: y.permute(0, 2, 3, 1), lambda y: y.view(4, 8, 64)])
def test_a_sum_in_another_shape_is_not_activated(write):
    """As windows of attention are put together, or maps made tokens."""
    net = sequence(Rectified(lambda b, y: write(y)), channels=8)
    (row,) = record(net, (4, 3, 8, 8)).rows
    np.testing.assert_allclose((row.avg_sq_mean, row.avg_var), statistics(net[1].kept[2]), rtol=1e-5)
    assert not row.activated
    assert row.expected_var is not None


@pytest.mark.parametrize("inplace", [False, True])
def test_merges_of_one_function_know_what_happened_to_their_sums(inplace):
    class Inline(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            x = self.a(x)
            first = x + self.b(x)
            self.sum = first.clone()
            x = F.relu(first, inplace=inplace)
            return x + self.c(x)

    net = Inline()
    first, second = record(net, (4, 3, 8, 8)).rows
    assert (first.block, second.block) == ("b", "c")
    assert (first.activated, second.activated) == (inplace, False)
    signal = statistics(net.sum.relu())[1]
    np.testing.assert_allclose(first.avg_var, signal if inplace else statistics(net.sum)[1], rtol=1e-5)
    np.testing.assert_allclose(second.shortcut_var, signal, rtol=1e-5)
    np.testing.assert_allclose(second.expected_var, signal + second.added_var, rtol=1e-5)
