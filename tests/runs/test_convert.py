"""`normfree convert`: every direction, files that can be used at once, and one line where something is wrong."""

import itertools
import pickle
import re

import image_files
import numpy as np
import pytest
import timm
import torch
from convertible import FORMS, NFNET, shaken
from safetensors.torch import load_file, save_file

import normfree as library
from normfree.runs import foreign
from normfree.runs.load import load_trained
from normfree.training import read_checkpoint, read_weights
from normfree.weights import read_arrays, to_haiku, to_timm


def content(path, form):
    """Name to bytes, shape and dtype of every tensor in a file."""
    if form == "haiku":
        arrays = {f"{m}/{n}": array for m, inner in read_arrays(path).items() for n, array in inner.items()}
    else:
        arrays = {name: tensor.numpy() for name, tensor in load_file(path).items()}
    return {name: (array.tobytes(), array.shape, array.dtype) for name, array in arrays.items()}


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(FORMS, 2)))
def test_there_and_back_bit_for_bit(normfree, authors, before, after):
    where = authors.parent
    first, second, third = (where / f"{i}.{FORMS[form]}" for i, form in enumerate((before, after, before)))
    if before == "haiku":
        first.write_bytes(authors.read_bytes())
    else:
        assert normfree("convert", authors, first, "--to", before, *NFNET).code == 0
    for source, given, dest, form in ((first, before, second, after), (second, after, third, before)):
        named = [] if given == "normfree" else NFNET
        result = normfree("convert", source, dest, "--to", form, *named, "--verify")
        assert (result.code, result.err) == (0, "")
        assert "tensors are the same bit for bit" in result.out
        assert ("JAX" in result.out) == ("haiku" in (before, after))
        assert ("timm has no dm_nfnet_f0 with these options" in result.out) == ("timm" in (before, after))
    assert content(first, before) == content(third, before)
    if before != "normfree":
        assert len(content(first, before)) == len(content(second, after))


def test_every_tensor_has_one_line(normfree, authors):
    result = normfree("convert", authors, authors.with_name("x.safetensors"), "--to", "timm", *NFNET)
    head, *lines = [line.split() for line in result.out.splitlines()]
    arrays, tensors = read_arrays(authors), load_file(authors.with_name("x.safetensors"))
    rows = lines[: len(tensors)]
    assert head == ["haiku", "timm"]
    shape = lambda value: "x".join(map(str, value.shape)) or "1"  # noqa: E731
    before = {f"{m}/{n}": shape(array) for m, inner in arrays.items() for n, array in inner.items()}
    assert sorted(before.items()) == sorted((row[0], row[1]) for row in rows)
    assert sorted((name, shape(tensor)) for name, tensor in tensors.items()) == sorted((r[2], r[3]) for r in rows)
    texts = result.out.splitlines()[1 : len(tensors) + 1]
    columns = {line.index(f" {row[2]}") for line, row in zip(texts, rows, strict=True)}
    assert len(columns) == 1  # aligned
    assert len(lines) == len(rows) + 1
    parameters = sum(tensor.numel() for tensor in tensors.values())
    assert f"{len(tensors)} tensors, {parameters:,} parameters, " in result.out.splitlines()[-1]


def test_quiet_is_the_summary(normfree, theirs):
    dest = theirs.with_name("x.safetensors")
    result = normfree("convert", theirs, dest, "--to", "normfree", "--quiet")
    assert result.out.splitlines()[0] == f"{theirs}: the tensors are those of timm_test_nfnet"
    assert re.fullmatch(
        rf"{dest}: timm_test_nfnet with 10 classes in normfree's form; 93 tensors, [\d,]+ parameters, \d\.\d MB",
        result.out.splitlines()[1],
    )


