"""`make attack`: mutated pictures, hostile requests, flipped bits. Seeded; ends with exit code 1 if a promise is broken.

The promises are those of docs/security.md: no picture takes longer than its limit or more memory than its process may have;
no answer has a status of 5xx other than 503, and no request is affected by another one; no flipped bit changes a number
without being detected.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from diptych.training.run import train
from tests.attack.flips import flip_bundle, flip_index, flip_run
from tests.attack.pictures import decode_mutants
from tests.attack.requests import ask_all
from tests.attack.target import Outcome, make_index
from tests.conftest import TINY_RUN


def main() -> int:
    """Run all parts and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--flips", type=int, default=200, help="In a bundle, an index and a run folder each.")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="diptych-attack-") as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        run, index = folder / "run", folder / "index"
        train(TINY_RUN, run)
        make_index(index, run / "bundle", folder / "pictures")
        parts: tuple[Callable[[], Outcome], ...] = (
            lambda: decode_mutants(asked.pictures, seed=asked.seed),
            lambda: ask_all(asked.requests, run / "bundle", index, seed=asked.seed),
            lambda: flip_bundle(asked.flips, run / "bundle", folder / "work", seed=asked.seed),
            lambda: flip_index(asked.flips, index, folder / "work", seed=asked.seed),
            lambda: flip_run(asked.flips, run, folder / "work", seed=asked.seed),
        )
        for part in parts:
            began = time.monotonic()
            outcome = part()
            print(f"{outcome.summary}  ({time.monotonic() - began:.0f} s)", flush=True)
            failures += outcome.failures
    for failure in failures[:50]:
        print(f"BROKEN: {failure}", file=sys.stderr)
    print(f"attack: {f'{len(failures)} promises broken' if failures else 'every promise held'}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
