"""Shards: what is in them, in any order and process, and every way a shard can be wrong."""

import json
import os
import pickle
import tarfile
import types
import zlib

import numpy as np
import pytest
import torch
from image_files import pixels, write
from shard_files import folder, numbered, png, shard

from normfree import UsageError
from normfree.data import EvalTransform, Loader, Share, UnreadableImage, open_source
from normfree.data.shards import WHOLE, find_shards, read_table
from normfree.data.sources import absolute

PLAIN = EvalTransform(12, 0, (0.0, 0.0, 0.0), (1 / 255,) * 3)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "normfree" / "shards"


@pytest.mark.parametrize("form", ["{root}", "{root}/", "{root}/set-train-{{0000..0002}}.tar,{root}/set-val-*.tar"])
def test_samples_in_the_order_of_the_shards(tmp_path, form):
    source = open_source("wds:" + form.format(root=folder(tmp_path / "a b")))
    assert (len(source.train), len(source.test)) == (12, 3)
    assert source.classes == ["0", "1", "2"]
    for split, first in ((source.train, 0), (source.test, 100)):
        for i in reversed(range(len(split))):
            assert np.array_equal(split.image(i).permute(1, 2, 0).numpy(), pixels(12, 12, first + i))
            assert split.label(i) == (first + i) % 3
            assert split.name(i).endswith(f".tar:{first + i:05}")
    assert source.train.name(5).startswith(str(tmp_path / "a b" / "set-train-0001.tar:"))


def test_one_channel(tmp_path):
    assert open_source(f"wds:{folder(tmp_path)}", 1).train.image(0).shape == (1, 12, 12)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_labels_of_every_kind(tmp_path, form):
    long = "deep/" * 40 + "x" * 120
    members = {
        "./a/n01.JPEG": png(0),  # what it is, not what it is called, decides how it is read
        "./a/n01.json": b'{"label": 2, "caption": "n01.cls"}',
        "b/n01.seg.png": png(9),  # no image of its own
        "b/n01.webp": png(1),
        "b/n01.cls": b" 1\n",
        "b/n01.json": b"not read",
        "b/n01.txt": b"a caption",
        "b/.hidden": b"",
        "b/._n01.png": b"",
    }
    if form != tarfile.USTAR_FORMAT:
        members |= {f"{long}.png": png(2), f"{long}.cls": b"0", "ü.png": png(3), "ü.cls": b"2"}
    shard(tmp_path / "train.tar", members, format=form)
    shard(tmp_path / "val.tar", numbered(0, 3))
    split = open_source(f"wds:{tmp_path}").train
    names = [split.name(i).partition(".tar:")[2] for i in range(len(split))]
    assert names == ["a/n01", "b/n01", long, "ü"][: len(split)]
    assert [split.label(i) for i in range(len(split))] == [2, 1, 0, 2][: len(split)]
    for i in range(len(split)):
        assert np.array_equal(split.image(i).permute(1, 2, 0).numpy(), pixels(12, 12, i))


def test_folders_and_links_in_a_tar_are_no_samples(tmp_path):
    write(tmp_path / "files" / "0.png")
    (tmp_path / "files" / "0.cls").write_text("0")
    (tmp_path / "files" / "link.png").symlink_to("0.png")
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(tmp_path / "files", "files")
    assert read_table(str(tmp_path / "train.tar")).keys.tolist() == [b"files/0"]


def test_class_names(tmp_path):
    root = folder(tmp_path)
    (root / "classes.txt").write_text("crane\ncrane \nMädchen\nunused\n\n", encoding="utf-8")  # ImageNet has two cranes
    assert open_source(f"wds:{root}").classes == ["crane", "crane", "Mädchen", "unused"]
    (root / "classes.txt").write_text("a\nb\n")
    with pytest.raises(UsageError, match=r"set-train-0000\.tar:00002: label 2 is out of range; .*classes\.txt names 2"):
        open_source(f"wds:{root}")
    (root / "classes.txt").write_bytes(b"\xff\n")
    with pytest.raises(UsageError, match=r"classes\.txt must be text in UTF-8"):
        open_source(f"wds:{root}")


