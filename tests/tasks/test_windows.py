"""Windows that overlap: weights add up to 1, and the blend is the whole volume's output where windows see enough."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import normfree
from normfree.tasks.windows import in_windows, window_weights


@pytest.mark.parametrize("length", [1, 2, 5, 8, 9, 13, 16, 31, 64])
@pytest.mark.parametrize("window", [1, 2, 3, 5, 8])
def test_weights_add_up_to_one_at_each_place(length, window):
    if length < window:
        length = window
    windows = window_weights(length, window)
    total = torch.zeros(length, dtype=torch.float64)
    for start, weights in windows:
        assert weights.min() > 0
        total[start : start + window] += weights.double()
    torch.testing.assert_close(total, torch.ones(length, dtype=torch.float64), rtol=0, atol=1e-6)  # float32 weights
    starts = [start for start, _ in windows]
    assert starts[0] == 0
    assert starts[-1] == length - window
    assert all(0 < b - a <= max(1, window // 2) for a, b in itertools.pairwise(starts))


def test_a_function_of_single_voxels_is_the_same_in_windows():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(2, 4, 1), torch.nn.ReLU(), torch.nn.Conv3d(4, 3, 1)).eval()
    volumes = torch.randn(2, 2, 11, 6, 17)
    with torch.no_grad():
        torch.testing.assert_close(
            in_windows(network, volumes, (4, 8, 6), whole=0), network(volumes), rtol=0, atol=1e-5
        )


def test_where_no_window_ends_the_blend_is_exact():
    """A convolution of three voxels, zeros around it: it misses a neighbour only at faces inside of the volume."""
    torch.manual_seed(0)
    kernel, volume, side = torch.randn(1, 1, 3, 3, 3), torch.randn(1, 1, 12, 12, 12), 8
    blended = in_windows(lambda x: F.conv3d(x, kernel, padding=1), volume, (side,) * 3, whole=0)
    whole = F.conv3d(volume, kernel, padding=1)
    starts = [start for start, _ in window_weights(12, side)]
    faces = {start for start in starts if start} | {start + side - 1 for start in starts if start + side < 12}
    inside = [place for place in range(12) if place not in faces]
    assert inside
    at = torch.meshgrid(*[torch.tensor(inside)] * 3, indexing="ij")
    torch.testing.assert_close(blended[0, 0][at], whole[0, 0][at], rtol=0, atol=1e-5)
    assert not torch.allclose(blended, whole, atol=1e-3)


def test_volumes_that_fit_are_seen_at_once_and_small_ones_are_padded():
    torch.manual_seed(0)
    options = dict(widths=(4, 8), depths=(1, 1), skip_gain=1.0)
    network = normfree.create_model("nf_unet3d", num_classes=2, in_chans=1, **options).eval()
    volume, sizes = torch.randn(1, 1, 9, 5, 7), []

    def run(x: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(x.shape[2:]))
        with torch.no_grad():
            return network(x)

    at_once = in_windows(run, volume, (8, 8, 8))
    assert sizes == [(9, 5, 7)]
    with torch.no_grad():
        assert torch.equal(at_once, network(volume))
    sizes.clear()
    assert in_windows(run, volume, (8, 8, 8), whole=0).shape == (1, 2, 9, 5, 7)
    assert sizes == [(8, 8, 8)] * 2
    padded = in_windows(run, volume[:, :, :8], (8, 8, 8), whole=0)
    expected = run(F.pad(volume[:, :, :8], (0, 1, 1, 2)))[..., 1:6, :7]
    torch.testing.assert_close(padded, expected, rtol=0, atol=1e-6)  # times a weight that rounds to 1
