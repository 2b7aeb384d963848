"""One walk of folders for every verb: links, loops, dead links, pipes, and files that are no images."""

import errno
import os
from pathlib import Path

import image_files
import numpy as np
import pair_files
import pytest
from PIL import Image
from torchvision.datasets.folder import make_dataset

from normfree import UsageError
from normfree.cli import main
from normfree.data import UnreadableImage, decode_image, find_images, image_folder, open_source
from normfree.data.decode import EXTENSIONS
from normfree.data.pairs import open_pairs
from normfree.data.walk import Walk


def names(samples) -> list[str]:
    return [path for path, _ in samples]


def test_order_is_that_of_torchvision(tmp_path):
    """Runs that began with torchvision's listing go on with the same order of images."""
    root = image_files.folder(tmp_path / "photos")
    for name in ("a/x.png", "a-b/x.png", "a/b/x.png", "a.png", "b.JPEG", "Z/1.png", "Z/10.png", "Z/2.png"):
        image_files.write(root / "train" / "cat" / name, format="PNG")
    (root / "train" / "cat" / "linked").symlink_to(root / "val" / "cat")
    (root / "train" / "dog" / "one.png").symlink_to(root / "val" / "dog" / "0.png")
    source = image_folder(str(root))
    expected = make_dataset(str(root / "train"), dict(cat=0, dog=1), extensions=EXTENSIONS)
    assert source.train.samples == expected
    assert len(expected) == 8 + 8 + 2 + 1
    assert find_images([root / "train"]) == sorted(map(Path, names(expected)))


@pytest.mark.parametrize("target", ["..", "../..", ".", "ABSOLUTE"])
def test_a_link_to_a_folder_above_is_not_followed(tmp_path, target):
    root = image_files.folder(tmp_path / "photos")
    link = root / "train" / "cat" / "up"
    link.symlink_to(root if target == "ABSOLUTE" else target)
    source = image_folder(str(root))
    assert (len(source.train), len(source.test), source.classes) == (8, 4, ["cat", "dog"])
    assert source.notes == (f"{root}: skipped 1 link to a folder that holds it: {link}",)
    assert len(find_images([root])) == 12


def test_a_loop_behind_a_link(tmp_path):
    """The class is a link to a folder elsewhere, which holds links to itself and to the data set."""
    root = image_files.folder(tmp_path / "photos")
    elsewhere = tmp_path / "birds" / "deep"
    image_files.write(elsewhere / "a.png")
    for part in ("train", "val"):
        (root / part / "bird").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(elsewhere.parent)
    (elsewhere / "all").symlink_to(root / "train")
    source = image_folder(str(root))
    assert [source.train.label(i) for i in range(len(source.train))].count(source.classes.index("bird")) == 1


def test_links_that_lead_to_each_other(tmp_path):
    root = image_files.folder(tmp_path / "photos")
    (root / "train" / "cat" / "a").symlink_to("b")
    (root / "train" / "cat" / "b").symlink_to("a")
    assert len(image_folder(str(root)).train) == 8


def test_a_folder_above_is_no_class(tmp_path):
    root = image_files.folder(tmp_path / "photos")
    for part in ("train", "val"):
        (root / part / "all").symlink_to("..")
    source = image_folder(str(root))
    assert source.classes == ["cat", "dog"]
    assert source.notes[0].startswith(f"{root}: skipped 2 links to a folder that holds it")


def test_one_folder_linked_twice_is_read_once(tmp_path):
    root, shared = image_files.folder(tmp_path / "photos"), tmp_path / "shared"
    image_files.write(shared / "a.png")
    for name in ("one", "two"):
        (root / "train" / "cat" / name).symlink_to(shared)
    source, two = image_folder(str(root)), root / "train" / "cat" / "two"
    assert (len(source.train), source.notes) == (9, (f"{root}: skipped 1 link to a folder that is read anyway: {two}",))


def test_of_several_links_the_first_one_names_the_folder(tmp_path):
    shared = tmp_path / "shared"
    image_files.write(shared / "a.png")
    for name in ("c", "a/z", "b"):
        (tmp_path / "root" / name).mkdir(parents=True)
        (tmp_path / "root" / name / "link").symlink_to(shared)
    walk = Walk()
    assert walk.images(tmp_path / "root") == [str(tmp_path / "root" / "a" / "z" / "link" / "a.png")]
    assert walk.again == [str(tmp_path / "root" / name / "link") for name in "bc"]


def test_a_folder_has_its_own_name_where_a_link_comes_first(tmp_path):
    image_files.write(tmp_path / "z" / "a.png")
    (tmp_path / "a").symlink_to("z")
    walk = Walk()
    assert walk.images(tmp_path) == [str(tmp_path / "z" / "a.png")]
    assert walk.notes("x") == [f"x: skipped 1 link to a folder that is read anyway: {tmp_path / 'a'}"]


