"""Networks of segmentation_models_pytorch and MONAI: converted, kept, and finite at a batch of one."""

import pytest
import torch
from foreign_blocks import collect
from torch import nn

from normfree.convert import convert
from normfree.nn import BATCH_NORM, WSConv, WSConvTranspose

VOLUMES = dict(
    UNet=dict(channels=(8, 16, 24), strides=(2, 2), num_res_units=2, norm="batch"),
    SegResNet=dict(init_filters=8, norm="batch"),
    DynUNet=dict(
        kernel_size=(3, 3, 3), strides=(1, 2, 2), upsample_kernel_size=(2, 2), filters=(8, 16, 24), norm_name="batch"
    ),
)


def of_images(name: str) -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    net = getattr(smp, name)("resnet18", encoder_weights=None, classes=2)
    net.check_input_shape = lambda x: None
    return net


def of_volumes(name: str) -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets", exc_type=ImportError)
    return getattr(nets, name)(spatial_dims=3, in_channels=1, out_channels=2, **VOLUMES[name])


NETWORKS = {name: (of_images, (3, 64, 64)) for name in ("Unet", "FPN", "DeepLabV3Plus")}
NETWORKS |= {name: (of_volumes, (1, 16, 16, 16)) for name in VOLUMES}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_rebuilt_and_kept(name):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net, x = collect(make(name)).eval(), torch.randn(1, *shape)
    with torch.no_grad():
        before = net(x)
        after = convert(net, (2, *shape), mode="keep").model(x)
    assert (after - before).norm() <= 1e-5 * before.norm()
    new = convert(net.train(), (2, *shape)).model
    assert not [m for m in new.modules() if isinstance(m, (*BATCH_NORM, nn.GroupNorm))]
    out = new(x)
    out.square().mean().backward()
    weights = [m.weight for m in new.modules() if isinstance(m, WSConv | WSConvTranspose)]
    assert out.shape == before.shape
    assert out.isfinite().all()
    assert all(bool(weight.grad.isfinite().all()) for weight in weights)
