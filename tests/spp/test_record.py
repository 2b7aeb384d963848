"""What ``record`` finds, and what it leaves as it was."""

import math

import numpy as np
import pytest
import torch
from spp.hand_made import LAYOUTS, Block, Net, SqueezeExcite, sequence, statistics
from torch import nn

from normfree import UsageError
from normfree.spp import Row, record
from normfree.spp.record import _count_stages

SHAPE = (4, 3, 8, 8)


def block(write=lambda b, x, f: x + f) -> Block:
    return Block(LAYOUTS["NCHW"], write)


class Custom(nn.Module):
    """Modules, and a function of them."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def conv(i=8, o=8, **options):
    return nn.Conv2d(i, o, 1, **options)


# What is a block


def test_projected_shortcuts_are_transitions_and_begin_stages():
    def project(m, x):
        m.parts = m.short(x), m.b(torch.relu(m.a(x)))
        return m.parts[0] + m.parts[1]

    second = Custom(project, short=conv(8, 16, stride=2), a=conv(8, 16, stride=2), b=conv(16, 16))
    net = sequence(block(), block(), second, Block(LAYOUTS["NCHW"], None), channels=8)
    net[4] = Custom(lambda m, x: x + m.a(x), a=conv(16, 16))
    rows = record(net, SHAPE).rows
    assert [row.transition for row in rows] == [False, False, True, False]
    assert [row.stage for row in rows] == [0, 0, 1, 1]
    np.testing.assert_allclose(rows[2].shortcut_var, statistics(second.parts[0])[1], rtol=1e-5)
    np.testing.assert_allclose(rows[2].res_avg_var, statistics(second.parts[1])[1], rtol=1e-5)
    np.testing.assert_allclose(rows[2].expected_var, rows[2].shortcut_var + rows[2].added_var)
    assert rows[3].shape == (16, 4, 4)


def test_two_merges_of_one_block_are_named_after_their_branches():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True, norm_first=True)
    net = nn.Sequential(nn.Linear(3, 8), Custom(lambda m, x: m.layer(x), layer=layer))
    rows = record(net, (4, 8, 3)).rows
    assert [row.block for row in rows] == ["1.layer.self_attn", "1.layer.linear2"]  # its attention is one operation
    assert {row.module for row in rows} == {"1.layer"}


def test_a_module_that_adds_what_it_is_given_is_not_the_block():
    class Add(nn.Module):
        def forward(self, x, y):
            return x + y

    net = sequence(Custom(lambda m, x: m.relu(m.add(m.a(x), x)), a=conv(), add=Add(), relu=nn.ReLU()))
    (row,) = record(net, SHAPE).rows
    assert row.block == "1"
    assert row.activated


def test_inner_sums_of_other_sizes_are_dropped():
    """Res2Net: groups of channels are added to one another on the way."""

    def res2net(m, x):
        a, b = m.a(x).chunk(2, 1)
        b = m.b(a) + b
        return x + m.c(torch.cat([a, b], 1))

    net = sequence(Custom(res2net, a=conv(), b=conv(4, 4), c=conv()))
    rows = record(net, SHAPE).rows
    assert [row.block for row in rows] == ["1"]
    assert not rows[0].activated


def test_rows_come_in_the_order_of_execution():
    """A stage that adds something itself, before and after its blocks, and what it adds stays its own."""

    def stage(m, x):
        x = x + m.first(x)
        m.kept = x.clone()
        x = m.block(x)
        return x + m.last(x)

    net = sequence(Custom(stage, first=conv(), block=block(), last=conv()))
    rows = record(net, SHAPE).rows
    assert [row.block for row in rows] == ["1.first", "1.block", "1.last"]
    np.testing.assert_allclose(rows[0].avg_var, statistics(net[1].kept)[1], rtol=1e-5)
    assert not any(row.activated for row in rows)


def test_a_container_with_one_merge_and_blocks_behind_it():
    net = sequence(Custom(lambda m, x: m.block(x + m.first(x)), first=conv(), block=block()))
    rows = record(net, SHAPE).rows
    assert [row.block for row in rows] == ["1", "1.block"]
    np.testing.assert_allclose(rows[0].avg_var, statistics(net[1].block.kept[0])[1], rtol=1e-5)


def test_merges_of_the_model_itself():
    net = Custom(lambda m, x: m.stem(x) + m.a(m.stem(x)), stem=conv(3), a=conv())
    assert record(net, SHAPE).blocks == ["(model)"]
    net = Custom(lambda m, x: (y := m.stem(x) + m.a(m.stem(x))) + m.b(y), stem=conv(3), a=conv(), b=conv())
    assert record(net, SHAPE).blocks == ["a", "b"]


def test_a_block_that_runs_twice_has_two_rows():
    shared = block()
    rows = record(sequence(shared, shared), SHAPE).rows
    assert [row.block for row in rows] == ["1", "1"]
    np.testing.assert_allclose(rows[1].avg_var, statistics(shared.kept[2])[1], rtol=1e-5)


def test_gates_belong_to_one_merge():
    def twice(m, x):
        x = x + m.se(m.a(x))
        m.gate = m.se.factor * m.se.gate(m.b(x)).mean()
        return x + m.se(m.b(x))

    net = sequence(Custom(twice, a=conv(), b=conv(), se=SqueezeExcite(8)))
    rows = record(net, SHAPE).rows
    assert rows[1].gate == pytest.approx(net[1].gate.item(), rel=1e-5)


def test_stages_begin_with_transitions_and_new_shapes_not_with_another_arrangement():
    shapes = [(8, 4, 4), (16, 8), (8, 4, 4), (8, 4, 4), (16, 2, 2), (2, 2, 16), (8, 2, 2)]
    rows = [Row("", 0, shape=shape, transition=index == 3) for index, shape in enumerate(shapes)]
    _count_stages(rows)
    assert [row.stage for row in rows] == [0, 0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("channels", [8, 12])
def test_token_mixing_does_not_move_the_channels(channels, first):
    """A linear layer over the tokens (MLP-Mixer): its outputs are no channels."""

    def mix(m, x):
        f = m.mix(x.transpose(1, 2)).transpose(1, 2)
        m.kept = f + x if first else x + f
        return m.kept

    net = nn.Sequential(nn.Linear(3, channels), *(Custom(mix, mix=nn.Linear(8, 8)) for _ in range(2)))
    for row, module in zip(record(net, (4, 8, 3)).rows, net[1:], strict=True):
        np.testing.assert_allclose(row.avg_var, statistics(module.kept, -1)[1], rtol=1e-5)


def test_patches_that_become_tokens():
    """64 tokens of 64 channels: the channels are last, as flattening and transposing put them."""
    to_tokens = Custom(lambda m, x: m.conv(x).flatten(2).transpose(1, 2), conv=nn.Conv2d(3, 64, 1))
    to_maps = Custom(lambda m, x: m.conv(x).permute(0, 2, 3, 1).flatten(1, 2), conv=nn.Conv2d(3, 64, 1))
    for first in (to_tokens, to_maps):
        net = nn.Sequential(
            first, Custom(lambda m, x: x + m.norm(x).sigmoid() * m.a(x), norm=nn.LayerNorm(64), a=nn.Linear(64, 64))
        )
        with torch.no_grad():
            net[0].conv.bias.mul_(30)  # means that differ between channels
        x = torch.randn(SHAPE)
        (row,) = record(net, x).rows
        np.testing.assert_allclose(row.avg_var, statistics(net(x), -1)[1], rtol=1e-5)


def test_weights_as_matrices_of_einsum_are_layers():
    weight = torch.randn(8, 8)
    net = nn.Sequential(nn.Linear(3, 8), Custom(lambda m, x: x + torch.einsum("nld,de->nle", x, weight)))
    assert len(record(net, (4, 5, 3)).rows) == 1


@pytest.mark.parametrize("wrap", [lambda y: (y, None), lambda y: {"out": [y]}])
def test_blocks_may_put_out_containers(wrap):
    class Wrapped(Block):
        def forward(self, x):
            return wrap(super().forward(x))

    inner = Wrapped(LAYOUTS["NCHW"], lambda b, x, f: (x + f).relu_())
    (row,) = record(sequence(inner), SHAPE).rows
    assert (row.block, row.activated) == ("1", True)
    np.testing.assert_allclose(row.avg_var, statistics(inner.kept[2])[1], rtol=1e-5)


# Named blocks


def test_named_blocks_without_merges_have_outputs_only():
    net = nn.Sequential(conv(3), nn.Sequential(conv(), nn.ReLU(inplace=True)), conv())
    spp = record(net, SHAPE, blocks="1.*")
    assert spp.blocks == ["1.0", "1.1"]
    assert [row.res_avg_var for row in spp.rows] == [None, None]
    x = torch.randn(SHAPE)
    with torch.no_grad():
        h = net[0](x)
        spp = record(net, x, blocks="?")
        np.testing.assert_allclose(spp.avg_var, [statistics(y)[1] for y in (h, net[1](h), net(x))], rtol=1e-5)
    assert spp.stem.avg_var == pytest.approx(statistics(x)[1])


def test_the_stem_is_measured_before_a_block_changes_it():
    net = nn.Sequential(conv(3), nn.ReLU(inplace=True), conv())
    x = torch.randn(SHAPE)
    spp = record(net, x, blocks="1")
    np.testing.assert_allclose(spp.stem.avg_var, statistics(net[0](x))[1], rtol=1e-5)


def test_named_blocks_take_the_merges_inside():
    net = sequence(nn.Sequential(block(), block()), nn.Sequential(block()))
    assert record(net, SHAPE).blocks == ["1.0", "1.1", "2.0"]
    rows = record(net, SHAPE, blocks="?").rows
    assert [row.module for row in rows] == ["0", "1", "1", "2"]


@pytest.mark.parametrize("pattern", ["nothing", "1.x", "*.*.*.*", "1.", ""])
def test_a_pattern_that_matches_nothing(pattern):
    with pytest.raises(UsageError, match=r"matches no module of Sequential; it has "):
        record(sequence(block()), SHAPE, blocks=pattern)


def test_networks_without_residual_blocks_are_told_how_to_name_them():
    net = nn.Sequential(conv(3), nn.Sequential(conv(), conv(), conv()))
    with pytest.raises(UsageError, match=r"no residual block .* blocks='1\.\*'"):
        record(net, SHAPE)
    assert len(record(net, SHAPE, blocks="1.*").rows) == 3
    with pytest.raises(UsageError, match="no residual block was found in Conv2d"):
        record(conv(3), SHAPE)


@pytest.mark.parametrize("shape", ["abc", 3, (2, 0, 3), (2, 3.0), None, ()])
def test_a_shape_must_be_one(shape):
    with pytest.raises(UsageError, match="batch_or_shape"):
        record(sequence(block()), shape)


# Signals


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_extreme_signals(scale):
    net = Net(LAYOUTS["NCHW"], lambda b, x, f: x + f)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.bias)
    spp = record(net, torch.randn(SHAPE) * scale)
    for row, module in zip(spp.rows, net.blocks, strict=True):
        np.testing.assert_allclose(row.avg_var, statistics(module.kept[2])[1], rtol=1e-5)
        np.testing.assert_allclose(row.res_avg_var, statistics(module.kept[1])[1], rtol=1e-5)
        assert 0 < row.ratio < math.inf


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_signals_that_are_not_finite(value):
    def spoil(b, x, f):
        return x + f * value

    net = sequence(block(), block(spoil), block())
    spp = record(net, SHAPE)
    assert math.isfinite(spp.avg_var[0])
    assert not math.isfinite(spp.avg_var[1])
    assert not math.isfinite(spp.avg_var[2])
    assert len(str(spp).splitlines()) == 6


def test_bfloat16_models_get_bfloat16_noise():
    net = sequence(block(), block()).bfloat16()
    for row, module in zip(record(net, SHAPE).rows, net[1:], strict=True):
        np.testing.assert_allclose(row.avg_var, statistics(module.kept[2])[1], rtol=1e-5)


def test_noise_is_unit_gaussian_and_drawn_from_the_seed():
    net = nn.Sequential(nn.Identity(), block())
    net[1].layer1, shape = conv(3, 8), (8, 3, 32, 32)
    net[1].layer2 = conv(8, 3)
    a, b, other = record(net, shape), record(net, shape), record(net, shape, seed=1)
    assert a.to_dict() == b.to_dict()
    assert a.avg_var != other.avg_var
    assert a.stem.avg_var == pytest.approx(1.0, rel=0.05)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert record(net, x).avg_var == a.avg_var


def test_name():
    net = sequence(block())
    assert record(net, SHAPE).name == "Sequential"
    assert record(net, SHAPE, name="ours").name == "ours"
