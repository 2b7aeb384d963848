"""`normfree eval` and `normfree predict` on a finished run."""

import csv
import re
import shutil
from collections import Counter
from types import SimpleNamespace

import image_files
import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import FLAGS, evaluations

from normfree.data import decode_image, digits
from normfree.runs.load import load_trained
from normfree.training import read_checkpoint, save_weights


def numbers(out: str) -> tuple[float, float, float]:
    """top-1, top-5 and loss as printed."""
    found = re.search(r"top-1 ([\d.]+)% +top-5 ([\d.]+)% +loss ([\d.]+)", out)
    return tuple(float(value) for value in found.groups())


def predictions(out: str) -> dict[str, list[tuple[float, str]]]:
    """Image -> its (per cent, class) lines, without the summary."""
    found: dict[str, list[tuple[float, str]]] = {}
    for line in out.splitlines():
        if re.match(r"\d+ images?\b", line):  # the summary
            break
        if line.startswith(" "):
            percent, name = line.split()
            found[list(found)[-1]].append((float(percent.rstrip("%")), name))
        else:
            found[line] = []
    return found


@pytest.mark.parametrize("flags", [[], ["--batch-size", "7"], ["--weights", "ema", "--checkpoint", "last"]])
def test_evaluation_repeats_the_runs_numbers(normfree, trained, flags):
    result = normfree("eval", trained, *flags)
    assert (result.code, result.err) == (0, "")
    last = evaluations(trained)[-1]
    top1, top5, loss = numbers(result.out)
    assert (top1, top5) == (round(100 * last["ema_top1"], 2), round(100 * last["ema_top5"], 2))
    assert loss == pytest.approx(last["ema_loss"], abs=1e-4)  # four digits are shown
    assert "nf_resnet26_small on digits, 360 images" in result.out


def test_raw_weights_and_the_best_checkpoint(normfree, trained):
    last = evaluations(trained)[-1]
    assert numbers(normfree("eval", trained, "--weights", "raw").out)[0] == round(100 * last["top1"], 2)
    best = read_checkpoint(trained, "best")[1]
    result = normfree("eval", trained, "--checkpoint", "best")
    assert numbers(result.out)[0] == round(100 * best["ema_top1"], 2)
    assert "checkpoints/best/ema.safetensors" in result.out


def test_a_checkpoint_file_alone_is_enough(normfree, trained, tmp_path):
    file = shutil.copy(trained / "checkpoints" / "last" / "ema.safetensors", tmp_path / "mine.safetensors")
    result = normfree("eval", file)
    assert numbers(result.out) == numbers(normfree("eval", trained).out)
    assert str(file) in result.out


@pytest.mark.parametrize("flags", [["--weights", "raw"], ["--checkpoint", "best"]])
def test_what_a_single_file_cannot_choose_is_refused(normfree, trained, flags):
    """Silently measuring the averaged weights instead would be worse."""
    result = normfree("eval", trained / "checkpoints" / "last" / "ema.safetensors", *flags)
    assert result.code == 2
    assert flags[0] in result.error


@pytest.fixture
def digit_files(tmp_path):
    """The first 40 test digits as a folder of images, a class each; training has one of each."""
    test, names = digits(1).test, [str(i) for i in range(10)]
    for i in range(40):
        image_files.write(tmp_path / "photos" / "val" / names[test.label(i)] / f"{i}.png", test.image(i)[0].numpy())
    for name in names:
        image_files.write(tmp_path / "photos" / "train" / name / "a.png")
    return tmp_path / "photos"


def test_other_images_of_the_same_classes(normfree, trained, digit_files):
    result = normfree("eval", trained, "--data", f"imagefolder:{digit_files}")
    assert (result.code, result.err) == (0, "")
    assert f"on imagefolder:{digit_files}, 40 images" in result.out
    net, split = load_trained(str(trained)), digits(1).test
    images = torch.stack([net.transform(split.image(i)) for i in range(40)])
    with torch.no_grad():
        right = (net.model(images).argmax(1) == split.labels[:40]).float().mean()
    assert numbers(result.out)[0] == pytest.approx(100 * right.item(), abs=0.005)


