"""The maps inside a network, as a pyramid: for segmentation, detection and timm's ``features_only``."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import UsageError
from ..nn import Activation
from .head import ClassifierHead


class FeatureMaps(nn.Module):
    """Five levels: the stem's map at stride 2 and the stages', the last behind the final convolution.

    A network of ``stem``, ``stages``, ``final_conv``, the modules ``final_names`` and ``head`` describes them in
    ``feature_info``, as timm does: dicts of ``num_chs``, ``reduction`` and ``module``.
    """

    feature_info: list[dict[str, Any]]
    final_names: tuple[str, ...]
    stem: nn.Sequential
    stages: nn.Sequential
    final_conv: nn.Module
    head: ClassifierHead
    num_features: int

    def forward_final(self, x: Tensor) -> Tensor:
        """What normalizes and activates the last map of ``feature_info``; the map itself where nothing does."""
        return x

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; 0 classes: none, the network returns pooled features."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps that ``feature_info`` lists: of the stem at stride 2, of the stages, of the final convolution.

        None of them is activated; ``norm`` is there for timm's sake and changes nothing.

        Args:
            indices: which; an int: the last so many; None: all.
            stop_early: compute nothing behind the last of them.
            intermediates_only: return the maps alone, not (last map as of :meth:`forward_features`, maps).

        Raises:
            UsageError: an index out of range, another format than NCHW.
        """
        if output_fmt != "NCHW":
            raise UsageError(f'output_fmt (={output_fmt!r}) must be "NCHW"')
        taken, maps = self._taken(indices), []
        tap = self.feature_info[0]["module"]
        for name, layer in self.stem.named_children():
            x = layer(x)
            if f"stem.{name}" == tap and 0 in taken:
                maps.append(x)
        count = len(self.stages)
        for number, stage in enumerate(self.stages, start=1):
            if stop_early and number > max(taken):
                break
            x = stage(x)
            if number == count:
                x = self.final_conv(x)
            if number in taken:
                maps.append(x)
        if intermediates_only:
            return maps
        return (x if stop_early and max(taken) < count else self.forward_final(x)), maps

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers behind the last of the maps ``indices`` and, with ``prune_head``, the classifier.

        Returns:
            The indices, counted from 0.
        """
        taken = self._taken(indices)
        last = max(taken)
        if last < len(self.stages):
            for name in ("final_conv", *self.final_names):
                setattr(self, name, nn.Identity())
            self.feature_gamma = 1.0  # of NormFreeNet's activation
            self.num_features = self.head_hidden_size = self.head.in_features = self.feature_info[last]["num_chs"]
        if last == 0:
            names = [f"stem.{name}" for name, _ in self.stem.named_children()]
            self.stem = self.stem[: names.index(self.feature_info[0]["module"]) + 1]
        if prune_head or last < len(self.stages):
            self.reset_classifier(0, "")
        self.stages = self.stages[:last]
        return taken

    def _taken(self, indices: int | Sequence[int] | None) -> list[int]:
        """Indices of ``feature_info``, counted from 0."""
        count = len(self.stages) + 1
        if indices is None or isinstance(indices, int):
            number = count if indices is None else indices
            taken = list(range(count - number, count))
        else:
            taken = [index + count if index < 0 else index for index in indices]
        if not taken or not all(0 <= index < count for index in taken):
            raise UsageError(f"indices (={indices}) must name some of the {count} maps of feature_info")
        return taken


def stem_feature(stem: nn.Sequential) -> dict[str, Any]:
    """The entry of ``feature_info`` for the stem: its last map in front of its second reduction, not activated."""
    entry, channels, reduction = {}, 0, 1
    for name, layer in stem.named_children():
        stride = getattr(layer, "stride", 1)
        stride = stride if isinstance(stride, int) else stride[0]
        if stride > 1 and reduction > 1:
            break
        reduction, channels = reduction * stride, getattr(layer, "out_channels", channels)
        if not isinstance(layer, Activation):
            entry = dict(num_chs=channels, reduction=reduction, module=f"stem.{name}")
    return entry
