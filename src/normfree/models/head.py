"""The classifier: pooling, dropout, a linear layer."""

from collections.abc import Callable

from torch import Tensor, nn

from ..errors import UsageError
from ..nn import Role

_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "avgmax": lambda x: (x.mean((2, 3)) + x.amax((2, 3))) / 2,
}


class ClassifierHead(nn.Module):
    """Pool, dropout, linear: (N, C, H, W) -> (N, num_classes); (N, C) if ``num_classes`` is 0.

    ``global_pool`` is "avg" (the papers'), "max", "avgmax" (the mean of both), or "" (none, which needs
    ``num_classes=0``).
    """

    parameter_roles = {"fc.weight": Role.CLASSIFIER}

    def __init__(
        self, in_features: int, num_classes: int, drop_rate: float, init_std: float = 0.01, global_pool: str = "avg"
    ):
        super().__init__()
        if not 0.0 <= drop_rate < 1.0:
            raise UsageError(f"drop_rate (={drop_rate}) must be at least 0 and below 1")
        self.in_features, self.init_std = in_features, init_std
        self.dropout = nn.Dropout(drop_rate)
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier with fresh weights: N(0, init_std), bias 0.

        ``global_pool=None`` keeps the pooling; a classifier of a network without any gets "avg".
        """
        if global_pool is None:
            global_pool = self.global_pool or ("avg" if num_classes else "")
        if global_pool not in _POOLS:
            raise UsageError(f'global_pool (={global_pool!r}) must be "avg", "max", "avgmax" or "" (no pooling)')
        if num_classes < 0 or (num_classes and not global_pool):
            raise UsageError(f"num_classes (={num_classes}) must be at least 0, and 0 without pooling")
        self.global_pool = global_pool
        self.fc = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.in_features, num_classes)
            nn.init.normal_(self.fc.weight, std=self.init_std)
            nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.dropout(_POOLS[self.global_pool](x))
        return x if pre_logits else self.fc(x)