def test_validation_labels_must_be_among_the_training_labels(tmp_path):
    shard(tmp_path / "train.tar", numbered(0, 2))
    shard(tmp_path / "val.tar", numbered(0, 3))
    with pytest.raises(UsageError, match=r"val\.tar:00002: label 2 is out of range; .* 2 classes, from 0"):
        open_source(f"wds:{tmp_path}")


def test_braces_wildcards_and_home(tmp_path, monkeypatch):
    for name in ("t-08", "t-09", "t-10", "t-11", "u-1", "w[1]"):
        (tmp_path / f"{name}.tar").write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path))

    def found(pattern):
        return [os.path.basename(path)[:-4] for path in find_shards(pattern)]

    assert found(f"{tmp_path}/t-{{08..11}}.tar") == ["t-08", "t-09", "t-10", "t-11"]
    assert found("~/{u-1,t-10}.tar") == ["u-1", "t-10"]
    assert found("~/{t,u}-*.tar") == ["t-08", "t-09", "t-10", "t-11", "u-1"]
    assert found("~/t-*{0,1}.tar") == ["t-10", "t-11"]
    assert found("~/{t-10,t-1*}.tar") == ["t-10", "t-11"]  # each once
    assert found("~/w[1].tar") == ["w[1]"]


def test_relative_descriptions_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute("wds:a/t-{0..3}.tar,~/v-{0,1}.tar") == f"wds:{tmp_path}/a/t-{{0..3}}.tar,/home/me/v-{{0,1}}.tar"
    assert absolute("wds:a") == f"wds:{tmp_path}/a"
    assert absolute("imagefolder:a") == f"imagefolder:{tmp_path}/a"
    assert absolute("digits") == "digits"
    assert absolute("synthetic:9,3") == "synthetic:9,3"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "must be wds:FOLDER"),
        ("ROOT/set-train-{0000..0002}.tar", "must be wds:FOLDER"),
        ("a,b,c", "must be wds:FOLDER"),
        ("ROOT/set-train-*.tar,", "must be wds:FOLDER"),
        ("ROOT/set-train-{0000..0003}.tar,ROOT/set-val-00.tar", r"set-train-0003\.tar does not exist"),
        ("ROOT/set-train-*.tar,ROOT/test-*.tar", r"test-\*\.tar matches no file"),
        ("ROOT/{0..99999999}.tar,x", "must count up, to at most"),
        ("ROOT/{9..1}.tar,x", "must count up"),
        ("ROOT/cache", r"\*train\*\.tar matches no file"),
    ],
)
def test_a_wrong_pattern_is_named(tmp_path, pattern, message):
    folder(tmp_path)
    (tmp_path / "cache").mkdir()
    with pytest.raises(UsageError, match=message) as caught:
        open_source(f"wds:{pattern.replace('ROOT', str(tmp_path))}")
    assert len(str(caught.value).splitlines()) == 1


def cut(place):
    return lambda path: path.write_bytes(path.read_bytes()[:place])


def overwrite(start, content):
    def spoil(path):
        with open(path, "r+b") as file:
            file.seek(start)
            file.write(content)

    return spoil


def compress(path):
    path.write_bytes(zlib.compress(path.read_bytes()))


def remake(**changes):
    """Members with some replaced, None: without."""

    def spoil(path):
        members = {f"{number}.{end}": content for number in "01" for end, content in (("png", png(0)), ("cls", b"1"))}
        for name, content in changes.items():
            members[name.strip("_").replace("_", ".")] = content
        shard(path, {name: content for name, content in members.items() if content is not None})

    return spoil


