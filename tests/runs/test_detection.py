"""Detection from train to predict, on the embedded scenes and on COCO's layouts."""

import csv
import errno
import json
import os
import re
import signal

import numpy as np
import pytest
import torch
from coco_files import coco_folder
from image_files import turn
from PIL import Image

from normfree.cli import main
from normfree.data import Objects
from normfree.models import DetectionNet, Detections
from normfree.recipes import list_recipes, load_recipe
from normfree.runs.load import load_trained
from normfree.tasks.object_answers import object_list, object_picture
from normfree.training import TrainStep, find_checkpoint, read_metrics
from normfree.training.checkpoints import read_tensors

BACKBONE = ["--model.options.depths", "[1,1,1]", "--model.options.widths", "[16,16,32]"]
SMALL = ["--quiet", "--train.device", "cpu", "--train.batch_size", "2", "--train.steps", "2", "--task.head_width", "8"]
SMALL += ["--task.proposals", "8", "--task.regions", "8", *BACKBONE]
SIZES = ["--data", "scenes:20,32", "--data.image_size", "32", "--data.test_size", "32"]
DEMO = ["train", "--recipe", "demo_detection", *SMALL, *SIZES]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on scenes of 32 pixels, whose detections are as good as chance."""
    folder = tmp_path_factory.mktemp("detection") / "run"
    assert main([*DEMO, "--out", str(folder)]) == 0
    return folder


def test_evaluation_repeats_the_runs_numbers(normfree, run):
    result = normfree("eval", run, "--batch-size", 1)
    last = read_metrics(run)[-2]
    assert (result.code, result.err) == (0, "")
    assert "on scenes:20,32, 2 images" in result.out
    assert f"boxes AP {last['ema_ap']:.2%}   at overlap 0.5 {last['ema_ap50']:.2%}" in result.out
    assert f"masks AP {last['ema_mask_ap']:.2%}" in result.out
    named = re.findall(r"^  (\w+) +(?:[\d.]+%|not there)$", result.out, re.M)
    assert named == ["disc", "box", "triangle", "ring", "cross"]


def test_predictions_are_drawn(normfree, run, tmp_path):
    examples = run / "examples"
    result = normfree("predict", run, examples, "--out", tmp_path / "out", "--json", "--score", 0)
    told = [json.loads(line) for line in result.out.splitlines()]
    assert len(told) == 2
    for one in told:
        with Image.open(one["picture"]) as picture:
            assert picture.width > 2 * 320  # both panels of 32 pixels, enlarged ten times
        for found in one["objects"]:
            assert set(found) == {"name", "score", "box", "pixels"}
            assert 0 <= found["box"][0] < found["box"][2] <= 32
    assert normfree("predict", run, examples / "test0.png", "--score", 1).code == 0
    assert (run / "predictions" / "test0_detection.png").is_file()
    assert "nothing" in normfree("predict", run, examples / "test0.png", "--score", 1).out


def test_a_prediction_is_what_the_evaluation_sees(normfree, run, tmp_path):
    """On the same canvas: what surrounds an image that is not square takes part."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    network = load_trained(str(run))
    view, image = network.transform, torch.from_numpy(pixels).permute(2, 0, 1)
    seen, true = view(image, Objects.none((20, 31), (20, 31)))
    assert seen.shape == (3, 32, 32)
    with torch.no_grad():
        found = network.model(seen[None], [true])[0].placed(true.size, (20, 31))
    result = normfree("predict", run, tmp_path / "wide.png", "--out", tmp_path, "--json", "--score", 0)
    told = json.loads(result.out)["objects"]
    assert [one["score"] for one in told] == [round(score, 4) for score in found.scores.tolist()]
    assert [one["pixels"] for one in told] == found.masks.flatten(1).sum(1).tolist()


def test_options_that_say_nothing_about_the_task_are_refused(normfree, run, trained, tmp_path):
    image = run / "examples" / "test0.png"
    for flags, said in ((["--top", "3"], "--top is for"), (["--antialias"], "--antialias is for")):
        result = normfree("predict", run, image, *flags)
        assert (result.code, said in result.error) == (2, True)
    result = normfree("predict", trained, trained / "examples", "--score", "0.3")
    assert (result.code, "--score is for networks for detection" in result.error) == (2, True)


def test_an_image_that_is_named_twice_is_drawn_once(normfree, run, tmp_path):
    image = run / "examples" / "test0.png"
    result = normfree("predict", run, image, image, run / "examples", "--out", tmp_path, "--json")
    assert [json.loads(line)["path"] for line in result.out.splitlines()] == sorted(
        str(path) for path in (run / "examples").glob("*.png")
    )
    assert len(list(tmp_path.iterdir())) == len(result.out.splitlines())


