"""The first layer that whitens patches of the training images."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normfree.errors import UsageError
from normfree.nn import PatchWhitening2d, fit_whitening


def images(count=64, channels=3, size=12):
    """Images whose pixels and channels are correlated, with means that differ."""
    torch.manual_seed(0)
    noise = torch.randn(count, channels, size + 2, size + 2)
    smooth = F.avg_pool2d(noise, 3, stride=1)
    mix = torch.eye(channels) + 0.5
    return torch.einsum("oc,nchw->nohw", mix, smooth) + 0.2 * torch.arange(channels).view(1, -1, 1, 1)


@pytest.mark.parametrize(("channels", "size"), [(3, 2), (1, 3), (5, 1)])
def test_outputs_are_uncorrelated_with_second_moment_one_but_for_the_negatives(channels, size):
    x = images(channels=channels)
    layer = PatchWhitening2d(channels, size, eps=0.0)
    layer.fit_([x[:40], x[40:]])
    out = layer(x).double().transpose(0, 1).flatten(1)
    half = len(out) // 2
    assert torch.equal(out[half:], -out[:half])
    moments = out[:half] @ out[:half].T / out.shape[1]
    # the weights are float32, and the smallest variances are some hundred times smaller than the largest
    torch.testing.assert_close(moments, torch.eye(half, dtype=torch.float64), rtol=0, atol=1e-3)


def test_the_first_output_is_the_direction_of_the_largest_variance():
    x = images()
    layer = PatchWhitening2d(3, 2)
    layer.fit_([x])
    norms = layer.weight[:12].flatten(1).norm(dim=1)
    assert (norms[1:] >= norms[:-1]).all()  # each is divided by its deviation


def test_batches_are_one_set():
    x, whole, parts = images(), PatchWhitening2d(3), PatchWhitening2d(3)
    whole.fit_([x])
    parts.fit_(list(x.split(7)))
    torch.testing.assert_close(whole.weight, parts.weight, rtol=1e-5, atol=1e-5)  # float64 sums in another order


def test_a_direction_without_variance_is_not_blown_up():
    x = images()
    x[:, 2] = x[:, 1]
    layer = PatchWhitening2d(3, 1, eps=1e-2)
    layer.fit_([x])
    assert layer.weight.flatten(1).norm(dim=1).max() <= 10.0 + 1e-4  # 1 / sqrt(eps)


def test_the_weight_is_not_trained_and_random_before():
    layer = PatchWhitening2d(3, 2)
    assert not layer.weight.requires_grad
    assert layer.bias is None
    rows = layer.weight[:12].flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(12), rtol=0, atol=1e-5)


def test_fit_whitening_reads_images_only_for_such_layers():
    def unread():
        raise AssertionError("read")
        yield

    assert not fit_whitening(nn.Conv2d(3, 8, 3), unread())
    network = nn.Sequential(PatchWhitening2d(3, 2), nn.ReLU())
    before = network[0].weight.clone()
    assert fit_whitening(network, iter([images()]))
    assert not torch.equal(network[0].weight, before)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(UsageError, match="no images"):
        PatchWhitening2d(3, 2).fit_([])
    with pytest.raises(UsageError, match="images of 1 x 5 pixels are smaller than a patch of 2"):
        PatchWhitening2d(3, 2).fit_([torch.zeros(1, 3, 1, 5)])
