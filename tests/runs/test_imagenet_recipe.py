"""The ImageNet recipes run as they are, on a folder of every kind of picture: NFNet-F0, its fine-tuning with SAM, and
NF-RegNet-B0; smaller images, batches and runs, by default narrower networks, and nothing else."""

import contextlib
import io
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import selection
import torch
import yaml
from image_files import break_file, pixels, write
from PIL import Image

from normfree.cli import main
from normfree.data import open_source
from normfree.recipes import Recipe, load_recipe
from normfree.runs.load import load_trained
from normfree.tasks import Classification
from normfree.training import read_checkpoint, read_metrics
from normfree.training.checkpoints import read_tensors

# of forks beside threads, from Python 3.12 on, which is how torch starts workers; of more workers than cores
WARNED = ["This process .* is multi-threaded:DeprecationWarning", "This DataLoader will create .* worker:UserWarning"]
pytestmark = [pytest.mark.filterwarnings(f"ignore:{warned}") for warned in WARNED]
FEW = {"data.image_size": 64, "data.test_size": 64, "data.workers": 2, "train.batch_size": 8, "train.steps": 3}
FEW |= {"train.device": "cpu", "train.log_every": 1}
# F0's own widths write 3 GB of checkpoints: with --cases rest or all
NARROW = {"model.options.widths": "[256,256,256,256]"}
BROKEN = {"train/ape/cut.jpg", "train/bee/cut.png", "train/bee/empty.gif", "val/ape/cut.jpg"}


@dataclass(frozen=True)
class Ended:
    code: int
    said: str


def normfree(*arguments) -> Ended:
    """The command, with all that it says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([str(argument) for argument in arguments])
    return Ended(code, said.getvalue())


def narrow(recipe: str) -> dict[str, str]:
    return {} if selection.whole() or "nfnet" not in recipe else NARROW


def train(recipe: str, photos: Path, out: Path, *more) -> Ended:
    few = [part for path, value in (FEW | narrow(recipe)).items() for part in (f"--{path}", value)]
    return normfree(
        "train", "--quiet", "--recipe", recipe, "--data", f"imagefolder:{photos}", "--out", out, *few, *more
    )


def rotated() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags


def pictures(folder: Path, seed: int) -> None:
    """One of every kind that cameras, scanners and the web make."""
    noise, deep = pixels(90, 70, seed), np.random.default_rng(seed).integers(0, 65536, (50, 60), dtype=np.uint16)
    write(folder / "plain.jpg", noise)
    write(folder / "grey.jpeg", noise, "L")
    write(folder / "cmyk.JPG", noise, "CMYK", format="JPEG")
    write(folder / "rotated.jpg", noise, exif=rotated())
    write(folder / "plain.png", noise)
    write(folder / "palette.png", noise, "P")
    write(folder / "deep.png", deep)
    write(folder / "transparent.png", noise, "RGBA")
    write(folder / "one_pixel.png", pixels(1, 1, seed))
    write(folder / "web.webp", noise)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """24 files to train with, of which three cannot be read, and 14 to test, of which one cannot; two classes."""
    root = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(("ape", "bee")):
        pictures(root / "train" / name, number)
        write(root / "train" / name / "still.gif", pixels(40, 40), "P")
    pictures(root / "val" / "ape", 2)
    for number in range(3):
        write(root / "val" / "bee" / f"{number}.jpg", pixels(30, 90, number))
    for name in BROKEN - {"train/bee/empty.gif"}:
        break_file(root / name)
    (root / "train/bee/empty.gif").touch()
    (root / "train" / "ape" / "still.gif").unlink()
    assert len(list(root.glob("train/*/*"))) == 24
    return root


@pytest.fixture(scope="module")
def f0(photos, tmp_path_factory) -> Iterator[tuple[Path, Ended]]:
    """A run of the recipe of NFNet-F0."""
    out = tmp_path_factory.mktemp("f0") / "run"
    yield out, train("nfnet_f0", photos, out)
    shutil.rmtree(out)  # 1.3 GB of the whole width


def finite(run: Path, steps: int = 3) -> dict:
    """The last evaluation, after a look at every number that was written."""
    lines = read_metrics(run)
    numbers = [value for line in lines for value in line.values() if isinstance(value, float)]
    assert len(numbers) > 10
    assert all(map(math.isfinite, numbers))
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, steps + 1))
    return next(line for line in reversed(lines) if line["kind"] == "eval")


def named_once(said: str, photos: Path) -> None:
    for name in BROKEN:
        assert said.count(f"skipped unreadable image {photos / name}: ") == 1, name
    assert said.count("skipped unreadable image") == len(BROKEN)
    assert f"{len(BROKEN)} unreadable images were skipped" in said


def recipe_of(run: Path, name: str, photos: Path, **more) -> Recipe:
    """What the run wrote down: the recipe's own numbers, but for the options that were given."""
    written = load_recipe(str(run / "recipe.yaml"))
    found = {"data.test_crop": "squash" if "nfnet" in name else "centre"}
    # some pictures of the first folder have 16 bits
    found |= {"data.value_range": [0.0, 255.0 if name.startswith("finetune") else 65535.0]}
    found |= {path: yaml.safe_load(text) for path, text in narrow(name).items()}
    assert written == load_recipe(name, {**FEW, **found, "data.source": f"imagefolder:{photos}", **more})
    return written


