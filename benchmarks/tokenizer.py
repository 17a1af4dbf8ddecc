"""Times `ClipBPETokenizer` against open_clip's `SimpleTokenizer`, after proving that they give the same ids.

    python benchmarks/tokenizer.py CAPTIONS_FILE

CAPTIONS_FILE holds one caption a line, or is Flickr's `results.csv`. The two take turns; each ratio is of one pair of turns.
But for the last row of the table, both have met every caption before.
"""

import os
import platform
import sys
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from tests import peers

from diptych.tokenizers import clip_bpe
from diptych.tokenizers.clip_bpe import ClipBPETokenizer

ROUNDS = 7
LIST_LENGTH = 512


def main() -> None:
    """Prove, time, print."""
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/tokenizer.py CAPTIONS_FILE")
    captions = read_captions(Path(sys.argv[1]))
    new_peer = peers.open_clip.tokenizer.SimpleTokenizer
    ours, peer = ClipBPETokenizer(), new_peer()
    prove_equal(captions, ours, peer)
    few, lists = captions[:2000], [captions[i : i + LIST_LENGTH] for i in range(0, len(captions), LIST_LENGTH)]
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, {describe_versions()}")
    print(f"{len(captions):,} captions, all ids equal; medians of {ROUNDS} rounds, in microseconds a caption\n")
    print(f"{'':34}{'open_clip':>10}{'Diptych':>10}{'ratio':>8}  (least to greatest)")
    report(f"lists of {LIST_LENGTH}", len(captions), lambda: encode(lists, peer), lambda: encode(lists, ours.encode))
    singles = [[caption] for caption in few]
    report("one a call", len(few), lambda: encode(singles, peer), lambda: encode(singles, ours.encode))
    report("vocabulary read anew, first pass", len(captions), lambda: encode(lists, new_peer()), lambda: start(lists))


def read_captions(path: Path) -> list[str]:
    """The captions of a file, one a line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines and lines[0].startswith("image_name|"):
        lines = [line.split("|", 2)[-1] for line in lines[1:]]
    return [line.strip() for line in lines]


def prove_equal(captions: list[str], ours: ClipBPETokenizer, peer: Callable[[list[str]], Any]) -> None:
    """Stop unless both give the same ids for every caption."""
    encoded, theirs = ours.encode(captions), peer(captions).numpy()
    width = encoded.ids.shape[1]
    if not np.array_equal(encoded.ids, theirs[:, :width]) or theirs[:, width:].any():
        sys.exit("the two tokenizers differ; nothing is timed")


def describe_versions() -> str:
    """What was compared."""
    names = ("open_clip_torch", "diptych", "tokenizers", "ftfy", "regex")
    return f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names)


def report(what: str, num_captions: int, peer: Callable[[], None], ours: Callable[[], None]) -> None:
    """One line of the table."""
    pairs = [(timed(peer), timed(ours)) for _ in range(ROUNDS)]
    ratios = sorted(theirs / own for theirs, own in pairs)
    theirs, own = (1e6 * median(seconds) / num_captions for seconds in zip(*pairs, strict=True))
    print(f"{what:34}{theirs:10.2f}{own:10.2f}{median(ratios):8.1f}  ({ratios[0]:.1f} to {ratios[-1]:.1f})")


def timed(run: Callable[[], None]) -> float:
    """Seconds that one run takes."""
    began = perf_counter()
    run()
    return perf_counter() - began


def encode(lists: list[list[str]], tokenizer: Callable[[list[str]], Any]) -> None:
    """Every list once."""
    for texts in lists:
        tokenizer(texts)


def start(lists: list[list[str]]) -> None:
    """Every list once, by a tokenizer that has read no vocabulary and kept no chunk."""
    for kept in (clip_bpe._chunk_ids, clip_bpe._entries, clip_bpe._merges):
        kept.cache_clear()
    encode(lists, ClipBPETokenizer().encode)


if __name__ == "__main__":
    main()
