"""``normfree figures``."""

import argparse
import os
import platform
import shlex
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from ..errors import RunFailed, UsageError
from ..limits import MAX_INPUT_SIDE
from ..spp import plot
from ..spp.figures import FIGURES, Drawn, check_figures, draw_figures, networks_of
from ..version import __version__
from ..words import counted, tell
from .parser import Parser


def run(argv: Sequence[str]) -> int:
    """Draw the figures into a gallery page."""
    parser = Parser("figures", description="Draw the signal propagation plots of the first paper into a gallery page.")
    parser.add_argument("number", nargs="*", type=int, help=f"figures; default: {' '.join(map(str, FIGURES))}")
    parser.add_argument("--out", default="figures", metavar="FOLDER", help="of the gallery; default: figures")
    parser.add_argument(
        "--layers", type=int, default=600, help="50, 101, 152, 200, 288 or 600 (the paper's); default: 600"
    )
    parser.add_argument("--size", type=int, default=512, metavar="PX", help="side of the Gaussian inputs; default: 512")
    parser.add_argument(
        "--batch-size", "--batch", dest="batch", type=int, default=2, metavar="N", help="number of inputs; default: 2"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs; default: 0")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(list(argv))
    for name, least, most in (("size", 1, MAX_INPUT_SIDE), ("batch", 1, 1024), ("seed", -(2**63), 2**63 - 1)):
        if not least <= getattr(options, name) <= most:
            raise UsageError(f"--{name} (={getattr(options, name)}) must be from {least} to {most}")
    numbers = sorted(set(options.number)) or list(FIGURES)
    check_figures(numbers, options.layers)
    folder = _folder(options.out)
    begun = time.perf_counter()
    sections = []
    with tqdm(total=len(networks_of(numbers)), unit="network", disable=options.quiet, dynamic_ncols=True) as bar:

        def started(label: str) -> None:
            bar.set_postfix_str(label)

        settings = dict(layers=options.layers, size=options.size, batch=options.batch, seed=options.seed)
        try:
            for drawn in draw_figures(numbers, **settings, started=started, finished=bar.update):
                sections.append(_section(drawn, folder))
        except OSError as error:
            raise RunFailed(f"cannot write into {folder}: {error.strerror or error}") from error
    page = folder / "README.md"
    seconds = time.perf_counter() - begun
    text = _page(sections, shlex.join(["normfree", "figures", *argv]), options, seconds)
    page.write_text(text, encoding="utf-8")
    tell(f"{counted(len(sections), 'figure')} in {seconds:.0f} s; gallery {page}")
    return 0


def _folder(out: str) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be made: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):  # told now, not after minutes
        raise UsageError(f"--out {folder} cannot be written to")
    return folder


def _section(drawn: Drawn, folder: Path) -> str:
    """Write a figure's picture and table; its part of the page."""
    figure = drawn.figure
    plot(*drawn.plots, title=f"Figure {figure.number}: {figure.title}").savefig(folder / f"figure{figure.number}.png")
    for key, spp in zip(figure.networks, drawn.plots, strict=True):
        spp.save(folder / f"{key}.csv")
    tables = ", ".join(f"[{spp.name}]({key}.csv)" for key, spp in zip(figure.networks, drawn.plots, strict=True))
    lines = [
        f"## Figure {figure.number}: {figure.title}",
        f"![Figure {figure.number}](figure{figure.number}.png)",
        f"**The paper:** {figure.claim}",
        "\n".join(
            [
                "| measured | |",
                "|---|---|",
                *(f"| {what} | {_number(value)} |" for what, value in drawn.numbers.items()),
            ]
        ),
        f"What `diagnose` says: {_diagnosis(drawn)}",
        f"Numbers of every block: {tables}.",
    ]
    return "\n\n".join(lines)


def _diagnosis(drawn: Drawn) -> str:
    said = []
    for spp in drawn.plots:
        findings = "; ".join(map(str, spp.diagnose())) or "no fault"
        said.append(f"*{spp.name}*: {findings}.")
    return " ".join(said)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _page(sections: list[str], command: str, options: argparse.Namespace, seconds: float) -> str:
    head = [
        "# Signal propagation plots",
        "The figures of *Characterizing signal propagation to close the performance gap in unnormalized ResNets* "
        f"(Brock, De, Smith; ICLR 2021), drawn anew: networks of {options.layers} layers at initialization, "
        f"{options.batch} unit Gaussian inputs of {options.size} px, seed {options.seed}. Black dots end a stage; "
        "dashed lines are the variance that theory expects of the Normalizer-Free ones.",
        f"<!-- not run: takes minutes -->\n```bash\n{command}\n```",
        f"{seconds:.0f} s on {os.cpu_count()} cores ({platform.machine()}), {torch.get_num_threads()} of them used, "
        f"torch {torch.__version__.partition('+')[0]}, normfree {__version__}.",
    ]
    return "\n\n".join(map(_wrapped, "\n\n".join([*head, *sections]).split("\n\n"))) + "\n"


def _wrapped(paragraph: str) -> str:
    """Lines of at most 120 letters; tables, code and pictures as they are."""
    if paragraph.startswith(("|", "<", "!", "#")):
        return paragraph
    return textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False)
