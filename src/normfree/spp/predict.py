"""What theory expects of the signal, beside what was measured (NF-ResNets, section 3)."""

from torch import nn

from ..models import NFBlock
from .result import Row


def predict(model: nn.Module, rows: list[Row], stem: Row | None) -> None:
    """Fill in ``expected_var`` and, of Normalizer-Free blocks, ``expected_res_var``."""
    modules = [model.get_submodule(row.module) if row.res_avg_var is not None else None for row in rows]
    if all(isinstance(module, NFBlock) for module in modules):
        for row, (variance, branch) in zip(rows, normfree_variances(modules), strict=True):
            row.expected_var, row.expected_res_var = variance, branch
        return
    before = stem.avg_var if stem is not None else None
    for row in rows:
        shortcut = row.shortcut_var if row.transition else before
        if row.added_var is not None and shortcut is not None and not row.activated:
            row.expected_var = shortcut + row.added_var
        before = row.avg_var


def normfree_variances(blocks: list[NFBlock]) -> list[tuple[float, float]]:
    """Variances of each block's output and of its branch's end, from alpha, beta and skip gains alone.

    A signal of variance v leaves an activation behind ``1 / beta`` with ``v / beta^2``, and so the branch; the block
    adds ``(alpha * skip_gain)^2`` of that to v, or in a transition to ``v / beta^2``. With skip gains of 1 this is the
    paper's ``Var + alpha^2``, reset to ``1 + alpha^2``; with the initial 0 the signal stays while beta does not know.
    """
    variance, expected = 1.0, []
    for block in blocks:
        branch = variance / block.beta**2
        shortcut = variance if block.conv_shortcut is None else branch
        variance = shortcut + block.skip_init.scale().item() ** 2 * branch
        expected.append((variance, branch))
    return expected
