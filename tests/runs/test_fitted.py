"""The first layer that is fitted to the training images of a run."""

import torch
from tiny_runs import FLAGS

from normfree.training import read_checkpoint

CIFARNET = [*FLAGS, "--model", "nf_cifarnet", "--model.options", "{widths: [8, 8, 8]}", "--train.steps", "1"]


def train(normfree, folder, *options):
    """Runs `normfree train`; its result."""
    return normfree("train", *CIFARNET, "--out", str(folder), *options)


def stem(folder):
    return read_checkpoint(folder, "last", "weights")[0]["stem.conv.weight"]


def test_a_run_fits_it_to_its_images_and_says_so(normfree, tmp_path):
    assert "the first layer whitens patches as 1,4" in train(normfree, tmp_path / "run").err
    weight = stem(tmp_path / "run").flatten(1).double()
    half = len(weight) // 2
    assert torch.equal(weight[half:], -weight[:half])
    products = weight[:half] @ weight[:half].T
    off = products - torch.diag(products.diag())
    # principal directions are orthogonal; each is divided by its own deviation
    assert off.abs().max() < 1e-3 * products.diag().max()
    assert (products.diag() - 1).abs().max() > 0.1


def test_the_fit_depends_on_the_images_alone(normfree, tmp_path):
    for seed in ("1", "2"):
        train(normfree, tmp_path / seed, "--train.seed", seed)
    assert torch.equal(stem(tmp_path / "1"), stem(tmp_path / "2"))


def test_a_network_from_weights_keeps_theirs(normfree, tmp_path):
    train(normfree, tmp_path / "first")
    second = train(normfree, tmp_path / "second", "--init", str(tmp_path / "first"), "--data.std", "[0.1]")
    assert "whitens" not in second.out + second.err
    assert torch.equal(stem(tmp_path / "first"), stem(tmp_path / "second"))
