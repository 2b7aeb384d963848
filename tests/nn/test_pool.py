"""Pooling against its definition, window by window."""

import math

import pytest
import torch

from normfree.nn import AvgPoolSame, MaxPoolSame

SIZES = [(h, w) for h in (1, 2, 3, 6, 7) for w in (1, 2, 4, 5, 9)]  # every pairing of parities


def windows(x, kernel_size):
    """Values of each window of stride 2 that lie inside the map, TensorFlow's "SAME" places."""
    places = []
    for size in x.shape[2:]:
        out = math.ceil(size / 2)
        before = max((out - 1) * 2 + kernel_size - size, 0) // 2
        starts = [2 * i - before for i in range(out)]
        places.append([slice(max(start, 0), min(start + kernel_size, size)) for start in starts])
    return [[x[:, :, rows, columns].flatten(2) for columns in places[1]] for rows in places[0]]


def reference(x, kernel_size, reduce):
    return torch.stack([torch.stack([reduce(w) for w in row], -1) for row in windows(x, kernel_size)], -2)


@pytest.mark.parametrize("size", SIZES)
def test_max_pool(size):
    x = torch.randn(2, 3, *size) - 10  # negative: a padding of zeros would win
    out = MaxPoolSame()(x)
    assert out.shape == (2, 3, math.ceil(size[0] / 2), math.ceil(size[1] / 2))
    assert torch.equal(out, reference(x, 3, lambda w: w.amax(-1)))


@pytest.mark.parametrize("size", SIZES)
def test_average_pool_does_not_count_the_padding(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64) + 10  # a counted padding would lower the edge
    out = AvgPoolSame()(x)
    assert out.shape == (2, 3, math.ceil(size[0] / 2), math.ceil(size[1] / 2))
    torch.testing.assert_close(out, reference(x, 2, lambda w: w.mean(-1)), rtol=1e-14, atol=0)  # order of the sum


@pytest.mark.parametrize("pool", [MaxPoolSame(), AvgPoolSame()])
@pytest.mark.parametrize("size", [(5, 5), (4, 6), (5, 4)])
def test_gradients(pool, size):
    x = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pool, x)


@pytest.mark.parametrize("pool", [MaxPoolSame(), AvgPoolSame()])
@pytest.mark.parametrize("size", [(8, 8), (7, 7), (7, 8)])
def test_memory_layout_does_not_matter(pool, size):
    x = torch.randn(2, 8, *size)
    torch.testing.assert_close(pool(x.to(memory_format=torch.channels_last)), pool(x), rtol=1e-6, atol=0)  # sum order


@pytest.mark.parametrize("pool", [MaxPoolSame(), AvgPoolSame()])
def test_compiled_for_any_size(pool):
    compiled = torch.compile(pool, backend="eager", fullgraph=True, dynamic=True)
    for size in ((8, 8), (7, 7), (10, 9)):
        x = torch.randn(2, 3, *size)
        assert torch.equal(compiled(x), pool(x))