def test_a_picture_that_cannot_be_written_is_named(normfree, run, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    result = normfree("predict", run, run / "examples" / "test0.png", "--out", tmp_path)
    assert result.code == 1
    assert result.error.endswith("test0_detection.png cannot be written: No space left on device")


def test_images_of_any_size(normfree, run, tmp_path):
    Image.fromarray(np.zeros((41, 157, 3), np.uint8)).save(tmp_path / "odd.png")
    (tmp_path / "bad.png").write_bytes(b"no")
    result = normfree("predict", run, tmp_path / "odd.png", tmp_path / "bad.png", "--out", tmp_path)
    assert result.code == 1
    assert "skipped unreadable image" in result.err
    with Image.open(tmp_path / "odd_detection.png") as picture:
        assert picture.width == 2 * 3 * 157 + 28  # enlarged to 320 pixels at least


def test_what_is_drawn():
    image = torch.full((3, 40, 60), 100, dtype=torch.uint8)
    mask = torch.zeros(2, 40, 60, dtype=torch.bool)
    mask[0, 10:30, 20:50] = True
    boxes = torch.tensor([[20.0, 10, 50, 30], [0.0, 0, 5, 5]])
    found = Detections(boxes, torch.tensor([0.91, 0.5]), torch.tensor([1, 0]), mask)
    sheet = object_picture(image, found, ["cat", "dog"])
    assert object_list(found, ["cat", "dog"])[0] == dict(name="dog", score=0.91, box=[20, 10, 50, 30], pixels=600)
    pixels = np.asarray(sheet).astype(int)
    times, left = 6, 10 + 60 * 6 + 8  # enlarged to 320 pixels at least; where the right panel begins
    inside, outside = pixels[10 + 20 * times, left + 35 * times], pixels[10 + 36 * times, left + 35 * times]
    assert outside.tolist() == [100] * 3
    assert np.abs(inside - 100).max() > 20
    assert np.abs(pixels[10 + 10 * times + 1, left + 40 * times] - inside).max() > 20  # the box's line
    alone = object_picture(image, Detections(boxes, found.scores, found.labels), ["cat", "dog"])
    assert np.asarray(alone)[10 + 20 * times, left + 35 * times].tolist() == [100] * 3


@pytest.mark.parametrize(("official", "masks"), [(True, True), (False, False)])
def test_cocos_layouts_from_train_to_predict(normfree, tmp_path, official, masks):
    source = f"coco:{coco_folder(tmp_path / 'data', official=official)}"
    flags = ["--data", source, "--data.image_size", "48", "--data.test_size", "48", "--data.short_side", "36"]
    flags += ["--data.scale", "[0.7,1.3]", "--data.color", "true", "--task.masks", str(masks).lower()]
    train = normfree(
        "train", *SMALL, *flags, "--train.batch_size", "1", "--train.steps", "4", "--out", tmp_path / "run"
    )
    assert train.code == 0, train.err
    trained = load_trained(str(tmp_path / "run"))
    assert (trained.recipe.task.name, trained.classes) == ("detection", ["dog", "cat"])
    result = normfree("eval", tmp_path / "run")
    assert (result.code, result.err) == (0, "")
    assert ("masks AP" in result.out) == masks
    file = tmp_path / "data" / ("annotations/instances_val2017.json" if official else "val.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(annotations=[])))
    result = normfree("eval", tmp_path / "run")
    assert (result.code, result.out) == (1, "")
    assert result.error == f"none of the 4 test images of {source} has an object"
    image = tmp_path / "data" / ("val2017" if official else "val") / "50.png"
    result = normfree("predict", tmp_path / "run", image, "--out", tmp_path / "out", "--score", 0, "--json")
    assert result.code == 0
    assert all(("pixels" in one) == masks for one in json.loads(result.out)["objects"])


def bright(network, images, objects):
    """In place of a network: the bright part of each image as an object, and a less sure one that is half wrong."""
    found = []
    for image, one in zip(images, objects, strict=True):
        image = image[:, : one.size[0], : one.size[1]]
        inside = (image > 0).any(0)  # the background is darker than the mean
        if not inside.any():
            found.append(Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), torch.zeros(0, 28, 28)))
            continue
        rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
        box = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
        label = int(image[0][inside].mean() > image[2][inside].mean())  # a cat is red
        masks = torch.ones(2, 28, 28)
        masks[1, 14:] = 0
        boxes, labels = torch.stack([box, box + torch.tensor([3.0, 1, 3, 1])]), torch.tensor([label, 1 - label])
        found.append(Detections(boxes, torch.tensor([0.9, 0.3]), labels, masks))
    return found


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A folder in COCO's layout, and a run on it."""
    folder = coco_folder(tmp_path_factory.mktemp("taught") / "data")
    flags = ["--data", f"coco:{folder}", "--data.image_size", "48", "--data.test_size", "48"]
    assert main(["train", *SMALL, *flags, "--train.steps", "1", "--out", str(folder.parent / "run")]) == 0
    return folder, folder.parent / "run"


