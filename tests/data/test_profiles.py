"""Colour profiles in images are not applied: a network sees the numbers of the file, as the papers' readers did."""

import image_files
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from normfree.data import decode_image

# a profile that turns colours far, and one of grey; bytes that are none
SRGB, LAB = (ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes() for kind in ("sRGB", "LAB"))


@pytest.mark.parametrize("profile", [SRGB, LAB, b"no profile", b"\0" * 200_000], ids=["sRGB", "LAB", "none", "large"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_profiles_change_nothing(tmp_path, kind, profile):
    pixels, options = image_files.pixels(), dict(lossless=True) if kind == "WEBP" else {}
    plain = image_files.write(tmp_path / f"a.{kind.lower()}", pixels, format=kind, **options)
    with_profile = image_files.write(
        tmp_path / f"b.{kind.lower()}", pixels, format=kind, icc_profile=profile, **options
    )
    with Image.open(with_profile) as image:
        assert image.info["icc_profile"] == profile
    assert torch.equal(decode_image(with_profile), decode_image(plain))
    assert torch.equal(decode_image(with_profile, 1), decode_image(plain, 1))
    if kind != "JPEG":
        assert np.array_equal(decode_image(with_profile).permute(1, 2, 0).numpy(), pixels)
