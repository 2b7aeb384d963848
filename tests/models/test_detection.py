"""Networks that find objects: no normalization, roles, variance of each level, what the losses are means of."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from small_models import CONTROLS, EFFICIENTNETS, SMALL, WITHOUT_NORM, grads, shake, small
from torch import nn
from torchvision.ops import roi_align

import normfree
from normfree import UsageError
from normfree.data import ObjectList, Objects
from normfree.data.objects import open_objects
from normfree.models import Detections, detector
from normfree.models.backbone import level_scales
from normfree.models.detection import MaskHead
from normfree.models.detection.pyramid import pyramid_maps
from normfree.models.detection.regions import Anchors, RegionPool, mean_by_image, sample_labels
from normfree.nn import Activation
from normfree.optim import param_groups

OPTIONS = dict(width=16, anchor_scale=4.0, proposals=20, regions=16)


def find(name="nf_resnet50", masks=True, **options):
    return detector(small(name), 3, masks=masks, **(OPTIONS | options))


def objects(boxes, labels, side=64, seed=0, masks=True):
    """Rectangles; their masks are full."""
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    drawn = torch.zeros(len(boxes), side, side, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(drawn, boxes.long().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    labels = torch.tensor(labels, dtype=torch.int64)
    return dataclasses.replace(Objects.of(boxes, labels, (side, side), drawn if masks else None), seed=seed)


def two(seed=0):
    return ObjectList(
        [
            objects([[4, 6, 30, 40], [30, 20, 60, 50]], [0, 2], seed=seed),
            objects([[10, 10, 50, 42]], [1], seed=seed + 1),
        ]
    )


@pytest.mark.parametrize("name", [*SMALL, "nf_efficientnet_b0", *WITHOUT_NORM])
def test_no_normalization_layer_and_every_parameter_has_a_role(name):
    model = find(name)
    found = {type(module).__name__ for module in model.modules()}
    assert not [kind for kind in found if "Norm" in kind.replace("NormFree", "")]
    groups = param_groups(model, weight_decay=1e-4, clipping=0.01)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    classifier = next(group for group in groups if group["name"] == "classifier")
    last = [model.proposals.head.objectness, model.proposals.head.offsets, model.heads.mask_predictor.classes]
    last += [model.heads.box_predictor.classes, model.heads.box_predictor.offsets]
    assert {id(p) for p in classifier["params"]} == {id(layer.weight) for layer in last}


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("name", [*SMALL, *CONTROLS, *EFFICIENTNETS])
def test_losses_gradients_and_detections(name, masks):
    model = find(name, masks).train()
    out = model(torch.randn(2, 3, 64, 64), two())
    assert out.shape == (2, 6)
    assert out.isfinite().all()
    assert (out[:, 4] > 0).all() == masks
    out[:, :5].sum(1).mean().backward()
    without = {"backbone.bias2.bias"}  # of FixUp's classifier
    without |= {n for n, _ in model.named_parameters() if "final_bn" in n and "v1" in name}
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert set(missing) <= without
    with torch.no_grad():
        found = model.eval()(torch.randn(2, 3, 64, 64))
    assert len(found) == 2
    for one in found:
        assert isinstance(one, Detections)
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
        assert ((one.boxes >= 0) & (one.boxes <= 64)).all()
        assert ((one.labels >= 0) & (one.labels < 3)).all()
        assert (one.masks is not None) == masks


def test_only_batch_norm_controls_get_batch_norm():
    for name in [*CONTROLS, *EFFICIENTNETS]:
        norms = [m for m in find(name).pyramid.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == (3 if name.startswith("bn_") else 0)


@torch.no_grad()
@pytest.mark.parametrize(("name", "least"), [("nf_resnet50", 0.6), ("nf_seresnet50", 0.6), ("nfnet_f0", 0.25)])
def test_every_level_has_variance_1(name, least):
    """By theory alone: nothing is measured. Zeros beyond the edges take a part.

    Pooled shortcuts of NFNets average: of noise they would leave a quarter, so they see something smooth.
    """
    torch.manual_seed(0)
    net = normfree.create_model(name, num_classes=0, skip_gain=1.0, **SMALL[name] | dict(stochdepth_rate=0.0))
    model = detector(net, 3, width=128)
    images = torch.randn(2, 3, 256, 256)
    if name == "nfnet_f0":
        images = F.interpolate(torch.randn(2, 3, 8, 8), (256, 256), mode="bicubic")
    levels = model.pyramid(net.eval(), images / images.std())
    assert [level.shape[-1] for level in levels] == [64, 32, 16, 8, 4]
    for level in levels:
        assert least < level.var().item() < 1.3


def test_scales_of_levels_are_those_of_theory():
    depths = [len(stage) for stage in small("nf_resnet50").stages]
    expected = [1 + depth * 0.2**2 for depth in (0, *depths)]
    assert level_scales(small("nf_resnet50")) == pytest.approx([value**-0.5 for value in expected])
    assert level_scales(small("nfnet_f0"))[-1] == 1.0  # behind a convolution
    assert level_scales(small("bn_resnet50")) == [1.0] * 5


def test_which_maps_are_taken():
    assert pyramid_maps(small("nf_resnet50")) == [1, 2, 3, 4]
    assert pyramid_maps(small("nf_resnet50", output_stride=16)) == [1, 2, 4]  # of two of stride 16, the last
    tiny = normfree.create_model("nf_resnet26_small", num_classes=0)
    assert [info["reduction"] for info in tiny.feature_info] == [1, 1, 2, 4]
    assert pyramid_maps(tiny) == [3]
    assert detector(tiny, 2, **OPTIONS).pyramid.strides == (4, 8)


@torch.no_grad()
def test_the_backbones_features_are_those_of_the_classifier():
    plain = small("nf_resnet50")
    x = torch.randn(1, 3, 64, 64)
    expected, maps = plain.forward_intermediates(x)
    model = find().eval()
    model.backbone.load_state_dict({k: v for k, v in plain.state_dict().items() if not k.startswith("head.")})
    seen = []
    for lateral in model.pyramid.lateral:
        lateral.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    assert torch.equal(model.backbone.forward_features(x), expected)
    model(x)
    assert torch.equal(seen[0], expected)  # from the coarsest on
    for level, own in zip(seen[1:], reversed(maps[1:-1]), strict=True):
        assert torch.equal(level, model.pyramid.act(own))


@torch.no_grad()
def test_the_pyramid_by_hand():
    model, x = find().eval(), torch.randn(1, 3, 64, 64)
    pyramid = shake(model.pyramid)
    last, maps = model.backbone.forward_intermediates(x)
    inputs = [*(pyramid.act(level) for level in maps[1:-1]), last]
    merged = [lateral(level) for lateral, level in zip(pyramid.lateral, inputs, strict=True)]
    for place in (2, 1, 0):
        above = merged[place + 1].repeat_interleave(2, 2).repeat_interleave(2, 3)
        merged[place] = (merged[place] + above) / math.sqrt(2)
    expected = [smooth(level) for smooth, level in zip(pyramid.smooth, merged, strict=True)]
    levels = pyramid(model.backbone, x)
    for level, wanted in zip(levels, expected, strict=False):
        torch.testing.assert_close(level, wanted, rtol=1e-5, atol=1e-5)  # float32 sums in another order
    assert torch.equal(levels[-1], levels[-2][..., ::2, ::2])


@torch.no_grad()
def test_heads_keep_the_signals_variance():
    torch.manual_seed(0)
    net = detector(small("nf_resnet50"), 3, width=64)
    regions = torch.randn(64, 64, 7, 7)
    features = net.heads.box_head(regions) * net.backbone.act.gamma
    assert 0.8 < features.var().item() < 1.25
    # four 3x3 convolutions of 14 x 14 places lose about an eighth each at the edges' zeros
    assert 0.5 < (net.heads.mask_head(torch.randn(16, 64, 14, 14)) * net.backbone.act.gamma).var().item() < 1.25


@torch.no_grad()
def test_a_shuffled_convolution_is_a_transposed_one():
    head = MaskHead(8, Activation("relu"))
    up, shuffle = head[-3], head[-2]
    x = torch.randn(2, 8, 5, 5)
    weight = up.standardized_weight().view(8, 2, 2, 8).permute(3, 0, 1, 2)
    expected = F.conv_transpose2d(x, weight, stride=2)
    torch.testing.assert_close(shuffle(up(x)), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(shuffle(x), F.pixel_shuffle(x, 2))


def test_anchors_by_hand():
    images = type("Images", (), dict(image_sizes=[(8, 12)] * 2))
    anchors = Anchors((4, 8), 2.0, (1.0, 4.0))(images, [torch.zeros(2, 1, 2, 3), torch.zeros(2, 1, 1, 1)])
    assert len(anchors) == 2
    boxes = anchors[0]
    assert boxes.shape == ((2 * 3 + 1) * 2, 4)
    assert boxes[0].tolist() == [-2, -2, 6, 6]  # 8 x 8 around the first place's centre, (2, 2)
    assert boxes[1].tolist() == [0, -6, 4, 10]  # as large, four times as high as wide
    assert boxes[2].tolist() == [2, -2, 10, 6]  # the next place to the right
    assert boxes[-2].tolist() == [-4, -4, 12, 12]
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.prod(1).tolist() == [64.0] * 12 + [256.0] * 2


def test_regions_are_pooled_from_the_level_of_their_size():
    """Maps that say where they are: x + 100 * level, in pixels."""
    levels = []
    for number, stride in enumerate((4, 8)):
        places = stride * (torch.arange(64 // stride) + 0.5) + 100 * number
        levels.append(places.expand(2, 1, 64 // stride, -1).contiguous())
    boxes = [torch.tensor([[10.0, 8, 30, 40]]), torch.tensor([[0.0, 0, 64, 64], [2.0, 2, 62.0, 62]])]
    pooled = RegionPool((4, 8), 2)(levels, boxes)
    assert pooled.shape == (3, 1, 2, 2)
    # 64 pixels are 16 places of stride 4 and 8 of stride 8: less than 14 of the second, so all are of the first
    assert pooled[0, 0, 0].tolist() == pytest.approx([15, 25])
    assert pooled[2, 0, 1].tolist() == pytest.approx([17, 47])
    large = RegionPool((4, 8), 2)(
        [x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in levels], [boxes[1] * 2, boxes[1][:0]]
    )
    assert large[0].min() > 100  # 128 pixels are 16 places of the second


def test_draws_depend_on_the_seed_alone():
    labels = torch.tensor([0] * 50 + [1] * 20 + [-1] * 30)
    kept = sample_labels(labels, 16, 0.25, seed=5)
    assert torch.equal(kept, sample_labels(labels, 16, 0.25, seed=5))
    assert not torch.equal(kept, sample_labels(labels, 16, 0.25, seed=6))
    assert [(kept == value).sum().item() for value in (1, 0, -1)] == [4, 12, 84]
    assert (kept[labels < 0] == -1).all()
    few = sample_labels(torch.tensor([0] * 3 + [2] * 2), 16, 0.25, seed=1)
    assert few.tolist() == [0, 0, 0, 2, 2]
    assert sample_labels(torch.zeros(0, dtype=torch.int64), 4, 0.5, 0).tolist() == []


def test_means_by_owner():
    values, owners = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 2, 2])
    assert mean_by_image(values, owners, torch.tensor([1, 0, 4])).tolist() == [1.0, 0.0, 2.0]


def test_the_gradient_of_a_batch_is_the_mean_of_its_images():
    model = find().train().double()
    x, targets = torch.randn(4, 3, 64, 64, dtype=torch.float64), ObjectList([*two(3), *two(9)])

    def gradient(part):
        model.zero_grad()
        out = model(x[part], targets[part])
        out[:, :5].sum(1).mean().backward()
        return out.detach(), grads(model)

    whole, expected = gradient(slice(0, 4))
    parts = [gradient(slice(i, i + 1)) for i in range(4)]
    torch.testing.assert_close(torch.cat([out for out, _ in parts]), whole, rtol=1e-9, atol=1e-12)
    for key, value in expected.items():
        mean = sum(part[key] for _, part in parts) / 4
        # float64 sums in another order; a draw that saw other images would show in the first digits
        assert (mean - value).norm() <= 1e-9 * value.norm() + 1e-15, key


def test_a_batch_of_no_images_takes_part_with_zeros():
    model = find().train()
    out = model(torch.zeros(0, 3, 64, 64))
    assert out.shape == (0, 6)
    (out.sum() * 0.0).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert model.eval()(torch.zeros(0, 3, 64, 64)) == []


def test_an_image_without_objects():
    model = find().train()
    nothing = objects([], [])
    out = model(torch.randn(1, 3, 64, 64), [nothing])
    assert out[0, [1, 3, 4]].tolist() == [0, 0, 0]
    assert (out[0, [0, 2]] > 0).all()
    out[:, :5].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_what_is_beside_an_image_does_not_matter_where_it_is_not_looked_at():
    """Boxes stay within the image's own size."""
    model = find().eval()
    shake(model.heads.box_predictor)
    one = dataclasses.replace(objects([], []), size=(40, 56))
    found = model(torch.randn(1, 3, 64, 64), [one])[0]
    assert len(found) > 0
    assert found.boxes[:, 0::2].max() <= 56
    assert found.boxes[:, 1::2].max() <= 40


