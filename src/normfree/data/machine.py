"""What this machine has: cores and memory."""

import os


def cores() -> int:
    """The cores that this process may use; several processes of a run on one machine share them."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, there // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def memory() -> int:
    """Bytes of memory that this machine has; where it does not say so, none is too much."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**62
