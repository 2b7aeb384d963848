"""Pictures of images and of what networks say about them."""

from .sheets import depth_sheet, mask_sheet, object_sheet

__all__ = ["depth_sheet", "mask_sheet", "object_sheet"]
