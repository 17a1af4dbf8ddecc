"""Compare the speed of `ClipBPETokenizer` and open_clip's `SimpleTokenizer`, after checking that their ids are equal.

    python benchmarks/tokenizer.py --captions FILE [--out FILE]

The file has one caption per line, or is Flickr's `results.csv`. Except in the last row of the table, both tokenizers have
encoded every caption before, so that their caches are warm.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import arguments, in_turn, machine, must_agree, table, write
from tests import peers

from diptych.tokenizers import clip_bpe
from diptych.tokenizers.clip_bpe import ClipBPETokenizer

ROUNDS = 7
LIST_LENGTH = 512


def main() -> None:
    """Compare, measure, print, and write the table."""
    given = arguments(__doc__, captions="", rounds=ROUNDS)
    captions = read_captions(Path(given.captions))
    new_peer = peers.open_clip.tokenizer.SimpleTokenizer
    ours, peer = ClipBPETokenizer(), new_peer()
    _compare(captions, ours, peer)
    few, lists = captions[:2000], [captions[i : i + LIST_LENGTH] for i in range(0, len(captions), LIST_LENGTH)]
    singles = [[caption] for caption in few]

    def row(what: str, num: int, theirs: Callable[[], None], own: Callable[[], None]) -> list[str]:
        times = in_turn({"Diptych": own, "open_clip": theirs}, rounds=given.rounds)
        each = [f"{1e6 * times.median(side) / num:.2f}" for side in ("Diptych", "open_clip")]
        return [what, *each, f"{times.ratio('open_clip', 'Diptych'):.1f} x"]

    rows = [
        row(
            f"lists of {LIST_LENGTH}", len(captions), lambda: _encode(lists, peer), lambda: _encode(lists, ours.encode)
        ),
        row("one a call", len(few), lambda: _encode(singles, peer), lambda: _encode(singles, ours.encode)),
        row("vocabulary read anew", len(captions), lambda: _encode(lists, new_peer()), lambda: _start(lists)),
    ]
    write(
        given.out,
        "# CLIP's tokenizer",
        f"`python benchmarks/tokenizer.py`, {machine('open_clip_torch', 'tokenizers', 'ftfy', 'regex')}",
        f"{len(captions):,} captions, all ids equal; microseconds a caption on one core, medians of {given.rounds} rounds.",
        table(["what", "Diptych", "open_clip", "ratio"], rows),
    )


def read_captions(path: Path) -> list[str]:
    """Return the captions of a file with one caption per line, or of Flickr's `results.csv`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines and lines[0].startswith("image_name|"):
        lines = [line.split("|", 2)[-1] for line in lines[1:]]
    return [line.strip() for line in lines]


def _compare(captions: list[str], ours: ClipBPETokenizer, peer: Callable[[list[str]], Any]) -> None:
    encoded, theirs = ours.encode(captions), peer(captions).numpy()
    width = encoded.ids.shape[1]
    num_wrong = int((encoded.ids != theirs[:, :width]).sum() + (theirs[:, width:] != 0).sum())
    must_agree("ids", num_wrong, at_most=0)


def _encode(lists: list[list[str]], tokenizer: Callable[[list[str]], Any]) -> None:
    """Encode every list once."""
    for texts in lists:
        tokenizer(texts)


def _start(lists: list[list[str]]) -> None:
    """Encode every list once with a new tokenizer, after clearing all caches."""
    for cached in (clip_bpe._chunk_ids, clip_bpe._entries, clip_bpe._merges):
        cached.cache_clear()
    _encode(lists, ClipBPETokenizer().encode)


if __name__ == "__main__":
    main()
