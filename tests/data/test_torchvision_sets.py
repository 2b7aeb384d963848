"""torchvision's data sets by name: where they are found, what they hold, and what is said where they are not."""

import coco_files
import numpy as np
import pair_files
import pytest
import torch
import torchvision_files
from torchvision import datasets

from normfree import UsageError
from normfree.data import UnreadableImage, open_source, open_test
from normfree.data.held_out import HeldOut
from normfree.data.objects import open_objects
from normfree.data.pairs import open_pairs
from normfree.data.pixels import IGNORE
from normfree.data.sources import ArraySplit, absolute
from normfree.data.torchvision_places import FOLDER, OBJECTS, PAIRS, SETS
from normfree.data.workers import workers_for


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No set of this machine, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(FOLDER, raising=False)

    def refused(*arguments, **options):
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refused)


def test_all_are_torchvisions():
    for name in (*SETS, *PAIRS, *OBJECTS):
        assert hasattr(datasets, name)


def test_cifar10(tmp_path, monkeypatch):
    root = torchvision_files.cifar10(tmp_path / "sets", monkeypatch)
    source = open_source(f"torchvision:CIFAR10:{root}")
    assert (len(source.train), len(source.test), source.classes) == (20, 4, torchvision_files.CLASSES)
    assert isinstance(source.train, ArraySplit)
    theirs = datasets.CIFAR10(str(root))
    for index in (0, 19):
        image, label = theirs[index]
        assert torch.equal(source.train.image(index), torch.from_numpy(np.array(image)).permute(2, 0, 1))
        assert source.train.label(index) == label
    assert source.notes[0].startswith("there are no test images of ")
    assert workers_for(source) == 0
    only = open_test(f"torchvision:CIFAR10:{root}", source.classes)
    assert (len(only.train), len(only.test)) == (0, 4)
    with pytest.raises(UsageError, match="CIFAR10 has test images of its own"):
        open_source(f"torchvision:CIFAR10:{root}", held_out=HeldOut(0.1))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inside", ["", "FashionMNIST/raw"])
def test_files_of_mnist(tmp_path, packed, inside):
    torchvision_files.mnist(tmp_path / "sets" / inside, packed)
    source = open_source(f"torchvision:FashionMNIST:{tmp_path / 'sets'}", 1)
    assert (len(source.train), len(source.test), source.classes[9]) == (12, 6, "Ankle boot")
    assert source.train.image(3).shape == (1, 28, 28)
    if inside and not packed:
        theirs = datasets.FashionMNIST(str(tmp_path / "sets"), train=False)
        assert torch.equal(source.test.image(5)[0], theirs.data[5])


def test_damaged_files_of_mnist(tmp_path):
    folder = torchvision_files.mnist(tmp_path / "MNIST" / "raw")
    path = folder / "train-images-idx3-ubyte"
    content = path.read_bytes()
    for changed, reason in (
        (content[:500], "is truncated"),
        (b"text", "cannot be read: it does not begin as files of"),
    ):
        path.write_bytes(changed)
        with pytest.raises(UsageError, match=reason):
            open_source(f"torchvision:MNIST:{tmp_path}")
    path.write_bytes(content[:4] + b"\xff" * 12 + content[16:])
    with pytest.raises(UsageError, match="more than this machine can hold"):
        open_source(f"torchvision:MNIST:{tmp_path}")


def test_files_are_decoded_as_everywhere(tmp_path):
    torchvision_files.imagenette(tmp_path)
    source = open_source(f"torchvision:imagenette:{tmp_path}")
    assert (len(source.train), len(source.test), source.classes) == (6, 6, ["tench", "English springer"])
    assert source.train.image(1).shape == (3, 17, 18)
    with open(source.train.file(0), "wb") as file:
        file.write(b"no image")
    with pytest.raises(UnreadableImage, match=r"0\.JPEG"):
        source.train.image(0)


def test_pets(tmp_path):
    torchvision_files.pets(tmp_path)
    source = open_source(f"torchvision:OxfordIIITPet:{tmp_path}")
    assert (len(source.train), source.classes) == (6, ["Abyssinian", "Yorkshire Terrier"])
    assert [source.test.label(i) for i in range(6)] == [0, 0, 0, 1, 1, 1]


def test_some_are_held_out_of_a_set_without_test_images(tmp_path):
    torchvision_files.eurosat(tmp_path)
    with pytest.raises(UsageError, match=r"EuroSAT has no test images; --data\.val_fraction 0\.1"):
        open_source(f"torchvision:EuroSAT:{tmp_path}")
    source = open_source(f"torchvision:EuroSAT:{tmp_path}", held_out=HeldOut(0.34))
    assert (len(source.train), len(source.test), source.classes) == (8, 4, ["Forest", "River"])
    assert "eurosat/2750/River/River_" in source.held_out.names[-1]
    assert len(open_test(f"torchvision:EuroSAT:{tmp_path}", source.classes).test) == 12


