"""Other libraries' networks: every residual block is found, and its numbers are those of hooks on its parts."""

import numpy as np
import pytest
import torch
import torchvision
from spp.hand_made import statistics

from normfree import UsageError
from normfree.spp import record

timm = pytest.importorskip("timm")
tv = torchvision.models
VIT = dict(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)


def class_named(name, condition=lambda block: True):
    return lambda model: [m for m in model.modules() if type(m).__name__ == name and condition(m)]


# name -> (constructor, its blocks, the parts at whose outputs branches end, dimension of the channels there)
TORCHVISION = {
    "resnet18": (tv.resnet18, class_named("BasicBlock"), ["bn2"], 1),
    "resnet50": (tv.resnet50, class_named("Bottleneck"), ["bn3"], 1),
    "resnext50": (tv.resnext50_32x4d, class_named("Bottleneck"), ["bn3"], 1),
    "regnet_x": (tv.regnet_x_400mf, class_named("ResBottleneckBlock"), ["f"], 1),
    "regnet_y": (tv.regnet_y_400mf, class_named("ResBottleneckBlock"), ["f"], 1),
    "convnext": (tv.convnext_tiny, class_named("CNBlock"), ["block"], 1),
    "mobilenet_v2": (tv.mobilenet_v2, class_named("InvertedResidual", lambda b: b.use_res_connect), ["conv"], 1),
    "mobilenet_v3": (tv.mobilenet_v3_small, class_named("InvertedResidual", lambda b: b.use_res_connect), ["block"], 1),
    "efficientnet": (tv.efficientnet_b0, class_named("MBConv", lambda b: b.use_res_connect), ["block"], 1),
    "vit": (lambda: tv.VisionTransformer(**VIT), class_named("EncoderBlock"), ["self_attention", "mlp"], -1),
    "swin": (tv.swin_t, class_named("SwinTransformerBlock"), ["attn", "mlp"], -1),
}


def create(name, **options):
    return lambda: timm.create_model(name, **options)


def has_skip(block):
    return block.has_skip


SWIN = dict(img_size=64, window_size=4)
SKIP = class_named("InvertedResidual", has_skip)
TIMM = {
    "resnet26": (create("resnet26"), class_named("Bottleneck"), ["bn3"], 1),
    "resnetv2_50": (create("resnetv2_50"), class_named("PreActBottleneck"), ["conv3"], 1),
    "resnetv2_50d_gn": (create("resnetv2_50d_gn"), class_named("PreActBottleneck"), ["conv3"], 1),
    "nf_resnet50": (create("nf_resnet50"), class_named("NormFreeBlock"), ["conv3"], 1),
    "dm_nfnet_f0": (create("dm_nfnet_f0"), class_named("NormFreeBlock"), ["drop_path"], 1),
    "nfnet_l0": (create("nfnet_l0"), class_named("NormFreeBlock"), ["drop_path"], 1),
    "nf_regnet_b0": (create("nf_regnet_b0"), class_named("NormFreeBlock"), ["drop_path"], 1),
    "regnetx_004": (create("regnetx_004"), class_named("Bottleneck"), ["conv3"], 1),
    "regnety_004": (create("regnety_004"), class_named("Bottleneck"), ["conv3"], 1),
    "efficientnet_b0": (create("efficientnet_b0"), SKIP, ["bn3"], 1),
    "convnext_atto": (create("convnext_atto"), class_named("ConvNeXtBlock"), ["mlp"], 1),
    "convnext_tiny": (create("convnext_tiny"), class_named("ConvNeXtBlock"), ["mlp"], -1),
    "convnextv2_atto": (create("convnextv2_atto"), class_named("ConvNeXtBlock"), ["mlp"], 1),
    "vit_tiny": (create("vit_tiny_patch16_224", img_size=64), class_named("Block"), ["attn", "mlp"], -1),
    "deit3_small": (create("deit3_small_patch16_224", img_size=64, depth=3), class_named("Block"), ["attn", "mlp"], -1),
    "beit": (create("beit_base_patch16_224", img_size=64, depth=2), class_named("Block"), ["attn", "mlp"], -1),
    "swin": (create("swin_tiny_patch4_window7_224", **SWIN), class_named("SwinTransformerBlock"), ["attn", "mlp"], -1),
    "mixer": (create("mixer_s32_224", img_size=64), class_named("MixerBlock"), ["mlp_tokens", "mlp_channels"], -1),
    "resmlp": (create("resmlp_12_224", img_size=64), class_named("ResBlock"), ["linear_tokens", "mlp_channels"], -1),
    "res2net": (create("res2net50_26w_4s"), class_named("Bottle2neck"), ["bn3"], 1),
    "seresnet": (create("seresnet50"), class_named("Bottleneck"), ["se"], 1),
}
FAMILIES = {f"torchvision {k}": v for k, v in TORCHVISION.items()} | {f"timm {k}": v for k, v in TIMM.items()}
TRANSPOSED = ("mlp_tokens", "linear_tokens")  # these put out (N, channels, tokens)


