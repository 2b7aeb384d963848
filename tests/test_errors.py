"""What was probably meant: one function for every name that a user may mistype."""

import re
from pathlib import Path

import pytest

import normfree
from normfree import UsageError
from normfree.cli import main
from normfree.errors import did_you_mean, nearest
from normfree.recipes import load_recipe

KNOWN = ["nfnet_f0", "nfnet_f1", "nf_resnet50", "timm_nfnet_l0", "digits"]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("NFNET_F0", "nfnet_f0"),
        ("NF-ResNet-50", "nf_resnet50"),
        ("nfnet_l0", "timm_nfnet_l0"),
        ("Digit", "digits"),
        ("f0", "nfnet_f0"),  # a part of the name
        ("resnet", "nf_resnet50"),
    ],
)
def test_the_nearest_comes_first_whatever_the_case(name, first):
    assert nearest(name, KNOWN)[0] == first


def test_three_at_most_and_none_where_nothing_is_like_it():
    assert len(nearest("nfnet_f", [f"nfnet_f{k}" for k in range(8)])) == 3
    assert nearest("xyzzy", KNOWN) == nearest("", KNOWN) == nearest("x" * 10**6, ["x" * 10**6]) == []


def test_in_words():
    assert did_you_mean("nfnet_f9", KNOWN[:2], "look") == "did you mean nfnet_f0 or nfnet_f1?"
    assert did_you_mean("digit", KNOWN, "look") == "did you mean digits?"
    assert did_you_mean("xyzzy", KNOWN, "look") == "look"


def test_python_says_it_in_any_case():
    for make, meant in (
        (lambda: normfree.create_model("NFNet_F0"), "nfnet_f0"),
        (lambda: normfree.create_model("nf_resnet50", Alpha=1.0), "alpha"),
        (lambda: normfree.activation_gain("ReLU"), "relu"),
        (lambda: load_recipe("NFNET_F0"), "nfnet_f0"),
        (lambda: load_recipe("digits", {"Optim.LR": 1}), "optim"),
        (lambda: load_recipe("digits", {"optim.LR": 1}), r"optim\.lr"),
    ):
        with pytest.raises(UsageError, match=rf"did you mean .*{meant}"):
            make()


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["TRAIN"], "train"),
        (["train", "--Optim.LR", "1"], "--optim.lr"),
        (["train", "--Recipe", "digits"], "--recipe"),
        (["train", "--recipe", "Digits"], "digits"),
        (["train", "--model", "NF_ResNet26_small"], "nf_resnet26_small"),
        (["train", "--data", "ImageFolder:photos"], "imagefolder:photos"),
        (["train", "--data", "imagefoldr:photos"], "imagefolder:photos"),
        (["train", "--data", "Digits"], "digits"),
        (["train", "--recipe", "demo_segmentation", "--data", "mask:photos"], "masks:photos"),
        (["train", "--recipe", "demo_detection", "--data", "COCO:photos"], "coco:photos"),
        (["spp", "NF_ResNet50"], "nf_resnet50"),
        (["predict", "NFNet_F0", "a.png"], "nfnet_f0"),
        (["models", "NFNet_F0"], "nfnet_f0"),
        (["figures", "--layers", "51"], "50"),
    ],
)
def test_commands_say_it_in_any_case(arguments, meant, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert re.search(rf"did you mean [^?]*{re.escape(meant)}(,|\?| or )|one of [^;]*{meant}", said), said


def test_nobody_else_looks_for_near_names():
    """`difflib` is imported in one place."""
    root = Path(normfree.__file__).parent
    users = {str(path.relative_to(root)) for path in root.rglob("*.py") if "difflib" in path.read_text()}
    assert users == {"errors.py"}
