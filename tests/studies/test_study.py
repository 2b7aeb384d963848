"""The file of a study: axes, seeds, what is skipped, what is refused; and the studies that come along."""

import dataclasses

import pytest
from tiny_studies import SET

from normfree import UsageError, studies
from normfree.studies.axes import parse_axis
from normfree.studies.cells import folder_name, share


def names(study) -> list[str]:
    return [cell.name for cell in studies.cells(study)]


def test_every_combination_is_a_cell_and_the_first_seed_comes_first(write):
    study = studies.load_study(write(seeds=[3, 5]))
    assert names(study) == [
        f"lr={lr},net={net},seed={seed}" for seed in (3, 5) for lr in ("0.1", "0.4") for net in ("clipped", "bare")
    ]
    cell = studies.cells(study)[1]
    assert {path: cell.fields[path] for path in ("optim.lr", "optim.clipping", "train.seed")} == {
        "optim.lr": 0.1,
        "optim.clipping": None,
        "train.seed": 3,
    }
    recipe = cell.recipe()
    assert (recipe.optim.clipping, recipe.train.seed, recipe.train.batch_size) == (None, 3, 8)


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ({"from": 1, "to": 4096, "times": 4}, [1, 4, 16, 64, 256, 1024, 4096]),
        ({"from": 0.01, "to": 0.16, "times": 2}, [0.01, 0.02, 0.04, 0.08, 0.16]),
        ({"from": 0.1, "to": 0.5, "plus": 0.1}, [0.1, 0.2, 0.3, 0.4, 0.5]),
        ({"from": 3, "to": 8, "plus": 2}, [3, 5, 7]),
        ([None, 0.5, True], [None, 0.5, True]),
    ],
)
def test_values_of_a_field(content, values):
    axis = parse_axis("optim.clipping", content, "study")
    assert [value.fields["optim.clipping"] for value in axis.values] == values


def test_what_is_skipped(write):
    study = studies.load_study(write(skip=[{"optim.lr": 0.4, "net": ["bare"]}]))
    assert names(study) == ["lr=0.1,net=clipped,seed=0", "lr=0.1,net=bare,seed=0", "lr=0.4,net=clipped,seed=0"]
    with pytest.raises(UsageError, match="no run: skip leaves out all"):
        studies.cells(studies.load_study(write(skip=[{"net": ["bare", "clipped"]}])))


def test_names_of_folders():
    assert folder_name([("net", "a b/c"), ("x", "../é")]) == "net=a-b-c,x=.."
    long = folder_name([("net", "a" * 300)])
    assert len(long) < 180
    assert long != folder_name([("net", "a" * 301)])


def test_two_axes_whose_last_parts_are_the_same(write):
    axes = {"data.mixup": [0.0], "model.options.activation": ["relu", "silu"]}
    assert names(studies.load_study(write(axes=axes)))[1] == "mixup=0,activation=silu,seed=0"
    axes = {"model.drop_rate": [0.0], "model.options.drop_rate": [0.1]}
    assert names(studies.load_study(write(axes=axes))) == ["model.drop_rate=0,model.options.drop_rate=0.1,seed=0"]
    twice = {"net": {"a b": {"optim.lr": 0.1}, "a-b": {"optim.lr": 0.2}}}
    with pytest.raises(UsageError, match="two values make the same folder net=a-b,seed=0"):
        studies.cells(studies.load_study(write(axes=twice)))


def test_axes_over_parts_of_the_network(write):
    """Which of the stem, the first stage and the classifier are clipped: each is an axis."""
    parts = ("stem", "stages.0", "classifier")
    axes = {f"optim.clipping_parts.{part}": [True, False] for part in parts}
    every = studies.cells(studies.load_study(write(axes=axes)))
    assert len(every) == 8
    assert every[1].name == "stem=true,stages.0=true,classifier=false,seed=0"
    assert every[1].recipe().optim.clipping_parts == {"stem": True, "stages.0": True, "classifier": False}
    with pytest.raises(UsageError, match=r"'optim.clipping_parts.' is no field"):
        studies.load_study(write(axes={"optim.clipping_parts.": [True]}))
    with pytest.raises(UsageError, match=r"'optim.clipping.stem' is no field"):
        studies.load_study(write(axes={"optim.clipping.stem": [True]}))


def test_parts_hold_every_cell_once():
    every = list(range(23))
    parts = [share(every, (k, 5)) for k in range(1, 6)]
    assert sorted(one for part in parts for one in part) == every
    assert {len(part) for part in parts} == {4, 5}
    assert share(every, None) == every


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/2/3"])
def test_parts_that_are_none(text):
    with pytest.raises(UsageError, match="from 1/16 to 16/16"):
        studies.parse_part(text)


