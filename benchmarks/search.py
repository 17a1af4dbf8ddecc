"""Compare exact search with NumPy and faiss, and time the whole process of `diptych search`.

    python benchmarks/search.py [--out FILE]

Vectors are random unit vectors; the results of both sides are compared first. The command searches an index of 100,000 entries
with a ViT-B/32 of random weights.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import faiss
import numpy as np
import torch
from harness import Times, arguments, copy_ceiling, in_turn, machine, must_agree, product_ceiling, table, write
from numpy.typing import NDArray

from diptych.bundle.folder import Bundle, save_bundle
from diptych.index.entry import Entry, FileStat
from diptych.index.exact import encode, nearest
from diptych.index.open_index import create_index
from diptych.inference.loaded import load
from diptych.models.clip import CLIP
from diptych.presets import preset
from diptych.tokenizers.clip_bpe import ClipBPETokenizer

Search: TypeAlias = Callable[[NDArray[np.float32]], Any]
"""A function from queries to the rows of their nearest vectors."""

DIM = 512
TOP = 10
FEW, MANY = 100_000, 1_000_000
BATCH = 256
ROUNDS = 5


def main() -> None:
    """Compare, measure, print, and write the table."""
    given = arguments(__doc__)
    single = _times(FEW, batch=1, calls=25, rounds=9, peer=_numpy)
    many = _times(MANY, batch=BATCH, calls=1, rounds=ROUNDS, peer=_faiss)
    read = FEW * DIM * 4 / single.median("peer")
    multiplied = 2 * BATCH * MANY * DIM / many.median("peer")
    copied, product = copy_ceiling(), product_ceiling()
    command = _command_times(FEW)
    beyond = command["command"] - command["import torch"]
    rows = [
        [f"{FEW:,}, one query", "numpy argpartition", *_row(single)],
        [f"{MANY:,}, batches of {BATCH}", "faiss flat", *_row(many)],
    ]
    write(
        given.out,
        "# Search",
        f"`python benchmarks/search.py`, {machine('numpy', 'faiss-cpu')}",
        f"The {TOP} nearest among vectors of {DIM} numbers; milliseconds, medians over rounds in turn (of 25 "
        "queries one by one, or of one batch).",
        table(["what", "peer", "Diptych", "peer", "ratio"], rows),
        f"Beside the machine's ceilings: numpy reads {read / 1e9:.1f} GB/s, where a large copy reads and writes "
        f"{copied / 1e9:.1f}; faiss multiplies at {multiplied / product:.0%} of a large float32 product "
        f"({product / 1e9:.0f} GFLOP/s). Diptych reads eight-bit codes first, and the floats of those that are left.",
        f"`diptych search` on {FEW:,} entries, disk warm, from process start to exit: {command['command']:.2f} s, of which "
        f"`import torch` alone takes {command['import torch']:.2f} s: {beyond:.2f} s beyond it. Its own split (`--timing`):",
        f"```\n{command['split']}\n```",
    )


def _row(times: Times) -> list[str]:
    own, peer = times.median("Diptych"), times.median("peer")
    return [f"{own * 1e3:.1f}", f"{peer * 1e3:.1f}", f"{times.ratio('peer', 'Diptych'):.2f} x"]


def _random(num: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(num).standard_normal((num, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _times(
    num: int,
    *,
    batch: int,
    calls: int,
    rounds: int,
    peer: Callable[[NDArray[np.float32]], Callable[[NDArray[np.float32]], Any]],
) -> Times:
    vectors, queries = _random(num), _random(batch * 64)
    codes = encode(vectors)
    theirs = peer(vectors)

    def ours(batch: NDArray[np.float32]) -> Any:
        return nearest(vectors, batch, top=TOP, codes=codes)[0]

    first = queries[:batch]
    scores = [np.einsum("qke,qe->qk", vectors[side(first)], first) for side in (ours, theirs)]
    must_agree(f"{num} vectors", float(np.abs(scores[0] - scores[1]).max()), at_most=1e-5)
    number = count()

    def searching(side: Search) -> Callable[[], Any]:
        def run() -> None:
            for _ in range(calls):
                start = next(number) % 64 * batch
                side(queries[start : start + batch])

        return run

    taken = in_turn({"Diptych": searching(ours), "peer": searching(theirs)}, rounds=rounds)
    return Times({side: [seconds / calls for seconds in of] for side, of in taken.of.items()})


def _numpy(vectors: NDArray[np.float32]) -> Search:
    def search(queries: NDArray[np.float32]) -> Any:
        scores = vectors @ queries[0]
        best = np.argpartition(scores, len(scores) - TOP)[len(scores) - TOP :]
        return best[np.argsort(-scores[best])][None]

    return search


def _faiss(vectors: NDArray[np.float32]) -> Search:
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors)
    return lambda queries: index.search(queries, TOP)[1]


def _command_times(num: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        bundle, index = Path(folder) / "bundle", Path(folder) / "index"
        _write_bundle(bundle)
        clip = load(bundle, device="cpu")
        dim = clip.bundle.config.embed_dim
        vectors = _random(num)[:, :dim]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        created = create_index(str(index), dim=dim, model=clip.identity, bundle=str(bundle))
        with created as opened, opened.writing():
            for start in range(0, num, 10_000):
                rows = range(start, start + 10_000)
                entries = [Entry(key=f"/p/{i}.jpg", digest=f"{i}", stamp=FileStat(size=i, modified_ns=i)) for i in rows]
                opened.add(entries, {f"{i}": vectors[i] for i in rows})
        words = [sys.executable, "-m", "diptych", "search", str(index), "a dog in the snow", "--timing"]
        sides = {
            "command": lambda: subprocess.run(words, check=True, capture_output=True),
            "import torch": lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True),
        }
        times = in_turn(sides, rounds=ROUNDS)
        split = subprocess.run(words, check=True, capture_output=True, text=True).stderr.strip()
        return {**{side: times.median(side) for side in sides}, "split": split}


def _write_bundle(place: Path) -> None:
    torch.manual_seed(0)
    config = preset("vit-b-32")
    save_bundle(Bundle(model=CLIP(config), tokenizer=ClipBPETokenizer(context_length=77)), place)


if __name__ == "__main__":
    main()
