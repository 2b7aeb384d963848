"""Words of messages."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 image``, ``2 images``, ``1,440 images``; ``plural`` where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
