"""Pictures: what is drawn where, on which scale."""

import dataclasses
import math

import pytest
import torch

import normfree
from normfree.errors import UsageError
from normfree.spp import SPP, Row, plot, record

PANELS = ("avg_sq_mean", "avg_var", "res_avg_var")


def made_up(name: str, variances: list[float], stages: list[int] | None = None, **fields) -> SPP:
    stages = stages or [0] * len(variances)
    rows = [
        Row(f"b{i}", stage, avg_sq_mean=0.1, avg_var=v, res_avg_var=1.0, added_var=1.0, **fields)
        for i, (v, stage) in enumerate(zip(variances, stages, strict=True))
    ]
    return SPP(name, rows)


@pytest.fixture(scope="module")
def recorded():
    torch.manual_seed(0)
    options = dict(depths=(2, 3, 2), widths=(16, 32, 32), stem="3x3", num_classes=10)
    models = {
        "nf": normfree.create_model("nf_resnet50", **options, alpha=1.0, skip_gain=1.0),
        "bn": normfree.create_model("bn_resnet50", **options),
    }
    return [record(model, (2, 3, 16, 16), name=name) for name, model in models.items()]


def curves(axes) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines if not line.get_label().startswith("_")}


def test_three_panels_of_all_networks(recorded):
    figure = plot(*recorded)
    assert len(figure.axes) == 3
    for axes, field in zip(figure.axes, PANELS, strict=True):
        drawn = curves(axes)
        for spp in recorded:
            assert drawn[spp.name] == getattr(spp, field)
        assert axes.get_xlabel() == "block depth"
        assert [line.get_xdata()[0] for line in axes.lines if line.get_label() == "nf"] == [1]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["nf", "bn"]
    colors = {line.get_color() for line in figure.axes[2].lines if line.get_label() in ("nf", "bn")}
    assert len(colors) == 2


def test_theory_is_inside_of_the_axes_where_the_signal_is_not():
    small = dict(depths=(2, 3, 1, 1), widths=(32, 48, 64, 96), alpha=1.0, skip_gain=1.0, gamma=0.5)
    spp = record(normfree.create_model("nf_resnet50", **small), (2, 3, 64, 64))
    axes = spp.plot().axes[1]
    assert max(spp.avg_var) < max(spp.expected_var) < axes.get_ylim()[1]


def test_dots_end_the_stages(recorded):
    axes = recorded[0].plot().axes[1]
    (dots,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert list(dots.get_xdata()) == [2, 5, 7]
    assert list(dots.get_ydata()) == [recorded[0].avg_var[i] for i in (1, 4, 6)]


def test_the_dashed_line_is_theory_of_normalizer_free_networks(recorded):
    figure = plot(*recorded)
    dashed = [[line for line in axes.lines if line.get_linestyle() == "--"] for axes in figure.axes]
    assert [len(lines) for lines in dashed] == [0, 1, 0]  # that of others is a sum of what was measured
    assert list(dashed[1][0].get_ydata()) == recorded[0].expected_var
    assert list(dashed[1][0].get_ydata()) == pytest.approx([2.0, 3.0, 2.0, 3.0, 4.0, 2.0, 3.0])  # reset by transitions
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["expected by theory"]
    assert not any(line.get_linestyle() == "--" for line in plot(*recorded, theory=False).axes[1].lines)


def test_without_theory_there_is_no_dashed_line():
    axes = plot(made_up("x", [1.0, 2.0])).axes[1]
    assert not any(line.get_linestyle() == "--" for line in axes.lines)
    assert axes.get_legend() is None


@pytest.mark.parametrize(
    ("values", "log", "scale"),
    [
        ([1.0, 900.0], None, "linear"),
        ([1.0, 1100.0], None, "log"),
        ([1e-12, 1.0], None, "linear"),  # rounding of 0
        ([1.0, 1100.0], False, "linear"),
        ([1.0, 2.0], True, "log"),
        ([0.0, 0.0], True, "linear"),  # which has no logarithm
        ([1.0, 1e30, math.nan, math.inf], None, "log"),
        ([math.nan, math.nan], None, "linear"),
    ],
)
def test_scale(values, log, scale):
    axes = plot(made_up("x", values), log=log).axes[1]
    assert axes.get_yscale() == scale
    if scale == "linear" and any(map(math.isfinite, values)):
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] > max(v for v in values if math.isfinite(v))


