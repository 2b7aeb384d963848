"""Labels from CSV files, and every way such a file can be wrong."""

import image_files
import pytest
import torch

from normfree import UsageError
from normfree.data import HeldOut, open_source, open_test


@pytest.fixture
def photos(tmp_path):
    """Twelve images and no labels."""
    for i in range(12):
        image_files.write(tmp_path / "photos" / "images" / f"{i}.png", image_files.pixels(4, 4, seed=i))
    return tmp_path / "photos"


def table(root, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> str:
    (root / name).write_bytes(text.encode(encoding))
    return f"csv:{root / name}"


def rows(cells, heading="file,class") -> str:
    return "\n".join([heading, *(f"images/{i}.png,{cell}" for i, cell in enumerate(cells))])


HALF = HeldOut(0.5)
CLASSES = ["cat", "dog", "dog", "emu"] * 3


def told(split) -> dict[str, int]:
    return {split.name(i).rsplit("/", 1)[-1]: split.label(i) for i in range(len(split))}


@pytest.mark.parametrize("kind", ["csv", "imagefolder"])
def test_a_class_per_image(photos, kind):
    csv = table(photos, rows(CLASSES))
    source = open_source(csv if kind == "csv" else f"imagefolder:{photos}", held_out=HALF)
    assert source.classes == ["cat", "dog", "emu"]
    expected = {f"{i}.png": source.classes.index(name) for i, name in enumerate(CLASSES)}
    assert told(source.train) | told(source.test) == expected
    assert (len(source.train), len(source.test)) == (5, 7)
    assert source.test.image(0).shape == (3, 4, 4)
    assert all("/" not in name or name.startswith("images/") for name in source.held_out.names)


def test_excels_files(photos):
    """A mark at the front, semicolons, \\r\\n and quotes."""
    text = rows(['"cat"', "dog"] * 6).replace(",", ";").replace("\n", "\r\n") + "\r\n\r\n"
    source = open_source(table(photos, "\ufeff" + text), held_out=HALF)
    assert source.classes == ["cat", "dog"]
    assert len(source.train) + len(source.test) == 12


def test_a_column_says_the_split(photos):
    splits = ["train", "VAL", "test"] * 4
    cells = [f"{name},{split}" for name, split in zip(CLASSES, splits, strict=True)]
    source = open_source(table(photos, rows(cells, "file,class,split")))
    assert sorted(told(source.train)) == sorted(f"{i}.png" for i in range(12) if i % 3 == 0)
    assert sorted(told(source.test)) == sorted(f"{i}.png" for i in range(12) if i % 3 == 1)  # val comes before test


def test_two_files(photos):
    table(photos, rows(CLASSES[:8]), "a.csv")
    test = "\n".join(["file,class", "images/8.png,cat", "images/9.png,dog"])
    table(photos, test, "b.csv")
    source = open_source(f"csv:{photos}/a.csv,{photos}/b.csv")
    assert (len(source.train), len(source.test)) == (8, 2)
    assert source.notes == (
        "there are no test images of emu: scores are over the 2 of 3 classes that have test images",
    )
    table(photos, rows(["cat"]), "c.csv")
    with pytest.raises(UsageError, match=r"0\.png is both a training and a test image"):
        open_source(f"csv:{photos}/a.csv,{photos}/c.csv")
    table(photos, test.replace("dog", "fox"), "d.csv")
    with pytest.raises(UsageError, match=r"d\.csv has images of fox, which have no training images"):
        open_source(f"csv:{photos}/a.csv,{photos}/d.csv")


def test_class_folders_go_before_a_table(photos):
    image_files.folder(photos)
    table(photos, rows(CLASSES))
    assert open_source(f"imagefolder:{photos}").classes == ["cat", "dog"]
    assert open_source(f"imagefolder:{photos}", answers="classes", held_out=HALF).classes == ["cat", "dog", "emu"]


@pytest.mark.parametrize("text", [rows(["cat;dog", "", "dog", "emu|cat"]), None, "columns"])
def test_several_classes_per_image(photos, text):
    if text is None:  # a row per class
        text = "file,class\nimages/0.png,cat\nimages/0.png,dog\nimages/1.png,\nimages/2.png,dog\n"
        text += "images/3.png,emu\nimages/3.png,cat"
    elif text == "columns":
        text = rows(["1,1,0", "0,0,0", "0,1,0", "1,0,1"], "file,cat,dog,emu")
    source = open_source(table(photos, text), answers="classes", held_out=HALF)
    assert source.classes == ["cat", "dog", "emu"]
    parts = (source.train, source.test)
    found = {part.name(i)[-5]: part.target(i).tolist() for part in parts for i in range(len(part))}
    assert found == {"0": [1, 1, 0], "1": [0, 0, 0], "2": [0, 1, 0], "3": [1, 0, 1]}


def test_numbers(photos):
    source = open_source(
        table(photos, rows([f"{i / 4},{-i}e3" for i in range(12)], "file,age,weight")), answers="numbers", held_out=HALF
    )
    assert source.classes == ["age", "weight"]
    for part in (source.train, source.test):
        for i in range(len(part)):
            number = int(part.name(i).rsplit("/", 1)[-1][:-4])
            torch.testing.assert_close(part.target(i), torch.tensor([number / 4, -1000.0 * number]))


@pytest.mark.parametrize(
    ("text", "answers", "named"),
    [
        ("file,class\n", "class", "has no rows"),
        ("", "class", "has no rows"),
        ("file\nimages/0.png\n", "class", "two columns or more"),
        ("images/0.png,cat\nimages/1.png,dog\n", "class", "must begin with a heading"),
        ("file,class\nimages/0.png,cat,dog\n", "class", "line 2 has 3 columns; the heading has 2"),
        ("file,a,a\nimages/0.png,1,2\n", "numbers", "two columns 'a'"),
        (rows(["cat", ""]), "class", "line 3 has no class"),
        ("file,class\nimages/0.png,cat\nimages/x.png,dog\n", "class", r"no such image in .*'images/x.png' \(line 3\)"),
        ("file,class\nimages/0.png,cat\nimages/0.png,dog\n", "class", "line 3 names .*0.png again, after line 2; use"),
        (rows(["1.5", "2"]), "class", "holds numbers such as 1.5, not classes; --task.name regression"),
        (rows(["1,2"] * 2, "file,a,b"), "class", r"2 columns of labels \(a, b\); it must have one, or use"),
        (rows(["1,2"] * 2, "file,a,b"), "classes", r"line 2: b \(='2'\) must be 0 or 1"),
        (rows(["1", "much"], "file,age"), "numbers", r"line 3: age \(='much'\) must be a finite number"),
        (rows(["1", "nan"], "file,age"), "numbers", r"line 3: age \(='nan'\) must be a finite number"),
        (
            rows(["cat,train", "dog,later"], "file,class,split"),
            "class",
            r"line 3: split \(='later'\) must be one of train",
        ),
        (rows(["cat,train", "dog,train"], "file,class,split"), "class", "has a column split, but no row of val"),
        (rows(["cat", "dog"]), "class", r"has no test images; --data\.val_fraction 0\.1 holds"),
        (rows(["cat", "cat"]), "class", r"has one class \(cat\)"),
    ],
)
def test_a_wrong_table_is_named(photos, text, answers, named):
    with pytest.raises(UsageError, match=rf"labels\.csv.*{named}"):
        open_source(table(photos, text), answers=answers)


def test_a_table_that_is_no_utf8_is_named(photos):
    with pytest.raises(UsageError, match=r"labels\.csv must be CSV in UTF-8"):
        open_source(table(photos, rows(["chat", "chién"]), encoding="latin-1"))


@pytest.mark.parametrize("source", ["csv:", "csv:nowhere.csv", "csv:a,b,c"])
def test_files_that_are_not_there(source):
    with pytest.raises(UsageError, match="must be csv:FILE or csv:TRAIN_FILE,VAL_FILE"):
        open_source(source)


@pytest.mark.parametrize("answers", ["classes", "numbers"])
def test_other_labels_need_a_table(tmp_path, answers):
    root = image_files.folder(tmp_path / "photos")
    for source in (f"imagefolder:{root}", "digits"):
        with pytest.raises(UsageError, match=r"labels\.csv"):
            open_source(source, answers=answers)


def test_images_in_several_class_folders_are_said(tmp_path):
    """They are not taken for images of several classes."""
    root = image_files.folder(tmp_path / "photos")
    same = image_files.pixels(8, 8, seed=9)
    for name in ("cat", "dog"):
        image_files.write(root / "train" / name / "both.png", same)
    source = open_source(f"imagefolder:{root}")
    assert len(source.train) == 10
    (line,) = source.notes
    assert line.startswith("1 image lies in several class folders, such as both.png in cat and dog")
    assert "task.labels multi" in line


def test_test_images_need_no_training_images(tmp_path, photos):
    root = image_files.folder(tmp_path / "split", ("cat", "dog", "emu"))
    classes = ["ant", "cat", "dog", "emu"]
    for name, where in ((f"imagefolder:{root}", root / "val"), (f"imagefolder:{root / 'val'}", root / "val")):
        opened = open_test(name, classes)
        assert len(opened.train) == 0
        assert [opened.test.label(i) for i in range(6)] == [1, 1, 2, 2, 3, 3]
        assert all(opened.test.name(i).startswith(str(where)) for i in range(6))
        assert opened.notes == (
            "there are no test images of ant: scores are over the 3 of 4 classes that have test images",
        )
    with pytest.raises(UsageError, match=r"classes of .* and of mine differ: ant \(only in the network\), cat \(only"):
        open_test(f"imagefolder:{root}", ["ant"], network="mine")
    assert len(open_test(table(photos, rows(CLASSES)), classes).test) == 12
    assert len(open_test(f"imagefolder:{photos}", classes).test) == 12
    with pytest.raises(UsageError, match="images of cat, which have no training images"):
        open_test(f"imagefolder:{photos}", ["dog", "emu"])


def test_training_images_alone_are_no_test_images(tmp_path):
    root = image_files.folder(tmp_path / "photos")
    (root / "val").rename(tmp_path / "away")
    with pytest.raises(UsageError, match=r"has only training images; imagefolder:.*train evaluates on these"):
        open_test(f"imagefolder:{root}", ["cat", "dog"])


def test_rows_of_a_third_split_are_said(photos):
    cells = [f"{name},{split}" for name, split in zip(CLASSES, ["train", "train", "val", "test"] * 3, strict=True)]
    source = open_source(table(photos, rows(cells, "file,class,split")))
    assert f"3 rows of split 'test' of {photos / 'labels.csv'} are not used; val is what is tested on" in source.notes


def test_true_and_false_are_1_and_0(photos):
    text = rows(["True,False", "false,TRUE", "1,0", "0,1"], "file,a,b")
    split = open_source(table(photos, text), answers="classes", held_out=HALF).train.split
    assert [split.target(i).tolist() for i in range(4)] == [[1, 0], [0, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("text", "answers", "said"),
    [
        (",file,class\n0,images/0.png,a\n1,images/1.png,b", "class", r"must be the file of an image .*index=False"),
        (rows(["a,bob", "b,bob"], "file,class,who"), "class", "take the other columns out of the file"),
        (rows(["1000000000", "1000000001"], "file,price"), "numbers", "differ too little for their size"),
    ],
)
def test_usual_tables_get_the_right_advice(photos, text, answers, said):
    with pytest.raises(UsageError, match=said):
        open_source(table(photos, text), answers=answers, held_out=HALF)


def test_a_second_test_folder_is_said(tmp_path):
    folder = image_files.folder(tmp_path)
    (folder / "test").mkdir()
    assert f"test of {folder} not used; val is what is tested on" in open_source(f"imagefolder:{folder}").notes