@pytest.fixture
def scanned(monkeypatch):
    """Folders that were listed."""
    listed, scan = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(str(folder)) or scan(folder))
    return listed


@pytest.mark.parametrize("inside", [True, False], ids=["in the tree", "elsewhere"])
def test_folders_that_all_link_to_each_other(tmp_path, scanned, inside):
    """Each image once, each folder listed once: by the paths there are 1,956 of them, of 16 folders 10**13."""
    root, names = tmp_path / "root", "abcdef"
    place = root if inside else tmp_path / "elsewhere"
    for name in names:
        image_files.write(place / name / f"{name}.png")
        for other in set(names) - {name}:
            (place / name / f"to_{other}").symlink_to(place / other)
    root.mkdir(exist_ok=True)
    if not inside:
        for name in names:
            (root / name).symlink_to(place / name)
    walk = Walk()
    assert walk.images(root) == [str(root / name / f"{name}.png") for name in names]
    assert len(scanned) == 1 + len(names)
    assert len(walk.again) + len(walk.loops) == len(names) * (len(names) - 1)


def test_what_is_above_a_linked_folder_is_not_followed(tmp_path, scanned):
    """Two links deep, neither in the tree nor above it."""
    image_files.write(tmp_path / "far" / "deep" / "x" / "a.png")
    image_files.write(tmp_path / "far" / "b.png")
    (tmp_path / "far" / "deep" / "x" / "up").symlink_to("../..")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "far" / "deep" / "x")
    walk = Walk()
    assert walk.images(tmp_path / "root") == [str(tmp_path / "root" / "link" / "a.png")]
    assert walk.loops == [str(tmp_path / "root" / "link" / "up")]
    assert len(scanned) == 2


def test_a_walk_asks_the_system_once_for_each_folder_and_link(tmp_path, monkeypatch):
    """So 200,000 images cost what their folders' lists do."""
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(300):
            (tmp_path / name / f"{i}.png").touch()
    stat, asked = os.stat, []
    monkeypatch.setattr(os, "stat", lambda path, **options: asked.append(str(path)) or stat(path, **options))
    assert len(Walk().images(tmp_path)) == 600
    assert len([path for path in asked if path.startswith(str(tmp_path))]) < 10


def test_paths_that_are_too_long_for_the_system_are_said(tmp_path, monkeypatch):
    image_files.write(tmp_path / "a.png")
    (tmp_path / "deep").mkdir()
    stat = os.stat

    def short(path, **options):
        if str(path).endswith("deep"):
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", short)
    walk = Walk()
    assert walk.images(tmp_path) == [str(tmp_path / "a.png")]
    assert walk.notes("x") == [f"x: skipped 1 folder that cannot be opened: {tmp_path / 'deep'}"]


def test_a_dead_link_is_an_image_that_cannot_be_read(tmp_path):
    root = image_files.folder(tmp_path / "photos")
    dead = root / "train" / "cat" / "gone.png"
    dead.symlink_to(tmp_path / "unmounted" / "gone.png")
    source = image_folder(str(root))
    assert source.notes == (f"{root}: 1 link to nothing: {dead}",)
    place = names(source.train.samples).index(str(dead))
    with pytest.raises(UnreadableImage, match=r"gone\.png: a link to .*unmounted/gone\.png, which does not exist"):
        source.train.image(place)
    assert dead in find_images([root])


def test_pipes_are_never_opened(tmp_path):
    root = image_files.folder(tmp_path / "photos")
    pipe = root / "train" / "cat" / "pipe.png"
    os.mkfifo(pipe)
    (root / "train" / "cat" / "zero.png").symlink_to("/dev/zero")
    source = image_folder(str(root))
    assert len(source.train) == 8
    assert source.notes[0].startswith(f"{root}: skipped 2 special files (pipes, sockets, devices): {pipe}")
    with pytest.raises(UsageError, match=r"pipe\.png is not a regular file"):
        find_images([pipe])


def test_what_is_no_image_is_counted(tmp_path):
    root = image_files.folder(tmp_path / "photos")
    for name in ("a.txt", "b.txt", "c.csv", "README", ".hidden"):
        (root / "train" / "cat" / name).write_text("")
    image_files.write(root / "train" / "loose.png")
    assert image_folder(str(root)).notes == (
        f"{root}: skipped 4 files that are no images: .txt 2, without a suffix 1, .csv 1",
        f"{root}: skipped 1 image outside of the class folders: {root / 'train' / 'loose.png'}",
    )


