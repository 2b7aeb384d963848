"""Each test of a kernel runs on both paths: the compiled library, skipped where there is none, and the portable one.

The optimizer's step also by Triton's interpreter, where the environment has it on: see test_triton.py.
"""

import pytest
import torch
from kernels import triton_device  # tests/kernels

from normfree import kernels
from normfree.kernels import library, optimizer


@pytest.fixture
def compiled():
    """The kernels are on; the test is skipped with the reason where they are not."""
    if not kernels.available():
        pytest.skip(kernels.why_off())


@pytest.fixture(params=["compiled", "portable", *["triton"] * triton_device.INTERPRETED])
def either_path(request, monkeypatch):
    if request.param == "triton":
        triton_device.take(monkeypatch, optimizer)
    elif request.param == "portable":
        monkeypatch.setattr(library, "_load", lambda: (None, "turned off by a test"))
    elif not kernels.available():
        pytest.skip(kernels.why_off())
    return request.param


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """As many threads as torch's; the suite's number comes back at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
