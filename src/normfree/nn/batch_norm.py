"""Layers that normalize over several examples."""

from torch import nn

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def batch_norms(model: nn.Module) -> list[str]:
    """Names of the modules that normalize over the batch in training.

    Example:
        >>> batch_norms(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
        ['1']
    """
    return [name for name, module in model.named_modules() if isinstance(module, BATCH_NORM)]