@torch.no_grad()
def test_images_of_any_size():
    model = find().eval()
    for size in ((33, 47), (64, 40), (5, 5)):
        assert len(model(torch.randn(1, 3, *size))) == 1


def test_detections_in_pixels_of_the_file():
    found = Detections(
        torch.tensor([[2.0, 4, 10, 12]]), torch.tensor([0.9]), torch.tensor([1]), torch.full((1, 28, 28), 0.9)
    )
    placed = found.placed((20, 40), (40, 120))
    assert placed.boxes.tolist() == [[6, 8, 30, 24]]
    assert placed.masks.shape == (1, 40, 120)
    expected = torch.zeros(40, 120, dtype=torch.bool)
    expected[8:24, 6:30] = True
    assert placed.masks[0].equal(expected)
    assert found.chosen(found.scores > 1).placed((20, 40), (40, 120)).masks.shape == (0, 40, 120)


def test_masks_come_back_from_the_cells_of_boxes_between_pixels():
    """Cut from the truth as in training and placed as in evaluation: nothing is lost but what cells cannot tell."""
    source, draws, shares = open_objects("scenes:200").train, torch.Generator().manual_seed(0), []
    for number in range(40):
        _, true = source.pair(number)
        if not len(true):
            continue
        boxes = (true.boxes + torch.rand(true.boxes.shape, generator=draws) - 0.5).clamp(0, 96)
        cells = roi_align(true.masks[:, None].float(), [*boxes[:, None]], 28, aligned=True)[:, 0]
        shares += [_union(true.masks, boxes, cells)]
    shares = torch.cat(shares)
    assert len(shares) > 100
    assert shares.mean() > 0.99
    assert (shares > 0.9).float().mean() > 0.99  # of the least, half a pixel that a box cuts off is a tenth


