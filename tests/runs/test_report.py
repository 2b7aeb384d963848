"""`normfree report` on runs as they are found: finished, killed, without their images."""

import base64
import errno
import io
import json
import os
import re
import shutil
from pathlib import Path

import image_files
import numpy as np
import pytest
import torch
from PIL import Image
from report.pages import Page
from tiny_runs import FLAGS

from normfree.cli import main
from normfree.data import digits
from normfree.runs.load import load_trained
from normfree.training import read_metrics

SMALL = ["--recipe", "digits", *FLAGS, "--train.steps", "2", "--optim.warmup_epochs", "0"]


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """A copy of the run, to be spoilt."""
    return Path(shutil.copytree(trained, tmp_path / "copy", symlinks=True))


def read(path) -> Page:
    return Page(Path(path).read_bytes())


def plain(text: str) -> str:
    return " ".join(text.replace("\N{NARROW NO-BREAK SPACE}", " ").split())


def pictures(page: Page) -> list[dict[str, str]]:
    return [a for a in page.all("img") if "alt" in a and "\N{RIGHTWARDS ARROW}" in a["alt"]]


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory) -> Page:
    """The page of the run with all that it has."""
    out = tmp_path_factory.mktemp("report") / "page.html"
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert main(["report", str(trained), "--out", str(out), "--device", "cpu"]) == 0
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before
    assert os.listdir(out.parent) == ["page.html"]
    return read(out)


def last_evaluation(run):
    return [line for line in read_metrics(run) if line["kind"] == "eval"][-1]


def test_the_head_is_that_of_the_run(whole, trained):
    last = last_evaluation(trained)
    head = plain(whole.sections["head"])
    assert head.startswith("run finished")
    assert f"{last['ema_top1']:.2%}".replace("%", " %") in head
    assert f"{last['top1']:.2%}".replace("%", " %") in head
    parameters = sum(p.numel() for p in load_trained(str(trained)).model.parameters())
    for part in ("60 / 60 optimizer steps", "nf_resnet26_small", "digits", "1,437 to train, 360 to test"):
        assert part in head
    assert f"parameters {parameters:,} data" in head


def test_the_examples_are_the_most_confident_mistakes(whole, trained):
    """Recomputed image by image."""
    net, split = load_trained(str(trained)), digits(1).test
    transform = net.transform
    with torch.no_grad():
        likely, said = net.model(torch.stack([transform(split.image(i)) for i in range(360)])).softmax(1).max(1)
    order = [i for i in likely.argsort(descending=True).tolist() if said[i] != split.label(i)]
    text = plain(whole.sections["examples"])
    assert f"{len(order)} of 360 test images" in text
    assert len(order) == 360 - round(360 * last_evaluation(trained)["ema_top1"])
    shown = pictures(whole)
    assert len(shown) == min(24, len(order))
    for picture, index in zip(shown, order, strict=False):
        assert picture["alt"] == f"{split.label(index)} \N{RIGHTWARDS ARROW} {said[index]}"
        content = base64.b64decode(picture["src"].partition(",")[2])
        with Image.open(io.BytesIO(content)) as image:  # as it is stored, not as it is normalized
            assert np.array_equal(np.array(image), split.image(index)[0].numpy())
        assert f"{likely[index]:.1%}".replace("%", " %") in text
        assert f"digits/test[{index}]" in text


def test_the_confusions_add_up(whole, trained):
    table = whole.source.partition('class="confusion"')[2].partition("</table>")[0]
    counts = [int(n) for n in re.findall(r"<td[^>]*style[^>]*>(\d+)</td>", table)]
    assert sum(counts) == 360
    right = [int(n) for n in re.findall(r'<td class="right"[^>]*>(\d+)</td>', table)]
    assert sum(right) == round(360 * last_evaluation(trained)["ema_top1"])


def test_the_signal_and_the_recipe(whole):
    signal = plain(whole.sections["signal"])
    assert "averaged weights of step 60, shown 32 test images" in signal
    assert "stages.2.0" in signal
    assert "train with --spp-every N" in signal
    marked = re.findall(r"<mark>(.*?)</mark>", whole.source)
    assert {"steps: 60", "lr: 1.0", "crop: shift"} <= set(marked)
    assert not [line for line in marked if line.startswith("momentum")]


def test_it_is_in_the_run_folder_by_default(normfree, copied):
    result = normfree("report", copied, "--no-examples")
    assert (result.code, result.err) == (0, "")
    assert f"report {copied / 'report.html'} (" in result.out
    page = read(copied / "report.html")
    assert "--no-examples was given" in page.sections["examples"]
    assert "shown 32 test images" in page.sections["signal"]
    normfree("report", copied, "--examples", "3")  # again, over it
    assert len(pictures(read(copied / "report.html"))) == 3


