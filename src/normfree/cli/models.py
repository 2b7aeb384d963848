"""``normfree models``."""

from collections.abc import Sequence

from ..errors import UsageError, did_you_mean
from ..models import list_models, model_info
from .parser import Parser


def run(argv: Sequence[str]) -> int:
    """Print the table of networks."""
    parser = Parser("models", description="List the networks: parameters, multiply-adds at test size, image sizes.")
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern, for example 'nfnet_*'")
    options = parser.parse_args(list(argv))
    unets = list_models(options.pattern, task="segmentation")
    names = list_models(options.pattern) + unets
    if not names:
        known = list_models() + list_models(task="segmentation")
        hint = did_you_mean(options.pattern, known, "normfree models lists all of them")
        raise UsageError(f"no model matches {options.pattern!r}; {hint}")
    width = max(map(len, names))
    print(f"{'model':{width}}  {'parameters':>11}  {'multiply-adds':>13}  train px  test px  dropout  stoch. depth")
    rounded = False
    for info in map(model_info, names):
        mark = "*" if info.macs_executed != info.macs else " "
        rounded |= mark == "*"
        print(
            f"{info.name:{width}}  {info.params:11,}  {info.macs / 1e9:11.3f} B{mark}  {info.train_size:7}  "
            f"{info.test_size:7}  {info.drop_rate:7}  {info.stochdepth_rate:12}"
        )
    print("At 1000 classes. Multiply-adds of one image at test size, as the papers count them.")
    if unets:
        print("U-Nets are for segmentation: at 2 classes and 3 channels; of volumes, sizes are voxels a side.")
    print("torchvision:NAME and timm:NAME are networks of these libraries, to train with or without their BatchNorm.")
    if rounded:
        print("* the network rounds odd map sizes up and does a few per cent more (model_info(name).macs_executed).")
    return 0