def test_a_closed_folder_is_said(tmp_path, monkeypatch):
    image_files.write(tmp_path / "a" / "a.png")
    image_files.write(tmp_path / "b" / "b.png")
    scan = os.scandir

    def closed(folder):
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", closed)
    walk = Walk()
    assert walk.images(tmp_path) == [str(tmp_path / "a" / "a.png")]
    assert walk.notes("photos") == [f"photos: skipped 1 folder that cannot be opened: {tmp_path / 'b'}"]


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".avif", "AVIF"), (".jp2", "JPEG2000"), (".jfif", "JPEG"), (".jpe", "JPEG"), (".dib", "DIB")]
)
def test_formats_that_are_read_by_content_are_found_by_name(tmp_path, suffix, kind):
    root = image_files.folder(tmp_path / "photos")
    image_files.write(root / "train" / "cat" / f"new{suffix}", format=kind)
    source = image_folder(str(root))
    assert (len(source.train), source.notes) == (9, ())
    place = names(source.train.samples).index(str(root / "train" / "cat" / f"new{suffix}"))
    assert source.train.image(place).shape == (3, 10, 12)
    assert len(find_images([root])) == 13


def test_a_format_that_needs_another_package_is_named(tmp_path, monkeypatch):
    root, needed = (
        image_files.folder(tmp_path / "photos"),
        'reading .heic needs pillow-heif; pip install "normfree[heic]"',
    )
    monkeypatch.setattr("normfree.data.walk.EXTENSIONS", (".png",))
    monkeypatch.setattr("normfree.data.walk.MISSING", {".heic": needed})
    (root / "train" / "cat" / "a.HEIC").write_bytes(b"")
    assert image_folder(str(root)).notes == (f"{root}: skipped 1 .heic file: {needed}",)
    for path in (root / "train" / "cat").glob("*.png"):
        path.unlink()
    with pytest.raises(UsageError, match=r"no images in cat; .*pip install"):
        image_folder(str(root))


def test_masks_and_depth_take_the_same_walk(tmp_path):
    for kind, task, root in (
        ("masks", "segmentation", pair_files.masks_folder(tmp_path / "m")),
        ("depth", "depth", pair_files.depth_folder(tmp_path / "d")),
    ):
        before = len(open_pairs(f"{kind}:{root}", task).train)
        images = root / "train" / "images"
        os.mkfifo(images / "pipe.png")
        (images / "notes.txt").write_text("")
        image_files.write(images / "deep" / "a.png")
        source = open_pairs(f"{kind}:{root}", task)
        assert len(source.train) == before
        assert [line.split(": ")[1] for line in source.notes] == [
            "skipped 1 file that is no image",
            "skipped 1 special file (pipes, sockets, devices)",
            "skipped 1 folder among the images",
        ]


def test_every_verb_says_what_it_skipped(tmp_path, capsys):
    root = image_files.folder(tmp_path / "photos", train=2, val=1)
    (root / "train" / "cat" / "up").symlink_to("..")
    (root / "val" / "cat" / "notes.txt").write_text("")
    small = ["--model", "nf_resnet50", "--model.options", "{depths: [1, 1, 1, 1], widths: [8, 8, 8, 8]}"]
    small += ["--data.image_size", "16", "--data.test_size", "16", "--train.epochs", "1", "--train.batch_size", "2"]
    run = str(tmp_path / "run")
    assert main(["train", "--data", f"imagefolder:{root}", *small, "--out", run, "--quiet"]) == 0
    told = [
        f"{root}: skipped 1 file that is no image: .txt 1",
        f"{root}: skipped 1 link to a folder that holds it: {root / 'train' / 'cat' / 'up'}",
    ]
    assert set(told) <= set(capsys.readouterr().err.splitlines())
    assert main(["eval", run]) == 0
    assert capsys.readouterr().err.splitlines() == told[:1]  # it does not look at training images
    assert main(["predict", run, str(root)]) == 0
    result = capsys.readouterr()
    assert result.err.splitlines()[:2] == told
    assert len([line for line in result.out.splitlines() if line.startswith(str(root))]) == 6


def test_one_class_is_refused(tmp_path):
    root = image_files.folder(tmp_path / "photos", ("cat",))
    with pytest.raises(UsageError, match=r"photos/train holds one class folder \(cat\); .*two or more classes"):
        open_source(f"imagefolder:{root}")


def test_heic_without_its_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("normfree.data.decode._available", lambda kind: kind != "HEIF")
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    with pytest.raises(UnreadableImage, match=r'a\.jpg: a HEIF image, which needs pillow-heif; pip install "normfree'):
        decode_image(tmp_path / "a.jpg")


def test_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="an extra")
    ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    path = tmp_path / "photo.HEIC"
    heif.from_pillow(Image.fromarray(ramp)).save(path)
    assert find_images([tmp_path]) == [path]
    read = decode_image(path).permute(1, 2, 0).numpy()
    assert np.abs(read.astype(int) - ramp).mean() < 4  # grey levels: it is a lossy format
