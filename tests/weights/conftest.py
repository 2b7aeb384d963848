"""Weights of tiny networks, and a folder to be in."""

import pytest
import torch
from tiny_runs import network

import normfree
from normfree.weights import to_timm


@pytest.fixture(scope="module")
def state():
    """Weights of a tiny network, which normfree files hold here."""
    torch.manual_seed(0)
    return {name: tensor.detach().clone() for name, tensor in network().state_dict().items()}


@pytest.fixture(scope="module")
def timms():
    """Weights of timm's smallest network."""
    torch.manual_seed(0)
    return to_timm(normfree.create_model("timm_test_nfnet", num_classes=10))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path