def test_where_they_are_found(tmp_path, monkeypatch):
    for place, flags in (("cache/normfree/data", {}), ("data", {}), ("mine", {FOLDER: str(tmp_path / "mine")})):
        torchvision_files.imagenette(tmp_path / place)
        for name, value in flags.items():
            monkeypatch.setenv(name, value)
        assert absolute("torchvision:Imagenette") == f"torchvision:Imagenette:{tmp_path / place}"
        assert str(tmp_path / place) in str((tmp_path / open_source("torchvision:Imagenette").train.name(0)).resolve())
    inner = tmp_path / "data" / "imagenette2"
    assert len(open_source(f"torchvision:Imagenette:{inner}").train) == 6
    assert absolute(f"torchvision:Imagenette:{inner}") == f"torchvision:Imagenette:{tmp_path / 'data'}"


def test_a_set_that_is_nowhere(tmp_path, monkeypatch):
    with pytest.raises(UsageError) as caught:
        open_source("torchvision:CIFAR10")
    cache = tmp_path / "cache" / "normfree" / "data"
    assert str(caught.value) == (
        f"data.source: CIFAR10 is not in data, {cache}, and torchvision could not download it (no network in tests); "
        f"put cifar-10-batches-py into {cache}, or name its folder: torchvision:CIFAR10:FOLDER"
    )


def test_a_set_is_downloaded_once(tmp_path, monkeypatch):
    calls = []

    class Downloading:
        classes = ["a", "b"]

        def __init__(self, root, train, download=False):
            calls.append((train, download))
            torchvision_files.mnist(tmp_path / "data" / "MNIST" / "raw")

    (tmp_path / "data").mkdir()
    monkeypatch.setenv(FOLDER, str(tmp_path / "data"))
    monkeypatch.setattr(datasets, "MNIST", Downloading)
    assert len(open_source("torchvision:MNIST").train) == 12
    assert len(open_source("torchvision:MNIST").train) == 12
    assert calls == [(True, True), (False, True)]


def test_unknown_names():
    with pytest.raises(
        UsageError, match=r"'torchvision:CIFR10'\): no such set of torchvision; did you mean CIFAR10 or"
    ):
        open_source("torchvision:CIFR10")
    with pytest.raises(UsageError, match=r"known for classification: CIFAR10, "):
        open_source("torchvision:")
    with pytest.raises(UsageError, match="did you mean torchvision:MNIST"):
        open_source("torchvison:MNIST")


def test_masks_of_pets(tmp_path):
    torchvision_files.pets(tmp_path)
    source = open_pairs(f"torchvision:OxfordIIITPet:{tmp_path}", "segmentation")
    assert (len(source.train), len(source.test), source.classes) == (6, 6, ["background", "pet"])
    image, mask = source.train.pair(0)
    assert image.shape == (3, 20, 24)
    assert mask[0].tolist() == [1] * 10 + [IGNORE] + [0] * 13


def test_masks_of_voc(tmp_path):
    pair_files.voc_folder(tmp_path)
    source = open_pairs(f"torchvision:vocsegmentation:{tmp_path}", "segmentation")
    assert (len(source.train), len(source.test), len(source.classes)) == (4, 4, 21)
    with pytest.raises(UsageError, match="is not for classification; CIFAR10, "):
        open_source(f"torchvision:VOCSegmentation:{tmp_path}")
    with pytest.raises(UsageError, match=r"must be .* for depth"):
        open_pairs(f"torchvision:OxfordIIITPet:{tmp_path}", "depth")


