"""Training on a part of the training images."""

from collections import Counter

import pytest
from tiny_runs import FLAGS

from normfree.data import digits
from normfree.data.fewer import fewer_images


def names(source):
    return {source.train.name(index) for index in range(len(source.train))}


def labels(source):
    return Counter(source.train.label(index) for index in range(len(source.train)))


@pytest.mark.parametrize("fraction", [0.3, 0.07, 0.0001])
def test_each_class_keeps_its_part(fraction):
    whole = labels(digits())
    assert labels(fewer_images(digits(), fraction, 0)) == {k: max(1, round(fraction * n)) for k, n in whole.items()}


def test_a_smaller_fraction_is_a_part_of_a_larger_one_and_test_images_stay():
    small, large = fewer_images(digits(), 0.1, 3), fewer_images(digits(), 0.5, 3)
    assert names(small) < names(large) < names(digits())
    assert len(small.test) == len(digits().test)


def test_the_choice_depends_on_the_seed():
    assert names(fewer_images(digits(), 0.1, 0)) == names(fewer_images(digits(), 0.1, 0))
    assert names(fewer_images(digits(), 0.1, 0)) != names(fewer_images(digits(), 0.1, 1))


def test_images_and_labels_stay_together():
    source, whole = fewer_images(digits(), 0.1, 0).train, digits().train
    found = {whole.name(index): index for index in range(len(whole))}
    for index in range(0, len(source), 17):
        other = found[source.name(index)]
        assert source.label(index) == whole.label(other)
        assert (source.image(index) == whole.image(other)).all()


def test_a_run_says_how_many_it_uses_and_goes_on_with_the_same(normfree, tmp_path):
    options = [*FLAGS, "--data.train_fraction", "0.1", "--out", str(tmp_path / "run")]
    result = normfree("train", *options, "--train.steps", "2")
    assert "142 of 1,437 training images are used (data.train_fraction, seed 0)" in result.out + result.err
    assert normfree("train", "--resume", tmp_path / "run", "--train.steps", "3", "--quiet").code == 0


def test_what_cannot_be_is_refused(normfree):
    error = normfree("train", "--data.train_fraction", "1").error
    assert error == "data.train_fraction (=1.0) must be above 0 and below 1"
    error = normfree("train", "--recipe", "demo_segmentation", "--data.train_fraction", "0.5").error
    assert error == ("data.train_fraction (=0.5) is for classification and regression; task.name is segmentation")