def first_tensor(output):
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def shake(model):
    """What starts at 0 (or 1e-6) must not stay there, or a zero branch hides every mistake."""
    for parameter in model.parameters():
        if parameter.ndim < 2 or not parameter.any():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("shaken", [True, False], ids=["shaken", "initial"])
@pytest.mark.parametrize("name", FAMILIES)
def test_family(name, shaken):
    make, blocks_of, parts, dim = FAMILIES[name]
    model = shake(make()) if shaken else make()
    blocks, ends, outputs = blocks_of(model), [], []
    layout = 1 if "convnext" in name else dim  # the other blocks put out what their branches do
    for block in blocks:
        for part in parts:
            at = 1 if part in TRANSPOSED else dim
            hook = lambda m, a, y, at=at: ends.append(statistics(first_tensor(y), at))  # noqa: E731
            block.get_submodule(part).register_forward_hook(hook)
        block.register_forward_hook(lambda m, a, y: outputs.append(statistics(y, layout)))
    size = 32 if name == "torchvision vit" else 64
    spp = record(model, (2, 3, size, size))
    names = {module: name for name, module in model.named_modules()}
    assert [row.module for row in spp.rows] == [names[block] for block in blocks for _ in parts]
    assert len(set(spp.blocks)) == len(spp.rows)
    # float32; branches that are 0 are 0
    np.testing.assert_allclose(
        [(row.res_avg_sq_mean, row.res_avg_var) for row in spp.rows], ends, rtol=1e-4, atol=1e-12
    )
    last = spp.rows[len(parts) - 1 :: len(parts)]
    np.testing.assert_allclose([(row.avg_sq_mean, row.avg_var) for row in last], outputs, rtol=1e-4, atol=1e-12)
    after = [row.expected_var is None for row in last]
    assert after == [row.activated for row in last]


@pytest.mark.parametrize("name", ["resnet18", "regnet_y", "convnext", "swin"])
def test_stages(name):
    model = TORCHVISION[name][0]()
    rows = record(model, (2, 3, 64, 64)).rows
    depths = dict(resnet18=[2] * 4, regnet_y=[1, 3, 6, 6], convnext=[3, 3, 9, 3], swin=[4, 4, 12, 4])[name]
    assert [sum(row.stage == stage for row in rows) for stage in range(4)] == depths


def test_variances_add_up_where_sums_are_not_activated():
    """Branches are about independent of shortcuts at initialization, also behind layers between the blocks."""
    for name in ("torchvision mobilenet_v2", "torchvision convnext", "timm resnetv2_50", "timm swin"):
        for row in record(FAMILIES[name][0](), (4, 3, 64, 64)).rows:
            assert row.ratio == pytest.approx(1.0, abs=0.12), (name, row.block)


def test_gates_of_squeeze_excite():
    for name in ("torchvision regnet_y", "torchvision efficientnet", "timm efficientnet_b0", "timm seresnet"):
        gates = [row.gate for row in record(FAMILIES[name][0](), (2, 3, 64, 64)).rows]
        assert gates == pytest.approx([0.5] * len(gates), abs=0.05), name
    gates = [row.gate for row in record(FAMILIES["timm nfnet_l0"][0](), (2, 3, 64, 64)).rows]
    assert gates == pytest.approx([1.0] * len(gates), abs=0.05)  # times 2
    assert {row.gate for row in record(tv.resnet18(), (2, 3, 64, 64)).rows} == {None}


@pytest.mark.parametrize("make", [tv.densenet121, lambda: tv.googlenet(init_weights=False)])
def test_without_residual_blocks(make):
    with pytest.raises(UsageError, match=r"no residual block was found in .*; name its blocks, for example blocks="):
        record(make(), (2, 3, 64, 64))


def test_the_example_in_the_error_works():
    model = tv.densenet121()
    with pytest.raises(UsageError) as error:
        record(model, (2, 3, 64, 64))
    pattern = str(error.value).split("blocks='")[1].rstrip("'")
    assert len(record(model, (2, 3, 64, 64), blocks=pattern).rows) > 10
