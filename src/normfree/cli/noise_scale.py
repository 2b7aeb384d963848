"""``normfree noise-scale``."""

import json
from collections.abc import Sequence

from ..errors import UsageError
from ..runs.noise_scale import as_json, in_words, noise_scale
from ..words import tell
from .parser import Parser


def run(argv: Sequence[str]) -> int:
    """Measure the gradient noise scale of a run."""
    options = _parser().parse_args(list(argv))
    if options.images < 2 or options.batch_size < 1:
        raise UsageError(
            f"--images (={options.images}) must be at least 2, and --batch-size (={options.batch_size}) at least 1"
        )
    found = noise_scale(
        options.run,
        images=options.images,
        batch_size=options.batch_size,
        checkpoint=options.checkpoint,
        weights=options.weights,
        seed=options.seed,
        device=options.device,
    )
    if options.json:
        print(json.dumps(as_json(found)))
    else:
        tell(*in_words(found))
    return 0


def _parser() -> Parser:
    parser = Parser(
        "noise-scale",
        description="The gradient noise scale: the batch size from which on larger batches save few steps, from the "
        "gradients of single training images (McCandlish et al. 2018, arXiv:1812.06162). It grows during training: "
        "measure it at several checkpoints.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, or a checkpoint in one")
    parser.add_argument("--images", type=int, default=1000, help="how many gradients to take; default: 1000")
    parser.add_argument("--batch-size", type=int, default=50, help="images at a time; default: 50")
    parser.add_argument("--checkpoint", choices=["last", "best"], help="of a run folder; default: last")
    parser.add_argument("--weights", choices=["ema", "raw"], help="of a run folder; default: raw, which are trained")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the choice of images and their augmentation; default: 0"
    )
    parser.add_argument("--device", default="auto", help="default: cuda where there is one, else cpu")
    parser.add_argument("--json", action="store_true", help="print everything as one line of JSON, in UTF-8")
    return parser