def _union(masks, boxes, cells):
    """Intersection over union of masks and of what is placed."""
    size = tuple(masks.shape[-2:])
    placed = Detections(boxes, torch.ones(len(boxes)), torch.zeros(len(boxes)), cells).placed(size, size).masks
    return (placed & masks).flatten(1).sum(1) / (placed | masks).flatten(1).sum(1)


def test_detections_of_less_than_a_pixel_have_no_pixels():
    boxes = torch.tensor([[3.1, 4.2, 3.4, 9.0], [5.0, 5.0, 5.0, 8.0], [-4.0, 2.0, 0.4, 6.0], [3.0, 3.0, 4.0, 4.0]])
    found = Detections(boxes, torch.ones(4), torch.zeros(4), torch.ones(4, 28, 28)).placed((10, 10), (10, 10))
    assert found.masks.flatten(1).sum(1).tolist() == [0, 0, 0, 1]


def test_targets_that_cannot_be_are_named():
    model, images = find().train(), torch.randn(2, 3, 64, 64)
    wrong = lambda **changes: ObjectList([dataclasses.replace(two()[0], **changes), two()[1]])  # noqa: E731
    true = two()[0]
    for targets, said in (
        (wrong(labels=true.labels + 3), r"labels \(=\[.*\]\) must be 0 to 2"),
        (wrong(labels=true.labels - 3), "must be 0 to 2"),
        (wrong(boxes=true.boxes[:, [2, 1, 0, 3]]), "of an area above 0"),
        (wrong(boxes=true.boxes * float("nan")), "of an area above 0"),
        (ObjectList(two()[:1]), "1 targets are given for 2 images"),
    ):
        with pytest.raises(UsageError, match=said):
            model(images, targets)


