"""`normfree convert-model`: the report, the files, and one line for everything that cannot be used."""

import sys

import pytest
import torch

from normfree.cli import main
from normfree.nn import SkipInit, WSConv2d
from normfree.training.weights_file import read_weights

MODULE = """
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock


def net(width=16):
    return nn.Sequential(nn.Conv2d(3, width, 3), *[BasicBlock(width, width) for _ in range(2)])


def trained():
    made = net()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(2.0)
            module.num_batches_tracked.fill_(5)
    return made


class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(x) if x.sum() > 0 else x
"""
QUICK = ["--size", "16", "--batch", "4"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "foreign_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield "foreign_networks"
    sys.modules.pop("foreign_networks", None)


def test_the_report(module, capsys):
    assert main(["convert-model", f"{module}:net", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "4 BatchNorm2d -> removed: its place is taken by the layer in front of it" in out
    assert "5 Conv2d -> WSConv2d: standardized, with gain and bias;" in out
    assert "2 addition of a branch -> SkipInit" in out
    assert "multiply-adds" in out
    assert "before: 2 residual blocks" in out
    assert "after: 2 residual blocks" in out
    assert "no fault found" in out


def test_a_line_for_every_place(module, capsys):
    assert main(["convert-model", f"{module}:net", "--option", "width=24", *QUICK, "--table", "--no-proof"]) == 0
    out = capsys.readouterr().out
    assert "1.bn1: BatchNorm2d -> removed: its place is taken by 1.conv1" in out
    assert "after:" not in out


def test_files(module, capsys):
    assert main(["convert-model", f"{module}:net", *QUICK, "--no-proof", "--out", "net.pt"]) == 0
    model = torch.load("net.pt", weights_only=False)
    assert sum(isinstance(m, WSConv2d) for m in model.modules()) == 5
    assert sum(isinstance(m, SkipInit) for m in model.modules()) == 2
    arguments = ["convert-model", f"{module}:trained", *QUICK, "--mode", "keep", "--out", "net.safetensors"]
    assert main([*arguments, "--freeze", "0"]) == 0
    assert "outputs in evaluation differ by" in capsys.readouterr().out
    tensors, description = read_weights("net.safetensors")
    assert description["mode"] == "keep"
    assert {"1.conv1.weight", "1.conv1.gain", "1.conv1.bias"} <= tensors.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["foreign_networks:Decides"], "Decides cannot be read as a graph"),
        (["foreign_networks:net", "--mode", "keep"], "1.bn1: its running statistics were never collected"),
        (["foreign_networks:net", "--out", "net.onnx"], "--out net.onnx must end in .safetensors or .pt"),
        (["foreign_networks:net", "--out", "no/net.pt"], "--out no/net.pt: folder no does not exist"),
        (["foreign_networks:net", "--leave", "layer1"], "leave (='layer1') names no module"),
        (["foreign_networks:net", "--size", "0"], "--size (=0) must be at least 1"),
        (["nf_resnet50"], "has no normalization that could be taken out"),
    ],
)
def test_refusals_are_one_line(module, arguments, message, capsys):
    assert main(["convert-model", *QUICK, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
