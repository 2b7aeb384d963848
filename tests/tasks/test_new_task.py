"""A task that the library does not know, in this one file: it trains, is measured, answers, is drawn and exported."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor, nn

from normfree import UsageError, runs
from normfree.cli import main
from normfree.data import Batch, DataConfig, HeldOut, Source
from normfree.data.pixels import PixelTransform
from normfree.data.scenes import SceneSplit, scenes
from normfree.models import depth_estimator
from normfree.pictures.sheets import beside
from normfree.recipes import Recipe, load_recipe
from normfree.recipes import task as recipe_task
from normfree.report import Overlays
from normfree.tasks import (
    TASKS,
    Answers,
    Asked,
    Gallery,
    Look,
    Measured,
    PredictOptions,
    ReadyNetwork,
    Trained,
    register,
    task_of,
)
from normfree.tasks.gallery import from_worst_to_best
from normfree.tasks.pairs import PairTask
from normfree.tasks.pixel_answers import pixels_of_network
from normfree.tasks.pixel_gallery import answered, overlay
from normfree.tasks.statistics import image_statistics


@dataclass(frozen=True)
class Greyed:
    """Images with their own brightness, (H, W) float32 from 0 to 1, as targets."""

    split: SceneSplit

    def __len__(self) -> int:
        return len(self.split)

    def name(self, index: int) -> str:
        return self.split.name(index)

    def image(self, index: int) -> Tensor:
        return self.split.image(index)

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.image(index)
        return image, image.float().mean(0) / 255


class AbsoluteError:
    """Mean absolute error over pixels."""

    def __init__(self) -> None:
        self.totals = [0, 0.0]

    def update(self, output: Tensor, batch: Batch) -> None:
        errors = (output[:, 0] - batch.targets).abs().mean((1, 2))
        self.totals = [self.totals[0] + len(batch), self.totals[1] + errors.sum().item()]

    def compute(self) -> dict[str, float]:
        images, errors = self.totals
        return dict(closeness=1 - errors / max(1, images), mae=errors / max(1, images), images=images)


class Brightness(PairTask):
    name = kind = "brightness"
    purpose = "says how bright each pixel is"
    named_outputs, output = False, "brightness"
    options = frozenset({"out"})
    score, score_label = "closeness", "closeness of brightness"

    @classmethod
    def open(
        cls, recipe: Recipe, source: str, *, held_out: HeldOut | None = None, known: Sequence[str] | None = None
    ) -> Source:
        kind, _, text = source.partition(":")
        if kind != "scenes":
            raise UsageError(f"data.source (={source!r}) must be scenes:N")
        return Source(*map(Greyed, scenes(text, "depth", recipe.data.channels)), [])

    @classmethod
    def build_network(cls, recipe: Recipe, classes: Sequence[str]) -> nn.Module:
        backbone = recipe.model.build(num_classes=0, in_chans=recipe.data.channels)
        return depth_estimator(backbone, width=recipe.task.head_width)

    @classmethod
    def train_transform(cls, data: DataConfig) -> PixelTransform:
        return PixelTransform(data.image_size, data.image_size, *image_statistics(data))

    @classmethod
    def test_transform(cls, data: DataConfig) -> PixelTransform:
        return PixelTransform(data.test_size, data.test_size, *image_statistics(data))

    @classmethod
    def metrics_of(cls, trained: Trained) -> AbsoluteError:
        return AbsoluteError()

    @classmethod
    def measured(cls, metrics: AbsoluteError, names: Sequence[str]) -> Measured:
        scores = metrics.compute()
        return Measured([f"mean absolute error {scores['mae']:.3f}"], scores)

    @classmethod
    def answers(cls, network: ReadyNetwork, options: PredictOptions) -> Answers:
        return BrightnessAnswers(network, options)

    @classmethod
    def gallery(cls, look: Look) -> Gallery:
        def draw(chosen: list[tuple[float, int]], metrics: AbsoluteError) -> Overlays:
            seen = answered(look, chosen)
            return Overlays([overlay(one, picture(one.truth), picture(one.answer[0])) for one in seen], None)

        def score(output: Tensor, batch: Batch) -> list[float]:
            return (1 - (output[:, 0] - batch.targets).abs().mean((1, 2))).tolist()

        return from_worst_to_best(look, score, draw, "the closeness")

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return (output[:, 0] - batch.targets).square().mean((1, 2)).mean()

    def metrics(self) -> AbsoluteError:
        return AbsoluteError()


class BrightnessAnswers(Answers):
    columns = ("mean",)

    def __init__(self, network: ReadyNetwork, options: PredictOptions):
        self.network, self.folder = pixels_of_network(network, options), Path(options.out or ".")
        self.channels, self.picture_ending = self.network.channels, "_brightness.png"

    def view(self, image: Tensor) -> Tensor:
        return self.network.view(image)

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Sequence[tuple[Tensor, Tensor]]:
        return [(image, answer[0]) for image, answer in self.network.look(seen, images)]

    def tell(self, asked: Asked, answer: tuple[Tensor, Tensor]) -> dict[str, Any]:
        beside(answer[0], picture(answer[1])).save(self.folder / f"{asked.name}_brightness.png")
        return dict(mean=answer[1].mean().item())

    def lines(self, told: dict[str, Any]) -> list[str]:
        return [told["path"], f"  {told['mean']:.3f}"]

    def rows(self, told: dict[str, Any]) -> Iterator[Sequence[Any]]:
        yield [told["mean"]]


def picture(brightness: Tensor) -> Image.Image:
    return Image.fromarray((255 * brightness.clamp(0, 1)).byte().numpy()).convert("RGB")


@pytest.fixture(scope="module", autouse=True)
def known():
    register(Brightness)
    yield
    del TASKS["brightness"]
    recipe_task.NAMES.remove("brightness")


@pytest.fixture(scope="module")
def run(tmp_path_factory, known) -> runs.Finished:
    fields = {"task.name": "brightness", "data.source": "scenes:40,32", "data.image_size": 32, "data.test_size": 32}
    fields |= {"data.crop": "none", "train.device": "cpu", "train.steps": 60, "optim.lr": 0.01, "train.batch_size": 8}
    fields |= {"model.options": dict(depths=[1, 1, 1, 1], widths=[16, 16, 16, 16]), "task.head_width": 16}
    out = tmp_path_factory.mktemp("brightness") / "run"
    return runs.train("demo_depth", fields, out=str(out), progress=False)


def test_it_trains(run):
    first, last = run.summary.best, run.summary.last
    assert first["closeness"] > 0.7
    assert last["images"] == 4
    assert task_of(load_recipe(str(run.folder / "recipe.yaml"))) is Brightness


def test_it_is_measured_and_exported(run, tmp_path):
    found = runs.evaluate(str(run.folder))
    assert found.measured.scores["mae"] == pytest.approx(1 - found.measured.scores["closeness"])
    file = tmp_path / "brightness.onnx"
    assert main(["export", str(run.folder), "--out", str(file)]) == 0
    again = runs.evaluate(str(file), "scenes:40,32")
    assert again.measured.scores["mae"] == pytest.approx(found.measured.scores["mae"], rel=1e-4)


def test_it_answers(run, tmp_path, capsys):
    image = tmp_path / "white.png"
    Image.new("RGB", (32, 32), "white").save(image)
    (one,) = runs.predictions(str(run.folder), image, out=str(tmp_path))
    assert one["path"] == str(image)
    assert one["mean"] == pytest.approx(1, abs=0.5)
    assert (tmp_path / "white_brightness.png").is_file()
    capsys.readouterr()
    assert main(["predict", str(run.folder), str(image), "--json", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == one
    assert main(["predict", str(run.folder), str(image), "--boxes", "boxes.json"]) == 2
    assert "--boxes is for networks for detection; " in capsys.readouterr().err


def test_it_has_a_page(run):
    assert main(["report", str(run.folder), "--examples", "2"]) == 0
    text = (run.folder / "report.html").read_text()
    assert "evenly from the worst to the best, with the closeness" in text


def test_there_is_one_of_a_kind(known):
    with pytest.raises(UsageError, match="there is another task 'brightness', Brightness"):
        register(type("Other", (Brightness,), {}))
