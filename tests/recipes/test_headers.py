"""What the headers of the papers' recipes promise: steps as released, sources, and what was assumed."""

import fnmatch
import re

import pytest

from normfree.recipes import list_recipes, load_recipe, recipe_header

IMAGENET, JFT = 1_281_167, 300_000_000
# what the papers do not state, by recipe
ASSUMED = {
    "pretrain_nf_resnet*": ("clipping", "label smoothing", "dropout", "stochastic depth"),
    "pretrain_nfnet_*": ("label smoothing", "dropout 0.5", "stochastic depth 0.25"),
    "finetune_nf_resnet*": ("clipping", "label smoothing", "size"),
    "finetune_nfnet_*": ("clipping 0.01", "label smoothing", "384 px", "512 px", "SAM"),
    "nf_resnet50_batch*": ("warm-up", "weight decay", "label smoothing"),
    "nf_resnet*_agc": ("dropout", "stochastic depth", "weight decay", "label smoothing", "warm-up"),
    "nf_regnet_*": ("alpha",),
    "nf_efficientnet_b0": ("optimizer", "averaging", "stochastic depth", "CutMix"),
    "efficientnet_b0": ("RMSProp", "weight decay", "averaging", "RandAugment", "BatchNorm"),
    "nfnet_f?": ("alpha",),
    "nfnet_f?_sam": ("alpha", "rho"),
    "nf_resnet50_depth": ("weight decay", "warm-up", "micro-batch"),
    "nf_resnet50_segmentation": ("crop", "width", "warm-up"),
}


def line(name: str, label: str) -> str:
    """A labelled line of a header and those that go on with it."""
    header = recipe_header(name)
    start = next((i for i, text in enumerate(header) if re.match(f"{label}[:,]", text)), None)
    if start is None:
        return ""
    end = next((i for i in range(start + 1, len(header)) if re.match(r"[A-Z][a-z]+: ", header[i])), len(header))
    return " ".join(header[start:end])


@pytest.mark.parametrize("name", [name for name in list_recipes() if "steps of" in line(name, "Cost")])
def test_steps_are_the_released_ones(name):
    """The data are repeated and batched without regard to epochs."""
    recipe = load_recipe(name)
    steps, batch = (int(n.replace(",", "")) for n in re.search(r"([\d,]+) steps of (\d+)", line(name, "Cost")).groups())
    assert batch == recipe.train.batch_size
    images = JFT if name.startswith("pretrain") else IMAGENET
    assert steps == (recipe.train.steps or images * recipe.train.epochs // batch)


def test_steps_of_the_papers_recipes():
    found = {name: line(name, "Cost") for name in list_recipes()}
    for name, steps in (
        ("nf_resnet50", "112,602"),
        ("nfnet_f0", "112,602"),
        ("nf_regnet_b0", "450,410"),
        ("nf_resnet50_batch8", "2,402,188"),
        ("nf_resnet50_batch4", "4,804,376"),
    ):
        assert f"{steps} steps" in found[name]


@pytest.mark.parametrize("name", [name for name in list_recipes() if "arXiv:2" in line(name, "Source")])
def test_what_the_paper_does_not_state_is_said(name):
    recipe, said = load_recipe(name), line(name, "Assumed")
    words = [words for pattern, words in ASSUMED.items() if fnmatch.fnmatch(name, pattern)]
    assert [word for word in sum(words, ()) if word not in said] == []
    if not words and not name.startswith(("demo", "digits")):  # of table 1 the paper states everything
        assert "table 1" in line(name, "Source")
    source = line(name, "Source")
    if "NFNets" in source and not name.startswith("digits"):
        assert ("A.3" in source) == bool(recipe.data.randaugment_layers)
        assert ("A.4" in source) == (recipe.optim.sam_rho is not None and recipe.optim.sam_rho > 0)
