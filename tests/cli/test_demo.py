"""`make demo`: what the README promises of it, on this machine."""

import re

import pytest


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("train_seed", [0, 1])
def test_the_demo_is_right_on_98_5_percent(normfree, tmp_path, train_seed):
    """The whole default recipe. A minute alone. Five of the 360 test images may be wrong."""
    result = normfree("train", "--quiet", "--train.seed", train_seed, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    (accuracy,) = re.findall(r"test accuracy ([0-9.]+)%", result.out)
    assert float(accuracy) >= 98.5