WRONG = {
    "key": (dict(sed={}), "key 'sed' is unknown; did you mean seeds or set?"),
    "base": (dict(base="digit"), "base (='digit') is no recipe; did you mean digits"),
    "no axes": (dict(axes={}), "axes (={}) must be a mapping of at least one axis"),
    "field": (dict(axes={"train.batchsize": [1]}), "did you mean train.batch_size"),
    "set": (dict(set={"optim.lrr": 1}), "'optim.lrr' is no field of a recipe; did you mean optim.lr"),
    "field in a value": (dict(axes={"n": {"a": {"optim.clip": 1}}}), "axis n: a: 'optim.clip' is no field"),
    "plain name": (dict(axes={"batch_size": [1, 2]}), "did you mean the field train.batch_size?"),
    "no list": (dict(axes={"optim.lr": 3}), "must be a list of values, or a range"),
    "twice": (dict(axes={"optim.lr": [8, 8.0]}), "has the value 8 twice"),
    "range": (dict(axes={"optim.lr": {"from": 1, "too": 2}}), "key 'too' is unknown; did you mean to"),
    "range without step": (dict(axes={"optim.lr": {"from": 1, "to": 2}}), "must have one of times and plus"),
    "range without end": (dict(axes={"optim.lr": {"from": 1, "times": 2}}), "the range lacks to"),
    "range downwards": (
        dict(axes={"optim.lr": {"from": 2, "to": 1, "times": 2}}),
        "must be at least from (=2)",
    ),
    "range that stays": (dict(axes={"optim.lr": {"from": 2, "to": 8, "times": 1}}), "times (=1) must be above 1"),
    "range of text": (dict(axes={"optim.lr": {"from": "a", "to": 8, "times": 2}}), "from (='a') must be a number"),
    "endless": (dict(axes={"optim.lr": {"from": 1, "to": 9e9, "plus": 1}}), "more than 1,000 values"),
    "both set": (dict(axes={"optim.lr": [1], "n": {"a": {"optim.lr": 2}}}), "axes optim.lr and n both set optim.lr"),
    "seed": (dict(set={"train.seed": 1}), "train.seed is set by the seeds of the study"),
    "seeds": (dict(seeds=0), "seeds (=0) must be how many, or a list"),
    "seeds twice": (dict(seeds=[1, 1]), "must differ"),
    "skip": (dict(skip=[{"nett": "bare"}]), "key 'nett' is unknown; did you mean net"),
    "skipped value": (dict(skip=[{"net": "bar"}]), "the axis net has no value 'bar'; did you mean bare"),
    "x": (dict(report=dict(x="nett")), "x (='nett') is no axis of the study that varies here; did you mean net"),
    "lines": (dict(report=dict(x="net", choose="optim.lr", lines="net")), "is no axis that is left for them"),
    "unnamed": (dict(report=dict(x="net", lines=[])), "the axis optim.lr is in none of x, lines, choose and where"),
    "statistic": (dict(report=dict(statistic="mode")), "statistic (='mode') must be median or mean"),
    "keep": (dict(report=dict(keep=4), seeds=3), "keep (=4) must be from 1 to the number of seeds, 3"),
    "scale": (dict(small=dict(axis={})), "small: key 'axis' is unknown; did you mean axes"),
}