def test_unreadable_images_in_an_evaluation(normfree, trained, digit_files):
    image_files.break_file(digit_files / "val" / "3" / "bad.png")
    result = normfree("eval", trained, "--data", f"imagefolder:{digit_files}")
    assert result.code == 0
    assert (result.out + result.err).count("3/bad.png: ") == 1
    assert "40 images" in result.out
    for i in range(10):
        image_files.break_file(digit_files / "val" / "3" / f"bad{i}.png")
    result = normfree("eval", trained, "--data", f"imagefolder:{digit_files}")
    assert result.code == 1
    assert re.search(r"unreadable.*\b11\b|\b11\b.*unreadable", result.err.splitlines()[-1])
    assert "data.max_unreadable" in result.err.splitlines()[-1]


def test_nothing_readable_to_evaluate_on(normfree, trained, digit_files):
    for path in (digit_files / "val").rglob("*.png"):
        path.unlink()
    for name in range(10):
        image_files.break_file(digit_files / "val" / str(name) / "bad.png")  # as many as are allowed
    result = normfree("eval", trained, "--data", f"imagefolder:{digit_files}")
    assert result.code == 1
    assert "none of the 10 images could be read" in result.err.splitlines()[-1]


def test_images_of_other_classes(normfree, trained, tmp_path):
    root = image_files.folder(tmp_path / "photos", (*map(str, range(8)), "cat"))
    result = normfree("eval", trained, "--data", f"imagefolder:{root}")
    assert result.code == 2
    assert re.search(rf"classes of .*{root}.* and .*{trained}.* differ: ", result.error)
    # which side lacks which
    assert re.search(r"\b8 \(only in .*\b9 \(only in .*\bcat \(only in ", result.error)


def test_classes_in_another_order(normfree, trained, monkeypatch):
    source = SimpleNamespace(classes=["1", "0", *map(str, range(2, 10))], notes=())
    monkeypatch.setattr("normfree.tasks.classification.open_test", lambda *_, **__: source)
    result = normfree("eval", trained)
    assert result.code == 2
    assert "differ: class 0 is 1 there, 0 here, class 1 is 0 there, 1 here" in result.error


@pytest.mark.parametrize("verb", [["eval"], ["predict"]])
@pytest.mark.parametrize("spoil", ["truncated", "foreign", "another architecture", "empty folder", "no description"])
def test_a_checkpoint_that_cannot_be_used(normfree, trained, tmp_path, verb, spoil):
    state, description, path = read_checkpoint(trained)
    file = tmp_path / "w.safetensors"
    if spoil == "truncated":
        file.write_bytes(path.read_bytes()[:-10])
    elif spoil == "foreign":
        save_file(state, file)
    elif spoil == "another architecture":
        content = description["recipe"]
        content["model"]["options"]["widths"] = [16, 16, 48]
        save_weights(file, state, description)
    elif spoil == "empty folder":
        file.mkdir()
    else:
        save_weights(file, state, {"classes": ["a"]})
    image = image_files.write(tmp_path / "a.png")
    result = normfree(*verb, file, *([image] if verb == ["predict"] else []))
    assert result.code == 2
    assert str(file) in result.error


def test_predictions_are_the_networks(normfree, trained):
    result = normfree("predict", trained, trained / "examples")
    assert (result.code, result.err) == (0, "")
    found = predictions(result.out)
    assert list(found) == sorted(str(p) for p in (trained / "examples").iterdir())
    net, transform = load_trained(str(trained)), load_trained(str(trained)).transform
    for path, lines in found.items():
        with torch.no_grad():
            expected = net.model(transform(decode_image(path, 1))[None]).softmax(1)[0]
        assert len(lines) == 5
        percents = [percent for percent, _ in lines]
        assert percents == sorted(percents, reverse=True)
        assert sum(percents) <= 100 + 5 * 0.005  # five numbers rounded to two digits
        for percent, name in lines:
            assert percent == pytest.approx(100 * expected[int(name)].item(), abs=0.006)
        assert int(lines[0][1]) == expected.argmax()
    assert set(digits(1).classes) >= {name for lines in found.values() for _, name in lines}


def test_a_table_and_a_summary(normfree, trained, tmp_path):
    result = normfree("predict", trained, trained / "examples", "--top", 2, "--csv", tmp_path / "a.csv")
    assert (result.code, result.err) == (0, "")
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["path", "class", "probability", "class2", "probability2"]
    for (path, *cells), (expected, lines) in zip(rows, predictions(result.out).items(), strict=True):
        assert path == expected
        assert cells[::2] == [name for _, name in lines]
        assert [float(cell) for cell in cells[1::2]] == pytest.approx([p / 100 for p, _ in lines], abs=6e-5)
    counted = dict(line.split()[::-1] for line in result.out.split("10 images\n")[1].splitlines()[:-1])
    assert {name: int(n) for name, n in counted.items()} == Counter(row[1] for row in rows)
    assert result.out.splitlines()[-1] == f"  table {tmp_path / 'a.csv'}"