@pytest.fixture
def found(taught, monkeypatch):
    """The same, of which the network finds what is bright."""
    monkeypatch.setattr(DetectionNet, "forward", bright)
    return taught


@pytest.mark.parametrize("official", [False, True])
def test_measuring_needs_no_training_images(normfree, taught, tmp_path, official):
    folder = coco_folder(tmp_path, official=official)
    for path in (folder / "annotations" / "instances_train2017.json", folder / "train.json"):
        path.unlink(missing_ok=True)
    result = normfree("eval", taught[1], "--data", f"coco:{folder}")
    assert (result.code, result.err) == (0, "")
    assert "4 images" in result.out


@pytest.mark.parametrize(("turns", "shown"), [({}, True), ({50: 6, 52: 8, 53: 3}, False), ({50: 6, 53: 5}, True)])
def test_a_file_of_boxes_is_what_cocos_tools_read(normfree, found, tmp_path, turns, shown):
    """Their average precision of it is that of `normfree eval`, also of photos that EXIF turns."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    folder, run = coco_folder(tmp_path / "data"), found[1]
    for number, orientation in turns.items():
        turn(folder / "val" / f"{number}.png", orientation, shown)
    flags = ["--boxes", tmp_path / "a.json", "--annotations", folder / "val.json"]
    result = normfree("predict", run, folder / "val", *flags)
    assert result.code == 0, result.err
    assert not (run / "predictions").exists()
    entries = json.loads((tmp_path / "a.json").read_text())
    assert f"{len(entries)} boxes of at least 0.05 in {tmp_path / 'a.json'}" in result.out
    assert {one["category_id"] for one in entries} == {3, 7}
    assert {one["image_id"] for one in entries} == {150, 152, 153}
    truth = json.loads((folder / "val.json").read_text())
    for one in truth["annotations"]:
        one["id"] += 1  # COCOeval takes 0 for none
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    truth = COCO(str(tmp_path / "truth.json"))
    evaluated = normfree("eval", run, "--data", f"coco:{folder}").out
    for kind, words in (("bbox", "boxes"), ("segm", "masks")):
        judge = COCOeval(truth, truth.loadRes(str(tmp_path / "a.json")), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        assert 0.1 < judge.stats[0] < 1
        assert f"{words} AP {judge.stats[0]:.2%}   at overlap 0.5 {judge.stats[1]:.2%}" in evaluated


def test_numbers_without_annotations(normfree, found, tmp_path):
    """Of images the numbers that they are named by; of categories those of the training data."""
    folder, run = found
    result = normfree("predict", run, folder / "val", "--boxes", tmp_path / "a.json", "--score", "0")
    assert "images are numbered by their names, categories are 3, 7; --annotations FILE" in result.out
    entries = json.loads((tmp_path / "a.json").read_text())
    assert {one["image_id"] for one in entries} == {50, 52, 53}
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "cat.png").write_bytes((folder / "val" / "50.png").read_bytes())
    result = normfree("predict", run, tmp_path / "named", "--boxes", tmp_path / "a.json")
    assert "images are numbered from 1, categories are 3, 7" in result.out
    assert {(one["image_id"], one["file_name"]) for one in json.loads((tmp_path / "a.json").read_text())} == {
        (1, "cat.png")
    }


def test_annotations_that_do_not_fit(normfree, found, tmp_path):
    folder, run = found
    boxes, told = ["--boxes", tmp_path / "a.json"], json.loads((folder / "val.json").read_text())
    (tmp_path / "none.json").write_text(json.dumps(told | dict(images=told["images"][1:])))
    told["categories"][0]["name"] = "horse"
    (tmp_path / "horse.json").write_text(json.dumps(told))
    for name, said in (
        ("none.json", "none.json has no images named 50.png"),
        ("horse.json", "horse.json has no category 'cat', which the network has"),
        ("nowhere.json", "--annotations: "),
    ):
        result = normfree("predict", run, folder / "val", *boxes, "--annotations", tmp_path / name)
        assert (result.code, said in result.error) == (2, True), result.error
    result = normfree("predict", run, folder / "val", "--annotations", folder / "val.json")
    assert "give --boxes, too" in result.error
    result = normfree("predict", run, folder / "val", "--boxes", tmp_path / "no" / "a.json")
    assert "a.json cannot be written: No such file or directory" in result.error


def test_a_table_and_a_summary(normfree, found, tmp_path):
    """The same whether images are asked about one by one or together."""
    folder, run = found
    rows = []
    for size in (1, 3):
        flags = ["--csv", tmp_path / "a.csv", "--out", tmp_path / "out", "--score", "0", "--batch-size", size]
        result = normfree("predict", run, folder / "val", *flags)
        assert result.code == 0, result.err
        assert "\n4 images\n        3 cat\n        3 dog\n" in result.out
        with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
            head, *cells = csv.reader(file)
        assert head == ["path", "class", "score", "left", "top", "right", "bottom", "pixels"]
        rows.append([(row[:2], [float(cell) for cell in row[2:7]]) for row in cells])
    for one, other in zip(*rows, strict=True):
        assert one[0] == other[0]
        assert other[1] == pytest.approx(one[1], abs=0.02)
    seen = json.loads(normfree("predict", run, folder / "val" / "50.png", "--json", "--size", 24).out)
    (cat,) = seen["objects"]
    assert cat == dict(name="cat", score=0.9, box=pytest.approx([4, 5, 16, 19], abs=2), pixels=cat["pixels"])


@pytest.mark.parametrize(("part", "what"), [("train", "training"), ("val", "test")])
def test_splits_without_objects_are_refused_before_a_run(normfree, tmp_path, part, what):
    folder = coco_folder(tmp_path / "data")
    file = folder / f"{part}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(annotations=[])))
    result = normfree("train", *SMALL, "--data", f"coco:{folder}", "--data.image_size", "32", "--out", tmp_path / "run")
    assert (result.code, result.error) == (2, f"data.source: none of the 4 {what} images has an object")
    assert not (tmp_path / "run").exists()


def test_unreadable_images_are_skipped(normfree, tmp_path):
    folder = coco_folder(tmp_path / "data")
    (folder / "train" / "3.png").write_bytes(b"no")
    flags = ["--data", f"coco:{folder}", "--data.image_size", "32", "--data.test_size", "32"]
    result = normfree(
        "train", *SMALL, *flags, "--train.batch_size", "1", "--train.steps", "4", "--out", tmp_path / "run"
    )
    assert result.code == 0
    assert "skipped unreadable image" in result.err
    assert "1 unreadable image was skipped" in result.out


def test_weights_of_a_classifier_start_the_backbone(normfree, trained, run, tmp_path):
    flags = ["--data.channels", "1", "--model.options.stem", "3x3", "--optim.lr", "1e-9", "--optim.ema_decay", "null"]
    result = normfree(*DEMO, *flags, "--init", trained, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "without their classifier, into the backbone" in result.err
    theirs, ours = load_trained(str(trained)).model, load_trained(str(tmp_path / "run")).model
    weight = theirs.stages[0][0].conv0.weight
    torch.testing.assert_close(ours.backbone.stages[0][0].conv0.weight, weight, rtol=0, atol=1e-6)
    again = normfree(*DEMO, "--init", run, "--out", tmp_path / "a")
    assert again.code == 0
    assert "into the backbone" not in again.err
    other = normfree(*DEMO, "--task.masks", "false", "--init", run, "--out", tmp_path / "b")
    assert other.code == 0
    assert "into the backbone" in other.err


def test_a_control_with_batch_norm(normfree, tmp_path):
    """The heads stay as they are."""
    flags = ["--model", "bn_resnet50", "--model.options", "{depths: [1, 1, 1, 1], widths: [16, 16, 16, 16]}"]
    flags += ["--data.workers", "0", "--data.short_side", "null", "--optim.warmup_steps", "1"]
    small = [flag for flag in SMALL if flag not in BACKBONE]
    result = normfree("train", "--recipe", "nf_resnet50_mask_rcnn", *small, *SIZES, *flags, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "bn_resnet50 for detection" in result.err
    typed = normfree(*DEMO, "--model", "bn_resnet50", "--model.options.skip_gain", "1.0", "--out", tmp_path / "no")
    assert "option 'skip_gain' is unknown for bn_resnet50" in typed.err.splitlines()[-1]
    left_out = normfree(*DEMO, "--model", "bn_resnet50", "--out", tmp_path / "yes")
    assert left_out.code == 0, left_out.err
    assert "skip_gain: 1.0) are for nf_resnet26_small; bn_resnet50 is built without them" in left_out.err


def weights(folder):
    checkpoint, _ = find_checkpoint(folder / "checkpoints")
    return {name: read_tensors(checkpoint, name) for name in ("weights", "ema", "momentum")}


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(normfree, tmp_path):
    """What a loss draws at random comes from each sample's seed."""
    steps = ["--train.steps", "5", "--data.scale", "[0.7,1]", "--train.micro_batch", "1"]
    assert normfree(*DEMO, *steps, "--out", tmp_path / "whole").code == 0
    call, seen = TrainStep.__call__, []

    def asked(step, *args):
        seen.append(step)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return call(step, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", asked)
        assert "stopped at step 3" in normfree(*DEMO, *steps, "--out", tmp_path / "part").out
    torch.manual_seed(99)
    assert normfree("train", "--resume", tmp_path / "part", "--quiet").code == 0
    ours, theirs = weights(tmp_path / "part"), weights(tmp_path / "whole")
    for kind, tensors in theirs.items():
        assert all(torch.equal(tensor, ours[kind][name]) for name, tensor in tensors.items()), kind


def test_micro_batches_make_the_same_update(normfree, tmp_path):
    flags = ["--train.steps", "1", "--train.batch_size", "4", "--optim.warmup_epochs", "0"]
    for size in (4, 1):
        assert normfree(*DEMO, *flags, "--train.micro_batch", size, "--out", tmp_path / str(size)).code == 0
    ours, theirs = (weights(tmp_path / size)["weights"] for size in ("1", "4"))
    for name, tensor in theirs.items():
        # float32 sums in another order
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("flags", [["--optim.sam_rho", "0.05"], ["--train.precision", "bfloat16"]])
def test_other_ways_to_train(normfree, tmp_path, flags):
    assert normfree(*DEMO, *flags, "--out", tmp_path / "run").code == 0


@pytest.mark.parametrize("verb", ["export", "report", "spp"])
def test_other_verbs_work_or_say_why(normfree, run, verb, tmp_path):
    out = ["--out", tmp_path / dict(export="x.onnx", report="r.html", spp="spp.png")[verb]]
    result = normfree(verb, run, *out)
    assert result.code == (2 if verb == "export" else 0)
    if verb == "export":
        assert "is a network for detection" in result.error


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--recipe", "digits", "--data", "coco:x"], r"\(='coco:x'\) is for detection; task\.name is classification"),
        (["--recipe", "demo_segmentation", "--data", "coco:x"], r"\(='coco:x'\) must be \"scenes:N\""),
        (["--recipe", "demo_detection", "--data", "digits"], r"must be \"scenes:N\", \"coco:PATH\" or"),
        (["--recipe", "demo_detection", "--data", "scenes:0"], r"must be scenes:N"),
        (["--recipe", "demo_detection", "--data.crop", "shift"], r"data\.crop \(='shift'\) must be 'none'"),
        (["--recipe", "demo_detection", "--data.cutout", "8"], r"data\.cutout \(=8\) must be 0 for detection"),
        (["--recipe", "demo_detection", "--data.cutmix", "1"], r"data\.cutmix \(=1\.0\) must be 0 for detection"),
        (["--recipe", "demo_detection", "--task.proposals", "0"], r"task\.proposals \(=0\) must be at least 1"),
        (["--recipe", "demo_detection", "--task.anchor_ratios", "[]"], r"task\.anchor_ratios \(=\[\]\)"),
        (["--recipe", "demo_detection", "--train.compile", "true"], r"train\.compile \(=True\) is not for detection"),
        (["--recipe", "demo_depth", "--task.masks", "false"], r"task\.masks \(=False\) is for detection"),
    ],
)
def test_refusals(normfree, flags, match, tmp_path):
    result = normfree("train", *flags, "--out", tmp_path / "run")
    assert result.code == 2
    assert re.search(match, result.error)
    assert not (tmp_path / "run").exists()


def test_scores_out_of_range(normfree, run):
    assert "--score (=1.5) must be from 0 to 1" in normfree("predict", run, run / "examples", "--score", 1.5).error


def test_recipes():
    names = ["demo_detection", "nf_resnet50_mask_rcnn", "nfnet_f0_mask_rcnn"]
    assert set(names) <= set(list_recipes())
    for name in names:
        recipe = load_recipe(name)
        assert (recipe.task.name, recipe.task.masks, recipe.data.crop) == ("detection", True, "none")
