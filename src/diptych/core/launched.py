"""Read the environment variables that a launcher such as torchrun sets for this process."""

import os


def is_launched() -> bool:
    """Whether a launcher started this process together with others (`WORLD_SIZE` > 1)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """Return the index of this process among those launched on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_size() -> int:
    """Return the number of processes launched on this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
