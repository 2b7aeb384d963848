"""The most confident mistakes, and all confusions."""

import types
from collections import Counter

import pytest
import torch

from normfree.report import Mistakes


def fed(logits: torch.Tensor, labels: torch.Tensor, count: int, size: int = 7) -> Mistakes:
    mistakes = Mistakes(count)
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        batch = types.SimpleNamespace(labels=labels[part], indices=torch.arange(len(labels))[part])
        mistakes.update(logits[part], batch)
    return mistakes


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
def test_against_sorting_all(count):
    logits, labels = 3 * torch.randn(100, 4), torch.randint(4, (100,))
    mistakes = fed(logits, labels, count)
    likeliest, said = logits.softmax(1).max(1)
    wrong = [i for i in likeliest.argsort(descending=True).tolist() if said[i] != labels[i]]
    assert [one.index for one in mistakes.worst] == wrong[:count]
    for one in mistakes.worst:
        assert (one.true, one.said) == (labels[one.index], said[one.index])
        assert one.probability == pytest.approx(likeliest[one.index].item())
        assert one.of_truth == pytest.approx(logits.softmax(1)[one.index, one.true].item())
    assert mistakes.confusions == Counter(zip(labels.tolist(), said.tolist(), strict=True))
    assert mistakes.compute() == dict(images=100, wrong=len(wrong))


def test_outputs_that_are_not_finite_count_as_they_are():
    logits = torch.tensor([[float("nan"), 0.0], [0.0, 1.0]])
    mistakes = fed(logits, torch.tensor([1, 1]), 5)
    assert mistakes.compute() == dict(images=2, wrong=1)
    assert mistakes.worst[0].probability == 0


def test_nothing_seen():
    assert Mistakes(3).compute() == dict(images=0, wrong=0)
