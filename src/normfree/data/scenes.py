"""Procedural scenes with exact masks, boxes and depth: data without a download.

A room seen by a camera 1.5 m above a tiled floor: flat shapes of known sizes in metres stand on the floor or hover
above it, nearer ones hide farther ones, and all fades with the distance. So one image says how far away things are. The
hue tells the kinds apart as well as the outline does, so that minutes on a CPU teach a small network something.
"""

import functools
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError

CLASSES = ("background", "disc", "box", "triangle", "ring", "cross")
_RADIUS = (0.0, 0.5, 0.45, 0.55, 0.55, 0.55)  # metres, by class
_HEIGHT, _HORIZON = 1.5, 0.35  # of the camera in metres, of the horizon as a fraction of the image's height
_NEAREST, _FARTHEST, _WALLS = 1.5, 6.0, (6.5, 9.0)  # metres
_HAZE, _REACH = np.array([200.0, 206.0, 216.0], np.float32), 6.0  # colour, and metres in which 63 % of it is reached
MAX_SCENES, SIDES, SIDE = 10**9, (32, 1024), 96


@dataclass(frozen=True)
class Scene:
    """One scene of S x S pixels.

    Attributes:
        image: (S, S, 3) uint8.
        mask: (S, S) uint8, a place in ``CLASSES``.
        instances: (S, S) uint8, 0 where there is no shape, else the place in ``boxes`` plus 1.
        depth: (S, S) float32, metres.
        boxes: (K, 4) float32, left, top, right, bottom of what is seen of each shape in pixels; hidden ones left out.
        labels: (K,) int64, their classes.
    """

    image: np.ndarray
    mask: np.ndarray
    instances: np.ndarray
    depth: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def make_scene(part: int, index: int, side: int = SIDE) -> Scene:
    """The scene of a seed: the same for the same arguments, whoever asks.

    Args:
        part: 0 for training, 1 for held-out scenes; no scene is in both.
        index: number of the scene.
        side: S in pixels.
    """
    rng = np.random.default_rng([part, index])
    image, depth = _room(rng, side)
    mask, owners = np.zeros((side, side), np.uint8), np.zeros((side, side), np.uint8)
    count = int(rng.integers(3, 7))
    distances = np.sort(rng.uniform(_FARTHEST**-0.5, _NEAREST**-0.5, count)) ** -2.0  # the farthest first
    kinds = rng.integers(1, len(CLASSES), count)
    for number, (kind, distance) in enumerate(zip(kinds.tolist(), distances.tolist(), strict=True), start=1):
        window, inside, colours = _shape(rng, kind, distance, side)
        if inside is None or colours is None:
            continue
        np.copyto(image[window], colours, where=inside[..., None])
        for layer, value in ((mask, kind), (owners, number), (depth, distance)):
            np.copyto(layer[window], value, where=inside, casting="same_kind")
    image += rng.integers(-5, 6, image.shape, dtype=np.int8)
    pixels = np.clip(image, 0, 255, out=image).astype(np.uint8)
    instances, boxes, labels = _seen(owners, kinds)
    return Scene(pixels, mask, instances, depth, boxes, labels)


