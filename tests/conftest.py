"""Every test starts from the same seed and sums in the same order."""

import pytest
import torch

torch.set_num_threads(1)  # the order of a sum depends on the number of threads


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
