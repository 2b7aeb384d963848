"""Several classes per image, and numbers: train, resume, eval, predict, report and export."""

import json
import re
import shutil

import image_files
import numpy as np
import pytest
import torch
import yaml
from tiny_runs import FLAGS, evaluations
from worlds import Plan, run

from normfree.runs.load import load_trained
from normfree.training import read_checkpoint

SMALL = [
    *FLAGS,
    "--data.image_size",
    "12",
    "--data.test_size",
    "12",
    "--data.resize_margin",
    "0",
    "--data.crop",
    "none",
]
SMALL += [
    "--train.precision",
    "float32",
    "--train.batch_size",
    "8",
    "--train.steps",
    "4",
    "--train.save_every",
    "2",
    "--data.val_fraction",
    "0.25",
    "--optim.lr",
    "0.01",
]
KINDS = dict(multi=["--task.labels", "multi"], numbers=["--task.name", "regression"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """24 images of two brightnesses, one per half, and tables about them."""
    root = tmp_path_factory.mktemp("photos")
    levels = np.random.default_rng(0).integers(0, 200, (24, 2))
    rows = dict(multi=["file,class"], numbers=["file,left,right"])
    for i, (left, right) in enumerate(levels.tolist()):
        image = image_files.pixels(12, 12, seed=i) // 8
        image[:, :6] += np.uint8(left)
        image[:, 6:] += np.uint8(right)
        image_files.write(root / f"{i}.png", image)
        names = [name for name, level in (("left", left), ("right", right)) if level > 100]
        rows["multi"].append(f"{i}.png,{';'.join(names)}")
        rows["numbers"].append(f"{i}.png,{left + 1000},{right / 1000}")
    for kind, lines in rows.items():
        (root / f"{kind}.csv").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory):
    """A short run of each kind."""
    from normfree.cli import main

    folder = tmp_path_factory.mktemp("runs")
    for kind, flags in KINDS.items():
        out = str(folder / kind)
        assert main(["train", *SMALL, *flags, "--data", f"csv:{photos / kind}.csv", "--out", out]) == 0
    return folder


@pytest.mark.parametrize(("kind", "score"), [("multi", "map"), ("numbers", "r2")])
def test_evaluation_repeats_the_runs_numbers(normfree, runs, kind, score):
    told = json.loads(normfree("eval", runs / kind, "--json").out)
    last = evaluations(runs / kind)[-1]
    assert told[score] == pytest.approx(last[f"ema_{score}"], abs=1e-4)  # numbers in units, and back
    assert told["loss"] == pytest.approx(last["ema_loss"], rel=1e-3)
    assert [row["name"] for row in told["classes" if kind == "multi" else "numbers"]] == ["left", "right"]
    text = normfree("eval", runs / kind).out
    assert re.search(
        r"mean average precision [\d.]+%" if kind == "multi" else r"R2 -?[\d.]+ \(mean of 2\)   loss", text
    )


def test_the_units_are_in_the_run_and_in_the_network(runs, photos):
    recipe = yaml.safe_load((runs / "numbers" / "recipe.yaml").read_text())["task"]
    assert 1000 < recipe["target_mean"][0] < 1200
    assert 0 < recipe["target_std"][1] < 0.2
    raw = read_checkpoint(runs / "numbers")[0]["head.fc.bias"]
    net = load_trained(str(runs / "numbers")).model
    mean, std = torch.tensor(recipe["target_mean"]), torch.tensor(recipe["target_std"])
    torch.testing.assert_close(net.head.fc.bias, raw * std + mean)


def test_predictions(normfree, runs, photos, tmp_path):
    told = [json.loads(line) for line in normfree("predict", runs / "numbers", photos, "--json").out.splitlines()]
    assert len(told) == 24
    assert all(800 < one["numbers"]["left"] < 1500 and -1 < one["numbers"]["right"] < 1 for one in told)
    table = tmp_path / "a.csv"
    result = normfree("predict", runs / "numbers", photos, "--csv", table)
    assert table.read_text().splitlines()[0] == "path,left,right"
    assert re.search(r"^ +[\d.]+  left$", result.out, re.MULTILINE)
    (line,) = normfree("predict", runs / "multi", photos / "0.png", "--json").out.splitlines()
    net, image = load_trained(str(runs / "multi")), photos / "0.png"

    from normfree.data import decode_image

    with torch.no_grad():
        expected = net.model(net.transform(decode_image(image, 3))[None])[0].sigmoid()
    for one in json.loads(line)["classes"]:
        assert one["probability"] == pytest.approx(expected[one["index"]].item(), rel=1e-5)
    result = normfree("predict", runs / "numbers", image, "--top", "3")
    assert result.code == 2
    assert "--top is for networks that classify images" in result.error


@pytest.mark.parametrize("kind", KINDS)
def test_exported_files_say_the_same(normfree, runs, photos, tmp_path, kind):
    pytest.importorskip("onnxruntime")
    file, image = tmp_path / "net.onnx", photos / "3.png"
    assert normfree("export", runs / kind, "--out", file).code == 0
    ours, theirs = (json.loads(normfree("predict", network, image, "--json").out) for network in (runs / kind, file))
    if kind == "numbers":
        assert theirs["numbers"] == pytest.approx(ours["numbers"], rel=1e-4)
    else:
        pairs = zip(ours["classes"], theirs["classes"], strict=True)
        assert all(a["probability"] == pytest.approx(b["probability"], rel=1e-3) for a, b in pairs)


@pytest.mark.parametrize(("kind", "words"), [("multi", "probability of 0.5"), ("numbers", "standard deviations")])
def test_reports_show_the_furthest_answers(normfree, runs, kind, words):
    assert normfree("report", runs / kind).code == 0
    page = (runs / kind / "report.html").read_text()
    assert "are furthest from, by the" in page
    assert words in page


@pytest.mark.parametrize("kind", KINDS)
def test_runs_go_on_bit_for_bit(normfree, runs, photos, tmp_path, kind):
    cut = tmp_path / "cut"
    shutil.copytree(runs / kind, cut, symlinks=True)
    checkpoints = sorted((cut / "checkpoints").glob("step-*"))
    shutil.rmtree(checkpoints[-1])
    for name in ("last", "best"):
        (cut / "checkpoints" / name).unlink()
        (cut / "checkpoints" / name).symlink_to(checkpoints[-2].name)
    result = normfree("train", "--resume", cut, "--quiet")
    assert result.code == 0, result.err
    ends = [(f / "checkpoints" / "last" / "weights.safetensors").read_bytes() for f in (runs / kind, cut)]
    assert ends[0] == ends[1]


def test_other_images_need_no_split(normfree, runs, photos):
    told = json.loads(normfree("eval", runs / "numbers", "--data", f"csv:{photos}/numbers.csv", "--json").out)
    assert told["images"] == 6  # the run's own images: those held out
    shutil.copytree(photos, photos.parent / "other", dirs_exist_ok=True)
    other = f"csv:{photos.parent / 'other'}/numbers.csv"
    assert json.loads(normfree("eval", runs / "numbers", "--data", other, "--json").out)["images"] == 24
    result = normfree("eval", runs / "numbers", "--data", f"csv:{photos.parent / 'other'}/multi.csv")
    assert result.code == 2
    assert "must be a finite number for regression" in result.error


def test_processes_compute_the_update_of_one(tmp_path):
    """Two processes agree with one to float rounding; the evaluation of classes has a process without an image."""
    tests = dict(multi=1, numbers=2)  # R2 of one image is not defined
    plans = {
        n: {
            task: Plan(str(tmp_path / f"{task}{n}"), task=task, images=(33, tests[task]), train=dict(steps=3))
            for task in KINDS
        }
        for n in (1, 2)
    }
    one, two = (run(plans[n], n, tmp_path) for n in (1, 2))
    for task in KINDS:
        for name, value in one[task][0]["parameters"].items():
            torch.testing.assert_close(two[task][0]["parameters"][name], value, rtol=1e-9, atol=1e-12)
        assert two[task][0]["summary"].last == pytest.approx(one[task][0]["summary"].last, rel=1e-6)


def test_other_labels_are_said_when_a_run_goes_on(normfree, runs, photos, tmp_path):
    shutil.copytree(runs / "numbers", tmp_path / "run", symlinks=True)
    shutil.copytree(photos, tmp_path / "photos")
    table = tmp_path / "photos" / "numbers.csv"
    table.write_text(table.read_text().replace(",0.1", ",0.9"))
    result = normfree("train", "--resume", tmp_path / "run", "--quiet", "--data", f"csv:{table}")
    assert "are others than before: other names, labels or order" in result.err
