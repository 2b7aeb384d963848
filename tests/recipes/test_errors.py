"""Every mistake in a recipe is one line: the dotted path, the value, and what would be right."""

import importlib
from pathlib import Path

import pytest
import yaml

from normfree import UsageError
from normfree.recipes import describe_field, describe_type, field_paths, load_recipe


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("optm: {}", r"field optm is unknown; did you mean optim\?"),
        ("lr: 3", r"field lr is unknown; did you mean optim\.lr\?"),
        ("optim: {clippin: 3}", r"field optim\.clippin is unknown; did you mean optim\.clipping"),
        ("optim: {batch_size: 3}", r"field optim\.batch_size is unknown; did you mean train\.batch_size\?"),
        ("train: {qqq: 3}", r"field train\.qqq is unknown; fields there are batch_size, epochs"),
        ("1: 2", r"field 1 is unknown; fields there are model, data, task, optim, train"),
        ("optim: 3", r"section optim \(=3\) must be a mapping of fields"),
        ("optim: [lr, 3]", r"section optim \(=\['lr', 3\]\) must be a mapping of fields"),
        ("- optim", r"the file \(=\['optim'\]\) must be a mapping of fields"),
        ("hello", r"the file \(='hello'\) must be a mapping of fields"),
        ("optim:\n  lr: 0.1\n   momentum: 3\n", r"not YAML in line 3: "),
        ("optim: {lr: 0.1\n", r"not YAML in line 2: "),
        ("optim:\n\tlr: 1\n", r"not YAML in line 2: .*\\t"),
        ("optim: {lr: !!python/name:os.system }", r"not YAML in line 1: "),
        ("optim: {lr: \0}", r"not YAML.*: .*special characters"),
        ("data: {source: 2020-13-45}", r"mine\.yaml.*month must be in 1\.\.12"),
        ("optim: {lr: 0x_}", r"mine\.yaml"),
        ("model: &a {options: *a}", r"mine\.yaml"),
        ("[" * 3000, r"mine\.yaml"),
    ],
    ids=range(19),
)
def test_a_broken_file_is_named_with_the_place(write, text, named):
    with pytest.raises(UsageError, match=named) as caught:
        load_recipe(write(text))
    assert len(str(caught.value).splitlines()) == 1


WRONG = [
    ("optim.lr", "fast", r"='fast'\) must be a number"),
    ("optim.lr", [0.1], r"=\[0\.1\]\) must be a number"),
    ("optim.lr", True, r"must be a number"),
    ("optim.lr", 0, r"=0(\.0)?\) must be above 0"),
    ("optim.lr", float("nan"), r"=nan\) must be above 0"),
    ("optim.momentum", 1.0, r"=1\.0\) must be at least 0 and below 1"),
    ("optim.ema_decay", -0.1, r"=-0\.1\) must be at least 0 and below 1"),
    ("optim.clipping", "off", r"='off'\) must be a number or null"),
    ("optim.weight_decay", -1e-5, r"=-1e-05\) must be at least 0"),
    ("optim.nesterov", 1, r"=1\) must be true or false"),
    ("train.steps", 2.5, r"=2\.5\) must be an integer or null"),
    ("train.steps", 0, r"=0\) must be at least 1"),
    ("train.batch_size", "many", r"='many'\) must be an integer"),
    ("train.epochs", -1, r"=-1(\.0)?\) must be above 0"),
    ("train.precision", "float8", r"='float8'\) must be one of float32, bfloat16, float16"),
    ("data.crop", "sideways", r"='sideways'\) must be one of distorted, shift, random, none"),
    ("data.padding", 0, r"=0\) must be at least 1"),
    ("data.padding_mode", "edge", r"='edge'\) must be one of constant, reflect"),
    ("data.cutout", -1, r"=-1\) must be at least 0"),
    ("data.scale", [2, 0.5], r"=\[2(\.0)?, 0\.5\]\) must be two numbers from 0\.1 to 10"),
    ("data.scale", [1], r"must be two numbers"),
    ("data.image_width", 0, r"=0\) must be at least 1"),
    ("data.short_side", 5000, r"=5000\) must be at most 4096"),
    ("data.color", 1, r"=1\) must be true or false"),
    ("task.name", "tracking", r"='tracking'\) must be one of classification, segmentation, depth, detection"),
    ("task.head_width", 0, r"=0\) must be at least 1"),
    ("data.channels", 0, r"=0\) must be from 1 to 1024"),
    ("data.mean", [0.5, 0.5], r"=\[0\.5, 0\.5\]\) must have data\.channels \(=1\) entries"),
    ("data.std", [0.0], r"=\[0\.0\]\) must be above 0"),
    ("data.mean", ["x"], r"must be a list.* number"),
    ("data.source", 3, r"=3\) must be text"),
    ("task.name", 3, r"=3\) must be one of classification, segmentation, depth, detection, regression, volumes$"),
    ("task.name", ["depth"], r"must be one of classification, segmentation, depth, detection, regression, volumes$"),
    ("data.workers", -1, r"=-1\) must be at least 0"),
    ("model.name", {"a": 1}, r"must be text"),
    ("model.options", 3, r"=3\) must be a mapping"),
    ("task.label_smoothing", 1, r"=1(\.0)?\) must be at least 0 and below 1"),
    ("train.seed", 10**30, r"must be (at most|below)"),
    ("train.epochs", float("inf"), r"=inf\) must be"),
    ("data.std", [float("nan")], r"=\[nan\]\) must be"),
    ("data.mean", [float("inf")], r"=\[inf\]\) must be finite"),
    ("data.mean", [0.1] * 1000, r"=\[0\.1, 0\.1.{10,80}\) must have data\.channels \(=1\) entries"),
    ("data.image_size", 5000, r"=5000\) must be at most 4096"),
    ("data.workers", 10**6, r"=1000000\) must be at most 1024"),
    ("optim.lr", float("inf"), r"=inf\) must be above 0 and at most 1e\+20"),
    ("optim.weight_decay", 1e300, r"=1e\+300\) must be at least 0 and at most 1e\+20"),
    ("optim.lr", 10**400, r"=10000*\.\.\.\) must be below 2\*\*63"),
    ("model.drop_rate", 2, r"=2(\.0)?\) must be at least 0 and below 1"),
    ("model.name", 10**30, r"must be text"),
]