def test_the_authors_file_is_a_plain_pickle(normfree, authors):
    back = authors.with_name("back.npz")
    normfree("convert", authors, authors.with_name("x.safetensors"), "--to", "timm", *NFNET)
    normfree("convert", authors.with_name("x.safetensors"), back, *NFNET)
    expected = pickle.loads(authors.read_bytes())
    for arrays in (pickle.loads(back.read_bytes()), np.load(back, allow_pickle=True)):
        assert arrays.keys() == expected.keys()
        for module, inner in expected.items():
            for name, array in inner.items():
                assert type(arrays[module][name]) is np.ndarray
                np.testing.assert_array_equal(arrays[module][name], array, strict=True)
    assert back.stat().st_mode & 0o777 == authors.stat().st_mode & 0o777


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_verify_against_timm(normfree, theirs, suffix):
    source = theirs.with_name(f"same{suffix}")
    if suffix == ".safetensors":
        source = theirs
    else:
        torch.save(load_file(theirs), source)
    dest = theirs.with_name("x.safetensors")
    result = normfree("convert", source, dest, "--to", "normfree", "--quiet", "--verify")
    found = re.search(r"of timm's test_nfnet at 96 px: largest relative difference (\S+)$", result.out.splitlines()[-1])
    assert float(found[1]) < 2e-6  # float32 rounding
    back = theirs.with_name("back.safetensors")
    result = normfree("convert", dest, back, "--to", "timm", "--quiet", "--verify")
    assert f"difference {found[1]}" in result.out
    assert content(back, "timm") == content(theirs, "timm")


def test_verify_says_that_the_released_function_is_another(normfree, tmp_path):
    save_file(shaken("dm_nfnet_f0", num_classes=10).state_dict(), tmp_path / "dm.safetensors")
    save = ("convert", tmp_path / "dm.safetensors", tmp_path / "x.safetensors", "--to", "normfree", "--quiet")
    released = normfree(*save, "--verify").out
    assert "those of nfnet_f0 (timm_dm_nfnet_f0, timm's function, as well: --model)" in released
    assert float(re.search(r"difference (\S+)\n", released)[1]) > 1e-3
    assert "computes another function than the released one: docs/weights.md" in released


def test_verify_reads_what_was_written(normfree, authors, monkeypatch):
    dump = pickle.dump

    def spoiled(arrays, file, protocol):
        arrays["NFNet/~/linear"]["b"][0] += 1
        dump(arrays, file, protocol)

    assert normfree("convert", authors, authors.with_name("x.safetensors"), "--to", "timm", *NFNET).code == 0
    monkeypatch.setattr(pickle, "dump", spoiled)
    result = normfree("convert", authors.with_name("x.safetensors"), authors.with_name("x.npz"), *NFNET, "--verify")
    assert result.code == 1
    assert "1 tensors differ when it is read: head.fc.bias" in result.error


