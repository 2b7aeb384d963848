"""`normfree eval`: what cannot be measured is said before anything is measured; scores that are not defined."""

import json
import shutil

import image_files
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import FLAGS

from normfree.cli import main
from normfree.data import Batch, UnreadableImage, decode_image
from normfree.data.masks import read_values
from normfree.tasks import Regression
from normfree.tasks.regression import RegressionErrors

SMALL = [*FLAGS, "--data.image_size", "12", "--data.test_size", "12", "--train.batch_size", "4", "--train.steps", "1"]
SMALL += ["--data.resize_margin", "2", "--data.crop", "none"]
DENSE = ["--recipe", "demo_segmentation", "--quiet", "--train.device", "cpu", "--train.batch_size", "2"]
DENSE += ["--train.steps", "1", "--task.head_width", "8", "--data.image_size", "16", "--data.test_size", "16"]
DENSE += ["--model.options.depths", "[1,1,1]", "--model.options.widths", "[16,16,32]"]


def _table(root, cells, column="class"):
    """Eight images, every fourth for testing, with these cells; the source."""
    for i in range(8):
        image_files.write(root / f"{i}.png", image_files.pixels(16, 16, seed=i))
    rows = [f"{i}.png,{cell},{'train' if i % 4 else 'val'}" for i, cell in enumerate(cells)]
    (root / "labels.csv").write_text("\n".join([f"file,{column},split", *rows]))
    return f"csv:{root / 'labels.csv'}"


def _masks(root, values, parts=("train", "val")):
    for part in parts:
        (root / part / "masks").mkdir(parents=True)
        for i in range(3):
            image_files.write(root / part / "images" / f"{i}.png", image_files.pixels(16, 16, seed=i))
            mask = np.random.default_rng(i).choice(np.uint8(values), (16, 16))
            Image.fromarray(mask).save(root / part / "masks" / f"{i}.png")
    return f"masks:{root}"


def test_masks_of_0_and_255_are_refused_as_in_training(normfree, tmp_path):
    run = tmp_path / "run"
    assert main(["train", *DENSE, "--data", _masks(tmp_path / "a", [0, 1]), "--out", str(run)]) == 0
    for name, values, told in (("b", [0, 255], "the values 0 and 255"), ("c", [255], "the value 255")):
        result = normfree("eval", run, "--data", _masks(tmp_path / name, values, ("val",)))
        assert result.code == 2
        assert f"the 3 test masks hold {told} alone, and 255 is ignored; if it is a class" in result.error
        assert "data.mask_values" in result.error
    assert normfree("eval", run, "--data", _masks(tmp_path / "d", [0, 1, 255], ("val",))).code == 0


def test_no_test_image_has_a_class(normfree, tmp_path):
    labels = ["--task.labels", "multi"]
    result = normfree("train", *SMALL, *labels, "--data", _table(tmp_path / "a", ["", "a", "b", "a;b"] * 2))
    assert (result.code, result.error) == (
        2,
        "data.source: no test image has a class; there are 2, and nothing to measure",
    )
    run = tmp_path / "run"
    source = _table(tmp_path / "b", ["a", "b", "a;b", "a"] * 2)
    assert main(["train", *SMALL, *labels, "--data", source, "--out", str(run)]) == 0
    result = normfree("eval", run, "--data", _table(tmp_path / "c", ["", "a", "b", "a;b"] * 2))
    assert result.code == 2
    assert "no test image has a class" in result.error


