"""Segmentation and depth from train to predict, on the embedded scenes and on folders in each layout."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pair_files import depth_folder, masks_folder, nyu_file, voc_folder
from PIL import Image

from normfree.data.masks import MaskValues
from normfree.data.pairs import read_depth
from normfree.export import Preprocessing, to_archive
from normfree.recipes import list_recipes, load_recipe
from normfree.runs.load import load_trained
from normfree.tasks.pixel_answers import save_depth
from normfree.training import read_metrics

SMALL = ["--quiet", "--train.device", "cpu", "--train.batch_size", "2", "--train.steps", "2", "--task.head_width", "8"]
SMALL += ["--model.options.depths", "[1,1,1]", "--model.options.widths", "[16,16,32]"]
SIZES = ["--data.image_size", "24", "--data.test_size", "24"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of each task on scenes of 32 pixels."""
    from normfree.cli import main

    folder = tmp_path_factory.mktemp("dense")
    sizes = ["--data", "scenes:20,32", "--data.image_size", "32", "--data.test_size", "32"]
    for task in ("segmentation", "depth"):
        out = ["--recipe", f"demo_{task}", "--out", str(folder / task)]
        assert main(["train", *out, *SMALL, *sizes]) == 0
    return folder


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_evaluation_repeats_the_runs_numbers(normfree, run, task):
    result = normfree("eval", run / task, "--batch-size", 1)
    last = read_metrics(run / task)[-2]
    assert (result.code, result.err) == (0, "")
    assert "on scenes:20,32, 2 images" in result.out
    if task == "segmentation":
        assert f"mean IoU {last['ema_miou']:.2%}   pixels {last['ema_pixel_accuracy']:.2%}" in result.out
        named = re.findall(r"^  (\w+) +(?:[\d.]+%|not there)$", result.out, re.M)
        assert named == ["background", "disc", "box", "triangle", "ring", "cross"]
    else:
        assert f"within a factor of 1.25 {last['ema_delta1']:.2%}" in result.out
        assert f"rms {last['ema_rms']:.4f} m   rel {last['ema_rel']:.4f}" in result.out


def test_the_end_of_a_run_names_its_score(normfree, tmp_path):
    sizes = ["--data", "scenes:10,32", "--data.image_size", "32", "--data.test_size", "32"]
    result = normfree("train", "--recipe", "demo_segmentation", *SMALL, *sizes, "--out", tmp_path / "run")
    assert result.code == 0
    assert re.search(r"test mean IoU [\d.]+%", result.out)
    assert len(list((tmp_path / "run" / "examples").iterdir())) == 1  # a tenth of ten is held out


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_predictions_are_drawn(normfree, run, task, tmp_path):
    examples = run / task / "examples"
    result = normfree("predict", run / task, examples, "--out", tmp_path / "out", "--json")
    told = [json.loads(line) for line in result.out.splitlines()]
    assert len(told) == 2
    for one in told:
        with Image.open(one["picture"]) as picture:
            assert picture.width > 2 * 320  # both panels of 32 pixels, enlarged ten times
        if task == "segmentation":
            assert sum(one["classes"].values()) == pytest.approx(1, abs=1e-5)
        else:
            assert set(one["metres"]) == {"nearest", "farthest", "median"}
    assert normfree("predict", run / task, examples / "test0.png").code == 0
    assert (run / task / "predictions" / f"test0_{task}.png").is_file()