def test_no_pictures_but_confusions(normfree, trained, tmp_path):
    assert normfree("report", trained, "--examples", "0", "--out", tmp_path / "page.html").code == 0
    page = read(tmp_path / "page.html")
    assert not pictures(page)
    assert "Confused most" in page.sections["examples"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with ``run``, two steps with a film, and ``images``, which it was trained on; not to be changed."""
    place = tmp_path_factory.mktemp("photos")
    root = image_files.folder(place / "images", ("<b>cat & co", "dog"))
    image_files.break_file(root / "val" / "dog" / "bad.png")
    flags = ["--data", f"imagefolder:{root}", "--spp-every", "1", "--out", str(place / "run")]
    assert main(["train", *SMALL, *flags]) == 0
    return place


@pytest.fixture
def moved(photos, tmp_path) -> Path:
    """A copy of it, to be spoilt; the images are found beside the run."""
    place = Path(shutil.copytree(photos, tmp_path / "photos", symlinks=True))
    recipe = place / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(photos), str(place)))
    return place


def test_images_of_a_folder(normfree, moved):
    """Both classes are one another's images now, so that most are wrong."""
    val = moved / "images" / "val"
    for old, new in (("dog", "x"), ("<b>cat & co", "dog"), ("x", "<b>cat & co")):
        (val / old).rename(val / new)
    result = normfree("report", moved / "run")
    assert (result.code, result.err) == (0, "")
    page = read(moved / "run" / "report.html")
    assert pictures(page)
    assert "<b>cat" not in page.source
    assert "<b>cat & co" in page.sections["examples"]
    assert any(str(val) in a.get("title", "") for a in page.all("div"))  # the whole path, for the pointer
    assert "bad.png: " in page.sections["recipe"]


def test_images_that_have_gone(normfree, moved):
    shutil.rmtree(moved / "images")
    result = normfree("report", moved / "run")
    assert (result.code, result.err) == (0, "")
    page = read(moved / "run" / "report.html")
    assert f"{moved / 'images'} is not a folder" in page.sections["examples"]
    assert "unit Gaussian noise, for want of test images" in page.sections["signal"]
    assert page.data("chart")


def test_images_of_other_classes_now(normfree, moved):
    image_files.folder(moved / "images", ("owl",))
    assert normfree("report", moved / "run").code == 0
    assert "now has other classes than the network" in read(moved / "run" / "report.html").sections["examples"]


def test_no_image_can_be_read(normfree, moved):
    for path in (moved / "images" / "val").rglob("*.png"):
        image_files.break_file(path)
    assert normfree("report", moved / "run").code == 0
    page = read(moved / "run" / "report.html")
    assert "none of the 5 test images can be read" in page.sections["examples"]
    assert "for want of test images" in page.sections["signal"]


def test_a_run_with_a_film(normfree, moved):
    with (moved / "run" / "spp.jsonl").open("a") as file:
        file.write('{"step": 3, "spp": {"na')
    assert normfree("report", moved / "run", "--no-examples").code == 0
    assert "step 0 step 1 step 2" in plain(read(moved / "run" / "report.html").sections["signal"])


@pytest.mark.parametrize("gone", ["checkpoints", "recipe.yaml", "metrics.jsonl"])
def test_a_part_is_missing(normfree, copied, gone):
    path = copied / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    result = normfree("report", copied)
    assert (result.code, result.err) == (0, "")
    page = read(copied / "report.html")
    assert len(page.sections) == 6
    if gone == "checkpoints":
        assert "has no good checkpoint" in page.sections["examples"]
        assert "has no good checkpoint" in page.sections["signal"]
        assert page.data("chart")
    else:
        assert f"{gone} is not there" in page.sections["head"]


@pytest.mark.parametrize("content", ["model: [", "model:\n  nam: x\n", "\x00"])
def test_a_recipe_that_cannot_be_used(normfree, copied, content):
    (copied / "recipe.yaml").write_text(content)
    assert normfree("report", copied).code == 0
    page = read(copied / "report.html")
    assert "recipe" in page.sections["examples"]
    assert "clips nothing" not in page.sections["clipping"]


def test_a_run_that_was_killed_at_its_start(normfree, tmp_path, trained):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(trained / "recipe.yaml", run)
    (run / "metrics.jsonl").touch()
    assert normfree("report", run).code == 0
    assert "not begun" in read(run / "report.html").sections["head"]


def test_a_run_in_its_first_epoch(normfree, copied):
    """The planned steps come from the images, as the lines are too rounded."""
    recipe = copied / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("steps: 60", "steps: null").replace("epochs: 40", "epochs: 10"))
    line = json.dumps(dict(kind="train", step=1, epoch=0.0455, loss=2.0))
    (copied / "metrics.jsonl").write_text(line + "\n")
    shutil.rmtree(copied / "checkpoints")
    assert normfree("report", copied, "--no-examples").code == 0
    assert "1 / 220 optimizer steps" in plain(read(copied / "report.html").sections["head"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{empty}"], "{empty} is no run folder: it has neither recipe.yaml nor metrics.jsonl"),
        (["{empty}/none"], "{empty}/none is no run folder"),
        (["{run}/recipe.yaml"], "{run}/recipe.yaml is no run folder"),
        (["{run}", "--examples", "-1"], "--examples (=-1)"),
        (["{run}", "--workers", "-1"], "--workers (=-1)"),
        (["{run}", "--out", "{empty}"], "--out {empty} is a folder; name a file"),
        (["{run}", "--out", "{empty}/a/b.html"], "--out {empty}/a/b.html: folder {empty}/a does not exist"),
        (["{run}", "--device", "cuda:99"], "device (='cuda:99') is not available"),
    ],
)
def test_what_cannot_be_used(normfree, trained, tmp_path, arguments, said):
    places = dict(empty=tmp_path, run=trained)
    result = normfree("report", *(a.format(**places) for a in arguments))
    assert (result.code, result.out) == (2, "")
    assert result.error.startswith(said.format(**places))
    assert not list(tmp_path.iterdir())


def test_the_page_appears_whole_or_not_at_all(normfree, copied, monkeypatch):
    assert normfree("report", copied, "--no-examples").code == 0
    before = (copied / "report.html").read_bytes()

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    result = normfree("report", copied, "--no-examples")
    assert result.code == 1
    assert result.error.startswith(f"cannot write {copied / 'report.html'}: ")
    assert "No space left on device" in result.error
    monkeypatch.undo()
    assert (copied / "report.html").read_bytes() == before
    assert not list(copied.glob("*.part"))
