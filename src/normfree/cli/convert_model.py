"""``normfree convert-model``."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ..convert import Conversion, convert
from ..convert.conversion import MODES
from ..convert.proof import described, prove, summary
from ..errors import UsageError
from ..files import whole_file
from ..runs.inspected import open_inspected
from ..runs.outputs import check_output
from ..training.weights_file import save_weights
from ..words import tell
from .parser import Parser
from .spp import parse_options

ENDINGS = (".safetensors", ".pt")


def run(argv: Sequence[str]) -> int:
    """Take the normalization out of a network, and say what became of it."""
    parser = _parser()
    options = parser.parse_args(list(argv))
    for name, value in dict(batch=options.batch, size=options.size).items():
        if value is not None and value < 1:
            raise UsageError(f"--{name} (={value}) must be at least 1")
    out = _destination(options.out)
    network = open_inspected(options.network, parse_options(options.option), options.seed)
    size = options.size or network.shape[-1]
    shape = (options.batch or 4, network.shape[0], size, size)
    settings = dict(alpha=options.alpha, skip_gain=options.skip_gain, init=not options.keep_init)
    conversion = convert(
        network.model, shape, mode=options.mode, leave=options.leave, freeze=options.freeze, **settings
    )
    tell(f"{network.name}, mode {options.mode}, inputs {tuple(conversion.inputs[0].shape)} of unit noise")
    tell(*(f"  {line}" for line in (map(str, conversion.changes) if options.table else summary(conversion))))
    if not options.no_proof:
        tell(*described(conversion, prove(conversion)))
    if out is not None:
        tell(_write(out, network.name, conversion))
    return 0


def _parser() -> Parser:
    parser = Parser(
        "convert-model",
        description="Take BatchNorm and its like out of any network: to train it anew, or to go on from its weights.",
        epilog="examples:\n"
        "  normfree convert-model torchvision.models:resnet18\n"
        "  normfree convert-model timm:create_model --option model_name=efficientnet_b0 --size 96 --table\n"
        "  normfree convert-model torchvision.models:resnet18 --option weights=DEFAULT --mode keep --out kept.pt\n\n"
        "pkg.module:factory imports that module and calls the function: it runs code, and looks for modules in the\n"
        "current folder first. Name only what you trust. --out FILE.pt holds the network itself: loading it with\n"
        "torch.load(FILE, weights_only=False) runs code, too. FILE.safetensors holds its weights alone.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("network", metavar="NETWORK", help="pkg.module:factory, or a name from `normfree models`")
    parser.add_argument("--mode", choices=MODES, default="rebuild", help="default: rebuild")
    parser.add_argument("--option", metavar="KEY=VALUE", action="append", default=[], help="argument of the function")
    parser.add_argument("--leave", metavar="NAME", action="append", default=[], help="a module that stays as it is")
    parser.add_argument("--freeze", metavar="NAME", action="append", default=[], help="with keep: do not train it")
    parser.add_argument("--size", type=int, metavar="PX", help="side of the inputs; default: the network's own, or 224")
    parser.add_argument("--batch-size", "--batch", dest="batch", type=int, metavar="N", help="default: 4")
    parser.add_argument("--alpha", type=float, default=0.2, help="of each residual branch; default: 0.2")
    parser.add_argument("--skip-gain", type=float, default=0.0, help="of each residual branch at first; default: 0")
    parser.add_argument("--keep-init", action="store_true", help="standardize the network's weights, draw no new ones")
    parser.add_argument("--seed", type=int, default=0, help="of fresh weights; default: 0")
    parser.add_argument("--table", action="store_true", help="a line for every replacement")
    parser.add_argument("--no-proof", action="store_true", help="do not record the signal before and after")
    parser.add_argument("--out", metavar="FILE", help="write the network (.pt) or its weights (.safetensors)")
    return parser


def _destination(text: str | None) -> Path | None:
    if text is None:
        return None
    out = Path(text)
    if out.suffix not in ENDINGS:
        raise UsageError(f"--out {text} must end in {' or '.join(ENDINGS)}")
    if not out.parent.is_dir():
        raise UsageError(f"--out {text}: folder {out.parent} does not exist")
    if os.path.lexists(out) and not out.is_file():
        raise UsageError(f"--out {text} is there and not a file")
    check_output("--out", out, ENDINGS)
    return out


def _write(out: Path, name: str, conversion: Conversion) -> str:
    if out.suffix == ".safetensors":
        # a module with two names has its tensors under both, which the format takes as copies only
        state = {key: tensor.clone() for key, tensor in conversion.model.state_dict().items()}
        save_weights(out, state, {"converted": name, "mode": conversion.mode})
        return f"{out}: weights of the converted network"
    with whole_file(out) as part:
        torch.save(conversion.model, part)
    return f"{out}: the converted network; torch.load({str(out)!r}, weights_only=False)"
