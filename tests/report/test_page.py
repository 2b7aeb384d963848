"""The page: its numbers are those of the files, it loads nothing, and it is there whatever is missing."""

import base64
import hashlib
import html
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from report.pages import Page, eval_line, train_line
from small_models import shake

import normfree
from normfree.report import Confusion, Example, Missing, Recorded
from normfree.spp import Film, record

HOSTILE = '</script><script>alert("1")</script><img src="http://x" onerror=alert(1)>'
EMA = dict(ema_top1=0.75, ema_top5=0.95, ema_loss=1.25)


def plain(text: str) -> str:
    return " ".join(text.replace("\N{NARROW NO-BREAK SPACE}", " ").split())


def network() -> torch.nn.Module:
    options = dict(depths=(1, 2), widths=(16, 32), num_classes=10, in_chans=1)
    return shake(normfree.create_model("nf_resnet26_small", **options))


@pytest.fixture
def finished(write, folder):
    """Two epochs of 10 steps; the averaged weights are best after the first one."""
    more = dict(
        images_per_s=321.0,
        gradient_norm=2.0,
        parameter_norm=60.0,
        clipped_by_stage={"stem": 0.5, "stages.0": 0.125},
    )
    evals = [eval_line(10, 0.5, **EMA), eval_line(20, 0.625, **(EMA | dict(ema_top1=0.6875)))]
    write(
        metrics=[train_line(10, **more), evals[0], train_line(20, **more), evals[1]],
        clipping=[dict(step=s, layers={"stem.conv": [0.5, 0.2], "stages.0.0": [s / 100, 1e-4]}) for s in (10, 20)],
    )
    (folder / "environment.json").write_text('{"started": "2026-01-02", "gpu": "H200 <&>"}')
    return folder


def given(**more) -> dict:
    return dict(model="nf_resnet26_small", data="digits", parameters=312_345, planned=20, clipping=0.02) | more


def test_the_head(finished, page):
    shown = page(**given(seconds=75.0, images=(1437, 360), classes=10, clipping_eps=1e-3))
    head = plain(shown.sections["head"])
    assert head.startswith("my run finished")
    for part in (
        "75.00 % best top-1 accuracy averaged weights, epoch 1",
        "68.75 % last top-1 accuracy averaged weights, epoch 2",
        "20 / 20 optimizer steps 2 epochs",
        "1 min 15 s training",
        "321 images/s",
        "parameters 312,345",
        "1,437 to train, 360 to test",
        "best, averaged 10 75.00 % 95.00 % 1.250",
        "best, raw 10 50.00 % 90.00 % 1.500",
        "last, averaged 20 68.75 % 95.00 % 1.250",
        "last, raw 20 62.50 % 90.00 % 1.500",
        "H200 <&>",
    ):
        assert part in head


def test_the_curves_have_the_numbers_of_the_files(finished, page):
    charts = page(**given()).data("chart")
    series = {frozenset(one["name"] for one in chart["series"]): chart["series"] for chart in charts}
    found = [{one["name"]: one["points"] for one in chart} for chart in series.values()]
    assert {"training, as optimized": [[10, 0.3], [20, 0.15]], "test": [[10, 1.5], [20, 1.5]]}.items() <= found[
        0
    ].items()
    assert found[1]["test, averaged weights"] == [[10, 0.75], [20, 0.6875]]
    assert dict(stem=[[10, 0.5], [20, 0.5]], all=[[10, 0.25], [20, 0.25]]).items() <= found[3].items()
    assert all((chart["low"], chart["high"]) == (0, 20) for chart in charts)  # one axis


def test_the_clipping_has_the_numbers_of_the_files(finished, page):
    shown = page(**given())
    fraction, ratio = shown.data("map")
    assert fraction["names"] == ratio["names"] == ["stem.conv", "stages.0.0"]
    assert (fraction["values"][1][0], fraction["values"][1][-1]) == (0.1, 0.2)
    assert (ratio["values"][0][0], ratio["values"][1][0]) == (0.2, 1e-4)
    text = plain(shown.sections["clipping"])
    assert "Clipped most, over the whole run: stem.conv (50.0 %), stages.0.0 (15.0 %)." in text
    assert "\N{GREEK SMALL LETTER LAMDA} = 0.02" in text