def test_bfloat16_keeps_coordinates_in_float32():
    model = find().train()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(torch.randn(2, 3, 64, 64), two())
    assert out.dtype == torch.float32
    out[:, :5].sum().backward()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.eval()(torch.randn(1, 3, 64, 64))[0].boxes.dtype == torch.float32


def test_it_learns_two_images_by_heart():
    torch.manual_seed(0)
    net = normfree.create_model(
        "nf_resnet26_small", num_classes=0, stem="7x7-nopool", widths=(16, 32, 32), depths=(1, 1, 1), skip_gain=1.0
    )
    model = detector(net, 3, **OPTIONS).train()
    targets, images = two(), torch.full((2, 3, 64, 64), -1.0)
    for image, one in zip(images, targets, strict=True):
        for mask, label in zip(one.masks, one.labels.tolist(), strict=True):
            image[label, mask] = 1.5
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    # to a rate of 0, so that the last regions drawn do not decide: from weights that differ by rounding, every run ends
    # within 2 pixels; at a constant rate half of them end beyond 4
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 160)
    for step in range(160):
        seeded = ObjectList([dataclasses.replace(one, seed=2 * step + i) for i, one in enumerate(targets)])
        optimizer.zero_grad()
        model(images, seeded)[:, :5].sum(1).mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = model.eval()(images)
    for one, true in zip(found, targets, strict=True):
        best = slice(0, len(true))  # the surest
        assert one.scores[best].min() > 0.7
        placed = one.chosen(best).placed((64, 64), (64, 64))
        assert sorted(placed.labels.tolist()) == sorted(true.labels.tolist())
        order = [placed.labels.tolist().index(label) for label in true.labels.tolist()]
        assert (placed.boxes[order] - true.boxes).abs().max() < 4  # pixels of boxes of 26 to 40
        both = (placed.masks[order] & true.masks).flatten(1).sum(1)
        assert (both / (placed.masks[order] | true.masks).flatten(1).sum(1)).min() > 0.8


def test_refusals():
    net = small("nf_resnet50")
    for options, match in (
        (dict(num_classes=0), r"num_classes \(=0\) must be at least 1"),
        (dict(proposals=0), r"proposals \(=0\)"),
        (dict(regions=-1), r"regions \(=-1\)"),
        (dict(width=0), r"width \(=0\)"),
        (dict(anchor_scale=0.0), r"anchor_scale \(=0\.0\)"),
        (dict(anchor_ratios=()), r"anchor_ratios \(=\[\]\) must be above 0"),
    ):
        with pytest.raises(UsageError, match=match):
            detector(net, **(dict(num_classes=3) | options))
    with pytest.raises(UsageError, match="needs targets beside its images"):
        find().train()(torch.zeros(1, 3, 64, 64))
    with pytest.raises(UsageError, match="needs targets with masks"):
        find().train()(torch.zeros(1, 3, 64, 64), [objects([[1, 1, 9, 9]], [0], masks=False)])
