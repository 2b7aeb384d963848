"""normfree.convert over networks of four libraries: what is converted, and what the signal then is.

    python benchmarks/convert_networks.py --out networks.csv
    python benchmarks/convert_networks.py torchvision:resnet18 timm:densenet121 --size 128
    python benchmarks/convert_networks.py --mode keep --out kept.csv
    python benchmarks/convert_networks.py --out networks.csv --markdown

Each network is made without trained weights and rebuilt with unit noise. The variances are measured on other noise,
with skip gains of 1, as theory has them; the pass forward and backward at batch size 1 has them at 0. With "keep", the
running statistics and factors of BatchNorm are drawn first, and the difference is that of the outputs in evaluation,
over their norm. Networks of segmentation_models_pytorch (smp) and MONAI, on volumes of 32 voxels a side, are measured
where the packages are installed; their names are printed where they are not.
"""

import argparse
import csv
import statistics
import time
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normfree.convert import convert
from normfree.errors import UsageError
from normfree.nn import SkipInit
from normfree.spp import record

TORCHVISION = (
    *("resnet18", "resnet50", "resnet152", "wide_resnet50_2", "resnext50_32x4d", "regnet_x_400mf", "regnet_y_400mf"),
    *(
        "densenet121",
        "mobilenet_v2",
        "mobilenet_v3_large",
        "mobilenet_v3_small",
        "efficientnet_b0",
        "efficientnet_v2_s",
    ),
    *("shufflenet_v2_x1_0", "squeezenet1_1", "googlenet", "inception_v3", "mnasnet1_0", "convnext_tiny", "vgg11_bn"),
)
TIMM = (
    *("resnetv2_50", "resnetv2_50d_gn", "resnetv2_50x1_bit", "res2net50_26w_4s", "seresnet50", "skresnet18"),
    *("resnest14d", "dla34", "hrnet_w18_small", "rexnet_100", "ghostnet_100", "mixnet_s", "efficientnet_lite0"),
    *("tf_efficientnet_b0", "convnextv2_atto", "edgenext_xx_small", "resnet26t", "seresnext26d_32x4d", "ecaresnet26t"),
    *("cspresnet50", "cspdarknet53", "darknet53", "regnetz_b16", "repvgg_a0", "densenetblur121d", "selecsls42b"),
    *("xception41", "legacy_xception", "inception_resnet_v2", "mobilenetv4_conv_small", "fbnetc_100", "vovnet39a"),
    *("hardcorenas_a", "tinynet_a", "dpn68", "legacy_senet154", "bat_resnext26ts", "gernet_s", "lcnet_050"),
)
SMP = ("Unet", "FPN", "DeepLabV3Plus")
MONAI = ("UNet", "SegResNet", "DynUNet")
PACKAGES = {"smp": "segmentation_models_pytorch", "monai": "monai"}  # networks of absent ones are left out
VOLUME = 32  # voxels of a side, of MONAI's networks
SETTINGS: dict[str, dict[str, Any]] = {
    "torchvision:googlenet": dict(aux_logits=False, init_weights=False),
    "torchvision:inception_v3": dict(aux_logits=False, init_weights=False),
    "monai:UNet": dict(channels=(16, 32, 64), strides=(2, 2), num_res_units=2, norm="batch"),
    "monai:SegResNet": dict(init_filters=16, norm="batch"),
    "monai:DynUNet": dict(
        kernel_size=(3, 3, 3), strides=(1, 2, 2), upsample_kernel_size=(2, 2), filters=(16, 32, 64), norm_name="batch"
    ),
}
LEAVE: dict[str, tuple[str, ...]] = {"timm:convnextv2_atto": ("*.grn",)}
SMALLEST = {"torchvision:inception_v3": 128, "timm:inception_resnet_v2": 128}
COLUMNS = (
    *("network", "converted", "reason", "layers", "merges", "branch median", "branches within 20 %", "layer median"),
    *("findings", "batch 1 finite", "same shape", "seconds"),
)
KEPT = ("network", "converted", "reason", "BatchNorms", "folded", "difference", "seconds")


def create(name: str) -> nn.Module:
    """A network by LIBRARY:NAME, without trained weights."""
    library, _, model = name.partition(":")
    torch.manual_seed(0)
    if library == "torchvision":
        import torchvision

        return torchvision.models.get_model(model, weights=None, **SETTINGS.get(name, {}))
    if library == "smp":
        import segmentation_models_pytorch as smp

        network = getattr(smp, model)("resnet18", encoder_weights=None, classes=2)
        network.check_input_shape = lambda x: None  # it decides by the size, which a graph cannot
        return network
    if library == "monai":
        from monai.networks import nets

        sizes = dict(spatial_dims=3, in_channels=1, out_channels=2)
        return getattr(nets, model)(**sizes, **SETTINGS[name])
    import timm

    return timm.create_model(model, pretrained=False)


def shape_of(name: str, size: int) -> tuple[int, ...]:
    """Of an example, without the batch."""
    if name.startswith("monai:"):
        return 1, VOLUME, VOLUME, VOLUME
    size = max(size, SMALLEST.get(name, 0))
    return 3, size, size