def test_gradients_clipped_together_have_one_map(finished, write, page):
    lines = [dict(step=s, layers={"stem": [clipped, 0.5], "head": [clipped, 2.0]}) for s, clipped in ((10, 1), (20, 0))]
    write(clipping=lines)
    shown = page(**given(clipping=1.0, clipping_kind="norm"))
    (norms,) = shown.data("map")
    assert norms["values"][1][0] == 2.0
    text = plain(shown.sections["clipping"])
    assert "Clipping of the gradient's norm over time" in text
    assert "All gradients together were clipped in 50.0 % of the logged steps." in text
    assert "largest \N{DOUBLE VERTICAL LINE}G\N{DOUBLE VERTICAL LINE} of a layer's tensors" in text
    assert "The threshold is for the norm of all gradients together." in text


def test_layers_clipped_as_wholes_are_called_so(finished, page):
    text = plain(page(**given(clipping_kind="layer")).sections["clipping"])
    assert "Adaptive gradient clipping of whole tensors by layer over time" in text
    assert "of a layer's tensors" in text


def test_one_bias_does_not_lead_the_clipping(finished, write, page):
    """Of a classifier the bias alone is clipped, one unit: 0 or 100 % in every step, and it says nothing of weights."""
    stages = dict(clipped_by_stage={"stages.0": 0.02, "head.fc": 1.0}, largest_ratio={"stages.0": 0.03, "head.fc": 0.0})
    layers = {"stages.0.0": [0.02, 0.03], "stages.0.1": [0.0, 0.01], "head.fc": [1.0, 0.0]}
    write(metrics=[train_line(s, **stages) for s in (10, 20)], clipping=[dict(step=s, layers=layers) for s in (10, 20)])
    shown = page(**given())
    text = plain(shown.sections["clipping"])
    assert (
        "Clipped most, over the whole run: stages.0.0 (2.0 %). Of head.fc only the bias is clipped, in 100.0 %" in text
    )
    assert "Never, in the steps that were logged: 1 of 3 layers." in text
    (chart,) = [chart for chart in shown.data("chart") if any(one["name"] == "all" for one in chart["series"])]
    assert [one["name"] for one in chart["series"]] == ["stages.0", "all"]
    assert "Without head.fc, whose bias alone is clipped." in plain(shown.sections["curves"])


def test_one_of_a_thing_is_not_many(finished, write, page):
    write(metrics=[train_line(10)], clipping=[dict(step=10, layers={"stem": [0.0, 0.01]})])
    shown = page(**given(), changed={"optim.lr": "0.1"})
    assert "Marked: 1 field that differs from the default" in plain(shown.sections["recipe"])
    assert "1 epoch" in plain(shown.sections["head"])
    assert "1 epochs" not in plain(shown.sections["head"])


def test_the_threshold_is_where_the_colour_turns(finished, write, page):
    """Half of the ratios are above it: cool and warm sides have the same number of pixels."""
    layers = {f"l.{i}": [0.0, 0.02 * 10.0 ** (i - 3.5)] for i in range(8)}
    write(clipping=[dict(step=s, layers=layers) for s in (10, 20)])
    shown = page(**given())
    picture = shown.all("img")[1]["src"].partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        pixels = np.array(image.convert("RGB")).astype(int)
    warm = pixels[..., 0] > pixels[..., 2]
    assert warm[:, 0].tolist() == [False] * 4 + [True] * 4
    (marked,) = [a for a in shown.all("span") if a.get("class") == "marked"]
    assert marked["style"] == "left:50.00%"


