"""A warning about a classifier that is no better than always predicting the most frequent class."""

from collections import Counter
from collections.abc import Sequence


def majority_result(images: Counter[int], names: Sequence[str], right: int, always: int | None = None) -> str | None:
    """A sentence if an accuracy is no better than always predicting the most frequent class, else None.

    Args:
        images: number of images of each class.
        names: of the classes.
        right: number of images that are classified correctly.
        always: the class that is predicted for every image, if there is such a class.
    """
    majority, count = images.most_common(1)[0]
    share = f"{count / images.total():.2%} of the images"
    if always == majority:
        return f"majority-class result: all images are said to be {names[majority]}, the most frequent class ({share})"
    if right <= count:
        detail = "" if always is None else f"; all images are said to be {names[always]}"
        return f"majority-class result: no better than always saying {names[majority]} ({share}){detail}"
    return None