# a member of numbered() is a header of 512 bytes and its content in full blocks
SECOND = 512 + -(-len(png(0)) // 512) * 512


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b""), "no tar.*empty"),
        (lambda path: path.write_text("no tar\n" * 200), "no tar, is compressed"),
        (compress, "no tar, is compressed"),
        (cut(700), "damaged: unexpected end of data"),
        (cut(SECOND + 100), f"truncated: it ends at byte {SECOND + 100}"),
        (cut(SECOND), f"truncated: it ends at byte {SECOND}"),
        (overwrite(SECOND, b"rubbish"), f"damaged at byte {SECOND}"),
        (lambda path: shard(path, {}), "holds no sample"),
        (lambda path: shard(path, {"a.txt": b"1"}), "holds no sample"),
        (remake(_0_png=None), ":0 has no image"),
        (remake(_1_cls=None), r":1 has no label; it must be in 1\.cls or 1\.json"),
        (remake(_0_jpg=png(1)), r":0 has two members \.png and \.jpg"),
        (remake(_1_cls=b"one"), r":1\.cls \(=b'one'\) must be an integer"),
        (remake(_1_cls=b""), "must be an integer"),
        (remake(_1_cls=b"1.5"), "must be an integer"),
        (remake(_1_cls=b"-1"), "label -1 is out of range; it must be 0 to 999,999"),
        (remake(_1_cls=b"1000000"), "label 1000000 is out of range"),
        (remake(_1_cls=b"9" * 5000), "must be an integer"),
        (remake(_1_cls=None, _1_json=b'{"label": "cat"}'), 'must be an object with an integer "label"'),
        (remake(_1_cls=None, _1_json=b'{"label": true}'), "must be an object"),
        (remake(_1_cls=None, _1_json=b'{"class": 1}'), "must be an object"),
        (remake(_1_cls=None, _1_json=b"[1]"), "must be an object"),
        (remake(_1_cls=None, _1_json=b"[" * 100_000), "must be an object"),
        (remake(_1_cls=None, _1_json=b"\xff{"), "must be an object"),
    ],
)
def test_a_wrong_shard_is_named(tmp_path, spoil, message):
    folder(tmp_path)
    bad = tmp_path / "set-train-0001.tar"
    spoil(bad)
    with pytest.raises(UsageError, match=message) as caught:
        open_source(f"wds:{tmp_path}")
    assert str(caught.value).startswith(str(bad))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < len(str(bad)) + 250


def test_two_members_of_one_name(tmp_path):
    path = shard(tmp_path / "train.tar", numbered(0, 2))
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("00001.cls"))
    with pytest.raises(UsageError, match=r":00001 has two members \.cls and \.cls"):
        read_table(str(path))


def test_an_unreadable_image_is_named_by_shard_and_key(tmp_path):
    root = folder(tmp_path)
    broken = shard(root / "set-train-0001.tar", numbered(4, 8) | {"00005.png": png(5)[:100], "00006.png": b"text"})
    split = open_source(f"wds:{root}").train
    for index in (5, 6):
        with pytest.raises(UnreadableImage, match=rf"^{broken}:{index:05}: "):
            split.image(index)
    broken.unlink()  # gone during a run
    with pytest.raises(UnreadableImage, match=rf"^{broken}:00004: No such file"):
        split.image(4)


def test_the_table_is_kept_and_made_anew_when_the_shard_changes(tmp_path, cache, monkeypatch):
    path = shard(tmp_path / "a.tar", numbered(0, 3))
    assert len(read_table(str(path)).keys) == 3
    assert [entry.suffix for entry in cache.iterdir()] == [".npz"]
    scan = "normfree.data.shards._scan"
    with monkeypatch.context() as patch:
        patch.setattr(scan, None)  # the second time it is not read
        assert read_table(str(path)).keys.tolist() == [b"00000", b"00001", b"00002"]
    status = os.stat(path)
    shard(path, numbered(5, 8))  # of the same size, at another time
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert os.stat(path).st_size == status.st_size
    assert read_table(str(path)).keys.tolist() == [b"00005", b"00006", b"00007"]
    assert len(list(cache.iterdir())) == 1


@pytest.fixture(params=[True, False], ids=["", "no time of changes"])
def disk(request, monkeypatch):
    """A disk that keeps the time of each change, or one that does not."""
    status = os.fstat

    def without(descriptor):
        found = status(descriptor)
        kept = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        return types.SimpleNamespace(**kept | dict(st_ctime_ns=0))

    if not request.param:
        monkeypatch.setattr(os, "fstat", without)
    return request.param


