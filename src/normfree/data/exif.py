"""Photos that EXIF rotates: whether annotations are for the pixels as they are stored, or as the photo is shown.

Tools differ: some load the stored pixels, others the photo as it is shown, and annotation files do not state which. If
a quarter turn swaps the sides, the size in the annotations shows it.
"""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..files import regular
from .decode import check_sides, named

ORIENTATION = 0x0112  # EXIF tag: 1 is upright
QUARTERS = (5, 6, 7, 8)  # orientations that swap the sides
MAX_HEADERS = 1000  # photos of a split whose headers are read at the start
Size = tuple[int, int]  # height, width


def header(file: str) -> tuple[Size, int]:
    """Size of an image as it is stored, and its EXIF orientation, 1 to 8; ((0, 0), 1) if they cannot be read."""
    try:
        with named(file), Image.open(regular(file)) as image:
            check_sides(*image.size)  # in a PNG file, EXIF may come after the pixels
            turn = image.getexif().get(ORIENTATION, 1)
            return (image.height, image.width), turn if turn in range(1, 9) else 1
    except Exception:  # decoders fail in many ways on broken files; decoding reports them
        return (0, 0), 1


def as_stored(image: Tensor, turn: int) -> Tensor:
    """The stored pixels of an image (C, H, W) that was rotated by an EXIF orientation."""
    if turn in (5, 7):
        image = image.transpose(1, 2)
    turned = {2: (2,), 3: (1, 2), 4: (1,), 7: (1, 2)}
    if turn in turned:
        image = image.flip(turned[turn])
    return torch.rot90(image, {6: 1, 8: -1}.get(turn, 0), (1, 2)).contiguous()


def as_annotated(image: Tensor, file: str, size: Size, stored: bool) -> Tensor:
    """An upright image (C, H, W) in the orientation that its annotations are for.

    Args:
        size: of the image in the annotations.
        stored: whether they are for the stored pixels, if the size does not tell.
    """
    shown = tuple(image.shape[-2:])
    if shown == size and not stored:
        return image
    turn = header(file)[1]
    if turn == 1:
        return image
    stored_size = shown[::-1] if turn in QUARTERS else shown
    if stored_size == shown:
        return as_stored(image, turn) if stored else image
    return as_stored(image, turn) if size == stored_size else image


def convention(
    files: Sequence[str], size_of: Callable[[int], Size], what: str, default: bool
) -> tuple[bool, list[str]]:
    """Whether annotations are for the stored pixels, and notes for the user.

    It is decided by the photos whose sizes tell, for those whose sizes do not.

    Args:
        size_of: from the index of a file to the size in its annotations.
        what: names the annotations, for the notes.
        default: the answer if no size tells.
    """
    order: list[int] = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[:MAX_HEADERS].tolist()
    stored = shown = unknown = 0
    for index in order:
        size, turn = header(files[index])
        if turn == 1:
            continue
        if turn not in QUARTERS or size[0] == size[1]:
            unknown += 1
        elif (annotated := size_of(index)) in (size, size[::-1]):
            stored += annotated == size
            shown += annotated != size
    decided = stored > shown if stored != shown else default
    of, words = f"of {len(order)} photos of {what}", ("as they are shown", "as they are stored")
    notes = [
        f"EXIF turns {count} {of}, which by their size are annotated {words[kind]}"
        for kind, count in ((True, stored), (False, shown))
        if count
    ]
    if unknown:
        why = "like the others" if stored != shown else "if that is wrong, write them without EXIF"
        notes.append(
            f"EXIF turns {unknown} {of} whose size does not say whether they are annotated as they are stored or "
            f"shown; taken to be {words[decided]}: {why}"
        )
    return decided, notes