def test_label_images(normfree, run, tmp_path):
    """Of the image's size, read as masks are; pictures are drawn where they are asked for."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 57, 3), np.uint8)).save(tmp_path / "odd.png")
    images = [tmp_path / "odd.png", *sorted((run / "segmentation" / "examples").iterdir())]
    before = sorted((run / "segmentation").rglob("*"))
    result = normfree("predict", run / "segmentation", *images, "--masks", tmp_path / "masks", "--json")
    assert result.code == 0, result.err
    assert sorted((run / "segmentation").rglob("*")) == before
    for image, line in zip(images, result.out.splitlines(), strict=True):
        told = json.loads(line)
        assert told["mask"] == str(tmp_path / "masks" / f"{image.stem}.png")
        assert "picture" not in told
        mask = MaskValues(6).read(told["mask"])
        with Image.open(image) as opened:
            assert mask.shape == opened.size[::-1]
        names = load_trained(str(run / "segmentation")).classes
        shares = {name: (mask == i).float().mean().item() for i, name in enumerate(names) if (mask == i).any()}
        assert told["classes"] == pytest.approx(shares, abs=1e-5)
    both = normfree("predict", run / "segmentation", images[0], "--masks", tmp_path / "masks", "--out", tmp_path / "p")
    assert both.code == 0
    assert (tmp_path / "p" / "odd_segmentation.png").is_file()


def test_a_photo_that_exif_turns(normfree, run, tmp_path):
    """The label image is for what is shown, and that is said."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((41, 57, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    result = normfree("predict", run / "segmentation", tmp_path / "a.jpg", "--masks", tmp_path / "masks")
    assert result.code == 0
    assert result.err == "EXIF turns 1 of the images; what is written is for images as they are shown\n"
    with Image.open(tmp_path / "masks" / "a.png") as mask:
        assert mask.size == (41, 57)


def test_depth_maps(normfree, run, tmp_path):
    image = run / "depth" / "examples" / "test0.png"
    result = normfree("predict", run / "depth", image, "--depths", tmp_path / "depths", "--json")
    told = json.loads(result.out)
    assert told["depth"] == str(tmp_path / "depths" / "test0.png")
    depth = read_depth(told["depth"])
    assert depth.shape == (32, 32)
    found = dict(nearest=depth.min().item(), farthest=depth.max().item(), median=depth.median().item())
    assert told["metres"] == pytest.approx(found, abs=6e-4)  # half a millimetre, and four digits


