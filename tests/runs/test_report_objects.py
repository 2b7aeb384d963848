"""`normfree report` of detection: pictures beside the truth, the numbers of each class."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from report.pages import Page

from normfree.cli import main
from normfree.data.scenes import CLASSES
from normfree.pictures.drawing import class_colors, draw_objects
from normfree.runs.load import load_trained
from normfree.tasks import open_images
from normfree.tasks.detection import share_found

SMALL = ["--quiet", "--train.device", "cpu", "--train.batch_size", "2", "--train.steps", "2", "--task.head_width", "8"]
SMALL += ["--task.proposals", "8", "--task.regions", "8"]
SMALL += ["--model.options.depths", "[1,1,1]", "--model.options.widths", "[16,16,32]"]
SMALL += ["--data", "scenes:40,32", "--data.image_size", "32", "--data.test_size", "32"]


@pytest.fixture(scope="module", params=["masks", "boxes"])
def reported(request, tmp_path_factory):
    """(run, page) with three of four test images shown."""
    run = tmp_path_factory.mktemp(request.param) / "run"
    more = [] if request.param == "masks" else ["--task.masks", "false"]
    assert main(["train", "--recipe", "demo_detection", "--out", str(run), *SMALL, *more]) == 0
    assert main(["report", str(run), "--examples", "3", "--device", "cpu"]) == 0
    return run, Page((run / "report.html").read_bytes())


def pictures(page: Page) -> list[np.ndarray]:
    sources = [a["src"] for a in page.all("img") if a.get("alt", "").startswith(("image, ", "truth, ", "network, "))]
    return [np.array(Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2])))) for s in sources]


@torch.no_grad()
def test_pictures_are_the_networks_from_the_worst_to_the_best(reported):
    run, page = reported
    trained = load_trained(str(run))
    split, view, every = open_images(trained.recipe).test, trained.transform, []
    for i in range(len(split)):
        image, true = view(*split.pair(i))
        found = trained.model(image[None], [true])[0].placed(true.size, true.original)
        every.append((share_found(found, true), i, true, found.chosen(found.scores >= 0.5)))
    every.sort(key=lambda one: one[:2])
    shown, palette = pictures(page), class_colors(len(CLASSES))[1:]
    assert len(shown) == 9
    for place, (_, index, true, found) in enumerate([every[0], every[2], every[3]]):
        drawn, truth, answer = shown[3 * place : 3 * place + 3]
        image = split.pair(index)[0]
        assert np.array_equal(drawn, image.permute(1, 2, 0).numpy())
        assert np.array_equal(truth, np.array(draw_objects(image, true.boxes, true.labels, true.masks, palette)))
        assert np.array_equal(answer, np.array(draw_objects(image, found.boxes, found.labels, found.masks, palette)))
        assert not np.array_equal(truth, drawn) or not len(true)


def test_words_and_numbers(reported):
    run, page = reported
    head = " ".join(page.sections["head"].split())
    assert "best AP" in head
    assert "AP at overlap 0.5" in head
    text = " ".join(page.sections["examples"].split())
    assert "3 of 4 test images, evenly from the worst to the best" in text
    assert "AP of boxes" in text
    assert ("AP of masks" in text) == load_trained(str(run)).model.masks
    for name in CLASSES[1:]:
        assert name in text
