"""The classifier: pooling, perhaps an expansion, dropout, a linear layer."""

from collections.abc import Callable

from torch import Tensor, nn

from ..errors import UsageError
from ..nn import Activation, Role, lecun_normal_

_LOGITS = "logits"
_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "avg": lambda x: x.mean((2, 3)),
    _LOGITS: lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "avgmax": lambda x: (x.mean((2, 3)) + x.amax((2, 3))) / 2,
}


class Expansion(nn.Module):
    """A linear layer behind the pooling, and the scaled activation: ``(N, in_features) -> (N, out_features)``.

    It stands in place of the convolution behind the last stage (NF-ResNets, appendix C; NFNets, appendix C). Its weight
    is not standardized.

    Example:
        >>> Expansion(8, 16, Activation("gelu"))(torch.randn(2, 8)).shape
        torch.Size([2, 16])
    """

    def __init__(self, in_features: int, out_features: int, act: Activation):
        super().__init__()
        self.fc = nn.Linear(in_features, out_features)
        lecun_normal_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(x)) * self.act.gamma


class ClassifierHead(nn.Module):
    """Pool, dropout, linear: (N, C, H, W) -> (N, num_classes); (N, C) if ``num_classes`` is 0.

    Args:
        in_features: C.
        init_std: standard deviation of the classifier's first weight.
        global_pool: "avg" (the papers'), "max", "avgmax" (the mean of both), "" (none, which needs ``num_classes=0``),
            or "logits": dropout and the linear layer at every place, and the average of the logits.
        expansion: a layer between pooling and dropout; dropped where there is no pooling.

    Raises:
        UsageError: a rate out of [0, 1), an unknown pooling, classes without pooling, an expansion of what is not
            pooled.
    """

    parameter_roles = {"fc.weight": Role.CLASSIFIER}

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        drop_rate: float,
        init_std: float = 0.01,
        global_pool: str = "avg",
        expansion: Expansion | None = None,
    ):
        super().__init__()
        if not 0.0 <= drop_rate < 1.0:
            raise UsageError(f"drop_rate (={drop_rate}) must be at least 0 and below 1")
        self.in_features, self.init_std = in_features, init_std
        self.expansion = expansion
        self.dropout = nn.Dropout(drop_rate)
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier with fresh weights: N(0, init_std), bias 0.

        ``global_pool=None`` keeps the pooling; a classifier of a network without any gets "avg".
        """
        if global_pool is None:
            global_pool = self.global_pool or ("avg" if num_classes else "")
        if global_pool not in _POOLS:
            raise UsageError(f'global_pool (={global_pool!r}) must be "avg", "max", "avgmax", "logits" or "" (none)')
        if num_classes < 0 or (num_classes and not global_pool):
            raise UsageError(f"num_classes (={num_classes}) must be at least 0, and 0 without pooling")
        if global_pool == _LOGITS and self.expansion is not None:
            raise UsageError(
                f"global_pool (={global_pool!r}) pools behind the classifier; final='linear' needs it in front"
            )
        self.global_pool = global_pool
        if not global_pool:
            self.expansion = None
        self.fc = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.hidden_size, num_classes)
            nn.init.normal_(self.fc.weight, std=self.init_std)
            nn.init.zeros_(self.fc.bias)

    @property
    def hidden_size(self) -> int:
        """Features in front of the classifier."""
        return self.in_features if self.expansion is None else self.expansion.fc.out_features

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.global_pool == _LOGITS and not pre_logits:
            return self.fc(self.dropout(x.movedim(1, -1))).mean((1, 2))
        x = _POOLS[self.global_pool](x)
        x = self.dropout(x if self.expansion is None else self.expansion(x))
        return x if pre_logits else self.fc(x)