def test_one_image_needs_no_summary(normfree, trained):
    image = sorted((trained / "examples").iterdir())[0]
    assert len(normfree("predict", trained, image).out.splitlines()) == 6


def test_images_at_once_and_of_another_size(normfree, trained):
    found = [
        predictions(normfree("predict", trained, trained / "examples", "--top", 10, *flags).out)
        for flags in ([], ["--batch-size", "4"], ["--batch-size", "99"], ["--size", "12"])
    ]
    for path, lines in found[0].items():
        for other in found[1:3]:
            expected = {name: percent for percent, name in lines}
            assert {name: percent for percent, name in other[path]} == pytest.approx(expected, abs=0.011)
    assert found[3] != found[0]


@pytest.mark.parametrize(("top", "shown"), [(1, 1), (10, 10), (99, 10)])
def test_how_many_classes(normfree, trained, top, shown):
    image = sorted((trained / "examples").iterdir())[0]
    (lines,) = predictions(normfree("predict", trained, image, "--top", top).out).values()
    assert len(lines) == shown
    if shown == 10:
        assert sum(percent for percent, _ in lines) == pytest.approx(100, abs=10 * 0.005)


def test_any_file_that_is_an_image(normfree, trained, tmp_path):
    colour = image_files.write(tmp_path / "a" / "deep" / "photo.jpg")
    odd = image_files.write(tmp_path / "no_extension", format="PNG")
    single = image_files.write(tmp_path / "a" / "one pixel.PNG", image_files.pixels(1, 1))
    result = normfree("predict", trained, odd, tmp_path / "a")
    assert result.code == 0
    assert list(predictions(result.out)) == [str(odd), str(colour), str(single)]


def test_an_unreadable_image_among_others(normfree, trained, tmp_path):
    good, bad = image_files.write(tmp_path / "a.png"), image_files.break_file(tmp_path / "b.png")
    last = image_files.write(tmp_path / "c.png")
    result = normfree("predict", trained, tmp_path)
    assert result.code == 1
    assert list(predictions(result.out)) == [str(good), str(last)]
    (line,) = result.err.splitlines()
    assert f"{bad}: " in line


def test_no_image_can_be_read(normfree, trained, tmp_path):
    bad = [image_files.break_file(tmp_path / name) for name in ("a.png", "b.png")]
    result = normfree("predict", trained, tmp_path)
    assert (result.code, result.out) == (2, "")
    *named, last = result.err.splitlines()
    assert [str(path) in line for path, line in zip(bad, named, strict=True)] == [True, True]
    assert last == "normfree: none of the 2 images could be read"


@pytest.mark.parametrize(("name", "said"), [("nowhere.png", "does not exist"), ("empty", "holds no image")])
def test_images_that_are_not_there(normfree, trained, tmp_path, name, said):
    (tmp_path / "empty").mkdir()
    result = normfree("predict", trained, tmp_path / name)
    assert result.code == 2
    assert said in result.error
    assert str(tmp_path / name) in result.error


def test_a_class_name_with_a_space(normfree, tmp_path):
    root = image_files.folder(tmp_path / "photos", ("big cat", "small dog"))
    flags = ["--recipe", "digits", "--data", f"imagefolder:{root}", *FLAGS, "--train.steps", "1"]
    assert normfree("train", *flags, "--out", tmp_path / "run").code == 0
    out = normfree("predict", tmp_path / "run", root / "val" / "big cat").out
    assert sorted(line[10:].strip() for line in out.splitlines()[1:3]) == ["big cat", "small dog"]


def test_the_folder_of_a_checkpoint_is_taken(normfree, trained):
    """As training prints it."""
    best = trained / "checkpoints" / "best"
    assert normfree("eval", best).out == normfree("eval", trained, "--checkpoint", "best").out
    said = normfree("eval", best, "--checkpoint", "best").error
    assert "is a checkpoint; 'best' is chosen among those of a run folder" in said


def test_an_ordinary_folder_is_no_run(normfree, tmp_path):
    assert normfree("eval", tmp_path).error.startswith(f"{tmp_path} is no run folder; ")