def test_depth_beyond_16_bits(tmp_path):
    depth = torch.tensor([[0.5, 65.535]])
    assert save_depth(depth, tmp_path / "near.a").name == "near.a.png"
    torch.testing.assert_close(read_depth(str(tmp_path / "near.a.png")), depth)
    depth = torch.tensor([[0.5, 65.6]])
    assert save_depth(depth, tmp_path / "far.a").name == "far.a.npy"
    assert torch.equal(read_depth(str(tmp_path / "far.a.npy")), depth)


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_a_table_and_a_summary(normfree, run, task, tmp_path):
    examples = run / task / "examples"
    (tmp_path / "bad.png").write_bytes(b"no")
    result = normfree("predict", run / task, examples, tmp_path, "--out", tmp_path / "out", "--csv", tmp_path / "a.csv")
    assert result.code == 1
    head, *rows = table(tmp_path / "a.csv")
    assert [row[0] for row in rows] == sorted(str(path) for path in examples.iterdir())
    if task == "segmentation":
        assert head == ["path", *load_trained(str(run / task)).classes]
        assert [sum(map(float, row[1:])) for row in rows] == pytest.approx([1, 1], abs=1e-5)
    else:
        assert head == ["path", "nearest", "farthest", "median"]
        assert all(float(row[1]) <= float(row[3]) <= float(row[2]) for row in rows)
    summary = result.out.splitlines()[result.out.splitlines().index("2 images, 1 more could not be read") :]
    assert summary[-2:] == [f"  pictures in {tmp_path / 'out'}", f"  table {tmp_path / 'a.csv'}"]


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_images_at_once_and_of_another_size(normfree, run, task, tmp_path):
    """Images of several sizes are still asked about together where they can be, and in order."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, side in enumerate((32, 32, 24, 32)):
        pixels = np.random.default_rng(i).integers(0, 256, (side, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    key, told = dict(segmentation="classes", depth="metres")[task], []
    for flags in (["--batch-size", "1"], ["--batch-size", "3"], ["--size", "20"]):
        result = normfree("predict", run / task, folder, "--json", "--out", tmp_path / "out", *flags)
        assert (result.code, result.err) == (0, "")
        lines = [json.loads(line) for line in result.out.splitlines()]
        assert [Path(line["path"]).stem for line in lines] == list("0123")
        told.append([line[key] for line in lines])
    for one, three in zip(*told[:2], strict=True):
        assert three == pytest.approx(one, abs=2e-3)  # the order of sums: a pixel between two classes
    assert (told[2] != told[0]) == (task == "depth")  # the other network has learnt nothing but the background


def test_images_of_any_size(normfree, run, tmp_path):
    Image.fromarray(np.zeros((41, 57, 3), np.uint8)).save(tmp_path / "odd.png")
    (tmp_path / "bad.png").write_bytes(b"no")
    result = normfree("predict", run / "depth", tmp_path / "odd.png", tmp_path / "bad.png", "--out", tmp_path)
    assert result.code == 1
    assert "skipped unreadable image" in result.err
    assert (tmp_path / "odd_depth.png").is_file()


def test_a_signal_propagation_plot(normfree, run, tmp_path):
    assert normfree("spp", run / "segmentation", "--out", tmp_path / "spp.png").code == 0


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_an_exported_file_predicts_what_the_run_does(normfree, run, task, kind, tmp_path):
    file, examples = tmp_path / f"a.{kind}", run / task / "examples"
    result = normfree("export", run / task, "--out", file)
    assert result.code == 0, result.err
    output = "logits (N, 6, 32, 32)" if task == "segmentation" else "metres (N, 1, 32, 32)"
    assert f"image (N, 3, 32, 32) -> {output}, float32" in result.out
    assert ("class names are in the file" in result.out) == (task == "segmentation")
    told = []
    for network in (run / task, file):
        result = normfree("predict", network, examples, "--out", tmp_path / "out", "--json")
        assert (result.code, result.err) == (0, "")
        told.append([json.loads(line) for line in result.out.splitlines()])
    for ours, theirs in zip(*told, strict=True):
        assert ours["path"] == theirs["path"]
        if task == "segmentation":
            assert theirs["classes"] == pytest.approx(ours["classes"], abs=1e-3)  # a pixel between two classes
        else:
            assert theirs["metres"] == pytest.approx(ours["metres"], rel=1e-4)


def test_an_exported_file_sees_the_centre(normfree, run, tmp_path):
    assert normfree("export", run / "depth", "--size", 24, "--out", tmp_path / "a.onnx").code == 0
    Image.fromarray(np.zeros((41, 16, 3), np.uint8)).save(tmp_path / "odd.png")
    assert normfree("predict", tmp_path / "a.onnx", tmp_path / "odd.png", "--out", tmp_path).code == 0
    with Image.open(tmp_path / "odd_depth.png") as picture:
        assert picture.width == 2 * 24 * 14 + 8 + 20  # two squares, whatever the image's form


def test_classes_without_names_are_numbers(normfree, run, tmp_path):
    model = load_trained(str(run / "segmentation")).model
    view = Preprocessing(32, 3, (0.5,) * 3, (0.5,) * 3, 0, resize="none")
    to_archive(model, tmp_path / "a.pt2", preprocessing=view, task="segmentation")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    result = normfree("predict", tmp_path / "a.pt2", tmp_path / "a.png", "--out", tmp_path, "--json")
    assert result.code == 0
    assert set(json.loads(result.out)["classes"]) <= set("012345")


def test_images_with_nothing_to_measure(normfree, run, tmp_path):
    """Numbers would be those of nothing."""
    names = "\n".join(load_trained(str(run / "segmentation")).classes)
    for path in (masks_folder(tmp_path / "m", names=names) / "val" / "masks").iterdir():
        Image.fromarray(np.full((24, 24), 255, np.uint8)).save(path)
    for path in (depth_folder(tmp_path / "d") / "val" / "depths").iterdir():
        zeros = np.zeros((24, 24), np.uint16)
        Image.fromarray(zeros).save(path) if path.suffix == ".png" else np.save(path, zeros.astype(np.float32))
    result = normfree("eval", run / "segmentation", "--data", f"masks:{tmp_path / 'm'}")
    assert (result.code, result.out) == (2, "")  # found in the masks, before the network has run
    assert "the 6 test masks hold the value 255 alone, and 255 is ignored" in result.error
    source = f"depth:{tmp_path / 'd'}"
    result = normfree("eval", run / "depth", "--data", source)
    assert (result.code, result.out) == (1, "")
    assert result.error == f"none of the 6 test images of {source} has a pixel whose depth is known"


def test_test_masks_of_one_class(normfree, run, tmp_path):
    """A mean over one class is none, whatever the number is."""
    names = "\n".join(load_trained(str(run / "segmentation")).classes)
    for path in (masks_folder(tmp_path, names=names) / "val" / "masks").iterdir():
        Image.fromarray(np.zeros((24, 24), np.uint8)).save(path)
    result = normfree("eval", run / "segmentation", "--data", f"masks:{tmp_path}")
    assert result.code == 0, result.err
    assert re.search(r"^IoU of 'background' [\d.]+%   pixels", result.out, re.M)
    assert "mean IoU" not in result.out
    told = "the test masks hold 'background' alone: there is no mean over classes"
    assert told in result.out
    for path in (tmp_path / "train" / "masks").iterdir():  # all six classes
        Image.fromarray(np.arange(576, dtype=np.uint8).reshape(24, 24) % 6).save(path)
    train = ["train", "--data", f"masks:{tmp_path}", *SMALL, *SIZES]
    assert "the 6 test masks hold 'background' alone" in normfree(*train, "--out", tmp_path / "run").error
    result = normfree(*train, "--data.allow_missing_classes", "true", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert re.search(rf"^test IoU of 'background' [\d.]+%.*\n{told}", result.out)


LAYOUTS = {
    "masks": (masks_folder, "segmentation"),
    "voc": (voc_folder, "segmentation"),
    "depth": (depth_folder, "depth"),
    "nyu": (nyu_file, "depth"),
}


@pytest.mark.parametrize("layout", ["masks", "depth"])
def test_measuring_needs_no_training_images(normfree, run, layout, tmp_path):
    """Neither PATH/train, nor more than the folder of the test images."""
    make, task = LAYOUTS[layout]
    make(tmp_path)
    (tmp_path / "classes.txt").unlink(missing_ok=True)
    (tmp_path / "train").rename(tmp_path / "other")
    numbers = []
    for path in (tmp_path, tmp_path / "val"):
        result = normfree("eval", run / task, "--data", f"{layout}:{path}")
        assert result.code == 0, result.err
        numbers.append(result.out.splitlines()[1:])
    assert numbers[0] == numbers[1]
    assert "train/images is missing" in normfree("train", "--data", f"{layout}:{tmp_path}", *SMALL, "--out", "x").error


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_of_each_layout(normfree, layout, tmp_path):
    make, task = LAYOUTS[layout]
    (tmp_path / "data").mkdir()
    source = f"{layout}:{make(tmp_path / 'data')}"
    more = ["--data.crop", "random", "--data.scale", "[0.5,2]", "--data.color", "true", "--train.batch_size", "1"]
    train = normfree("train", "--data", source, *SMALL, *SIZES, *more, "--out", tmp_path / "run")
    assert train.code == 0, train.err
    assert load_trained(str(tmp_path / "run")).recipe.task.name == task
    result = normfree("eval", tmp_path / "run")
    assert (result.code, result.err) == (0, "")
    assert ("mean IoU" in result.out) == (task == "segmentation")
    if layout != "nyu":
        image = next((tmp_path / "data").rglob("*.jpg" if layout == "voc" else "*.png"))
        assert normfree("predict", tmp_path / "run", image, "--out", tmp_path / "out").code == 0


def test_weights_of_a_classifier_start_the_backbone(normfree, trained, run, tmp_path):
    flags = ["--data", "scenes:20,32", "--data.image_size", "32", "--data.test_size", "32", "--data.channels", "1"]
    flags += ["--model.options.stem", "3x3", "--optim.lr", "1e-9", "--optim.ema_decay", "null"]
    result = normfree("train", "--recipe", "demo_depth", *SMALL, *flags, "--init", trained, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "without their classifier, into the backbone" in result.err
    theirs, ours = load_trained(str(trained)).model, load_trained(str(tmp_path / "run")).model
    weight = theirs.stages[0][0].conv0.weight
    torch.testing.assert_close(ours.backbone.stages[0][0].conv0.weight, weight, rtol=0, atol=1e-6)
    flags = ["--data", "scenes:20,32", "--data.image_size", "32", "--data.test_size", "32"]
    again = normfree(
        "train", "--recipe", "demo_depth", *SMALL, *flags, "--init", run / "depth", "--out", tmp_path / "a"
    )
    assert again.code == 0
    assert "into the backbone" not in again.err
    other = normfree(
        "train", "--recipe", "demo_depth", *SMALL, *flags, "--init", run / "segmentation", "--out", tmp_path / "b"
    )
    assert other.code == 0
    assert "into the backbone" in other.err


@pytest.mark.parametrize(
    ("task", "flags", "match"),
    [
        ("segmentation", ["--depths", "d"], "--depths is for networks for depth; .* is for segmentation"),
        ("depth", ["--masks", "d"], "--masks is for networks for segmentation or volumes; .* is for depth"),
        ("depth", ["--boxes", "d.json"], "--boxes is for networks for detection; .* is for depth"),
        ("depth", ["--size", "0"], r"--size \(=0\) must be at least 1 and at most 4096"),
        ("depth", ["--batch-size", "0"], r"--batch-size \(=0\) must be at least 1"),
        ("depth", ["--csv", "no/a.csv"], r"--csv no/a\.csv cannot be written: No such file or directory"),
        ("depth", ["--depths", "a.txt/b"], r"--depths a\.txt/b cannot be made: "),
    ],
)
def test_refusals_of_predictions(normfree, run, task, flags, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").touch()
    result = normfree("predict", run / task, run / task / "examples", *flags, "--out", "out")
    assert (result.code, result.out) == (2, "")
    assert re.search(match, result.error)


def test_an_exported_file_sees_too_little_for_a_label_image(normfree, run, tmp_path):
    file = tmp_path / "a.pt2"
    assert normfree("export", run / "segmentation", "--out", file).code == 0
    for flags, told in (
        (["--masks", tmp_path], "sees the centre of images, 32 x 32"),
        (["--size", 8], "takes images of"),
    ):
        result = normfree("predict", file, run / "segmentation" / "examples", *flags)
        assert (result.code, told in result.error) == (2, True)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--recipe", "digits", "--data", "scenes:20"], r"\(='scenes:20'\) is for segmentation or depth"),
        (["--recipe", "demo_depth", "--data", "digits"], r"must be \"scenes:N\", \"nyu:FILE.mat\" or \"depth:PATH\""),
        (["--recipe", "demo_depth", "--data.crop", "shift"], r"data\.crop \(='shift'\)"),
        (["--recipe", "demo_depth", "--data.cutout", "8"], r"data\.cutout \(=8\) must be 0 for segmentation and depth"),
        (["--recipe", "digits", "--data.crop", "random"], r"data\.crop \(='random'\) is for segmentation and depth"),
        (["--recipe", "digits", "--data.color", "true"], r"data\.color \(=True\) is for segmentation and depth"),
    ],
)
def test_refusals(normfree, flags, match, tmp_path):
    result = normfree("train", *flags, "--out", tmp_path / "run")
    assert result.code == 2
    assert re.search(match, result.error)
    assert not (tmp_path / "run").exists()


def test_out_is_for_pictures(normfree, trained):
    assert (
        "--out is for networks for segmentation, depth or detection"
        in normfree("predict", trained, trained, "--out", "x").error
    )


def test_the_papers_numbers():
    assert {"nf_resnet50_segmentation", "nf_resnet50_depth"} <= set(list_recipes())
    voc, nyu = load_recipe("nf_resnet50_segmentation"), load_recipe("nf_resnet50_depth")
    assert (voc.train.steps, voc.train.batch_size, voc.optim.lr, voc.data.test_size) == (30_000, 16, 0.003, 513)
    rates = [
        voc.optim.lr_at(n, batch_size=16, total_steps=30_000, steps_per_epoch=661) for n in (0, 20_999, 21_000, 27_000)
    ]
    assert rates == pytest.approx([0.003, 0.003, 3e-4, 3e-5])
    assert (nyu.train.steps, nyu.train.batch_size, nyu.optim.lr) == (7_500, 256, 0.16)
    assert (nyu.data.image_size, nyu.data.image_width) == (228, 304)
