"""What is said of a classifier that does no better than naming the most frequent class."""

from collections import Counter
from collections.abc import Sequence


def majority_result(images: Counter[int], names: Sequence[str], right: int, always: int | None = None) -> str | None:
    """A sentence where an accuracy is no better than always saying the most frequent class, else None.

    Args:
        images: how many there are of each class.
        names: of the classes.
        right: images that the network is right about.
        always: the class that the network says about every image, if it is one.
    """
    most, count = images.most_common(1)[0]
    share = f"{count / images.total():.2%} of the images"
    if always == most:
        return f"majority-class result: all images are said to be {names[most]}, the most frequent class ({share})"
    if right <= count:
        what = "" if always is None else f"; all images are said to be {names[always]}"
        return f"majority-class result: no better than always saying {names[most]} ({share}){what}"
    return None