def _seen(owners: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Instances, boxes and labels of the shapes that are not wholly hidden."""
    boxes, labels, instances = [], [], np.zeros_like(owners)
    for number in range(1, len(kinds) + 1):
        visible = owners == number
        rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
        if len(rows):
            boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
            labels.append(kinds[number - 1])
            instances[visible] = len(boxes)
    return instances, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)


def _fade(colours: np.ndarray, distance: np.ndarray | float) -> np.ndarray:
    """Haze over (H, W, 3) float32 colours, in place; ``distance`` in metres, of a row of pixels or of all."""
    left = np.exp(-np.asarray(distance, np.float32) / _REACH)
    colours *= left
    colours += _HAZE * (1 - left)
    return colours


def _room(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Floor and wall: (S, S, 3) float32 colours and (S, S) float32 metres."""
    rows, columns = _grid(side)
    wall = rng.uniform(*_WALLS)
    below = np.maximum(rows - _HORIZON * side, 1e-3)
    distance = np.minimum(side * _HEIGHT / below, wall).astype(np.float32)  # (S, 1)
    floor = distance < wall
    across = (columns - side / 2) * distance / side + rng.uniform(0, 8)
    tiles = (np.floor(across / 0.6) + np.floor(distance / 0.6 + rng.uniform(0, 1))) % 2 / 2
    depth = np.broadcast_to(distance, (side, side)).copy()
    first, second, paint = (rng.uniform(50, 190, (3, 1)) + rng.uniform(-20, 20, (3, 3))).astype(np.float32)
    colours = np.where(floor[..., None], first + (second - first) * tiles[..., None], paint)
    cloud = rng.uniform(-28, 28, (7, 7)).astype(np.float32)
    places = np.linspace(0, 5.999, side)
    left = places.astype(int)
    weight = (places - left).astype(np.float32)
    smooth = np.zeros((side, 7), np.float32)
    smooth[np.arange(side), left], smooth[np.arange(side), left + 1] = 1 - weight, weight
    colours += (smooth @ cloud @ smooth.T)[..., None]
    return _fade(colours, distance[..., None]), depth


def _shape(
    rng: np.random.Generator, kind: int, distance: float, side: int
) -> tuple[tuple[slice, slice], np.ndarray | None, np.ndarray | None]:
    """Window of the image, which of its pixels the shape covers (None: no place for it), and its colours there."""
    radius = side * _RADIUS[kind] * rng.uniform(0.92, 1.08) / distance
    foot = side * (_HORIZON + (_HEIGHT - rng.uniform(0, 1.4) * rng.integers(0, 2)) / distance)
    y, x, turn = foot - 1.2 * radius, rng.uniform(-0.05, 1.05) * side, rng.uniform(-0.4, 0.4)
    base, other = _colours(rng, kind)
    pattern, angle, period = int(rng.integers(0, 4)), rng.uniform(0, math.pi), rng.uniform(0.2, 0.5)
    reach = 1.3 * radius  # the corner of a box
    top, bottom = max(0, int(y - reach)), min(side, int(y + reach) + 1)
    left, right = max(0, int(x - reach)), min(side, int(x + reach) + 1)
    window = slice(top, bottom), slice(left, right)
    if top >= bottom or left >= right:
        return window, None, None
    rows, columns = _grid(side)
    v, u = (rows[top:bottom] - y) / radius, (columns[:, left:right] - x) / radius
    a, b = u * math.cos(turn) + v * math.sin(turn), v * math.cos(turn) - u * math.sin(turn)
    inside = _covers(kind, a, b)
    if pattern == 1:  # stripes
        shade = np.sin((u * math.cos(angle) + v * math.sin(angle)) * (math.pi / period)) > 0
    elif pattern == 2:  # checks
        shade = np.sin(a * (math.pi / period)) * np.sin(b * (math.pi / period)) > 0
    else:  # a gradient
        shade = np.clip(0.5 + 0.35 * (u * math.cos(angle) + v * math.sin(angle)), 0, 1) * (pattern == 3)
    colours = base + (other - base) * np.broadcast_to(shade, inside.shape).astype(np.float32)[..., None]
    return window, inside, _fade(colours, distance)


def _colours(rng: np.random.Generator, kind: int) -> np.ndarray:
    """Two colours of a shape, (2, 3) float32 of 0 to 255: near the hue of its kind, of any brightness."""
    hue = (kind - 1) / (len(CLASSES) - 1) + rng.uniform(-0.05, 0.05, (2, 1))
    pure = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return (rng.uniform(110, 255, (2, 1)) * (1 - rng.uniform(0.85, 1.0, (2, 1)) * (1 - pure))).astype(np.float32)


def _covers(kind: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether points, in radii of the shape, lie in it."""
    name = CLASSES[kind]
    if name == "disc":
        return a * a + b * b < 1
    if name == "box":
        return np.maximum(np.abs(a), np.abs(b)) < 0.9
    if name == "triangle":
        return (b < 0.8) & (b > 2 * np.abs(a) - 1)
    if name == "ring":
        square = a * a + b * b
        return (square < 1) & (square > 0.3)
    narrow, wide = np.minimum(np.abs(a), np.abs(b)), np.maximum(np.abs(a), np.abs(b))
    return (narrow < 0.32) & (wide < 1)


@functools.lru_cache(maxsize=8)
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the pixels: (S, 1) and (1, S) float32."""
    places = np.arange(side, dtype=np.float32) + 0.5
    return places[:, None], places[None]


@dataclass(frozen=True)
class SceneSplit:
    """Scenes as pairs of an image and a target, made when asked for.

    ``kind`` is "mask" (the target is (S, S) int64) or "depth" ((S, S) float32 metres); objects: see
    :class:`.detection.SceneObjects`.
    """

    length: int
    side: int
    channels: int
    part: int
    kind: str

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> Scene:
        return make_scene(self.part, index, self.side)

    def pixels(self, scene: Scene) -> Tensor:
        """Its image, (C, S, S) uint8."""
        pixels = scene.image if self.channels == 3 else scene.image.mean(2, keepdims=True).astype(np.uint8)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def pair(self, index: int) -> tuple[Tensor, Any]:
        scene = self.scene(index)
        image = self.pixels(scene)
        return image, torch.from_numpy(scene.mask).long() if self.kind == "mask" else torch.from_numpy(scene.depth)

    def image(self, index: int) -> Tensor:
        return self.pixels(self.scene(index))

    def name(self, index: int) -> str:
        return f"scenes/{('train', 'test')[self.part]}[{index}]"


def scenes(
    text: str, kind: str, channels: int = 3, split: type[SceneSplit] = SceneSplit
) -> tuple[SceneSplit, SceneSplit]:
    """Training and held-out scenes of "N" or "N,SIDE" (96 pixels); a tenth of N are held out.

    Raises:
        UsageError: no such numbers.
    """
    match = re.fullmatch(r"([0-9]{1,9})(?:,([0-9]{1,4}))?", text)
    count, side = (int(n) for n in match.groups(str(SIDE))) if match else (0, 0)
    if not count or not SIDES[0] <= side <= SIDES[1]:
        raise UsageError(
            f"data.source (='scenes:{text}') must be scenes:N or scenes:N,SIDE, N of 1 or more, "
            f"SIDE of {SIDES[0]} to {SIDES[1]} pixels"
        )
    lengths = count, max(1, count // 10)
    train, test = (split(n, side, channels, part, kind) for part, n in enumerate(lengths))
    return train, test
