"""``normfree convert``."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..runs.convert import FORMS, open_any, summary, table, verify, write
from ..runs.named import Kind, kind_of
from ..weights import convert as weights
from ..words import tell
from .options import parse_overrides
from .parser import Parser


def run(argv: Sequence[str]) -> int:
    """Write the weights of one file in another form."""
    parser = _parser()
    options, rest = parser.parse_known_args(list(argv))
    if any(not argument.startswith(("--model.", "--data.")) for argument in rest if argument.startswith("-")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    overrides = parse_overrides(rest)
    if options.model is not None:
        overrides["model.name"] = options.model
    dest, form = _destination(options)
    opened = open_any(options.source, overrides, options.checkpoint, options.weights)
    if opened.form == form and not (form == "normfree" and kind_of(options.source) is Kind.WEIGHTS):
        raise UsageError(f"{options.source} is in {FORMS[form]} already; --to must name another one")
    if dest.exists() and opened.file.exists() and dest.samefile(opened.file):
        raise UsageError(f"SOURCE and DEST are the same file, {dest}")
    overrides = {key: value for key, value in overrides.items() if key.startswith("data.")}
    tensors = weights.convert(opened.model, form)
    write(dest, form, tensors, opened, overrides)
    shapes = weights.shapes_of(tensors, form)
    rows = weights.report(opened.model, opened.shapes, opened.form, shapes, form)
    if not options.quiet:
        tell(*table(rows, opened.form, form))
    tell(*summary(rows, dest, form, tensors, opened))
    if options.verify:
        tell(*verify(dest, form, opened))
    return 0


def _parser() -> Parser:
    parser = Parser(
        "convert",
        description="Write weights of the authors, of timm or of normfree in one of the other two forms.",
        epilog="--model.options.KEY VALUE (or another field of that section) builds a network that is no variant;\n"
        "--data.KEY VALUE is how a normfree file prepares images, where that is not as in the papers.\n\n"
        "examples:\n"
        "  normfree convert F0_haiku.npz f0.safetensors --to normfree\n"
        "  normfree convert F0_haiku.npz dm_nfnet_f0.safetensors --to timm --verify\n"
        "  normfree convert nf_resnet50.pth resnet.safetensors --to normfree --model timm_nf_resnet50\n"
        "  normfree convert runs/mine mine.npz",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="the authors' .npz; timm's .safetensors, .pth, .ckpt, ...; a run folder or file of ours; pretrained:NAME",
    )
    parser.add_argument("dest", metavar="DEST", help="new file: .npz for the authors' form, else .safetensors")
    parser.add_argument("--to", choices=FORMS, help="form of DEST; default: haiku for .npz, needed for .safetensors")
    parser.add_argument("--model", metavar="NAME", help="which network, where the tensors leave a choice")
    parser.add_argument("--checkpoint", choices=["last", "best"], help="of a run folder; default: last")
    parser.add_argument("--weights", choices=["ema", "raw"], help="where there are both; default: averaged")
    parser.add_argument("--verify", action="store_true", help="read DEST back; compare logits with timm's network")
    parser.add_argument("--overwrite", action="store_true", help="replace DEST if it exists")
    parser.add_argument("--quiet", action="store_true", help="only the summary, not a line per tensor")
    return parser


def _destination(options: argparse.Namespace) -> tuple[Path, str]:
    """Where to write and in which form, checked before anything is read."""
    dest = Path(options.dest)
    form: str = options.to or ("haiku" if dest.suffix == ".npz" else "")
    suffix = ".npz" if form == "haiku" else ".safetensors"
    if not form and dest.suffix == ".safetensors":
        raise UsageError(f"{dest} may hold two forms; say --to timm or --to normfree")
    if not form or dest.suffix != suffix:
        wanted = f"{FORMS[form]} is a {suffix} file" if form else "give it .npz or .safetensors, or a form with --to"
        raise UsageError(f"DEST (={dest}) has the ending {dest.suffix!r}; {wanted}")
    if os.path.lexists(dest):
        if not dest.is_file():
            raise UsageError(f"DEST (={dest}) is there and not a file")
        if os.path.exists(options.source) and dest.samefile(options.source):
            raise UsageError(f"SOURCE and DEST are the same file, {dest}")
        if not options.overwrite:
            raise UsageError(f"{dest} exists already; --overwrite replaces it")
    if not dest.parent.is_dir():
        raise UsageError(f"DEST (={dest}): folder {dest.parent} does not exist")
    return dest, form