@pytest.mark.parametrize(("path", "value", "named"), WRONG, ids=[f"{path}={value}" for path, value, _ in WRONG])
def test_a_wrong_value_is_named_with_what_would_be_right(write, path, value, named):
    section, name = path.split(".")
    content = {"data": {"channels": 1}}
    content.setdefault(section, {})[name] = value
    mine = write(yaml.safe_dump(content))
    for load in (lambda: load_recipe(mine), lambda: load_recipe("digits", {path: value})):
        with pytest.raises(
            UsageError, match=rf"{path} \({named if named.startswith('=') else '=.*' + named}"
        ) as caught:
            load()
        assert len(str(caught.value).splitlines()) == 1


def test_null_is_refused_where_it_means_nothing():
    messages = {}
    for path, item in field_paths().items():
        if "null" not in describe_type(item.type):
            try:
                messages[path] = f"no error: {load_recipe('digits', {path: None})}"
            except UsageError as error:
                messages[path] = str(error)
    expected = {path: f"{path} (=null) must be {describe_field(field_paths()[path])}" for path in messages}
    assert expected["task.name"].endswith(
        "must be one of classification, segmentation, depth, detection, regression, volumes"
    )
    assert {path: message.replace("=None", "=null") for path, message in messages.items()} == expected


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("optim.lrr", r"field optim\.lrr is unknown; did you mean optim\.lr"),
        ("lr", r"field lr is unknown; did you mean optim\.lr"),
        ("optim.lr.x", r"optim\.lr \(=\{'x': 1\}\) must be a number"),
        ("", r"field"),
        ("optim.", r"field"),
    ],
)
def test_an_override_that_is_no_field(path, named):
    with pytest.raises(UsageError, match=named):
        load_recipe("digits", {path: 1})


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("digts", r"recipe 'digts' is unknown; did you mean digits"),
        ("qqqqqq", r"recipe 'qqqqqq' is unknown; `normfree recipes` lists them"),
        ("nowhere.yaml", r"recipe file nowhere\.yaml cannot be read: No such file"),
        ("./nowhere", r"recipe file \./nowhere cannot be read: No such file"),
        (importlib.import_module("torch").__file__.replace("__init__.py", "_C"), r"cannot be read"),
        (str(Path(__file__).parent) + "/", r"cannot be read: a folder, not a file"),
    ],
    ids=["typo", "nothing like it", "no file", "no path", "binary", "folder"],
)
def test_a_recipe_that_is_not_there(name, named):
    with pytest.raises(UsageError, match=named):
        load_recipe(name)


def test_a_recipe_is_data_and_runs_no_code(write, tmp_path, monkeypatch):
    """A recipe also comes with every checkpoint file, and those are passed on between strangers."""
    (tmp_path / "hostile.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Act:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    mine = write("model: {options: {activation: {class_path: hostile.Act}}}")
    try:
        recipe = load_recipe(mine)
    except UsageError:
        pass
    else:
        assert recipe.model.options == {"activation": {"class_path": "hostile.Act"}}
    assert not (tmp_path / "ran").exists()
