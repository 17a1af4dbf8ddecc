"""Compare loading data, from files to pixels, with open_clip's pipeline and webdataset.

    python benchmarks/data.py --photos DIR --source SOURCE [--out FILE]

DIR contains JPEGs of about 500x375 pixels. SOURCE is any source with a few thousand samples, which are written as tar files.
Each side uses one core. The two sides of a row alternate; the ratio is the median over rounds.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import webdataset
from harness import Times, arguments, in_turn, machine, table, write
from PIL import Image
from tests import peers

from diptych.core.randomness import keyed_generator
from diptych.data.open_source import open_source
from diptych.data.sources.protocol import Source
from diptych.data.tools.pack import pack
from diptych.data.tools.write_shards import write_shards
from diptych.images.augment import AugmentConfig, random_crop_params, training_pixels
from diptych.images.decode import decode_array
from diptych.images.transforms import PixelConfig

ROUNDS = 9
NUM_ROWS = 1_000_000


def main() -> None:
    """Time, print, and write the tables."""
    given = arguments(__doc__, photos="photos", source="", rounds=ROUNDS)
    torch.set_num_threads(1)
    rows = [*pictures(Path(given.photos), given.rounds), tars(given.source, given.rounds)]
    write(
        given.out,
        "# From files to pixels",
        f"`python benchmarks/data.py`, one core a side, {machine('open_clip_torch', 'webdataset', 'pillow', 'simplejpeg')}",
        f"Medians of {given.rounds} rounds in which both sides take turns; ratios of one round, least to greatest in brackets.",
        table(["what", "peer", "Diptych", "ratio"], rows),
        table(
            [f"start of {NUM_ROWS:,} rows, images looked up", "seconds", "MB at the peak", "MB for the rows"], starts()
        ),
    )


def pictures(folder: Path, rounds: int) -> list[list[str]]:
    """Return the rows for JPEGs and packs, from files to training crops."""
    contents = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    medium = [content for content in contents if Image.open(BytesIO(content)).size == (500, 375)]
    transform = peers.open_clip.transform.image_transform(224, is_train=True)

    def theirs(content: bytes) -> None:
        transform(Image.open(BytesIO(content)))

    rows = [
        row(
            f"JPEG of 500x375 to a crop of 224 px ({len(medium)} photos)",
            medium,
            theirs,
            lambda x: crop(x, 224),
            rounds,
        ),
        row(f"all JPEGs of the folder ({len(contents)})", contents, theirs, lambda x: crop(x, 224), rounds),
    ]
    with tempfile.TemporaryDirectory() as packed:
        captions = [{"image": str(path.absolute()), "caption": "x"} for path in sorted(folder.glob("*.jpg"))]
        listing = Path(packed) / "photos.json"
        listing.write_text(json.dumps(captions), encoding="utf-8")
        pack(open_source(f"json:{listing}"), Path(packed) / "pack", image_px=128)
        source = open_source(f"packed:{packed}/pack")
        pairs = [(content, i) for i, content in enumerate(contents)]
        rows.append(
            row(
                "crop of 112 px from a pack of 128 px; the peer is Diptych from the JPEGs",
                pairs,
                lambda pair: crop(pair[0], 112),
                lambda pair: crop(source[pair[1]].image, 112),
                rounds,
            )
        )
    return rows


def crop(image: object, image_px: int) -> None:
    """Decode and augment an image as in training; `image` is an encoded file or pixels."""
    pixels = decode_array(image)  # type: ignore[arg-type]
    view = random_crop_params(
        pixels.shape[1], pixels.shape[0], AUGMENT, keyed_generator(0, "benchmark"), image_px=image_px
    )
    training_pixels(pixels, view, image_px=image_px, config=PIXELS)


AUGMENT, PIXELS = AugmentConfig(), PixelConfig()


def tars(spec: str, rounds: int) -> list[str]:
    """Return the row for reading undecoded samples of tar files: webdataset in file order, Diptych in random order."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(path) for path in write_shards(open_source(spec), Path(folder), per_shard=1000).paths]
        source = open_source(f"shards:{folder}/*.tar")
        order = np.random.default_rng(0).permutation(len(source)).tolist()

        def theirs() -> None:
            if sum(1 for _ in webdataset.WebDataset(paths, shardshuffle=False)) != len(source):
                sys.exit("webdataset reads another number of samples")

        times = in_turn({"peer": theirs, "Diptych": lambda: read(source, order)}, rounds=rounds)
        what, num = f"samples of {len(paths)} tars, not decoded", len(source)
        peer, own = (f"{num / times.median(side):,.0f}/s" for side in ("peer", "Diptych"))
        return [what, peer, own, ratio(times)]


def read(source: Source, order: list[int]) -> None:
    """Read the samples one by one."""
    for index in order:
        source[index]


def row(
    what: str, things: Sequence[object], theirs: Callable[..., None], ours: Callable[..., None], rounds: int
) -> list[str]:
    """Return a row with the milliseconds per item."""
    times = in_turn({"peer": lambda: each(theirs, things), "Diptych": lambda: each(ours, things)}, rounds=rounds)
    peer, own = (f"{1e3 * times.median(side) / len(things):.2f} ms" for side in ("peer", "Diptych"))
    return [what, peer, own, ratio(times)]


def ratio(times: Times) -> str:
    """Return the median, minimum and maximum of the ratios."""
    ratios = sorted(theirs / own for theirs, own in zip(times.of["peer"], times.of["Diptych"], strict=True))
    return f"**{median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def each(run: Callable[[object], None], things: Sequence[object]) -> None:
    """Run a function on every item."""
    for thing in things:
        run(thing)


START = """
import sys, time
import diptych.data.open_source as choice
def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
began = time.perf_counter()
source = choice.open_source(sys.argv[1])
assert len(source) == int(sys.argv[2])
print(time.perf_counter() - began, peak(), peak() - before)
"""


def starts() -> list[list[str]]:
    """Return the rows for opening a CSV file and a JSON Lines file; each row of the files has an image file and a caption."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(1000):
            (folder / f"{i:03d}").mkdir()
        files = [f"{i % 1000:03d}/{i:07d}.jpg" for i in range(NUM_ROWS)]
        for file in files:
            (folder / file).touch()
        captions = [f"a caption of ordinary length for the picture with the number {i}" for i in range(NUM_ROWS)]
        pairs = list(zip(files, captions, strict=True))
        rows = "image,caption\n" + "".join(f"{file},{caption}\n" for file, caption in pairs)
        (folder / "rows.csv").write_text(rows, encoding="utf-8")
        lines = (json.dumps({"image": file, "caption": caption}) + "\n" for file, caption in pairs)
        (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
        return [start(spec) for spec in (f"csv:{folder}/rows.csv", f"json:{folder}/rows.jsonl")]


def start(spec: str) -> list[str]:
    """Return the row of a source: medians of three processes."""
    command = [sys.executable, "-c", START, spec, str(NUM_ROWS)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    seconds, peak, rows = (median(float(run[i]) for run in runs) for i in range(3))
    return [f"`{spec.partition(':')[0]}`", f"{seconds:.1f}", f"{peak:,.0f}", f"{rows:,.0f}"]


if __name__ == "__main__":
    main()
