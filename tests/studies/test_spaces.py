"""What a search varies, as the command line writes it."""

import pytest

from normfree import UsageError
from normfree.studies.spaces import Choices, Range, split


class Middle:
    """Draws the middle of each range, and the last of each choice."""

    def suggest_float(self, name, low, high, log=False):
        return (low * high) ** 0.5 if log else (low + high) / 2

    def suggest_int(self, name, low, high, log=False):
        return round(self.suggest_float(name, low, high, log))

    def suggest_categorical(self, name, choices):
        return choices[-1]


@pytest.mark.parametrize(
    ("path", "given", "space", "drawn"),
    [
        ("optim.lr", "0.01..1", Range(0.01, 1.0), 0.1),
        ("optim.lr", "1..4", Range(1.0, 4.0), 2.0),
        ("optim.lr", "0.05..2", Range(0.05, 2.0), 0.3162),  # four digits
        ("optim.clipping", "5e-3..0.16", Range(0.005, 0.16), 0.02828),
        ("model.drop_rate", "0..0.5:linear", Range(0.0, 0.5, log=False), 0.25),
        ("train.batch_size", "16..256", Range(16, 256, whole=True), 64),
        ("train.steps", "10..30:linear", Range(10, 30, log=False, whole=True), 20),
        ("optim.lr_factors.gain", "0.1..10", Range(0.1, 10.0), 1.0),
        ("model.options.alpha", "0.1..0.4", Range(0.1, 0.4), 0.2),
        ("model.options.se_width", "2..8", Range(2, 8, whole=True), 4),
        ("optim.lr", [0.1, 0.2], Choices((0.1, 0.2)), 0.2),
        ("optim.nesterov", [True, None], Choices((True, None)), None),
        ("optim.lr_drops", [[0.5], [0.7, 0.9]], Choices(([0.5], [0.7, 0.9])), [0.7, 0.9]),
        ("model.options.depths", [[1, 1], [2, 2]], Choices(([1, 1], [2, 2])), [2, 2]),
    ],
)
def test_ranges_and_choices(path, given, space, drawn):
    spaces, fixed = split({path: given})
    assert spaces == {path: space}
    assert fixed == {}
    value = spaces[path].draw(Middle(), path)
    assert value == drawn
    assert type(value) is type(drawn)


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("optim.lr", 0.1),
        ("optim.lr_drops", [0.7, 0.9]),
        ("model.options.depths", [1, 1, 1]),
        ("data.source", "imagefolder:../photos"),
        ("model.name", "nf_resnet50"),
    ],
)
def test_what_is_fixed(path, given):
    assert split({path: given}) == ({}, {path: given})


@pytest.mark.parametrize(
    ("path", "given", "told"),
    [
        ("optim.lr", "2..1", "must be a range of rising numbers"),
        ("optim.lr", "a..b", "must be a range of rising numbers"),
        ("optim.lr", "1..", "must be a range of rising numbers"),
        ("optim.lr", "0..1", "drawn by its logarithm and must be above 0; or 0..1:linear"),
        ("train.batch_size", "1.5..8", "must be a range of integers"),
        ("optim.lr", [0.1, 0.1], "has a value twice"),
        ("optim.speed", "1..2", "is no field of a recipe"),
    ],
)
def test_what_is_refused(path, given, told):
    with pytest.raises(UsageError, match=told):
        split({path: given})
