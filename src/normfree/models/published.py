"""The variants with published weights, where these are, and the preprocessing of their evaluation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Weights on the Hugging Face hub, in timm's naming, of 1000 ImageNet classes.

    Attributes:
        hub: repository of ``huggingface.co``; the file in it is ``model.safetensors``.
        source: who trained them.
        squash: evaluation ignores the aspect ratio, as in the papers; otherwise it crops the centre.
        crop: the crop's side over the resized image's side; None: 32 px less, as in the papers.
        mean: of the pixels on the scale 0 to 1, and their standard deviation, if they are not ImageNet's.
    """

    hub: str
    source: str
    squash: bool = False
    crop: float | None = None
    mean: float | None = None

    @property
    def url(self) -> str:
        """The address of the file."""
        return f"https://huggingface.co/{self.hub}/resolve/main/model.safetensors"


_AUTHORS = "the authors of NFNets, converted by timm"


def _released(k: int) -> Published:
    return Published(f"timm/dm_nfnet_f{k}.dm_in1k", _AUTHORS, squash=True)


PUBLISHED = (
    {f"nfnet_f{k}": _released(k) for k in range(7)}
    | {f"timm_dm_nfnet_f{k}": _released(k) for k in range(7)}
    | {
        f"timm_{name}": Published(f"timm/{name}.{tag}", "timm", crop=crop, mean=mean)
        for name, tag, crop, mean in (
            ("nfnet_l0", "ra2_in1k", 1.0, None),
            ("eca_nfnet_l0", "ra2_in1k", 1.0, None),
            ("eca_nfnet_l1", "ra2_in1k", 1.0, None),
            ("eca_nfnet_l2", "ra3_in1k", 1.0, None),
            ("nf_regnet_b1", "ra2_in1k", 0.9, None),
            ("nf_resnet50", "ra2_in1k", 0.94, None),
            ("test_nfnet", "r160_in1k", 0.95, 0.5),
        )
    }
)
