"""AutoAugment v0: its sub-policies and levels against TensorFlow's pixels, its draws against their probabilities."""

import json
from collections import Counter

import golden_data
import numpy as np
import pytest
import torch

from normfree.data import AutoAugment, DataConfig, RandAugment, TrainTransform
from normfree.data.autoaugment import CONSTANTS, POLICY_V0, step
from normfree.data.randaugment import NAMES, apply, arguments
from normfree.errors import UsageError
from normfree.recipes import load_recipe
from normfree.tasks import Classification

GOLDEN = golden_data.load("autoaugment")
PICTURES = sorted(key for key in GOLDEN if key.count("/") == 2)
SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(key: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[key]).permute(2, 0, 1)


@pytest.mark.parametrize("key", PICTURES)
def test_sub_policies_are_tensorflows(key):
    name, number, signs = key.split("/")
    image = picture(name)
    steps = [
        step(operation, *image.shape[1:], sign=1 if sign == "+" else -1)
        for operation, sign in zip(POLICY_V0[int(number)], signs, strict=True)
    ]
    assert torch.equal(apply(image, steps), picture(key))


def test_every_sub_policy_has_a_picture_in_both_directions():
    seen = {(int(number), signs) for _, number, signs in (key.split("/") for key in PICTURES)}
    assert {number for number, _ in seen} == set(range(25))
    for number, (first, second) in enumerate(POLICY_V0):
        if first[0] in SIGNED:
            assert (number, "-+") in seen
        if second[0] in SIGNED:
            assert (number, "+-") in seen


def test_levels_mean_what_was_released():
    """TensorFlow's float32 of the arguments, with a uint8 for Solarize and at least one bit for Posterize."""
    released = json.loads(str(GOLDEN["levels"]))
    keys = dict(Rotate="degrees", ShearX="level", ShearY="level", TranslateX="pixels", TranslateY="pixels")
    keys |= dict(Posterize="bits", Solarize="threshold", SolarizeAdd="addition", Cutout="half")
    assert len(released) == 11 * 13
    for key, value in released.items():
        name, level = key.split("/")
        value = {"Solarize": lambda v: v % 256, "Posterize": lambda v: max(1, v)}.get(name, lambda v: v)(value)
        how = arguments(name, int(level), 96, 96, constants=CONSTANTS)
        assert how[keys.get(name, "factor")] == value, key


def test_the_policy_is_the_released_table():
    assert len(POLICY_V0) == 25
    assert all(name in NAMES and 0 <= chance <= 1 and 0 <= level <= 10 for p in POLICY_V0 for name, chance, level in p)
    assert [[list(one) for one in pair] for pair in POLICY_V0] == json.loads(str(GOLDEN["policy"]))


def test_each_operation_comes_with_its_probability_and_either_sign():
    draws = 50_000
    counts, signs = Counter(), Counter()
    names = Counter()
    for number in range(draws):
        steps = AutoAugment().draw(40, 60, generator(number))
        names[len(steps)] += 1
        counts.update(name for name, _ in steps)
        signs.update(
            f"{name}{'+' if value > 0 else '-'}"
            for name, how in steps
            for value in how.values()
            if value and name in SIGNED
        )
    for name in {name for pair in POLICY_V0 for name, _, _ in pair}:
        chances = [sum(chance for other, chance, _ in pair if other == name) for pair in POLICY_V0]
        spread = sum(c * (1 - c) for pair in POLICY_V0 for other, c, _ in pair if other == name) / 25 + np.var(chances)
        # five standard errors
        assert abs(counts[name] / draws - np.mean(chances)) <= 5 * (spread / draws) ** 0.5, name
    none = np.mean([(1 - a) * (1 - b) for (_, a, _), (_, b, _) in POLICY_V0])
    assert abs(names[0] / draws - none) < 5 * (none * (1 - none) / draws) ** 0.5
    for name in ("Rotate", "ShearX", "ShearY", "TranslateY"):
        both = signs[f"{name}+"] + signs[f"{name}-"]
        assert abs(signs[f"{name}+"] / both - 0.5) < 5 * 0.5 / both**0.5


def test_what_never_happens_never_happens():
    drawn = {
        name for seed in range(4000) for name, how in AutoAugment().draw(9, 9, generator(seed)) if how.get("level") == 0
    }
    assert drawn == {"ShearY"}  # at level 0, which changes nothing; ShearX at level 0 has probability 0