def changed(path, before: bytes, after: bytes) -> None:
    """Other bytes in the same file, of the same number, at the same time."""
    status, content = os.stat(path), path.read_bytes()
    assert content.count(before) == 1
    with open(path, "r+b") as file:
        file.write(content.replace(before, after))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (os.stat(path).st_size, os.stat(path).st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_other_bytes_of_the_same_size_and_time_are_noticed(tmp_path, disk):
    """A label that was corrected in place."""
    path = shard(tmp_path / "a.tar", {"0.png": png(0), "0.cls": b"4"})
    assert read_table(str(path)).labels.tolist() == [4]
    block = b"4" + bytes(tarfile.BLOCKSIZE - 1)
    changed(path, block, b"7" + block[1:])
    assert read_table(str(path)).labels.tolist() == [7]


@pytest.mark.parametrize("name", ["first", "middle", "last"])
def test_other_bytes_in_a_large_shard_are_noticed(tmp_path, disk, name):
    """Anywhere where the disk keeps times of changes; else at the places that are compared."""
    if name == "middle" and not disk:
        return  # not promised
    members = {"first.cls": b"5", "first.png": bytes(WHOLE), "middle.cls": b"6", "middle.png": bytes(WHOLE)}
    path = shard(tmp_path / "a.tar", members | {"last.png": b"", "last.cls": b"7"})
    assert read_table(str(path)).labels.tolist() == [5, 6, 7]
    labels = dict(first=5, middle=6, last=7)
    block = b"%d" % labels[name] + bytes(tarfile.BLOCKSIZE - 1)
    changed(path, block, b"8" + block[1:])
    assert read_table(str(path)).labels.tolist() == list((labels | {name: 8}).values())


@pytest.mark.parametrize("content", [b"", b"PK\3\4 no archive", pickle.dumps([1])])
def test_a_broken_cache_is_made_anew(tmp_path, cache, content):
    path = str(shard(tmp_path / "a.tar", numbered(0, 3)))
    read_table(path)
    (entry,) = cache.iterdir()
    entry.write_bytes(content)
    assert len(read_table(path).keys) == 3
    assert entry.read_bytes() != content


def test_without_a_place_for_the_cache(tmp_path, monkeypatch):
    root = folder(tmp_path / "data")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))  # root may write anywhere but in a file
    assert len(open_source(f"wds:{root}").train) == 12


def test_nothing_is_written_beside_the_shards(tmp_path):
    root = folder(tmp_path / "data")
    before = sorted(root.iterdir())
    open_source(f"wds:{root}").train.image(0)
    assert sorted(root.iterdir()) == before


def test_a_split_travels_to_workers(tmp_path):
    split = open_source(f"wds:{folder(tmp_path)}").train
    copy = pickle.loads(pickle.dumps(split))
    assert torch.equal(copy.image(7), split.image(7))
    assert copy.name(7) == split.name(7)


# Python from 3.12 on warns of every fork beside threads, which is how torch starts its workers
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_shards_and_files_are_trained_on_alike(tmp_path):
    """Same images, same seed: the same batches, whatever the number of workers and ranks."""
    root = folder(tmp_path / "shards")
    for n in [*range(12), *range(100, 103)]:
        part = "train" if n < 100 else "val"
        path = tmp_path / "files" / part / str(n % 3) / f"{n:05}.png"
        write(path, pixels(12, 12, n))
    sources = [open_source(f"wds:{root}").train, open_source(f"imagefolder:{tmp_path / 'files'}").train]
    order = sorted(range(12), key=lambda i: sources[1].name(i)[-9:])  # of files, classes come first

    def batches(split, **options):
        loader = Loader(split, PLAIN, 5, seed=1, shuffle=True, **options)
        loader.set_epoch(2)
        return list(loader)

    expected = batches(sources[0])
    for workers in (0, 2):
        for got, want in zip(batches(sources[0], workers=workers), expected, strict=True):
            assert torch.equal(got.images, want.images)
            assert got.indices.tolist() == want.indices.tolist()
    halves = [batches(sources[0], share=Share(rank, 2)) for rank in (0, 1)]
    joined = [[*a.indices.tolist(), *b.indices.tolist()] for a, b in zip(*halves, strict=True)]
    assert joined == [batch.indices.tolist() for batch in expected]
    for i in range(12):
        assert torch.equal(sources[0].image(i), sources[1].image(order[i]))
        assert sources[0].label(i) == sources[1].label(order[i])


def test_json_labels_are_integers(tmp_path):
    path = shard(tmp_path / "a.tar", {"1.json": json.dumps({"label": 7}).encode(), "1.png": png(1)})
    assert read_table(str(path)).labels.tolist() == [7]
