"""Whether more steps would help, on curves whose answer is known."""

import math

import pytest

from normfree.training.longer import would_help

STEPS = 1_000


def lines(tested, trained, every=50, name="loss"):
    """Lines of metrics.jsonl of two curves over 0..1."""
    steps = range(every, STEPS + 1, every)
    return [
        line
        for step in steps
        for line in (
            dict(kind="train", step=step, loss=trained(step / STEPS)),
            {"kind": "eval", "step": step, "loss": 1.0} | {name: tested(step / STEPS)},
        )
    ]


def falling(t):
    return 2 - t


def flat(t):
    return 0.5 + 1.5 * math.exp(-12 * t)


def turning(t):
    """Falls, then rises: the training images are learned by heart."""
    return 1 + (t - 0.5) ** 2


def wobbling(t):
    return flat(t) * (1 + 0.01 * math.sin(300 * t))


@pytest.mark.parametrize("name", ["loss", "ema_loss"])
@pytest.mark.parametrize(
    ("tested", "trained", "answer"),
    [
        (falling, falling, True),
        (flat, flat, False),
        (wobbling, wobbling, False),
        (turning, falling, False),
        (flat, falling, False),
        (falling, flat, False),
    ],
)
def test_the_answer_is_that_of_the_curves(tested, trained, answer, name):
    assert would_help(lines(tested, trained, name=name), STEPS) is answer


def test_few_or_other_lines_give_no_answer():
    assert would_help([], STEPS) is None
    assert would_help(lines(falling, falling, every=250), STEPS) is None
    assert would_help([dict(kind="eval", step=step, map=0.5) for step in range(100)], STEPS) is None


def test_the_averaged_weights_count_where_there_are_some():
    assert would_help(lines(flat, falling, name="ema_loss"), STEPS) is False
