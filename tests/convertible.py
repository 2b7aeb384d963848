"""Files to convert: the authors' and timm's, of networks that take no time."""

import pickle

import timm
import torch
from safetensors.torch import save_file
from small_models import SMALL, small

from normfree.weights import to_haiku

FORMS = {"haiku": "npz", "timm": "safetensors", "normfree": "safetensors"}
NFNET = ["--model", "nfnet_f0"]
for key, value in SMALL["nfnet_f0"].items():
    NFNET += [f"--model.options.{key}", str(list(value) if isinstance(value, tuple) else value)]


@torch.no_grad()
def shaken(name: str, **options) -> torch.nn.Module:
    """timm's network with nothing at zero."""
    model = timm.create_model(name, **options).eval()
    for key, parameter in model.named_parameters():
        z = torch.randn_like(parameter)
        if key == "head.fc.weight":
            parameter.copy_(z * parameter.shape[1] ** -0.5)
        elif parameter.ndim < 2 or key.endswith("gain"):
            parameter.add_(0.1 * z)
    return model


def write_theirs(tmp_path):
    """A state dict of timm's smallest network, 10 classes, as a file."""
    save_file(shaken("test_nfnet", num_classes=10).state_dict(), tmp_path / "theirs.safetensors")
    return tmp_path / "theirs.safetensors"


def write_authors(tmp_path):
    """The authors' file of a small NFNet."""
    model = small("nfnet_f0")
    (tmp_path / "authors.npz").write_bytes(pickle.dumps(to_haiku(model)))
    return tmp_path / "authors.npz"
