"""Parameters and inputs of the golden files, made again by their formula."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "golden"

# file -> name of our model
MODELS = {
    "nfnet_f0_64": "nfnet_f0",
    "nfnet_f1_75": "nfnet_f1",
    "nf_regnet_b0_64": "nf_regnet_b0",
    "nf_regnet_b1_75": "nf_regnet_b1",
    "nf_resnet50_64": "nf_resnet50",
    "nf_seresnet50_75": "nf_seresnet50",
}
CONTROLS = {
    "bn_resnet50_v2_64": "bn_resnet50",
    "fixup_resnet50_64": "fixup_resnet50",
    "skipinit_resnet50_64": "skipinit_resnet50",
}


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as data:
        return dict(data)


def rng(key: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))


def parameter(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Value of Haiku parameter ``module/name``."""
    name = key.rsplit("/", 1)[1]
    z = rng(key).standard_normal(shape).astype(np.float32)
    if name == "w":
        scale = np.float32(np.prod(shape[:-1]) ** -0.5)
        if key.startswith(("FixUp_ResNet", "SkipInit_ResNet")):
            return np.float32(0.7) * z * scale
        return z * scale + np.float32(0.1) * scale
    if name in ("gain", "scale"):
        return 1 + np.float32(0.1) * z
    if name == "skip_gain":
        return np.asarray(0.5 + np.float32(0.1) * z, dtype=np.float32)
    return np.float32(0.1) * z


def parameters(golden: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """``{module: {name: array}}`` of a model's golden file."""
    tree: dict[str, dict[str, np.ndarray]] = {}
    for key, shape in zip(golden["param_names"], golden["param_shapes"], strict=True):
        module, name = str(key).rsplit("/", 1)
        tree.setdefault(module, {})[name] = parameter(str(key), tuple(json.loads(str(shape))))
    return tree


def images(file: str, batch: int) -> torch.Tensor:
    """(batch, 3, size, size) float32."""
    size = int(file.rsplit("_", 1)[1])
    x = rng(f"input/{file}").standard_normal((batch, size, size, 3)).astype(np.float32)
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def relative(got, expected) -> float:
    """Norm of the difference over the norm of the expected."""
    got, expected = (np.asarray(torch.as_tensor(v).detach(), dtype=np.float64) for v in (got, expected))
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
