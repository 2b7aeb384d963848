"""Recording, diagnosing and writing the signal of networks: ``normfree spp``."""

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
from .signal_inputs import SignalInputs, signal_inputs

# arguments in the messages of `record`, and the options of this command for them
FLAGS = {
    "blocks=": "--blocks ",
    "blocks (=": "--blocks (=",
    "batch_stats=False": "--running-stats",
    "backward=True": "--backward",
    "larger inputs or more of them": "larger inputs (--size) or more of them (--batch-size)",
    "larger inputs, or more of them": "larger inputs (--size), or more of them (--batch-size)",
}


def with_unique_names(networks: list[InspectedNetwork], texts: Sequence[str]) -> list[InspectedNetwork]:
    """Give networks of the same name the texts of the command line as names, numbered if these are the same, too."""
    names = [network.name for network in networks]
    names = [text if names.count(name) > 1 else name for name, text in zip(names, texts, strict=True)]
    numbered = [
        f"{name} #{names[:i].count(name) + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)
    ]
    return [dataclasses.replace(network, name=name) for network, name in zip(networks, numbered, strict=True)]


def record_and_diagnose(
    network: InspectedNetwork, options: argparse.Namespace, device: torch.device, first: Frame | None
) -> SPP:
    """Record the signal of a network, and print the diagnosis."""
    inputs = _inputs(network, options)
    settings = dict(blocks=options.blocks, batch_stats=not options.running_stats, backward=options.backward)
    try:
        spp = record(network.model.to(device), inputs.images.to(device), name=network.name, **settings)
    except UsageError as error:
        raise UsageError(_as_flags(str(error))) from error
    except Exception as error:  # often another input size is needed; it may be the user's code
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"{network.name} fails on inputs of shape {tuple(inputs.images.shape)}: {reason}") from error
    trained = options.rules == "trained" or (options.rules == "auto" and network.pretrained)
    tell(*_numbers(spp, inputs, options.table), *_diagnosis(spp, network, trained, inputs, first))
    return spp


def _as_flags(message: str) -> str:
    """A message of :func:`normfree.spp.record` with this command's options in place of arguments."""
    for argument, flag in FLAGS.items():
        message = message.replace(argument, flag)
    return message


def _inputs(network: InspectedNetwork, options: argparse.Namespace) -> SignalInputs:
    """Noise, a run's test images, or images of a folder, preprocessed as for evaluation."""
    channels, size = network.shape[0], options.size or network.shape[-1]
    if network.run is not None and options.size is None and options.data is None and not options.noise:
        return signal_inputs(network.run, _test_images(network.run), options.batch or PROBE)
    count = options.batch or 4
    if options.data is None:
        shape = (count, channels, *(size,) * (len(network.shape) - 1))
        try:
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(options.seed))
        except (RuntimeError, OverflowError, TypeError, MemoryError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"inputs of shape {shape} cannot be made: {reason}") from error
        return SignalInputs(noise, "unit Gaussian noise", False)
    if len(network.shape) != 3:
        raise UsageError(f"--data: {network.name} takes volumes, not images; leave it out for noise")
    paths = given_images([options.data])[:count]
    transform = EvalTransform(size, network.resize_margin, network.mean, network.std, network.test_crop)
    try:
        images = torch.stack(
            [transform(decode_image(path, channels, value_range=network.value_range)) for path in paths]
        )
    except UnreadableImage as error:
        raise UsageError(f"--data: {error}") from error
    return SignalInputs(images, f"{counted(len(images), 'image')} of {options.data}", False)


def _test_images(run: Trained) -> Split | None:
    """The test images of a run; None if its data no longer exist."""
    try:
        return open_images(run.recipe).test
    except (UsageError, OSError):
        return None


def first_record(text: str) -> Frame | None:
    """The first record of a run folder; None if it has no film."""
    return read_first(Path(text) / FILM) if Path(text).is_dir() else None


def _numbers(spp: SPP, inputs: SignalInputs, table: bool) -> list[str]:
    first, last = spp.rows[0], spp.rows[-1]
    return [
        *(str(spp).splitlines() if table else str(spp).splitlines()[:1]),
        f"  variance {first.avg_var:.3g} at {first.block}, {last.avg_var:.3g} at {last.block}, "
        f"shown {inputs.description}",
    ]


def _diagnosis(
    spp: SPP, network: InspectedNetwork, trained: bool, inputs: SignalInputs, first: Frame | None
) -> list[str]:
    """Lines with the findings and the rules."""
    if not trained:
        findings = spp.diagnose()
        rules = "rules for untrained networks; --rules trained for a trained one"
    elif first is not None and inputs.of_training and first.spp.blocks == spp.blocks:
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
    """Raise errors in writing a file of --out as UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"--out: cannot write {path}: {error.strerror or error}") from error


def write(recorded: list[SPP], prefix: str, suffix: str, columns: Sequence[str] | None, log: bool | None) -> list[str]:
    """Write PREFIX.csv and the picture PREFIX.SUFFIX; lines for the user.

    Args:
        columns: the picture's panels; None: the usual ones.
        log: logarithmic axes of the picture; None chooses.
    """
    picture, path = Path(f"{prefix}.{suffix}"), Path(f"{prefix}.csv")
    with writing(picture), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # of names in any script
        plot(*recorded, columns=columns, log=log).savefig(picture)
    with writing(path), path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        for number, spp in enumerate(recorded):
            header, *rows = csv.reader(io.StringIO(spp.to_csv()))
            table.writerows([["network", *header]] if number == 0 else [])
            table.writerows([spp.name, *row] for row in rows)
    return [f"picture {picture}", f"table   {path}"]


def write_spectra(networks: list[InspectedNetwork], prefix: str, shown: int = 5) -> list[str]:
    """Write singular values of the weights to PREFIX-spectra.csv; lines with the worst conditioned layers."""
    lines, path = [], Path(f"{prefix}-spectra.csv")
    with writing(path), path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["network", *(field.name for field in dataclasses.fields(Spectrum))])
        for network in networks:
            layers = spectra(network.model)
            table.writerows([network.name, *dataclasses.astuple(s)[:-1], "x".join(map(str, s.shape))] for s in layers)
            lines.append(f"{network.name}: worst conditioned of {counted(len(layers), 'layer')}")
            worst = sorted(layers, key=lambda s: -math.inf if math.isnan(s.condition) else -s.condition)[:shown]
            lines += [
                f"  {s.layer}: singular values {s.largest:.3g} to {s.smallest:.3g}, condition {s.condition:.3g}"
                for s in worst
            ]
    return [*lines, f"spectra {path}"]