@pytest.mark.slow
@pytest.mark.scaled
def test_f0_trains_on_every_kind_of_picture(f0, photos):
    run, ended = f0
    assert ended.code == 0, ended.said
    assert "24 training and 14 test images of 2 classes; 3 steps of 8" in ended.said
    named_once(ended.said, photos)
    last = finite(run)
    assert (last["images"], last["ema_images"]) == (13, 13)
    assert read_metrics(run)[0]["clipped"] > 0


@pytest.mark.slow
@pytest.mark.scaled
def test_f0s_recipe_is_the_papers(f0, photos):
    run, _ = f0
    recipe = recipe_of(run, "nfnet_f0", photos)
    data, optim = recipe.data, recipe.optim
    assert (data.mixup, data.cutmix, data.randaugment_layers, data.randaugment_magnitude) == (0.2, 1.0, 4, 5.0)
    assert (optim.clipping, optim.ema_decay, optim.weight_decay, optim.sam_rho) == (0.01, 0.99999, 2e-5, None)
    assert (recipe.task.label_smoothing, recipe.train.precision, recipe.model.name) == (0.1, "bfloat16", "nfnet_f0")
    model = load_trained(str(run)).model
    assert model.head.dropout.p == 0.2
    rates = [block.stochdepth.rate for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.25 * i / 12 for i in range(12)], rel=1e-12)


@pytest.mark.slow
@pytest.mark.scaled
def test_f0s_epoch_holds_all_pictures_that_can_be_read(f0, photos):
    """A pair is left out with either of its two; every picture is in another pair as well."""
    recipe = load_recipe(str(f0[0] / "recipe.yaml"))
    sizes = dict(image_size=64, test_size=64, batch_size=8, seed=recipe.train.seed)
    task = Classification(open_source(recipe.data.source), recipe.task, recipe.data, **sizes)
    paths = [str(Path(path).relative_to(photos)) for path, _ in task.train.loader.dataset.split.samples]
    keys = [key for batch in task.train.batches for key in batch]
    kept = [key for key in keys if not {paths[key.index], paths[key.partner]} & BROKEN]
    batches = list(task.train)
    task.train.close()
    assert [index for batch in batches for index in batch.indices.tolist()] == [key.index for key in kept]
    assert 24 - 2 * 3 <= len(kept) < 24
    used = {paths[index] for key in kept for index in (key.index, key.partner)}
    assert used == set(paths) - BROKEN
    assert all(batch.images.isfinite().all() for batch in batches)


@pytest.mark.slow
@pytest.mark.scaled
def test_f0s_checkpoint_evaluates_and_predicts(f0, photos):
    run, _ = f0
    for kind in ("weights", "ema"):
        state, description, _ = read_checkpoint(run, "last", kind)
        assert all(value.isfinite().all() for value in state.values())
        assert description["classes"] == ["ape", "bee"]
    evaluated = normfree("eval", run)
    assert evaluated.code == 0
    assert evaluated.said.count("skipped unreadable image") == 1
    last = finite(run)
    assert "13 images" in evaluated.said
    # the run evaluated in bfloat16
    loss = float(evaluated.said.split("loss ")[1].split()[0])
    assert loss == pytest.approx(last["ema_loss"], abs=0.02)
    predicted = normfree("predict", run, photos / "val" / "bee", photos / "train" / "ape")
    assert predicted.code == 1  # one of them cannot be read
    assert predicted.said.count("skipped unreadable image") == 1
    assert predicted.said.count("%  ape") == predicted.said.count("%  bee") == 13


@pytest.mark.slow
@pytest.mark.scaled
def test_fine_tuning_with_sam_from_that_run(f0, tmp_path):
    root, start = tmp_path / "photos", f0[0]
    for number, name in enumerate(("ant", "bat", "cow")):
        for split, count in (("train", 4), ("val", 1)):
            for i in range(count):
                write(root / split / name / f"{i}.jpg", pixels(80, 60 + i, 10 * number + i))
    run = tmp_path / "run"
    fewer = ["--train.steps", 2, "--train.batch_size", 4]
    ended = train("finetune_nfnet_f4", root, run, "--model", "nfnet_f0", "--init", start, *fewer)
    assert ended.code == 0, ended.said
    assert "with a new classifier (3 classes instead of 2)" in ended.said
    given = {"model.name": "nfnet_f0", "train.steps": 2, "train.batch_size": 4}
    recipe = recipe_of(run, "finetune_nfnet_f4", root, **given)
    optim = recipe.optim
    assert (optim.sam_rho, optim.sam_fraction, optim.clipping, optim.ema_decay) == (0.05, 0.2, 0.01, 0.9999)
    assert finite(run, 2)["images"] == 3
    (first,) = (run / "checkpoints").glob("step-00000000")
    averaged, begun, ended_at = read_checkpoint(start)[0], read_tensors(first, "weights"), read_checkpoint(run)[0]
    body = [name for name in begun if not name.startswith("head.fc")]
    assert all(torch.equal(begun[name], averaged[name]) for name in body)
    moved = [name for name in body if not torch.equal(begun[name], ended_at[name])]
    assert len(moved) > len(body) // 2
    shutil.rmtree(run)


def test_nf_regnet_b0(photos, tmp_path):
    run = tmp_path / "run"
    ended = train("nf_regnet_b0", photos, run)
    assert ended.code == 0, ended.said
    named_once(ended.said, photos)
    recipe = recipe_of(run, "nf_regnet_b0", photos)
    assert (recipe.data.mixup, recipe.data.cutmix, recipe.optim.clipping) == (0.2, 1.0, None)
    assert finite(run)["images"] == 13
    assert read_metrics(run)[0]["clipped"] is None
    assert normfree("eval", run).code == 0
    assert normfree("predict", run, photos / "val" / "bee").code == 0