def test_one_exploding_network_among_others_makes_the_scale_logarithmic():
    figure = plot(made_up("a", [1.0, 2.0]), made_up("b", [1.0, 1e5]))
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "linear"]
    shrunk = plot(made_up("a", [1e5, 1.1e5]), made_up("b", [1.0, 1.0]))  # apart, but neither spans a decade
    assert shrunk.axes[1].get_yscale() == "linear"


def test_blocks_without_a_branch_leave_gaps(tmp_path):
    spp = made_up("x", [1.0, 2.0, 3.0])
    spp.rows[1] = dataclasses.replace(spp.rows[1], res_avg_var=None)
    drawn = curves(spp.plot().axes[2])["x"]
    assert (drawn[0], drawn[2]) == (1.0, 1.0)
    assert math.isnan(drawn[1])
    spp.save(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["a$b$c", "$", "_hidden", "50%", "a\\b", "{x}_y^z", 'quoted "x", y', "é"])
def test_names_are_shown_literally(name, tmp_path):
    figure = plot(made_up(name, [1.0, 2.0]), title=name)
    figure.savefig(tmp_path / "x.svg")
    (text,) = figure.axes[0].get_legend().get_texts()
    assert text.get_text().strip() == name.replace("$", r"\$")  # between bare dollars it would be a formula


def test_labels_and_title(recorded):
    figure = plot(*recorded, labels=["first", "second"], title="Two")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["first", "second"]
    assert figure.get_suptitle() == "Two"


def test_many_networks_and_deep_ones():
    deep = made_up("deep", [1.0] * 200)
    figure = plot(*[dataclasses.replace(deep, name=str(i)) for i in range(10)])  # more than there are colours
    assert len(figure.axes[0].get_legend().get_texts()) == 10


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_files(recorded, tmp_path, suffix):
    content = recorded[0].save(tmp_path / f"x.{suffix}").read_bytes()
    assert {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix] == content[: 5 if suffix == "svg" else 4]


def test_columns_choose_the_panels(recorded):
    columns = ["cosine", "avg_var", "pixel_norm", "avg_mean"]
    figure = recorded[0].plot(recorded[1], columns=columns)
    for axes, column in zip(figure.axes, columns, strict=True):
        drawn = curves(axes)
        assert all(drawn[spp.name] == getattr(spp, column) for spp in recorded)
        assert None not in drawn["nf"]
    assert len({axes.get_title() for axes in figure.axes}) == 4
    dashed = [any(line.get_linestyle() == "--" for line in axes.lines) for axes in figure.axes]
    assert dashed == [False, True, False, False]
    assert [axes.get_legend() is not None for axes in figure.axes] == [True, True, False, False]
    places = {(round(axes.get_position().x0, 1), round(axes.get_position().y0, 1)) for axes in figure.axes}
    assert len(places) == 4  # two lines of two


@pytest.mark.parametrize("log", [None, True])
def test_values_below_0_have_a_linear_axis(log):
    spp = made_up("x", [1.0] * 3)
    means = (-0.5, 1e-5, 0.25)
    rows = [dataclasses.replace(row, avg_mean=mean) for row, mean in zip(spp.rows, means, strict=True)]
    (axes,) = SPP("x", rows).plot(columns=["avg_mean"], log=log).axes
    assert axes.get_yscale() == "linear"
    low, high = axes.get_ylim()
    assert low < -0.5
    assert high > 0.25


def test_a_column_that_older_files_lack_leaves_its_panel_empty(tmp_path):
    figure = made_up("x", [1.0, 2.0]).plot(columns=["cosine"])
    assert all(math.isnan(value) for value in curves(figure.axes[0])["x"])
    figure.savefig(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["avg_vra"], r"columns: 'avg_vra' must be one of avg_sq_mean, avg_var, res_avg_var, avg_mean, pixel_norm, co"),
        (["cosine", "cosine"], r"columns \(=\['cosine', 'cosine'\]\) must be different ones"),
        ([], r"columns \(=\[\]\) must be different ones, at least one"),
        ("cosine", r"columns: 'c' must be one of"),
    ],
)
def test_wrong_columns(columns, message):
    with pytest.raises(UsageError, match=message):
        plot(made_up("x", [1.0]), columns=columns)


def test_nothing_to_plot():
    with pytest.raises(UsageError, match="at least one"):
        plot()
    with pytest.raises(UsageError, match=r"labels \(=\['a'\]\) must be as many as the 2 networks"):
        plot(made_up("x", [1.0]), made_up("y", [1.0]), labels=["a"])
