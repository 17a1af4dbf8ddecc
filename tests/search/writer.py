"""Forks a process that indexes each time it is told to, so that a test can kill one after another without starting Python."""

import os
import sys
from pathlib import Path

import torch

from diptych.inference.loaded import load
from diptych.search import collection

if __name__ == "__main__":
    torch.set_num_threads(1)
    clip = load(sys.argv[2], device="cpu")
    clip.encode_texts(["warm"])
    collection.__dict__["_BATCH_FILES"] = 4
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            with collection.open_or_create(sys.argv[1], clip) as index:
                collection.update(index, clip, [Path(sys.argv[3])])
            os._exit(0)
        print(child, flush=True)  # noqa: T201
        _, status = os.waitpid(child, 0)
        print("killed" if os.WIFSIGNALED(status) else "finished", flush=True)  # noqa: T201
