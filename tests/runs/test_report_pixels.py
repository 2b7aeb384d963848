"""`normfree report` of segmentation and depth: pictures beside the truth, the numbers of each class, curves."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from report.pages import Page
from tiny_runs import evaluations

from normfree.cli import main
from normfree.data.scenes import CLASSES
from normfree.pictures.drawing import class_colors, draw_depth, draw_mask
from normfree.runs.load import load_trained
from normfree.tasks import open_images
from normfree.tasks.depth import MIN_DEPTH, fraction_near
from normfree.tasks.gallery import spread
from normfree.tasks.segmentation import fraction_right

SMALL = [
    "--quiet",
    "--train.device",
    "cpu",
    "--train.batch_size",
    "2",
    "--train.steps",
    "4",
    "--train.eval_every",
    ".5",
]
SMALL += ["--task.head_width", "8", "--model.options.depths", "[1,1,1]", "--model.options.widths", "[16,16,32]"]
SMALL += ["--data", "scenes:4,32", "--data.image_size", "32", "--data.test_size", "32"]
COUNT = 3


@pytest.fixture(scope="module", params=["segmentation", "depth"])
def reported(request, tmp_path_factory):
    """(task, run, page) of a run on scenes of 32 pixels, with three of four images shown."""
    run = tmp_path_factory.mktemp(request.param) / "run"
    assert main(["train", "--recipe", f"demo_{request.param}", "--out", str(run), *SMALL]) == 0
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("scenes:4,32", "scenes:40,32"))  # four held-out ones
    assert main(["report", str(run), "--examples", str(COUNT), "--device", "cpu"]) == 0
    return request.param, run, Page((run / "report.html").read_bytes())


def plain(text: str) -> str:
    return " ".join(text.replace("\N{NARROW NO-BREAK SPACE}", " ").split())


def pictures(page: Page) -> list[np.ndarray]:
    sources = [a["src"] for a in page.all("img") if a.get("alt", "").startswith(("image, ", "truth, ", "network, "))]
    return [np.array(Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2])))) for s in sources]


@torch.no_grad()
def answers(task, run):
    """(score, image, truth, said) of every test image, the worst first, by the run's own network."""
    trained = load_trained(str(run))
    trained.recipe.data.source = "scenes:40,32"
    split, view, found = open_images(trained.recipe).test, trained.transform, []
    for i in range(len(split)):
        image, truth = view(*split.pair(i))
        said = trained.model(image[None])
        score = (fraction_right if task == "segmentation" else fraction_near)(said, truth[None]).item()
        found.append((score, i, split.pair(i)[0], truth, said[0]))
    return sorted(found, key=lambda one: one[:2])


def test_pictures_are_the_networks_from_the_worst_to_the_best(reported):
    task, run, page = reported
    every = answers(task, run)
    chosen = [every[0], every[2], every[3]]  # 1.5 is rounded to even
    text = plain(page.sections["examples"])
    assert f"{COUNT} of 4 test images, evenly from the worst to the best" in text
    shown = pictures(page)
    assert len(shown) == 3 * COUNT
    low = min(one[3].min().item() for one in chosen)
    high = max(one[3].max().item() for one in chosen)
    for place, (score, index, image, truth, said) in enumerate(chosen):
        drawn, true, answer = shown[3 * place : 3 * place + 3]
        assert np.array_equal(drawn, image.permute(1, 2, 0).numpy())
        if task == "segmentation":
            palette = class_colors(len(CLASSES))
            assert np.array_equal(true, np.array(draw_mask(image, truth, palette)))
            assert np.array_equal(answer, np.array(draw_mask(image, said.argmax(0), palette)))
        else:
            assert np.array_equal(true, np.array(draw_depth(truth, low, high)))
            assert np.array_equal(answer, np.array(draw_depth(said[0].clamp(min=MIN_DEPTH), low, high)))
            assert f"{truth.min():.2f} to {truth.max():.2f} m; network" in text
        assert f"{score:.1%}".replace("%", " %") in text
        assert f"scenes/test[{index}]" in text


def test_what_colours_mean(reported):
    task, _, page = reported
    text = plain(page.sections["examples"])
    if task == "segmentation":
        assert text.index("background") < text.index("image truth network")
        assert 'class="key"' in page.source
    else:
        assert re.search(r"\d m \d m", text)
        assert 'class="scale"' in page.source


def test_each_class(reported):
    task, run, page = reported
    text = plain(page.sections["examples"])
    if task == "depth":
        assert "Each class" not in text
        return
    confusion = torch.zeros(len(CLASSES), len(CLASSES))
    for _, _, _, truth, said in answers(task, run):
        pairs = truth.flatten() * len(CLASSES) + said.argmax(0).flatten()
        confusion += torch.bincount(pairs, minlength=len(CLASSES) ** 2).view(len(CLASSES), -1)
    for i, name in enumerate(CLASSES):
        right, union = confusion[i, i], confusion[i].sum() + confusion[:, i].sum() - confusion[i, i]
        share = f"{(confusion[i].sum() / confusion.sum()).item():.1%}"
        row = f"{name} {(right / union).item():.1%} {share}" if union else f"{name} \N{EN DASH}"
        assert row.replace("%", " %") in text


def test_curves_of_the_task(reported):
    task, run, page = reported
    titles = [a for a in plain(page.sections["curves"]).split("  ")]
    text = " ".join(titles)
    for title in ["mean IoU", "pixel accuracy"] if task == "segmentation" else ["within a factor of 1.25", "metres"]:
        assert title in text
    last = evaluations(run)[-1]["ema_miou" if task == "segmentation" else "ema_delta1"]
    assert f"{last:.2%}".replace("%", " %") in plain(page.sections["head"])


def test_no_pictures(normfree, reported, tmp_path):
    task, run, _ = reported
    assert normfree("report", run, "--examples", "0", "--out", tmp_path / "a.html", "--device", "cpu").code == 0
    page = Page((tmp_path / "a.html").read_bytes())
    assert not pictures(page)
    assert ("Each class" in page.sections["examples"]) == (task == "segmentation")


def test_evenly():
    assert spread([1, 2, 3], 5) == [1, 2, 3]
    assert spread(list(range(101)), 5) == [0, 25, 50, 75, 100]
    assert spread([4, 5], 1) == [4]
    assert spread([4, 5], 0) == []
    assert spread([], 3) == []
