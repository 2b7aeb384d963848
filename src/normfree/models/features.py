"""The maps inside a network, as a pyramid: for segmentation, detection and timm's ``features_only``."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import UsageError
from ..nn import Activation, ChannelAffine
from .head import ClassifierHead


class FeatureMaps(nn.Module):
    """Five levels: the stem's map at stride 2 and the stages', the last behind the final convolution.

    A network of ``stem``, ``stages``, ``final_conv``, the modules ``final_names`` and ``head`` describes them in
    ``feature_info``, as timm does: dicts of ``num_chs``, ``reduction`` and ``module``. ``map_stages`` says how many
    stages each of them has passed.
    """

    feature_info: list[dict[str, Any]]
    map_stages: list[int]
    final_names: tuple[str, ...]
    stem: nn.Sequential
    stages: nn.Sequential
    final_conv: nn.Module
    head: ClassifierHead
    num_features: int
    head_hidden_size: int

    def forward_final(self, x: Tensor) -> Tensor:
        """Normalization and activation of the last map of ``feature_info``; by default the map itself."""
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

        None of them is activated. ``norm`` is accepted for timm's interface and has no effect.

        Args:
            indices: of the maps; an int: the last ``indices`` maps; None: all.
            stop_early: compute nothing behind the last of these maps.
            intermediates_only: return only the maps instead of (the map of :meth:`forward_features`, maps).

        Raises:
            UsageError: an index out of range, a format other than NCHW.
        """
        if output_fmt != "NCHW":
            raise UsageError(f'output_fmt (={output_fmt!r}) must be "NCHW"')
        wanted = {self.map_stages[index] for index in self._map_indices(indices)}
        maps: list[Tensor] = []
        tap = self.feature_info[0]["module"]
        for name, layer in self.stem.named_children():
            x = layer(x)
            if f"stem.{name}" == tap and 0 in wanted:
                maps.append(x)
        count = len(self.stages)
        for number, stage in enumerate(self.stages, start=1):
            if stop_early and number > max(wanted):
                break
            x = stage(x)
            if number == count:
                x = self.final_conv(x)
            if number in wanted:
                maps.append(x)
        if intermediates_only:
            return maps
        return (x if stop_early and max(wanted) < count else self.forward_final(x)), maps

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers behind the last of the maps ``indices`` and, with ``prune_head``, the classifier.

        Returns:
            The indices, counted from 0.
        """
        wanted = self._map_indices(indices)
        last = self.map_stages[max(wanted)]
        if last < len(self.stages):
            for name in ("final_conv", *self.final_names):
                setattr(self, name, nn.Identity())
            self.feature_gamma = 1.0  # of NormFreeNet's activation
            channels = self.feature_info[max(wanted)]["num_chs"]
            self.num_features = self.head_hidden_size = self.head.in_features = channels
        if last == 0:
            names = [f"stem.{name}" for name, _ in self.stem.named_children()]
            self.stem = self.stem[: names.index(self.feature_info[0]["module"]) + 1]
        if prune_head or last < len(self.stages):
            self.reset_classifier(0, "")
        self.stages = self.stages[:last]
        return wanted

    @property
    def present_maps(self) -> list[dict[str, Any]]:
        """The entries of ``feature_info`` whose stages have not been pruned."""
        pairs = zip(self.feature_info, self.map_stages, strict=True)
        return [info for info, passed in pairs if passed <= len(self.stages)]

    def _map_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Indices of ``feature_info``, counted from 0."""
        count = len(self.present_maps)
        if indices is None or isinstance(indices, int):
            number = count if indices is None else indices
            wanted = list(range(count - number, count))
        else:
            wanted = [index + count if index < 0 else index for index in indices]
        if not wanted or not all(0 <= index < count for index in wanted):
            raise UsageError(f"indices (={indices}) must name some of the {count} maps of feature_info")
        return wanted


def stem_maps(stem: nn.Sequential) -> list[dict[str, Any]]:
    """An entry like those of ``feature_info`` for the output of each layer of a stem."""
    maps, channels, reduction = [], 0, 1
    for name, layer in stem.named_children():
        stride = getattr(layer, "stride", 1)
        reduction *= stride if isinstance(stride, int) else stride[0]
        channels = getattr(layer, "out_channels", channels)
        maps.append(dict(num_chs=channels, reduction=reduction, module=f"stem.{name}"))
    return maps


def stem_feature(stem: nn.Sequential) -> dict[str, Any]:
    """The entry of ``feature_info`` for the stem: its last map before its second reduction, not activated."""
    maps = stem_maps(stem)
    first = min((entry["reduction"] for entry in maps if entry["reduction"] > 1), default=1)
    layers = zip(maps, stem.children(), strict=True)
    return [e for e, layer in layers if e["reduction"] <= first and not isinstance(layer, Activation | ChannelAffine)][
        -1
    ]