def test_r2_of_one_image_is_not_defined(normfree, tmp_path):
    source = _table(tmp_path / "a", range(8), "age")
    table = tmp_path / "a" / "labels.csv"
    whole = table.read_text()
    table.write_text(whole.replace("4.png,4,val", "4.png,4,train"))
    result = normfree("train", *SMALL, "--task.name", "regression", "--data", source)
    assert (result.code, result.error) == (2, "data.source: there is 1 test image; R2 needs at least 2")
    metrics = RegressionErrors(torch.tensor([3.0]), torch.tensor([2.0]))
    metrics.update(
        torch.tensor([[1.0]]),
        Batch(torch.zeros(1, 3, 2, 2), torch.zeros(1), torch.zeros(1), targets=torch.tensor([[4.0]])),
    )
    found = Regression.measured(metrics, ["age"])
    told = json.loads(found.as_json())
    assert (told["r2"], told["numbers"][0]["r2"]) == (None, None)
    assert told["mae"] == pytest.approx(1.0)
    assert "R2 not defined   mean absolute error 1" in found.as_text()
    assert "0.0000" not in found.as_text()


def test_a_table_that_cannot_be_written_is_said_first(normfree, trained, tmp_path):
    place = tmp_path / "nowhere" / "x.csv"
    result = normfree("eval", trained, "--csv", place)
    assert (result.code, result.out) == (2, "")
    assert f"--csv {place} cannot be written: No such file or directory" in result.error


def test_the_first_line_counts_one_image(normfree, trained, tmp_path):
    image_files.write(tmp_path / "a" / "0" / "x.png", image_files.pixels(8, 8))
    result = normfree("eval", trained, "--data", f"imagefolder:{tmp_path / 'a'}")
    assert result.out.splitlines()[0].endswith(", 1 image")


def test_regression_is_announced_as_numbers(normfree, tmp_path):
    source = _table(tmp_path / "a", range(8), "age")
    flags = [flag for flag in SMALL if flag != "--quiet"]
    result = normfree("train", *flags, "--task.name", "regression", "--data", source, "--out", tmp_path / "run")
    assert "6 training and 2 test images with 1 number each" in result.out + result.err


def test_16_bits_in_a_run_of_8_are_refused(tmp_path):
    for most in (999, 60000):
        Image.fromarray(np.linspace(0, most, 1600).astype(np.uint16).reshape(40, 40)).save(tmp_path / "x.png")
        with pytest.raises(UnreadableImage, match=r"convert it to 8 bits, or train with data\.value_range"):
            decode_image(tmp_path / "x.png", 3, value_range=(0.0, 255.0))
    Image.fromarray(np.linspace(0, 255, 1600).astype(np.uint16).reshape(40, 40)).save(tmp_path / "x.png")
    decode_image(tmp_path / "x.png", 3, value_range=(0.0, 255.0))


def test_masks_that_are_colours_say_how_to_give_them(tmp_path):
    for mode in ("RGB", "RGBA"):
        Image.new(mode, (4, 4)).save(tmp_path / "x.png")
        with pytest.raises(UnreadableImage, match=r"as data\.mask_values \[\[0,0,0\],\[255,255,255\]\]"):
            read_values(str(tmp_path / "x.png"), maximum=65535)
    with pytest.raises(UnreadableImage, match="save the mask as RGB, without transparency"):
        read_values(str(tmp_path / "x.png"), colours=True)


def test_what_is_said_of_a_damaged_checkpoint(normfree, trained, tmp_path):
    """The one before it is used, and no place in the code is named."""
    run = tmp_path / "run"
    shutil.copytree(trained, run, symlinks=True)
    damaged = (run / "checkpoints" / "last").resolve()
    (damaged / "ema.safetensors").write_bytes(b"")
    for arguments in (
        ["eval", run],
        ["train", *FLAGS, "--train.steps", "1", "--init", run, "--out", tmp_path / "new", "--quiet"],
    ):
        result = normfree(*arguments)
        lines = result.err.splitlines()
        assert result.code == 0
        start = next(n for n, line in enumerate(lines) if line.startswith(f"checkpoint {damaged} is damaged (ema"))
        assert lines[start + 1].startswith(f"checkpoint {damaged.parent / 'step-'}")
        assert lines[start + 1].endswith(" is used instead")
        assert "Warning" not in result.err
