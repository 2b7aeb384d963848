"""Images that are not 8 bits or not RGB, through every verb: the run stores the range, all else follows it."""

import json

import numpy as np
import pytest
import tifffile

from normfree.cli import main
from normfree.export import open_archive
from normfree.recipes import load_recipe
from normfree.runs.load import load_trained

TINY = ["--model", "nf_resnet50", "--model.options", "{depths: [1, 1, 1, 1], widths: [8, 8, 8, 8]}", "--quiet"]
TINY += ["--data.image_size", "16", "--data.test_size", "16", "--data.crop", "none", "--train.batch_size", "4"]
TINY += ["--train.precision", "float32", "--optim.lr", "0.0625", "--optim.warmup_epochs", "2"]
TINY += ["--optim.ema_decay", "0.999", "--data.flip", "true", "--data.resize_margin", "16"]


def photographs(root, channels: int = 1, top: float = 1.0):
    """Two classes, dark and bright, as float32 TIFF files of 0 to ``top``."""
    rng, bands = np.random.default_rng(0), dict(planarconfig="separate") if channels > 1 else {}
    for part, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("dark", "bright")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                values = (0.5 * label + 0.5 * rng.random((channels, 20, 24))) * top
                values.flat[:2] = 0, top
                values = values.squeeze().astype(np.float32)
                tifffile.imwrite(root / part / name / f"{i}.tif", values, photometric="minisblack", **bands)
    return root


def test_the_range_goes_from_training_to_everything(tmp_path, capsys):
    root, run = photographs(tmp_path / "photos"), str(tmp_path / "run")
    flags = ["--data", f"imagefolder:{root}", "--data.channels", "1", *TINY, "--out", run, "--train.epochs", "20"]
    assert main(["train", *flags]) == 0
    said = "data.value_range: 0 is black and 1 is white, by the 8 images that were looked at (8 float32)"
    assert said in capsys.readouterr().err.splitlines()
    assert load_recipe(f"{run}/recipe.yaml").data.value_range == (0.0, 1.0)
    assert load_trained(run).recipe.data.value_range == (0.0, 1.0)
    assert main(["eval", run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] >= 0.75  # where levels are lost it is chance
    assert main(["export", run, "--out", str(tmp_path / "net.pt2")]) == 0
    assert open_archive(tmp_path / "net.pt2").description.preprocessing.value_range == (0.0, 1.0)
    image, said = str(root / "val" / "bright" / "0.tif"), []
    for network in (run, str(tmp_path / "net.pt2")):
        capsys.readouterr()
        assert main(["predict", network, image, "--json"]) == 0
        said.append({c["name"]: c["probability"] for c in json.loads(capsys.readouterr().out)["classes"]})
    assert said[0] == pytest.approx(said[1], abs=1e-5)  # both are float32
    assert main(["report", run]) == 0


def test_a_range_without_levels_is_refused(tmp_path, capsys):
    root, flags = photographs(tmp_path / "photos"), ["--data.value_range", "[0, 255]", "--out", str(tmp_path / "run")]
    assert main(["train", "--data", f"imagefolder:{root}", "--data.channels", "1", *TINY, *flags]) == 2
    assert "data.value_range (=[0.0, 255.0]) leaves 2 of 256 levels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_five_bands(tmp_path, capsys):
    root, run = photographs(tmp_path / "photos", 5, 10_000), str(tmp_path / "run")
    flags = ["--data", f"imagefolder:{root}", "--data.channels", "5", "--out", run, "--train.epochs", "1"]
    assert main(["train", *flags, *TINY]) == 0
    assert main(["eval", run]) == 0
    assert main(["predict", run, str(root / "val")]) == 0
    assert main(["report", run]) == 0
    assert main(["spp", run, "--data", str(root / "val" / "dark"), "--batch", "2", "--out", str(tmp_path / "spp")]) == 0
    capsys.readouterr()
    assert main(["train", *flags[:2], "--out", str(tmp_path / "rgb"), *TINY]) == 2
    assert "none of the 8 images that were looked at can be read" in (said := capsys.readouterr().err)
    assert "0.tif: 5 channels; 3 are needed" in said
