"""What `normfree eval` prints: text, JSON and tables."""

import csv
import io
import json
import re

import image_files
import numpy as np
import pytest
import torch
from tiny_runs import FLAGS

from normfree.data import Batch
from normfree.tasks import Classification
from normfree.tasks.confusion import Confusion
from normfree.tasks.measured import MAX_MATRIX, MAX_ROWS


def test_text_of_an_evaluation(normfree, trained):
    lines = normfree("eval", trained).out.splitlines()
    assert re.fullmatch(r"top-1 [\d.]+%   top-5 [\d.]+%   loss [\d.]+", lines[1])
    assert re.fullmatch(r"balanced accuracy [\d.]+%", lines[2])
    assert lines[3].split() == ["images", "precision", "recall", "f1"]
    assert [line.split()[0] for line in lines[4:14]] == list("0123456789")
    assert lines[14].startswith("confusion matrix: rows are true classes")
    rows = [[int(n) for n in line.split()[1:]] for line in lines[16:26]]
    assert np.sum(rows) == 360
    assert [sum(row) for row in rows] == [int(line.split()[1]) for line in lines[4:14]]
    assert f"{np.trace(rows) / 360:.2%}" in lines[1]


def test_json_and_csv_say_the_same(normfree, trained, tmp_path):
    told = json.loads(normfree("eval", trained, "--json").out)
    assert (told["images"], told["task"], told["data"]) == (360, "classification", "digits")
    matrix = np.array(told["confusion_matrix"])
    assert told["top1"] == pytest.approx(np.trace(matrix) / 360)
    recall = np.diagonal(matrix) / matrix.sum(1)
    assert told["balanced_accuracy"] == pytest.approx(recall.mean())
    table = tmp_path / "classes.csv"
    assert normfree("eval", trained, "--csv", table).out == normfree("eval", trained).out
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [row["name"] for row in rows] == [one["name"] for one in told["classes"]] == list("0123456789")
    for row, one, right in zip(rows, told["classes"], recall, strict=True):
        assert float(row["recall"]) == pytest.approx(one["recall"]) == pytest.approx(right)
        assert int(row["images"]) == one["images"]


def test_a_table_that_cannot_be_written(normfree, trained, tmp_path):
    result = normfree("eval", trained, "--csv", tmp_path / "nowhere" / "a.csv")
    assert result.code == 2
    assert "nowhere/a.csv cannot be written: No such file" in result.error


def counted(classes: int) -> Confusion:
    """Every class is right but for the first, which is said to be the second."""
    metric, labels = Confusion(classes), torch.arange(classes)
    said = labels.clone()
    said[0] = 1
    logits = torch.nn.functional.one_hot(said, classes).float()
    metric.update(logits, Batch(torch.zeros(classes, 1, 1, 1), labels, labels))
    return metric


def test_many_classes_are_shortened_in_text_alone():
    classes = max(MAX_ROWS, MAX_MATRIX) + 1
    found = Classification.measured(counted(classes), [f"c{i}" for i in range(classes)])
    lines = found.as_text().splitlines()
    assert lines[3].split()[0] == "c0"  # the worst one is first
    assert f"  ({MAX_ROWS} of {classes} classes, the worst ones first; --csv FILE writes all)" in lines
    assert lines[-2:] == ["confused most:", "       1  c0 is said to be c1"]
    assert len(found.as_csv().splitlines()) == classes + 1
    assert np.shape(json.loads(found.as_json())["confusion_matrix"]) == (classes, classes)


def test_missing_classes_are_named():
    metric = Confusion(3)
    metric.update(torch.eye(3)[:2], Batch(torch.zeros(2, 1, 1, 1), torch.arange(2), torch.arange(2)))
    found = Classification.measured(metric, ["cat", "dog", "emu"])
    assert found.notes == ["over 2 of 3 classes: no test image of emu"]
    assert json.loads(found.as_json())["classes"][2] == dict(name="emu", images=0, precision=None, recall=None, f1=None)


def test_other_tasks_have_json_and_tables_too(normfree, tmp_path):
    flags = ["--data", "scenes:16", "--data.image_size", "32", "--data.test_size", "32", "--train.steps", "1"]
    for task, column in (("segmentation", "iou"), ("depth", "delta1")):
        out = tmp_path / task
        assert normfree("train", *FLAGS[:3], "--recipe", f"demo_{task}", *flags, "--out", out).code == 0
        told = json.loads(normfree("eval", out, "--json").out)
        assert told["task"] == task
        table = tmp_path / f"{task}.csv"
        assert normfree("eval", out, "--csv", table).code == 0
        rows = list(csv.DictReader(io.StringIO(table.read_text())))
        assert column in rows[0]
        assert len(rows) == len(told.get("classes", [1]))


def test_up_to_five_classes_have_no_top5(normfree, tmp_path):
    root = image_files.folder(tmp_path / "photos")
    flags = [*FLAGS, "--data.image_size", "16", "--data.test_size", "16", "--train.steps", "1"]
    out = tmp_path / "run"
    assert normfree("train", *flags, "--data", f"imagefolder:{root}", "--out", out).code == 0
    assert "top5" not in (out / "metrics.jsonl").read_text()
    lines = normfree("eval", out).out.splitlines()
    assert re.fullmatch(r"top-1 [\d.]+%   loss [\d.]+", lines[1])