@pytest.mark.parametrize(("parts", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(write, parts, message):
    with pytest.raises(UsageError) as error:
        studies.load_study(write(**parts))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_fields_of_the_command_line(write):
    study = studies.load_study(write(), {"train.steps": 7}, seeds=[4])
    assert {cell.recipe().train.steps for cell in studies.cells(study)} == {7}
    assert study.seeds == (4,)
    for path in ("optim.lr", "optim.clipping"):
        with pytest.raises(UsageError, match=r"is what the axis .* of the study varies"):
            studies.load_study(write(), {path: 0.3})


def test_fewer_seeds_of_the_command_line_keep_what_there_is(write):
    path = write(seeds=5, report=dict(keep=4, statistic="mean"))
    assert [studies.load_study(path, seeds=n).reports[0].keep for n in (None, 5, 2)] == [4, 4, 2]


def test_a_scale_adds_to_what_both_share(write):
    small, paper = {"train.steps": 3}, dict(axes={"optim.lr": [9.0]}, seeds=2)
    path = write(small=dict(set=small), paper=paper)
    assert studies.load_study(path).scale == "small"
    assert studies.load_study(path).settings == SET | small
    large = studies.load_study(path, scale="paper")
    assert ([len(axis.values) for axis in large.axes], large.seeds) == ([1, 2], (0, 1))
    with pytest.raises(UsageError, match="has no scale 'huge'; it has small and paper"):
        studies.load_study(path, scale="huge")
    with pytest.raises(UsageError, match="has no scale 'paper'; it has one size"):
        studies.load_study(write("plain"), scale="paper")


def test_a_written_study_is_the_same(write, tmp_path):
    report = dict(x="net", choose="optim.lr", keep=1, statistic="mean", title="a: b")
    study = studies.load_study(write(report=report, skip=[{"net": "bare", "optim.lr": 0.4}]), {"train.steps": 9})
    (tmp_path / "again.yaml").write_text(studies.dump_study(study))
    again = studies.load_study(str(tmp_path / "again.yaml"))
    assert [(cell.name, cell.recipe()) for cell in studies.cells(again)] == [
        (cell.name, cell.recipe()) for cell in studies.cells(study)
    ]
    assert again.reports == study.reports


def test_a_base_beside_the_study(write, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("model: {name: nf_resnet26_small}\noptim: {momentum: 0.5}\n")
    monkeypatch.chdir("/")
    study = studies.load_study(write(base="mine.yaml"))
    assert studies.cells(study)[0].recipe().optim.momentum == 0.5


def test_images_of_ones_own_are_not_read_as_digits(write, tmp_path):
    study = studies.load_study(write(), {"data.source": f"imagefolder:{tmp_path}"})
    recipe = studies.cells(study)[0].recipe()
    assert (recipe.data.channels, recipe.data.image_size, recipe.data.mean) == (3, 64, None)
    assert recipe.data.source == f"imagefolder:{tmp_path}"
    assert (recipe.data.test_size, recipe.data.flip) == (64, True)


def test_weights_that_each_run_starts_from(write):
    """The names of axes become values as the names of folders have them."""
    axes = {"net": {"a b": {"optim.lr": 0.1}, "c": {"optim.lr": 0.2}}, "optim.momentum": [0.5]}
    study = studies.load_study(write(axes=axes, seeds=[7], init="first/net={net},seed={seed}/{optim.momentum}"))
    assert [cell.init for cell in studies.cells(study)] == ["first/net=a-b,seed=7/0.5", "first/net=c,seed=7/0.5"]
    assert studies.cells(studies.load_study(write(axes=axes), init="all"))[1].init == "all"
    assert studies.cells(studies.load_study(write(axes=axes)))[0].init is None
    assert "init: first/net={net}" in studies.dump_study(study)
    with pytest.raises(UsageError, match=r"init names \{nett\}, which is no axis of the study; did you mean net\?"):
        studies.load_study(write(axes=axes, init="{nett}"))
    with pytest.raises(UsageError, match=r"init .*must be text"):
        studies.load_study(write(axes=axes, init=3))


def test_the_cost_by_hand(write):
    planned = studies.plan(studies.load_study(write(seeds=2), {"train.batch_size": 100}))
    costs = {one.cost for one in planned}
    assert len(costs) == 1
    (cost,) = costs
    assert (cost.steps, cost.batch, cost.images) == (2, 100, 200)
    assert cost.operations == 6 * cost.macs * 200
    assert {one.asked.train.seed for one in planned} == {0, 1}
    assert studies.total(planned)["operations"] == 8 * cost.operations


def test_a_batch_that_is_larger_than_the_images_is_cut_in_the_cost_too(write):
    axes = {"train.batch_size": [64, 4096]}
    planned = studies.plan(studies.load_study(write(axes=axes, set=SET | {"train.steps": None}), {"train.epochs": 2}))
    assert [(one.cost.steps, one.cost.batch) for one in planned] == [(2 * (1437 // 64), 64), (2, 1437)]


@pytest.mark.parametrize("name", studies.list_studies())
def test_studies_that_come_along(name):
    header = studies.study_header(name)
    assert header[0].endswith(".")
    for part in ("Source:", "Command: normfree study", "Cost:", "Expected:"):
        assert any(line.startswith(part) for line in header), part
    for scale in ("small", "paper"):
        study = studies.load_study(name, scale=scale)
        study = dataclasses.replace(study, seeds=study.seeds[:1])
        every = studies.cells(study)
        assert len(every) >= 3
        assert all(cell.recipe() for cell in every[:: max(1, len(every) // 8)])


@pytest.mark.slow
@pytest.mark.parametrize("name", studies.list_studies())
@pytest.mark.parametrize("scale", ["small", "paper"])
def test_every_cell_of_them_can_be_run(name, scale, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # neither ImageNet nor CIFAR-10 is there
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NORMFREE_DATA", raising=False)
    planned = studies.plan(studies.load_study(name, scale=scale, seeds=1), download=False)
    assert [one.refused for one in planned if one.refused] == []
    embedded = [one.asked.data.source.partition(":")[0] in ("digits", "scenes") for one in planned]
    assert [not one.missing for one in planned] == embedded
    assert scale == "small" or not any(embedded)


def test_a_plan_downloads_nothing_that_is_only_to_be_counted(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NORMFREE_DATA", raising=False)

    def refused(*arguments, **options):
        raise AssertionError("downloaded")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.__init__", refused)
    (first, *_) = studies.plan(studies.load_study("batch_size", seeds=1), download=False)
    assert "it is downloaded when a run needs it" in first.missing
    assert (first.cost.steps, first.cost.batch) == (20_000, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_the_images_costs_a_part(write):
    axes = {"data.train_fraction": [0.25, 0.5]}
    planned = studies.plan(studies.load_study(write(axes=axes, set=SET | {"train.steps": None}), {"train.epochs": 8}))
    assert [one.cost.steps for one in planned] == [8 * (358 // 8), 8 * (718 // 8)]