def row_of(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """What came of one network."""
    model = create(name)
    start = time.perf_counter()
    try:
        conversion = convert(model, (4, *shape), leave=LEAVE.get(name, ()))
    except UsageError as error:
        return {"network": name, "converted": "refused", "reason": str(error).partition("; leave=")[0]}
    seconds = time.perf_counter() - start
    changes = conversion.changes
    row: dict[str, Any] = {
        "network": name,
        "converted": "yes",
        "layers": sum(change.now.startswith("WS") for change in changes),
        "merges": sum(change.now == "SkipInit" for change in changes),
        "seconds": f"{seconds:.1f}",
    }
    return row | _batch_of_one(model, conversion.model, shape) | _variances(conversion.model, shape)


def kept_row_of(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """What came of one network with trained-like statistics."""
    model = create(name)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for norm in norms:
            norm.running_mean.normal_(0.0, 0.3)
            norm.running_var.uniform_(0.5, 2.0)
            norm.num_batches_tracked.fill_(1000)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0.0, 0.2)
    start = time.perf_counter()
    row: dict[str, Any] = {"network": name, "BatchNorms": len(norms)}
    try:
        conversion = convert(model, torch.randn(2, *shape), mode="keep", leave=LEAVE.get(name, ()))
    except UsageError as error:
        return row | {"converted": "refused", "reason": str(error).partition("; leave=")[0]}
    seconds = time.perf_counter() - start
    folded = sum(change.now == "removed" for change in conversion.changes)
    difference = f"{conversion.difference:.1e}"
    return row | {"converted": "yes", "folded": folded, "difference": difference, "seconds": f"{seconds:.1f}"}


def _batch_of_one(before: nn.Module, after: nn.Module, shape: tuple[int, ...]) -> dict[str, str]:
    """Shapes, and a step at batch size 1 with skip gains of 0."""
    x = torch.randn(1, *shape)
    with torch.no_grad():
        expected = before.eval()(x).shape
    y = after.train()(x)
    y.square().mean().backward()
    gradients = [p.grad for p in after.parameters() if p.grad is not None]
    finite = bool(y.isfinite().all()) and all(bool(g.isfinite().all()) for g in gradients)
    after.zero_grad(set_to_none=True)
    return {"batch 1 finite": "yes" if finite else "no", "same shape": "yes" if y.shape == expected else "no"}


@torch.no_grad()
def _variances(model: nn.Module, shape: tuple[int, ...]) -> dict[str, str]:
    """Of branches' ends, before alpha, and of standardized layers' outputs, with skip gains of 1."""
    layers: list[float] = []
    branches: list[float] = []

    def note(values: list[float], x: torch.Tensor, dim: int = 1) -> None:
        x = x.movedim(dim, 0).flatten(1)
        if x.shape[1] > 7:
            values.append(x.var(1).mean().item())

    hooks = []
    for module in model.modules():
        kind = type(module).__name__
        if isinstance(module, SkipInit):
            module.skip_gain.fill_(1.0)
            hooks.append(module.register_forward_pre_hook(lambda m, args: note(branches, args[0])))
        elif kind.startswith("WS"):
            dim = -1 if kind == "WSLinear" else 1
            hooks.append(module.register_forward_hook(lambda m, args, out, dim=dim: note(layers, out, dim)))
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(1))
    model.eval()(x)
    for hook in hooks:
        hook.remove()
    found = {"layer median": f"{statistics.median(layers):.2f}" if layers else ""}
    if branches:
        near = sum(0.8 <= value <= 1.2 for value in branches)
        found |= {"branch median": f"{statistics.median(branches):.2f}"}
        found |= {"branches within 20 %": f"{near} of {len(branches)}"}
    try:
        findings = "; ".join(map(str, record(model, x).diagnose())) or "none"
    except UsageError:
        findings = "no residual blocks"
    return found | {"findings": findings}


def markdown(rows: list[dict[str, str]], columns: Sequence[str]) -> str:
    """The rows as a table; of refused networks only the reason."""
    shown = [column for column in columns if column not in ("converted", "reason", "seconds")]
    lines = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    for row in rows:
        cells = [row["network"], *(row[column] or "-" for column in shown[1:])]
        if row["converted"] != "yes":
            cells = [row["network"], f"refused: {row['reason'].partition(': ')[2] or row['reason']}"]
            cells += [""] * (len(shown) - 2)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="torchvision:, timm:, smp: or monai:NAME; default: all")
    parser.add_argument("--mode", choices=["rebuild", "keep"], default="rebuild")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--out", help="a CSV file; networks that it has are left out")
    parser.add_argument("--markdown", action="store_true", help="print the file as a table, and measure nothing")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lists = {"torchvision": TORCHVISION, "timm": TIMM, "smp": SMP, "monai": MONAI}
    names = options.networks or [f"{library}:{name}" for library, known in lists.items() for name in known]
    out = Path(options.out) if options.out else None
    columns, make = (KEPT, kept_row_of) if options.mode == "keep" else (COLUMNS, row_of)
    done = {row["network"] for row in csv.DictReader(out.open())} if out and out.exists() else set()
    if options.markdown and out:
        print(markdown(list(csv.DictReader(out.open())), columns))
        return
    for library, package in PACKAGES.items():
        if find_spec(package) is None:
            left = [name for name in names if name.startswith(f"{library}:")]
            print(
                *(f"{name} is left out: {package} is not installed" for name in left), sep="\n", end="\n" * bool(left)
            )
            names = [name for name in names if name not in left]
    if out and not done:
        out.write_text(",".join(columns) + "\n")
    for name in names:
        if name in done:
            continue
        row = make(name, shape_of(name, options.size))
        print(", ".join(f"{key} {row[key]}" for key in columns if row.get(key, "") != ""), flush=True)
        if out:
            with out.open("a", newline="") as file:
                csv.DictWriter(file, columns).writerow(row)


if __name__ == "__main__":
    main()
