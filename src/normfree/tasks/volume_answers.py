"""Predictions for volumes: a mask of each, in the format of its file."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.masks import MaskValues
from ..data.volume_files import ENDINGS, base_name, ending, need_nibabel, read_header, read_volume, write_mask
from ..data.volume_folders import resampled
from ..data.volumes import VolumeTransform
from ..training import pick_device
from .answers import Answers, Asked, PredictOptions, make_folder
from .trained import ReadyNetwork, Trained, view_of
from .windows import in_windows

MAX_LINES = 12  # classes in the summary


class VolumeAnswers(Answers):
    """The class of each voxel.

    A trained network sees whole volumes, or windows of large ones, see :func:`.in_windows`; an exported file sees
    windows of its size.

    Args:
        network: a trained network or an exported file.
        options: of the command line.
    """

    endings = mask_endings = ENDINGS

    def __init__(self, network: ReadyNetwork, options: PredictOptions):
        place = Path(options.network)
        self.names = list(network.classes or ())
        self.counts, self.columns = Counter[str](), self.names
        if network.trained is not None:
            if options.size is not None:
                data = network.trained.recipe.data
                data.test_size, data.test_width, data.test_depth = options.size, None, None
            self._open_trained(network.trained, options.device)
        else:
            self._open_exported(network)
        self.default_masks = None if options.masks else (place if place.is_dir() else Path()) / "predictions"
        self.folder = make_folder("masks", options.masks or str(self.default_masks))

    def _open_trained(self, trained: Trained, device: str) -> None:
        data, target = trained.recipe.data, pick_device(device)
        self.channels, self.spacing, self.transform = data.channels, data.spacing, trained.transform
        self.values = MaskValues(len(trained.classes), data.mask_values, data.mask_ignored)
        model = trained.model.to(target)
        window = self.transform.size
        self.run: Callable[[Tensor], Tensor] = lambda seen: in_windows(model, seen.to(target), window)

    def _open_exported(self, file: ReadyNetwork) -> None:
        about = file.preprocessing
        assert about is not None  # every exported file has it
        view = view_of(about)
        assert isinstance(view, VolumeTransform)
        self.channels, self.spacing, self.transform = about.channels, about.spacing, view
        self.values = MaskValues(len(self.names), file.targets.get("mask_values"), file.targets.get("mask_ignored"))
        self.run = partial(in_windows, file.run, window=view.size, whole=0)

    def name(self, path: Path) -> str:
        return base_name(path)

    def begin(self, paths: Sequence[Path]) -> None:
        need_nibabel(paths)

    def read(self, path: Path) -> Tensor:
        return resampled(read_volume(str(path), self.channels), str(path), self.spacing)

    def view(self, image: Tensor) -> Tensor:
        return self.transform.whole(image)

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.inference_mode():
            return self.run(seen).float().cpu().split(1)

    def tell(self, item: Asked, answer: Tensor) -> dict[str, Any]:
        path = str(item.path)
        header = read_header(path)
        places = header.places(self.channels, path)
        if answer.shape[2:] != places:  # back to the file's own voxels
            answer = F.interpolate(answer, places, mode="trilinear", align_corners=False)
        mask = answer[0].argmax(0)
        counts = torch.bincount(mask.flatten(), minlength=len(self.names))
        present = [i for i in counts.argsort(descending=True, stable=True).tolist() if counts[i]]
        shares = {self.names[i]: round(int(counts[i]) / mask.numel(), 6) for i in present}
        self.counts.update(shares)
        written = self.folder / f"{item.name}{ending(path)}"
        write_mask(written, self.values.values_of(mask), path)
        result: dict[str, Any] = dict(mask=str(written), classes=shares)
        if header.spacing is not None:
            millilitres = header.spacing[0] * header.spacing[1] * header.spacing[2] / 1000
            result["millilitres"] = {self.names[i]: round(int(counts[i]) * millilitres, 4) for i in present}
        return result

    def lines(self, result: dict[str, Any]) -> list[str]:
        sizes = result.get("millilitres", {})
        lines = [
            f"  {share:7.2%}  {name}" + (f"  {sizes[name]:.4g} ml" if name in sizes else "")
            for name, share in result["classes"].items()
        ]
        return [result["path"], *lines, f"  mask {result['mask']}"]

    def rows(self, result: dict[str, Any]) -> Iterator[Sequence[Any]]:
        yield [result["classes"].get(name, 0) for name in self.names]

    def finish(self) -> list[str]:
        total = sum(self.counts.values())  # the shares of each volume add up to 1
        lines = [f"  {share / total:7.2%}  {name}" for name, share in self.counts.most_common(MAX_LINES)]
        return [*lines, f"  masks in {self.folder}"]
