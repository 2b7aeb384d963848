"""`normfree eval` on exported files: the numbers of the run they are from."""

import json

import image_files
import numpy as np
import pytest
from PIL import Image
from tiny_runs import FLAGS

from normfree.cli import main
from normfree.export import Description

SMALL = [*FLAGS, "--data.image_size", "12", "--data.test_size", "12", "--train.batch_size", "8", "--train.steps", "2"]
VECTORS = [*SMALL, "--data.resize_margin", "2", "--data.crop", "none", "--data.val_fraction", "0.25"]
DENSE = ["--recipe", "demo_segmentation", "--quiet", "--train.device", "cpu", "--train.batch_size", "2"]
DENSE += ["--train.steps", "2", "--task.head_width", "8", "--data.image_size", "16", "--data.test_size", "16"]
DENSE += ["--model.options.depths", "[1,1,1]", "--model.options.widths", "[16,16,32]", "--data.mask_values", "[255,0]"]
KINDS = {
    "classification": VECTORS,
    "multi-label": [*VECTORS, "--task.labels", "multi"],
    "regression": [*VECTORS, "--task.name", "regression"],
    "segmentation": DENSE,
}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _photos(root, kind):
    """Images of three classes, tables about them, and masks of 0 and 255; the source of a kind."""
    rows = {"multi-label": ["file,class"], "regression": ["file,age,height"]}
    for i in range(24):
        image = image_files.pixels(16, 16, seed=i) // 2 + np.uint8(i * 5)
        name = ("cat", "dog", "owl")[i % 3]
        image_files.write(root / "flat" / name / f"{i}.png", image)
        rows["multi-label"].append(f"flat/{name}/{i}.png,{';'.join(['cat', 'dog', 'owl'][: i % 4])}")
        rows["regression"].append(f"flat/{name}/{i}.png,{20 + i},{1.5 + i / 100}")
        part = root / "masks" / ("val" if i % 4 == 0 else "train")
        image_files.write(part / "images" / f"{i}.png", image)
        (part / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.where(image[..., 0] > image[..., 0].mean(), 255, 0).astype(np.uint8)).save(
            part / "masks" / f"{i}.png"
        )
    for name, lines in rows.items():
        (root / f"{name}.csv").write_text("\n".join(lines))
    return {"classification": f"imagefolder:{root / 'flat'}", "segmentation": f"masks:{root / 'masks'}"}.get(
        kind, f"csv:{root / kind}.csv"
    )


@pytest.mark.parametrize(("kind", "ending"), [(kind, ".pt2") for kind in KINDS] + [("regression", ".onnx")])
def test_the_numbers_are_those_of_the_run(normfree, tmp_path, kind, ending):
    if ending == ".onnx":
        pytest.importorskip("onnxruntime")
    source = _photos(tmp_path / "photos", kind)
    run, file = tmp_path / "run", tmp_path / f"net{ending}"
    assert main(["train", *KINDS[kind], "--data", source, "--out", str(run)]) == 0
    exported = normfree("export", run, "--out", file)
    assert exported.code == 0, exported.err
    if kind == "regression":
        assert "names of the numbers are in the file" in exported.out
    if kind == "segmentation":
        other = source
    else:  # other images than those that the run has held out: all of them
        _photos(tmp_path / "other", kind)
        other = source.replace("photos", "other")
    ours, theirs = (normfree("eval", network, "--data", other, "--json") for network in (run, file))
    assert theirs.code == 0, theirs.err
    ours, theirs = json.loads(ours.out), json.loads(theirs.out)
    assert ours["images"] == (6 if kind == "segmentation" else 24)
    for told in (ours, theirs):
        told.pop("network")
    assert _close(theirs) == _close(ours)
    result = normfree("eval", file)
    assert (result.code, result.error) == (2, f"{file} does not say where images are; give --data SOURCE")


def _close(told):
    """With floats that compare with a tolerance."""
    if isinstance(told, dict):
        return {name: _close(value) for name, value in told.items()}
    if isinstance(told, list):
        return [_close(value) for value in told]
    return pytest.approx(told, rel=1e-3, abs=1e-4) if isinstance(told, float) else told


def test_a_description_without_targets_is_as_before(normfree):
    about = dict(size=8, channels=1, mean=[0.5], std=[0.5], resize_margin=0, resize="centre")
    about |= dict(interpolation="bicubic", cubic_a=-0.5, antialias=False)
    plain = dict(format=1, model="m", preprocessing=about, classes=None, precision="float32", batch=None, opset=None)
    plain |= dict(normfree="1", torch="2", task="classification", output="logits", shape=[2])
    read = Description.from_json(json.dumps(plain), "x")
    assert read.targets == {}
    assert "targets" not in json.loads(read.to_json())


def test_weights_alone_do_not_say_where_images_are(normfree, theirs):
    result = normfree("eval", theirs)
    assert result.code == 2
    assert result.err.splitlines()[-1] == f"normfree: {theirs} does not say where images are; give --data SOURCE"
