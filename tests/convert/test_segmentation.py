"""U-Nets in the styles of the libraries for segmentation: layers and branches have variance 1 on other noise."""

import pytest
import torch
import torch.nn.functional as F
from foreign_blocks import collect
from torch import nn

from normfree import UsageError
from normfree.convert import convert
from normfree.nn import BATCH_NORM, SkipInit, WSConv, WSConvTranspose


def layer(inputs, outputs, stride=1):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Interpolated(nn.Module):
    """An encoder's maps, enlarged by interpolation, joined with those of the next finer level."""

    def __init__(self):
        super().__init__()
        self.stem, self.middle, self.coarse = layer(3, 24), layer(24, 32, 2), layer(32, 48, 2)
        self.up1, self.up2 = layer(48 + 32, 32), layer(32 + 24, 24)
        self.head = nn.Conv2d(24, 2, 3, padding=1)

    def forward(self, x):
        fine = self.stem(x)
        middle = self.middle(fine)
        x = F.interpolate(self.coarse(middle), scale_factor=2.0, mode="nearest")
        x = F.interpolate(self.up1(torch.cat([x, middle], dim=1)), scale_factor=2.0, mode="nearest")
        return self.head(self.up2(torch.cat([x, fine], dim=1)))


class Unit(nn.Module):
    """Two convolutions of volumes beside one, added behind the last activation."""

    def __init__(self, norm, inputs, outputs, stride=1):
        super().__init__()
        one = nn.Conv3d(inputs, outputs, 3, stride, 1), norm(outputs), nn.Dropout3d(0.1), nn.PReLU()
        two = nn.Conv3d(outputs, outputs, 3, 1, 1), norm(outputs), nn.Dropout3d(0.1), nn.PReLU()
        self.conv, self.residual = nn.Sequential(*one, *two), nn.Conv3d(inputs, outputs, 3, stride, 1)

    def forward(self, x):
        return self.conv(x) + self.residual(x)


class Volumes(nn.Module):
    """Residual units down, transposed convolutions with normalization and PReLU up."""

    def __init__(self, norm=nn.BatchNorm3d):
        super().__init__()
        self.down, self.bottom = Unit(norm, 1, 24, 2), Unit(norm, 24, 32, 2)
        self.up = nn.Sequential(nn.ConvTranspose3d(32, 24, 3, 2, 1, 1), norm(24), nn.PReLU())
        self.last = nn.Sequential(nn.ConvTranspose3d(48, 24, 3, 2, 1, 1), norm(24), nn.PReLU())
        self.head = nn.Conv3d(24, 2, 1)

    def forward(self, x):
        fine = self.down(x)
        return self.head(self.last(torch.cat([fine, self.up(self.bottom(fine))], 1)))


NETWORKS = {
    "interpolated": (Interpolated, (3, 32, 32), 5, 0),
    "volumes": (Volumes, (1, 16, 16, 16), 8, 2),
    "volumes, instance norm": (lambda: Volumes(nn.InstanceNorm3d), (1, 16, 16, 16), 8, 2),
}


def variance(x) -> float:
    return x.transpose(0, 1).flatten(1).var(1).mean().item()


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_variances_are_one(name):
    make, shape, layers, branches = NETWORKS[name]
    torch.manual_seed(0)
    model = convert(make(), (8, *shape), skip_gain=1.0).model.eval()
    of_layers, of_branches = list[float](), list[float]()
    for module in model.modules():
        if isinstance(module, WSConv | WSConvTranspose):
            module.register_forward_hook(lambda m, args, out: of_layers.append(variance(out)))
        elif isinstance(module, SkipInit):
            module.register_forward_pre_hook(lambda m, args: of_branches.append(variance(args[0])))
    x = torch.randn(16, *shape)
    assert model(x).shape == (16, 2, *shape[1:])
    assert (len(of_layers), len(of_branches)) == (layers, branches)
    assert all(0.8 < value < 1.2 for value in of_layers + of_branches)
    assert not [m for m in model.modules() if isinstance(m, (*BATCH_NORM, nn.InstanceNorm3d))]


@torch.no_grad()
@pytest.mark.parametrize("name", ["interpolated", "volumes"])
def test_kept_outputs_stay(name):
    make, shape, _, _ = NETWORKS[name]
    net, x = collect(make()).eval(), torch.randn(2, *shape)
    new = convert(net, (2, *shape), mode="keep").model
    assert (new(x) - net(x)).norm() <= 1e-5 * net(x).norm()
    assert not [m for m in new.modules() if isinstance(m, BATCH_NORM)]


def test_a_size_that_decides_is_refused():
    class Checked(Interpolated):
        def forward(self, x):
            if x.shape[-1] % 4 != 0:
                raise RuntimeError("wrong size")
            return super().forward(x)

    with pytest.raises(UsageError, match="Checked cannot be read as a graph, because its forward depends on values"):
        convert(Checked(), (2, 3, 32, 32))


class Pyramid(nn.Module):
    """The coarse map, enlarged, is added to a layer of the fine one that it was made from."""

    def __init__(self):
        super().__init__()
        self.stem, self.coarse = layer(3, 24), nn.Sequential(layer(24, 32, 2), nn.Conv2d(32, 24, 1))
        self.lateral, self.head = nn.Conv2d(24, 24, 1), nn.Sequential(layer(24, 24), nn.Conv2d(24, 2, 1))

    def forward(self, x):
        fine = self.stem(x)
        x = F.interpolate(self.coarse(fine), scale_factor=2.0, mode="nearest")
        return self.head(x + self.lateral(fine))


def test_a_pyramid_keeps_its_coarse_path():
    """The addition is a plain sum: a skip gain of 0 would cut the coarse path off."""
    model = convert(Pyramid(), (4, 3, 32, 32)).model
    assert not [m for m in model.modules() if isinstance(m, SkipInit)]
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert model.get_submodule("coarse.1").weight.grad.abs().max() > 0


class Renamed(Interpolated):
    """The same modules under further names, as MONAI's DynUNet has them; those called are not the first ones."""

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList([self.stem, self.middle])
        self.layers = nn.ModuleList([self.coarse[0], self.coarse[1], self.coarse[2]])
        self.coarse = nn.Sequential(*self.layers)
        self.stem, self.middle = self.levels


@torch.no_grad()
@pytest.mark.parametrize("mode", ["rebuild", "keep", "identity"])
def test_a_module_under_two_names_is_one(mode):
    nets = [collect(make()).eval() for make in (Interpolated, Renamed)]
    nets[1].load_state_dict(nets[0].state_dict(), strict=False)
    one, two = (convert(net, (2, 3, 32, 32), mode=mode, init=False).model.eval() for net in nets)
    assert not [m for m in two.modules() if isinstance(m, BATCH_NORM)]
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(one(x), two(x))
    if mode == "keep":
        assert (two(x) - nets[0](x)).norm() <= 1e-5 * nets[0](x).norm()


def test_a_module_that_is_made_in_forward_is_refused():
    class Sliced(Interpolated):
        def forward(self, x):
            return super().forward(self.stem[:1](x)[:, :3])

    with pytest.raises(UsageError, match="Sliced cannot be read as a graph, because its forward makes a Sequential"):
        convert(Sliced(), (2, 3, 32, 32))


def test_a_module_that_runs_under_both_of_its_names_is_refused():
    class Twice(Renamed):
        def forward(self, x):
            return super().forward(x) + self.head(self.levels[0](x))

    with pytest.raises(UsageError, match=r"stem.1: this BatchNorm2d is used 2 times"):
        convert(Twice(), (2, 3, 32, 32))
