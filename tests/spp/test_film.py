"""Recordings along a training: when, in what file, drawn how."""

import dataclasses
import json
import math

import pytest
import torch

import normfree
from normfree.errors import RunFailed, UsageError
from normfree.spp import Film, plot_film, read_film, record, spectra


@pytest.fixture
def model():
    return normfree.create_model("nf_resnet26_small", depths=(1, 2), widths=(16, 32), num_classes=10, skip_gain=1.0)


@pytest.fixture
def inputs():
    return torch.randn(4, 3, 8, 8)


def steps(film: Film, total: int) -> list[int]:
    for step in range(total + 1):
        film(step)
    return [frame.step for frame in read_film(film.path)]


@pytest.mark.parametrize(
    ("every", "last", "recorded"),
    [(1, 3, [0, 1, 2, 3]), (2, 5, [0, 2, 4, 5]), (2, 4, [0, 2, 4]), (9, 5, [0, 5]), (2, None, [0, 2, 4])],
)
def test_when(model, inputs, tmp_path, every, last, recorded):
    assert steps(Film(model, inputs, every, tmp_path / "film.jsonl", last=last), last or 5) == recorded


def test_what(model, inputs, tmp_path):
    film = Film(model, inputs, 1, tmp_path / "film.jsonl")
    film(0)
    first = record(model, inputs), spectra(model)
    with torch.no_grad():
        model.stages[0][0].conv2.weight.add_(torch.randn_like(model.stages[0][0].conv2.weight))
    film(1)
    frames = read_film(tmp_path / "film.jsonl")
    assert frames[0].spp.rows == first[0].rows
    assert [dataclasses.replace(s, shape=tuple(s.shape)) for s in frames[0].spectra] == first[1]
    assert frames[1].spp.rows == record(model, inputs).rows != frames[0].spp.rows


def test_lines_are_written_at_once(model, inputs, tmp_path):
    film = Film(model, inputs, 1, tmp_path / "film.jsonl")
    for count in (1, 2):
        film(count)
        assert len((tmp_path / "film.jsonl").read_text().splitlines()) == count


def test_the_network_and_random_numbers_stay(model, inputs, tmp_path):
    model.train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.random.get_rng_state()
    Film(model, inputs, 1, tmp_path / "film.jsonl")(0)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_network_that_has_diverged(model, inputs, tmp_path):
    film = Film(model, inputs, 1, tmp_path / "film.jsonl")
    film(0)
    with torch.no_grad():
        model.stages[1][0].conv1.weight.fill_(math.nan)
    film(1)
    frames = read_film(tmp_path / "film.jsonl")
    assert frames[1].spp.diagnose()[0].kind == "not finite"
    plot_film(frames).savefig(tmp_path / "film.png")


@pytest.mark.parametrize("every", [0, -1])
def test_never_is_not_a_number_of_steps(model, inputs, tmp_path, every):
    with pytest.raises(UsageError, match=rf"\(={every}\) must be at least 1"):
        Film(model, inputs, every, tmp_path / "film.jsonl")


def test_a_full_disk_ends_the_run(model, inputs, tmp_path):
    (tmp_path / "film.jsonl").mkdir()
    with pytest.raises(RunFailed, match="cannot write"):
        Film(model, inputs, 1, tmp_path / "film.jsonl")(0)


@pytest.mark.parametrize("content", ["[1]", "{}", '{"step": 1, "spp": {}, "spectra": []}', '{"step"', "3", "null"])
def test_other_files_are_no_films(tmp_path, content):
    (tmp_path / "film.jsonl").write_text(content + "\n")
    with pytest.raises(UsageError, match=r"not a (file of )?recorded signal propagation plot"):
        read_film(tmp_path / "film.jsonl")


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.jsonl: No such file"):
        read_film(tmp_path / "nowhere.jsonl")


def frames(model, inputs, path, count: int) -> list:
    Film(model, inputs, 1, path)(0)
    (frame,) = read_film(path)
    return [dataclasses.replace(frame, step=3 * i) for i in range(count)]


@pytest.mark.parametrize(("count", "shown"), [(1, [0]), (2, [0, 3]), (8, [0, 3, 6, 9, 12, 15, 18, 21]), (100, None)])
def test_the_strip(model, inputs, tmp_path, count, shown):
    every = frames(model, inputs, tmp_path / "film.jsonl", count)
    figure = plot_film(every)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(figure.axes) == 4 * len(titles)
    if shown is not None:
        assert titles == [f"step {step}" for step in shown]
    else:  # evenly, first and last among them
        assert (titles[0], titles[-1], len(titles)) == ("step 0", "step 297", 8)
    rows = [figure.axes[i * len(titles)] for i in range(4)]
    spp = every[0].spp
    drawn = [list(axes.lines[0].get_ydata()) for axes in rows]
    assert drawn == [spp.avg_sq_mean, spp.avg_var, spp.res_avg_var, [s.condition for s in every[0].spectra]]


def test_frames_of_a_row_share_one_scale(model, inputs, tmp_path):
    film = Film(model, inputs, 1, tmp_path / "film.jsonl")
    film(0)
    with torch.no_grad():
        for block in (b for stage in model.stages for b in stage):
            block.conv2.gain.mul_(100)
    film(1)
    figure = plot_film(read_film(tmp_path / "film.jsonl"))
    for row in range(4):
        left, right = figure.axes[2 * row : 2 * row + 2]
        assert left.get_ylim() == right.get_ylim()
        assert left.get_yscale() == right.get_yscale() == ("log" if row in (1, 2) else left.get_yscale())


def test_an_empty_film_has_no_strip(tmp_path):
    (tmp_path / "film.jsonl").touch()
    with pytest.raises(UsageError, match="at least one frame"):
        plot_film(read_film(tmp_path / "film.jsonl"))


def test_frames_are_plain_json(model, inputs, tmp_path):
    Film(model, inputs, 1, tmp_path / "film.jsonl")(0)
    (line,) = (tmp_path / "film.jsonl").read_text().splitlines()
    assert set(json.loads(line)) == {"step", "spp", "spectra"}