def test_damaged_sets(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(UsageError, match=r"torchvision cannot open CIFAR10 in .*: Dataset not found or corrupted"):
        open_source(f"torchvision:CIFAR10:{tmp_path}")


def test_boxes_of_voc(tmp_path):
    """They are counted from 1 with both ends inside, as torchvision's texts are; difficult objects are crowds."""
    torchvision_files.voc_objects(tmp_path)
    source = open_objects(f"torchvision:VOCDetection:{tmp_path}", masks=False)
    assert (len(source.train), len(source.test), len(source.classes)) == (3, 3, 20)
    image, objects = source.test.pair(1)
    theirs, told = datasets.VOCDetection(str(tmp_path), image_set="val")[1]
    assert torch.equal(image, torch.from_numpy(np.array(theirs)).permute(2, 0, 1))
    names = [source.classes[label] for label in objects.labels]
    assert names == [one["name"] for one in told["annotation"]["object"]] == ["cat", "dog"]
    assert objects.boxes.tolist() == [[0, 2, 12, 22], [20, 0, 40, 30]]
    assert objects.crowd.tolist() == [False, True]
    assert source.test.counts() == {source.classes.index("cat"): 3}
    only = open_objects(f"torchvision:VOCDetection:{tmp_path}", masks=False, test_only=True)
    assert (len(only.train), len(only.test), only.classes) == (0, 3, source.classes)
    with pytest.raises(UsageError, match=r"VOCDetection has boxes and no masks; --task\.masks false"):
        open_objects(f"torchvision:VOCDetection:{tmp_path}")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("<name>cat", "<name>yeti", r"class 'yeti' is none of Pascal VOC's"),
        ("<xmin>1<", "<xmin>one<", "does not describe objects as Pascal VOC does: could not convert"),
        ("<ymax>22</ymax>", "", "does not describe objects as Pascal VOC does: no ymax"),
        ("<xmin>1<", "<xmin>99<", r"must be left, top, width, height in pixels"),
        ("<width>40<", "<width>0<", r"width \(=0\) of image 0 must be pixels"),
        ("<annotation>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>", "or with declarations"),
        ("</annotation>", "", "does not describe objects as Pascal VOC does: "),
    ],
)
def test_damaged_boxes_of_voc(tmp_path, before, after, message):
    torchvision_files.voc_objects(tmp_path)
    path = tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "2008_000000.xml"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after, 1))
    with pytest.raises(UsageError, match=message) as caught:
        open_objects(f"torchvision:VOCDetection:{tmp_path}", masks=False)
    assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(UsageError, match=r"2008_000000\.xml cannot be read: No such file"):
        open_objects(f"torchvision:VOCDetection:{tmp_path}", masks=False)


@pytest.mark.parametrize("official", [False, True])
def test_objects_of_coco(tmp_path, monkeypatch, official):
    coco_files.coco_folder(tmp_path / "data" / "coco", official=official)
    found, named, same = (
        open_objects(source)
        for source in ("torchvision:CocoDetection", "torchvision:cocodetection:data/coco", "coco:data/coco")
    )
    assert found.classes == named.classes == same.classes
    for source in (found, named):
        assert torch.equal(source.train.pair(2)[1].boxes, same.train.pair(2)[1].boxes)
    assert absolute("torchvision:CocoDetection") == f"torchvision:CocoDetection:{tmp_path / 'data' / 'coco'}"
    with pytest.raises(
        UsageError, match=r"CocoDetection is not in nowhere, and torchvision does not download it; name"
    ):
        open_objects("torchvision:CocoDetection:nowhere")
    with pytest.raises(UsageError, match="is not for detection; VOCDetection, CocoDetection are"):
        open_objects("torchvision:CIFAR10")


def test_pcam(tmp_path):
    pytest.importorskip("h5py")
    torchvision_files.pcam(tmp_path)
    source = open_source(f"torchvision:PCAM:{tmp_path}")
    assert (len(source.train), len(source.test), source.classes) == (6, 6, ["normal", "tumor"])
    assert source.notes[0] == "val of PCAM not used; test is what is tested on"
    theirs = datasets.PCAM(str(tmp_path), split="test")
    for index in (0, 5):
        image, label = theirs[index]
        assert torch.equal(source.test.image(index), torch.from_numpy(np.array(image)).permute(2, 0, 1))
        assert source.test.label(index) == label
    grey = open_source(f"torchvision:PCAM:{tmp_path}", 1).train.image(0)
    assert (grey.shape, grey.dtype) == ((1, 96, 96), torch.uint8)


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        ("x", np.zeros((6, 64, 64, 3), np.uint8), r"images of shape \(6, 64, 64, 3\) of uint8"),
        ("x", np.zeros((6, 96, 96, 3), np.float32), "of float32"),
        ("y", np.zeros((5, 1, 1, 1), np.uint8), r"labels of shape \(5, 1, 1, 1\)"),
        ("y", np.full((6, 1, 1, 1), 7, np.uint8), "they must be 0 or 1"),
    ],
)
def test_damaged_pcam(tmp_path, kind, array, message):
    h5py = pytest.importorskip("h5py")
    torchvision_files.pcam(tmp_path)
    path = tmp_path / "pcam" / f"camelyonpatch_level_2_split_train_{kind}.h5"
    with h5py.File(path, "w") as file:
        file[kind] = array
    with pytest.raises(UsageError, match=message):
        open_source(f"torchvision:PCAM:{tmp_path}")


def test_pcam_without_its_files(tmp_path):
    pytest.importorskip("h5py")
    torchvision_files.pcam(tmp_path)
    path = tmp_path / "pcam" / "camelyonpatch_level_2_split_train_y.h5"
    path.write_bytes(b"no HDF5")
    with pytest.raises(UsageError, match="holds no PCAM: "):
        open_source(f"torchvision:PCAM:{tmp_path}")
    path.unlink()
    with pytest.raises(UsageError, match=rf"{path.name} is missing"):
        open_source(f"torchvision:PCAM:{tmp_path}")
