"""`normfree bench` of trained networks and of functions, and how it says what a network cannot do."""

import re

import pytest
import torch

from normfree.cli import main

TINY = ["--batch", "2", "--size", "32", "--rounds", "1", "--device", "cpu"]
BACKBONE = ["--model.options.depths", "[1,1,1]", "--model.options.widths", "[16,16,32]"]
SMALL = ["--quiet", "--train.device", "cpu", "--train.batch_size", "2", "--train.steps", "1", "--task.head_width", "8"]
SIZES = ["--data", "scenes:20,32", "--data.image_size", "32", "--data.test_size", "32"]
FUNCTIONS = """
import torch

class Wide(torch.nn.Module):
    "A classifier of 12 classes, which says what it was shown."

    def __init__(self, channels):
        super().__init__()
        self.default_cfg = dict(input_size=(channels, 8, 8))
        self.linear = torch.nn.Linear(channels, 12)

    def forward(self, x):
        return self.linear(x.mean((2, 3)))

def five():
    return Wide(5)

def nameless():
    "Without what timm keeps with a model."
    model = Wide(5)
    del model.default_cfg
    return model
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """The folder that a user's module lies in."""
    (tmp_path / "bench_functions.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)


def test_a_run_on_grey_images(normfree, trained):
    result = normfree("bench", "step", trained, *TINY)
    assert (result.code, result.err) == (0, "")
    assert f"| {trained} | " in result.out


def test_images_have_the_channels_of_the_network(normfree, functions):
    call = "bench_functions:five"
    result = normfree("bench", "step", call, "nf_resnet26_small", *TINY)
    assert (result.code, result.err) == (0, "")
    assert [line.split("|")[1].strip() for line in result.out.splitlines()[4:]] == [call, "nf_resnet26_small"]


def test_other_channels_than_it_says(normfree, functions):
    result = normfree("bench", "step", "bench_functions:nameless", *TINY)
    assert result.code == 1
    assert result.error.startswith("bench_functions:nameless cannot train on batch 2 of 32 px: RuntimeError: ")


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("segmentation", r"a tensor of shape \(1, 6, 32, 32\)"),
        ("depth", r"a tensor of shape \(1, 1, 32, 32\)"),
        ("detection", "a list"),
    ],
)
def test_runs_that_answer_for_places(normfree, tmp_path, task, answer):
    run = tmp_path / task
    regions = ["--task.proposals", "8", "--task.regions", "8"] if task == "detection" else []
    assert main(["train", "--recipe", f"demo_{task}", *SMALL, *regions, *BACKBONE, *SIZES, "--out", str(run)]) == 0
    result = normfree("bench", "step", run, *TINY)
    assert (result.code, result.out) == (2, "")
    told = result.error.removeprefix(f"{run} answers images of shape (1, 3, 32, 32) with ")
    right = r"bench step measures classifiers, which answer with a tensor of shape \(N, classes\)"
    assert re.fullmatch(f"{answer}; {right}", told)


def test_tables_name_the_network_that_cannot_train(normfree):
    result = normfree("bench", "tables", "4", *TINY, "--batch", "1")
    assert result.code == 1
    assert result.error.startswith("bn_resnet50 cannot train on batch 1 of 32 px: ValueError: Expected more than 1")


def test_tables_name_the_network_whose_gradient_is_not_finite(normfree):
    result = normfree("bench", "tables", "4", *TINY, "--size", "16")
    assert result.code == 1
    assert result.error.startswith("bn_resnet50 cannot train on batch 2 of 16 px: NotFinite: a gradient is not finite")


def test_scaling_names_the_network_that_cannot_train(normfree, tmp_path):
    options = [*TINY, "--size", "16", "--out", tmp_path / "out"]
    result = normfree("bench", "scaling", "batch", "--model", "bn_resnet50", *options)
    assert result.code == 1
    assert result.error.startswith("bn_resnet50 cannot train on batch 1 of 16 px: ValueError: Expected more than 1")


@pytest.mark.parametrize("what", [["step", "nf_resnet26_small"], ["tables", "4"], ["scaling", "size"]])
def test_too_little_memory(normfree, tmp_path, monkeypatch, what):
    """What torch's allocator says on a CPU is told in our words."""
    said = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."

    def full(count, *shape, made=torch.randn):
        if count == 60000:
            raise RuntimeError(said)
        return made(count, *shape)

    monkeypatch.setattr(torch, "randn", full)
    monkeypatch.chdir(tmp_path)
    result = normfree("bench", *what, *TINY, "--batch", 60000)
    assert result.code == 1
    assert re.fullmatch(
        r"memory is too small for nf\w+ on batch 60000 of \d+ px; lower --batch or --size", result.error
    )
