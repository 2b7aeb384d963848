"""Every test starts from the same seed and sums in the same order."""

import pytest
import torch

from normfree.kernels import library

torch.set_num_threads(1)  # the order of a sum depends on the number of threads


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def portable(monkeypatch):
    """Without the compiled kernels: what a compiler or an exporter sees is compared with the same operations."""
    monkeypatch.setattr(library, "_load", lambda: (None, "turned off by a test"))
