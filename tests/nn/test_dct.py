"""The DCT of an image's blocks: scipy's, orthonormal, invertible."""

import pytest
import torch
from scipy.fft import dctn

import normfree
from normfree import UsageError
from normfree.nn import BlockDCT2d
from normfree.nn.dct import dct_matrix

DOUBLE = torch.float64


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_matrix_is_orthonormal(size):
    matrix = dct_matrix(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=DOUBLE), rtol=0, atol=1e-14)  # float64 rounding


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 8), (2, 4)])
def test_it_is_scipys(channels, size):
    torch.manual_seed(0)
    image, layer = torch.randn(2, channels, 3 * size, 2 * size, dtype=DOUBLE), BlockDCT2d(channels, size)
    out = layer.double()(image)
    assert (out.shape[1:], layer.out_channels) == ((channels * size**2, 3, 2), channels * size**2)
    for n in range(2):
        for c in range(channels):
            for i in range(3):
                for j in range(2):
                    block = image[n, c, i * size : (i + 1) * size, j * size : (j + 1) * size]
                    expected = torch.from_numpy(dctn(block.numpy(), type=2, norm="ortho")).flatten()
                    found = out[n, c * size**2 : (c + 1) * size**2, i, j]
                    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # the weight is float32


def test_nothing_is_lost():
    """An orthonormal transform: its transpose gives the image back."""
    torch.manual_seed(0)
    layer, image = BlockDCT2d(3), torch.randn(2, 3, 32, 40)
    out = layer(image)
    assert out.square().sum().item() == pytest.approx(image.square().sum().item(), rel=1e-5)  # float32 sums
    back = torch.nn.functional.conv_transpose2d(out, layer.weight, stride=8, groups=3)
    torch.testing.assert_close(back, image, rtol=1e-4, atol=1e-5)


def test_a_flat_image_has_one_coefficient():
    out = BlockDCT2d(1)(torch.ones(1, 1, 16, 16))
    assert torch.allclose(out[:, 0], torch.tensor(8.0))  # the block's sum over its side
    assert out[:, 1:].abs().max() < 1e-5


def test_sides_that_the_block_does_not_divide_are_padded():
    torch.manual_seed(0)
    image, layer = torch.randn(1, 1, 12, 19), BlockDCT2d(1)
    padded = torch.nn.functional.pad(image, (2, 3, 2, 2))
    assert torch.equal(layer(image), layer(padded))
    assert layer(image).shape == (1, 64, 2, 3)


def test_it_has_no_parameters_and_saves_nothing():
    layer = BlockDCT2d(3)
    assert not list(layer.parameters())
    assert not layer.state_dict()
    with torch.no_grad():
        expected = layer.weight.clone()
        layer.weight.zero_()
        layer.reset_constants()
    assert torch.equal(layer.weight, expected)


@pytest.mark.parametrize(("arguments", "name"), [((0,), "in_channels"), ((3, 0), "size")])
def test_bad_sizes_are_quoted(arguments, name):
    with pytest.raises(UsageError, match=rf"{name} \(=0\) must be an integer of at least 1"):
        BlockDCT2d(*arguments)


def test_noise_keeps_its_variance_through_the_stem():
    """An orthonormal transform and a standardized convolution: variance 1, as behind any family's stem."""
    torch.manual_seed(0)
    model = normfree.create_model("nfnet_f0", widths=(256, 256, 256, 256), depths=(1, 1, 1, 1), stem="dct").eval()
    with torch.no_grad():
        x = torch.randn(8, 3, 128, 128)
        assert model.stem.dct(x).var().item() == pytest.approx(1.0, rel=0.02)  # 400,000 numbers, five errors of 0.2 %
        assert model.stem(x).var((0, 2, 3)).mean().item() == pytest.approx(1.0, rel=0.05)