def test_the_two_operations_of_a_sub_policy_are_independent():
    """Of sub-policy 4 (Solarize, 0.4; Solarize, 0.6), whose operations appear nowhere else at level 2."""
    kinds = Counter()
    for seed in range(30_000):
        steps = AutoAugment().draw(9, 9, generator(seed))
        kinds[sum(how == {"threshold": 51} for _, how in steps)] += 1
    for count, chance in ((1, 0.4 * 0.4 + 0.6 * 0.6), (2, 0.4 * 0.6)):
        expected = chance / 25
        assert abs(kinds[count] / 30_000 - expected) < 5 * (expected / 30_000) ** 0.5


def test_the_generator_decides():
    image, seen = torch.randint(256, (3, 40, 40), dtype=torch.uint8, generator=generator()), set()
    for seed in range(40):
        state, before = torch.get_rng_state(), image.clone()
        changed = AutoAugment()(image, generator(seed))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(image, before)
        assert torch.equal(changed, apply(image, AutoAugment().draw(40, 40, generator(seed))))
        assert (changed.shape, changed.dtype) == (image.shape, torch.uint8)
        seen.add(changed.numpy().tobytes())
    assert len(seen) > 15  # many draws change nothing, and one turns a small image out of sight


@pytest.mark.parametrize("shape", [(1, 7, 5), (3, 1, 1), (3, 2, 9)])
def test_any_image_keeps_its_form(shape):
    image = torch.randint(256, shape, dtype=torch.uint8, generator=generator())
    for pair in POLICY_V0:
        changed = apply(image, [step(operation, *shape[1:]) for operation in pair])
        assert (changed.shape, changed.dtype) == (image.shape, torch.uint8)


def test_errors_name_what_is_wrong():
    with pytest.raises(UsageError, match=r"policy of AutoAugment \(='v1'\) must be \"v0\""):
        AutoAugment("v1")
    with pytest.raises(UsageError, match=r"AutoAugment takes images of uint8, not torch.float32"):
        AutoAugment()(torch.rand(3, 8, 8))


def test_the_released_defaults():
    """The authors' loader: two layers where the name of RandAugment has none; AutoAugment has constants of its own."""
    assert RandAugment().layers == 2
    assert arguments("TranslateX", 10, 9, 9) == {"pixels": 100.0}
    assert arguments("TranslateX", 10, 9, 9, constants=CONSTANTS) == {"pixels": 250.0}
    assert arguments("Cutout", 10, 9, 9)["half"] == 40
    assert arguments("Cutout", 10, 9, 9, constants=CONSTANTS)["half"] == 100


def test_a_recipe_has_it():
    how = {"data.autoaugment": "v0", "data.randaugment_layers": 0}
    for name in ("nf_regnet_b0", "nfnet_f0", "folder"):
        data = load_recipe(name, how | {"data.image_size": 32}).data
        assert Classification.train_transform(data).autoaugment == AutoAugment()
        assert Classification.train_transform(data).randaugment is None
    plain = load_recipe("nf_regnet_b0", {"data.image_size": 32}).data
    assert Classification.train_transform(plain).autoaugment is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            dict(autoaugment="v0", randaugment_layers=2),
            r"data.autoaugment \(=v0\) takes .* data.randaugment_layers \(=2\)",
        ),
        (dict(autoaugment="v0", channels=4), r"data.autoaugment \(=v0\) is for images of 1 or 3 channels"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        DataConfig(**fields)


@pytest.mark.parametrize("recipe", ["demo_segmentation", "demo_depth", "demo_detection"])
def test_other_tasks_refuse_it(recipe, normfree):
    result = normfree("train", "--recipe", recipe, "--data.autoaugment", "v0", "--train.steps", 1)
    assert (result.code, result.out) == (2, "")
    assert "data.autoaugment (=v0) must be null for" in result.error


def test_training_sees_it_between_mixing_and_normalization():
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=generator())
    mean, std = (0.5,) * 3, (0.25,) * 3
    plain = TrainTransform(32, "none", False, mean, std)
    augmenting = TrainTransform(32, "none", False, mean, std, autoaugment=AutoAugment())
    for seed in range(20):
        expected = plain(AutoAugment()(image, generator(seed)), generator(0))
        assert torch.equal(augmenting(image, generator(seed)), expected)