def test_it_loads_nothing(finished, page):
    (finished / "recipe.yaml").write_text("data:\n  source: http://example.org/x\n")
    image = Image.fromarray(np.zeros((80, 90, 3), np.uint8))
    shown = page(**given(), examples=[Example(image, "a", "http://example.org")])
    for name, attributes in shown.elements:
        for key in ("src", "srcset", "href", "action", "data", "xlink:href", "style"):
            target = attributes.get(key) or ""
            assert target.startswith(("data:image/", "#")) or (key == "style" and "url(" not in target) or not target, (
                name
            )
    assert not {"link", "iframe", "object", "embed", "form", "base"} & {name for name, _ in shown.elements}
    assert "@import" not in shown.source
    assert "url(" not in shown.source
    (policy,) = [a["content"] for a in shown.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    script = re.search(r"<script>(.*?)</script>", shown.source, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_curves_of_detection(finished, write, page):
    """Masks come second; what training counts there is no average precision."""
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "mask_ap", "mask_ap50")
    scores = {EMA + name: 0.25 for EMA in ("", "ema_") for name in names}
    line = {name: value for name, value in eval_line(10, 0).items() if name not in ("top1", "top5", "loss")} | scores
    write(metrics=[train_line(5), line])
    shown = page(**given(score="ap"))
    titles = shown.sections["curves"].splitlines()
    assert titles.index("loss") < titles.index("AP") < titles.index("AP of masks") < titles.index("AP at overlap 0.5")
    assert "regions whose class is right" in titles
    assert [one["name"] for one in shown.data("chart")[1]["series"]] == ["test", "test, averaged weights"]


def test_words_of_files_are_no_markup(finished, write, page):
    """Class names, paths, recipe, layers, metrics, environment, reasons."""
    line = {HOSTILE: 0.5, "epoch": HOSTILE, "lr": HOSTILE}
    write(
        metrics=[
            train_line(10, clipped_by_stage={HOSTILE: 0.5}),
            eval_line(20, 0.5) | line,
            dict(kind="skipped", step=21, reason=HOSTILE),
        ],
        clipping=[dict(step=10, layers={HOSTILE: [0.5, 1.0], "b": HOSTILE, "c": [HOSTILE]})],
    )
    (finished / "recipe.yaml").write_text(f"model:\n  name: {HOSTILE}\n{HOSTILE}: 1\n")
    (finished / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    image = Image.fromarray(np.zeros((80, 90), np.uint8))
    shown = page(
        **given(model=HOSTILE, data=HOSTILE, unreadable=[HOSTILE]),
        changed={"model.name": HOSTILE},
        recorded=Missing(HOSTILE),
        examples=[Example(image, HOSTILE, HOSTILE, HOSTILE)],
        introduction=HOSTILE,
        note=HOSTILE,
        confusion=Confusion([HOSTILE, "b"], {(0, 1): 3, (1, 1): 2}),
        made=HOSTILE,
    )
    assert len(shown.all("script")) == 1
    assert not [a for _, a in shown.elements if any(key.startswith("on") for key in a)]
    assert all(a["src"].startswith("data:image/") for a in shown.all("img"))
    for section in ("head", "curves", "signal", "examples", "recipe"):
        assert HOSTILE in shown.sections[section], section
    assert shown.source.count("<script") == 1
    assert shown.data("map")[0]["names"][0] == HOSTILE


def test_an_unfinished_run_that_logged_nothing(folder, page):
    shown = page()
    assert "not begun" in shown.sections["head"]
    assert "metrics.jsonl is not there" in shown.sections["head"]
    assert "nothing has been logged yet" in shown.sections["curves"]
    assert not shown.all("figure")
    assert set(shown.sections) == {"head", "curves", "clipping", "signal", "examples", "recipe"}


def test_an_old_run(write, page):
    """Without the newer keys and files."""
    write(metrics=[train_line(10), eval_line(10, 0.5)])
    shown = page(**given(clips=True))
    assert "Not logged by this run: gradient norm, parameter norm, images per second." in plain(
        shown.sections["curves"]
    )
    assert "there is no clipping.jsonl" in shown.sections["clipping"]
    assert "there is no environment.json" in shown.sections["recipe"]
    assert "best and last, raw" in shown.sections["head"]


def test_no_evaluation_and_no_clipping(write, page):
    write(metrics=[train_line(10) | dict(clipped=None)])
    shown = page(**given(clips=False, clipping=None))
    assert "no evaluation yet" in shown.sections["head"]
    assert "clips nothing" in shown.sections["clipping"]


@pytest.mark.parametrize(
    ("lines", "about", "said"),
    [
        ([train_line(20), eval_line(20, 0.5)], {}, "finished"),
        ([train_line(10)], {}, "not finished It failed, was killed, or is still running."),
        ([train_line(10)], dict(saved=13), "stopped early It was asked to stop after step 13"),
        ([train_line(10)], dict(saved=12, save_every=4), "not finished"),
        ([train_line(10), eval_line(12, 0.5)], dict(saved=12), "not finished"),
        ([train_line(10), train_line(20)], dict(saved=13), "not finished"),  # it went on
        ([train_line(10), eval_line(10, 0.5, ema_loss=float("nan"))], {}, "failed After step 10, ema_loss is nan."),
        ([train_line(10) | dict(loss=float("inf"))], {}, "failed After step 10, loss is inf."),
        ([train_line(10, gradient_norm=float("inf"))], {}, "not finished"),  # float16 leaves such steps out
    ],
)
def test_states(write, page, lines, about, said):
    write(metrics=lines)
    assert plain(page(**given(**about)).sections["head"]).startswith(f"my run {said}")


def test_steps_left_out(write, page):
    write(metrics=[train_line(10), dict(kind="skipped", step=11, reason="the loss is nan")])
    assert "1; the last one is 11: the loss is nan" in page(**given()).sections["head"]


def test_numbers_that_are_none(write, page):
    """A run whose numbers are absurd still has a page."""
    nan, inf = float("nan"), float("inf")
    values = [nan, inf, -inf, 10**400, 1e308, 5e-324, -1.0, None, "x", True, []]
    lines = [
        train_line(i + 1, gradient_norm=v, parameter_norm=v, images_per_s=v, seconds_left=v)
        for i, v in enumerate(values)
    ]
    clipping = [dict(step=i + 1, layers={"a": [v, v], "b": v, "c": []}) for i, v in enumerate(values)]
    write(metrics=[*lines, eval_line(20, 0.5)], clipping=clipping)
    shown = page(**given())
    assert len(shown.data("map")) == 2


def test_the_recipe(finished, page):
    text = "model:\n  name: a\n  options:\n    depths:\n    - 1\n    - 2\noptim:\n  lr: 1.0\n  name: b\n"
    (finished / "recipe.yaml").write_text(text)
    shown = page(**given(), changed={"model.options": "{}", "optim.lr": "0.1"})
    marked = re.findall(r"<mark>(.*?)</mark>", shown.source)
    assert marked == ["options:", "depths:", "- 1", "- 2", "lr: 1.0"]
    assert shown.source.count("# default ") == 2
    recipe = html.unescape(re.sub(r"<i>.*?</i>|<[^>]*>", "", re.search(r"<pre.*?</pre>", shown.source, re.DOTALL)[0]))
    assert recipe == text


def test_unreadable_images(finished, page):
    shown = page(**given(unreadable=[f"{i}.jpg: truncated" for i in range(300)]))
    assert "0.jpg: truncated" in shown.sections["recipe"]
    assert "and 100 more" in shown.sections["recipe"]


def test_signal_propagation(finished, page):
    model = network()
    spp = record(model, (4, 1, 16, 16), name="net")
    film = Film(model, torch.randn(2, 1, 16, 16), 1, finished / "spp.jsonl")
    film(3)
    film(7)
    with (finished / "spp.jsonl").open("a") as file:
        file.write('{"step": 9, "spp')  # a kill
    shown = page(**given(), recorded=Recorded(spp, "raw weights of step 20"))
    section = plain(shown.sections["signal"])
    assert "raw weights of step 20" in section
    assert all(block in section for block in spp.blocks)
    assert "step 3 step 7" in section
    charts = [chart for chart in shown.data("chart") if chart["names"]]
    assert [chart["names"] for chart in charts] == [spp.blocks] * 3
    assert [y for _, y in charts[0]["series"][0]["points"]] == pytest.approx(spp.avg_sq_mean, rel=1e-5)
    assert [y for _, y in charts[1]["series"][0]["points"]] == pytest.approx(spp.avg_var, rel=1e-5)


def test_what_is_wrong_with_the_signal_is_said(finished, page):
    model = normfree.create_model("nf_resnet26_small", depths=(2, 4), widths=(16, 32), num_classes=10, gamma=0.5)
    torch.nn.init.constant_(model.stages[1][2].conv1.bias, -100.0)  # its units are off
    spp = record(model, (4, 3, 32, 32))
    shown = page(**given(), recorded=Recorded(spp, ""))
    (finding,) = spp.diagnose(trained=True)
    assert len(spp.diagnose()) > 1  # by rules that a trained network may break
    signal = plain(shown.sections["signal"])
    assert plain(str(finding)) in signal
    assert "attenuation" not in signal
    assert "Judged by the rules for trained networks, without a first record to compare with." in signal


@pytest.mark.parametrize("own", [True, False])
def test_the_signal_is_compared_with_the_first_frame_of_the_same_inputs(finished, page, own):
    model, images = network(), torch.randn(4, 1, 16, 16)
    Film(model, images, 1, str(finished / "spp.jsonl"))(0)
    torch.nn.init.constant_(model.stem.conv.gain, 1e3)
    shown = page(**given(), recorded=Recorded(record(model, images), "", own=own))
    signal = plain(shown.sections["signal"])
    assert ("drift: the variance at stages.0.0 grew" in signal) == own
    assert ("against the record of step 0." in signal) == own


def test_a_film_that_is_none(finished, write, page):
    write(spp=[dict(step=1, spp={}, spectra=[])])
    assert "is not a file of recorded" in page(**given()).sections["signal"]


def test_examples_are_shown_as_they_are(finished, page):
    small = np.arange(64, dtype=np.uint8).reshape(8, 8)
    large = np.random.default_rng(0).integers(0, 256, (400, 1000, 3), dtype=np.uint8)
    given_examples = [
        Example(Image.fromarray(small), "8 to 3", "97 %\na.png"),
        Example(Image.fromarray(large), "b", "c"),
    ]
    shown = page(**given(), examples=given_examples, introduction="Two.", note="Last.")
    pictures = [a for a in shown.all("img") if a["alt"] in ("8 to 3", "b")]
    opened = [Image.open(io.BytesIO(base64.b64decode(a["src"].partition(",")[2]))) for a in pictures]
    assert np.array_equal(np.array(opened[0]), small)  # a few pixels, exactly
    assert (opened[1].format, opened[1].size) == ("JPEG", (256, 102))
    assert plain(shown.sections["examples"]) == "Examples it gets wrong Two. 8 to 3 97 % a.png b c Last."


def test_confusions(finished, page):
    counts = {(0, 0): 8, (0, 1): 2, (1, 1): 5, (2, 0): 5}
    shown = page(**given(), examples=[], confusion=Confusion(["cat", "dog", "owl"], counts))
    text = plain(shown.sections["examples"])
    assert "owl cat 5 100.0 % cat dog 2 20.0 %" in text
    assert "cat 8 2 \N{MIDDLE DOT} 80.0 % dog \N{MIDDLE DOT} 5 \N{MIDDLE DOT} 100.0 % owl 5 " in text


def test_many_classes_have_pairs_alone(finished, page):
    names = [f"c{i}" for i in range(21)]
    shown = page(**given(), examples=[], confusion=Confusion(names, {(i, (i + 1) % 21): i + 1 for i in range(21)}))
    text = plain(shown.sections["examples"])
    assert "Confused most" in text
    assert "All confusions" not in text
    assert "c20 c0 21" in text
    assert "c5 c6" not in text  # the twelve most


def test_a_long_run_is_small(write, page):
    layers = {f"stages.{i // 15}.{i % 15}": [i / 100, 0.01 * i] for i in range(60)}
    stages = {f"stages.{i}": 0.1 for i in range(4)}
    more = dict(images_per_s=1.0, gradient_norm=2.0, clipped_by_stage=stages)
    write(
        metrics=[train_line(i + 1, **more) for i in range(2000)],
        clipping=[dict(step=i + 1, layers=layers) for i in range(2000)],
    )
    assert len(page(**given()).source) < 600_000


def test_closed_elements(finished, page):
    """The reader of the tests checks that every element ends; here that it notices."""
    with pytest.raises(AssertionError):
        Page(b"<p><b></p>")
