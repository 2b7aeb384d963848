"""The signal of networks: what they are shown, what is found, and the files about it: ``normfree spp``."""

import argparse
import csv
import dataclasses
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ..data import EvalTransform, Split, decode_image
from ..data.decode import UnreadableImage
from ..errors import UsageError
from ..spp import SPP, Frame, Spectrum, plot, read_first, record, spectra
from ..tasks import Trained, open_images
from ..training.run import FILM
from ..words import counted, tell
from .images import given_images
from .inspected import InspectedNetwork
from .prepare import PROBE
from .shown import Shown, shown_to

# arguments of `record`, as its messages have them, and the options that they are here
FLAGS = {
    "blocks=": "--blocks ",
    "blocks (=": "--blocks (=",
    "batch_stats=False": "--running-stats",
    "larger inputs or more of them": "larger inputs (--size) or more of them (--batch-size)",
    "larger inputs, or more of them": "larger inputs (--size), or more of them (--batch-size)",
}


def told_apart(networks: list[InspectedNetwork], texts: Sequence[str]) -> list[InspectedNetwork]:
    """Networks of one name are called as they were given, and numbered where that is the same as well."""
    names = [network.name for network in networks]
    names = [text if names.count(name) > 1 else name for name, text in zip(names, texts, strict=True)]
    numbered = [
        f"{name} #{names[:i].count(name) + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)
    ]
    return [dataclasses.replace(network, name=name) for network, name in zip(networks, numbered, strict=True)]


def record_and_judge(
    network: InspectedNetwork, options: argparse.Namespace, device: torch.device, first: Frame | None
) -> SPP:
    """Measure a network and report on it."""
    shown = _inputs(network, options)
    how = dict(blocks=options.blocks, batch_stats=not options.running_stats, name=network.name)
    try:
        spp = record(network.model.to(device), shown.inputs.to(device), **how)
    except UsageError as error:
        raise UsageError(_as_flags(str(error))) from error
    except Exception as error:  # most often a model that wants another size; it may be the user's code
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"{network.name} fails on inputs of shape {tuple(shown.inputs.shape)}: {reason}") from error
    trained = options.rules == "trained" or (options.rules == "auto" and network.pretrained)
    tell(*_numbers(spp, shown, options.table), *_judged(spp, network, trained, shown, first))
    return spp


def _as_flags(message: str) -> str:
    """A message of :func:`normfree.spp.record` with the names of this command's options."""
    for argument, flag in FLAGS.items():
        message = message.replace(argument, flag)
    return message


def _inputs(network: InspectedNetwork, options: argparse.Namespace) -> Shown:
    """Noise, a run's test images, or images of a folder as the network would be evaluated on them."""
    channels, size = network.shape[0], options.size or network.shape[-1]
    if network.run is not None and options.size is None and options.data is None and not options.noise:
        return shown_to(network.run, _test_images(network.run), options.batch or PROBE)
    count = options.batch or 4
    if options.data is None:
        shape = (count, channels, size, size)
        try:
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(options.seed))
        except (RuntimeError, OverflowError, TypeError, MemoryError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"inputs of shape {shape} cannot be made: {reason}") from error
        return Shown(noise, "unit Gaussian noise", False)
    paths = given_images([options.data])[:count]
    transform = EvalTransform(size, network.resize_margin, network.mean, network.std, network.test_crop)
    try:
        images = torch.stack(
            [transform(decode_image(path, channels, value_range=network.value_range)) for path in paths]
        )
    except UnreadableImage as error:
        raise UsageError(f"--data: {error}") from error
    return Shown(images, f"{counted(len(images), 'image')} of {options.data}", False)


def _test_images(run: Trained) -> Split | None:
    """Of a run; None where its data are not there any more."""
    try:
        return open_images(run.recipe).test
    except (UsageError, OSError):
        return None


def first_record(text: str) -> Frame | None:
    """Of a run folder that has a film."""
    return read_first(Path(text) / FILM) if Path(text).is_dir() else None


def _numbers(spp: SPP, shown: Shown, table: bool) -> list[str]:
    first, last = spp.rows[0], spp.rows[-1]
    return [
        *(str(spp).splitlines() if table else str(spp).splitlines()[:1]),
        f"  variance {first.avg_var:.3g} at {first.block}, {last.avg_var:.3g} at {last.block}, shown {shown.what}",
    ]


def _judged(spp: SPP, network: InspectedNetwork, trained: bool, shown: Shown, first: Frame | None) -> list[str]:
    """What is found, and by which rules."""
    if not trained:
        findings = spp.diagnose()
        rules = "rules for untrained networks; --rules trained for a trained one"
    elif first is not None and shown.own and first.spp.blocks == spp.blocks:
        findings = spp.diagnose(trained=True, first=first, spectra=spectra(network.model))
        rules = f"rules for trained networks, and {FILM} at step {first.step}"
    else:
        findings = spp.diagnose(trained=True, spectra=spectra(network.model))
        rules = "rules for trained networks; nothing to compare with"
        if network.run is not None and first is None:
            rules += f": {FILM} comes from train --spp-every N"
        elif first is not None:
            rules += f": {FILM} is of other inputs or blocks"
    lines = [f"  ! {_as_flags(str(finding))}" for finding in findings] or ["  no fault found"]
    branches = [row for row in spp.rows if row.added_var is not None]
    if branches and not any(row.added_var for row in branches):
        lines.append("  every branch adds nothing yet, as some initializations mean it; look again after some steps")
    return [*lines, f"  judged by the {rules}"]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a file of --out.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"--out: cannot write {path}: {error.strerror or error}") from error


def write(recorded: list[SPP], prefix: str, suffix: str, log: bool | None) -> list[str]:
    """PREFIX.csv and the picture PREFIX.SUFFIX; ``log``: of its axes, None chooses. Says what was written."""
    picture, path = Path(f"{prefix}.{suffix}"), Path(f"{prefix}.csv")
    with writing(picture), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # names in any script
        plot(*recorded, log=log).savefig(picture)
    with writing(path), path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        for number, spp in enumerate(recorded):
            header, *rows = csv.reader(io.StringIO(spp.to_csv()))
            table.writerows([["network", *header]] if number == 0 else [])
            table.writerows([spp.name, *row] for row in rows)
    return [f"picture {picture}", f"table   {path}"]


def write_spectra(networks: list[InspectedNetwork], prefix: str, shown: int = 5) -> list[str]:
    """PREFIX-spectra.csv, singular values of the weights; the worst conditioned layers in lines."""
    lines, path = [], Path(f"{prefix}-spectra.csv")
    with writing(path), path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["network", *(field.name for field in dataclasses.fields(Spectrum))])
        for network in networks:
            found = spectra(network.model)
            table.writerows([network.name, *dataclasses.astuple(s)[:-1], "x".join(map(str, s.shape))] for s in found)
            lines.append(f"{network.name}: worst conditioned of {counted(len(found), 'layer')}")
            worst = sorted(found, key=lambda s: -math.inf if math.isnan(s.condition) else -s.condition)[:shown]
            lines += [
                f"  {s.layer}: singular values {s.largest:.3g} to {s.smallest:.3g}, condition {s.condition:.3g}"
                for s in worst
            ]
    return [*lines, f"spectra {path}"]