def test_without_timm(normfree, authors, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    result = normfree("convert", authors, authors.with_name("x.safetensors"), "--to", "timm", *NFNET, "--verify")
    assert "timm is not installed" in result.out.splitlines()[-1]


def test_a_converted_file_can_be_used(normfree, theirs, tmp_path):
    file = tmp_path / "x.safetensors"
    normfree("convert", theirs, file, "--to", "normfree")
    root = image_files.folder(tmp_path / "photos", tuple("0123456789"), 1, 1)
    predicted = normfree("predict", file, root / "val" / "0")
    # the file, its five likeliest classes, and a summary of two lines
    assert (predicted.code, len(predicted.out.splitlines()), predicted.out.count("%")) == (0, 8, 5)
    network = load_trained(str(file))
    assert (network.recipe.data.test_size, network.recipe.data.mean) == (160, network.model.default_cfg["mean"])
    x = torch.randn(1, 3, 64, 64)
    model = timm.create_model("test_nfnet", num_classes=10).eval()
    model.load_state_dict(load_file(theirs))
    with torch.no_grad():
        torch.testing.assert_close(network.model(x), model(x), rtol=1e-4, atol=1e-5)
    evaluated = normfree("eval", file, "--data", f"imagefolder:{root}")
    assert (evaluated.code, "10 images" in evaluated.out) == (0, True)
    assert normfree("spp", file, "--batch", 1, "--size", 64, "--out", tmp_path / "spp").code == 0
    recipe = tmp_path / "tune.yaml"
    recipe.write_text(
        "model: {name: timm_test_nfnet}\ndata: {image_size: 64, test_size: 64}\n"
        "train: {device: cpu, steps: 1, batch_size: 2}"
    )
    flags = ["--quiet", "--data", f"imagefolder:{root}", "--out", tmp_path / "run"]
    trained = normfree("train", "--recipe", recipe, *flags, "--init", file)
    assert trained.code == 0, trained.err
    assert f"weights from {file}" in trained.err


@pytest.mark.parametrize(
    ("count", "first", "last"), [(2, "0", "1"), (11, "00", "10"), (1000, "n01440764", "n15075141")]
)
def test_classes_sort_as_their_labels(count, first, last):
    """A folder of images per class is read in the order of the names."""
    classes, names = foreign.class_names(count)
    assert (classes[0], classes[-1], len(classes), len(names)) == (first, last, count, count)
    assert classes == sorted(classes)
    assert (names[0] == "tench, Tinca tinca") == (count == 1000)


def test_thousand_classes_are_imagenets(normfree, tmp_path):
    save_file(to_timm(library.create_model("timm_test_nfnet")), tmp_path / "a.safetensors")
    normfree("convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--to", "normfree")
    network = load_trained(str(tmp_path / "b.safetensors"))
    assert (network.classes[1], network.names[1]) == ("n01443537", "goldfish, Carassius auratus")


def test_a_run_and_back(normfree, trained, tmp_path):
    result = normfree("convert", trained, tmp_path / "a.npz", "--quiet")
    assert result.code == 0
    flags = ["--to", "normfree", "--model", "nf_resnet26_small"]
    flags += ["--model.options.depths", "[1,1,1]", "--model.options.widths", "[16,16,32]", "--data.test_size=8"]
    flags += ["--data.resize_margin", "0", "--data.mean", "[0.25]"]
    result = normfree("convert", tmp_path / "a.npz", tmp_path / "b.safetensors", *flags)
    assert (result.code, result.err) == (0, "")
    state, _, _ = read_checkpoint(trained)
    again, description = read_weights(tmp_path / "b.safetensors")
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert description["recipe"]["data"]["mean"] == [0.25]
    assert (description["recipe"]["data"]["channels"], len(description["classes"])) == (1, 10)
    raw = normfree("convert", trained, tmp_path / "c.npz", "--weights", "raw", "--checkpoint", "best", "--quiet")
    assert "checkpoints/best/weights.safetensors" not in raw.err
    assert content(tmp_path / "a.npz", "haiku") != content(tmp_path / "c.npz", "haiku")
    assert read_checkpoint(trained)[0].keys() == state.keys()  # what it read is as it was


def test_other_types_are_mentioned(normfree, theirs):
    half = {name: tensor.half() for name, tensor in load_file(theirs).items()}
    save_file(half, theirs.with_name("half.safetensors"))
    dest = theirs.with_name("x.safetensors")
    result = normfree("convert", theirs.with_name("half.safetensors"), dest, "--to", "normfree", "--quiet")
    assert "numbers of type float16 became float32" in result.out
    state = read_weights(dest)[0]
    assert torch.equal(state["head.fc.weight"], half["head.fc.weight"].float())


def test_batchnorm_without_running_statistics_is_mentioned(normfree, tmp_path):
    arrays = to_haiku(library.create_model("bn_resnet50", num_classes=2))
    (tmp_path / "a.npz").write_bytes(pickle.dumps(arrays))
    result = normfree("convert", tmp_path / "a.npz", tmp_path / "b.safetensors", "--to", "normfree", "--quiet")
    assert "no running statistics of BatchNorm" in result.out
