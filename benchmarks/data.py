"""Times the way from files to pixels against what open_clip's pipeline and webdataset take for it.

    python benchmarks/data.py PHOTOS SOURCE [--out FILE]

PHOTOS is a folder of JPEGs of about 500x375, SOURCE any source of some thousand samples, which is written as tars. One core.
The two sides of a line take turns; its ratio is the median of the turns' ratios.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from statistics import median
from time import perf_counter

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import webdataset
from PIL import Image
from tests import peers

from diptych.core.randomness import keyed_generator
from diptych.data.pack import pack
from diptych.data.sources.choice import open_source
from diptych.data.sources.protocol import Source
from diptych.data.write_shards import write_shards
from diptych.images.augment import AugmentConfig, random_view, training_pixels
from diptych.images.decode import decode_array
from diptych.images.transforms import PixelConfig

ROUNDS = 9
NUM_ROWS = 1_000_000


def main() -> None:
    """Time, print, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("source")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ("open_clip_torch", "webdataset", "diptych", "torch", "pillow", "simplejpeg")
    lines = [
        "# From files to pixels",
        "",
        f"`python benchmarks/data.py PHOTOS SOURCE`, {date.today()}, {platform.machine()}, one of {os.cpu_count()} cores,",
        f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in names)}.",
        f"Medians of {ROUNDS} rounds in which both sides take turns; ratios of one round, least to greatest in brackets.",
        "",
        "| what | peer | Diptych | ratio |",
        "|---|---|---|---|",
        *pictures(arguments.photos),
        *tars(arguments.source),
        "",
        f"| start of {NUM_ROWS:,} rows, images looked up | seconds | MB at the peak | MB of it for the rows |",
        "|---|---|---|---|",
        *starts(),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


def pictures(folder: Path) -> list[str]:
    """JPEGs and packs, the whole way to a training crop."""
    contents = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    medium = [content for content in contents if Image.open(BytesIO(content)).size == (500, 375)]
    transform = peers.open_clip.transform.image_transform(224, is_train=True)

    def theirs(content: bytes) -> None:
        transform(Image.open(BytesIO(content)))

    rows = [
        row(f"JPEG of 500x375 to a crop of 224 px ({len(medium)} photos)", medium, theirs, lambda x: crop(x, 224)),
        row(f"all JPEGs of the folder ({len(contents)})", contents, theirs, lambda x: crop(x, 224)),
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
            )
        )
    return rows


def crop(image: object, image_px: int) -> None:
    """What training does to a picture, from its bytes or from its pixels."""
    pixels = decode_array(image)  # type: ignore[arg-type]
    view = random_view(pixels.shape[1], pixels.shape[0], AUGMENT, keyed_generator(0, "benchmark"), image_px=image_px)
    training_pixels(pixels, view, image_px=image_px, config=PIXELS)


AUGMENT, PIXELS = AugmentConfig(), PixelConfig()


def tars(spec: str) -> list[str]:
    """Every sample of some tars, not decoded: webdataset in their order, Diptych in a random one."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(path) for path in write_shards(open_source(spec), Path(folder), per_shard=1000).paths]
        source = open_source(f"shards:{folder}/*.tar")
        order = np.random.default_rng(0).permutation(len(source)).tolist()

        def theirs() -> None:
            if sum(1 for _ in webdataset.WebDataset(paths, shardshuffle=False)) != len(source):
                sys.exit("webdataset reads another number of samples")

        return [
            rate_row(f"samples of {len(paths)} tars, not decoded", len(source), theirs, lambda: read(source, order))
        ]


def read(source: Source, order: list[int]) -> None:
    """The samples, one after another."""
    for index in order:
        source[index]


def row(what: str, things: Sequence[object], theirs: Callable[..., None], ours: Callable[..., None]) -> str:
    """A line in milliseconds a thing."""
    pairs = [(timed(lambda: each(theirs, things)), timed(lambda: each(ours, things))) for _ in range(ROUNDS)]
    peer, own = (1e3 * median(times) / len(things) for times in zip(*pairs, strict=True))
    return f"| {what} | {peer:.2f} ms | {own:.2f} ms | {ratio(pairs)} |"


def rate_row(what: str, num: int, theirs: Callable[[], None], ours: Callable[[], None]) -> str:
    """A line in things a second."""
    pairs = [(timed(theirs), timed(ours)) for _ in range(ROUNDS)]
    peer, own = (num / median(times) for times in zip(*pairs, strict=True))
    return f"| {what} | {peer:,.0f}/s | {own:,.0f}/s | {ratio(pairs)} |"


def ratio(pairs: list[tuple[float, float]]) -> str:
    """The median, and both ends."""
    ratios = sorted(theirs / own for theirs, own in pairs)
    return f"**{median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def each(run: Callable[[object], None], things: Sequence[object]) -> None:
    """Every thing once."""
    for thing in things:
        run(thing)


def timed(run: Callable[[], None]) -> float:
    """Seconds that one run takes."""
    began = perf_counter()
    run()
    return perf_counter() - began


START = """
import sys, time
import diptych.data.sources.choice as choice
def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
began = time.perf_counter()
source = choice.open_source(sys.argv[1])
assert len(source) == int(sys.argv[2])
print(time.perf_counter() - began, peak(), peak() - before)
"""


def starts() -> list[str]:
    """A table and lines of JSON with a caption and an image file each, opened in a process of their own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(1000):
            (folder / f"{i:03d}").mkdir()
        files = [f"{i % 1000:03d}/{i:07d}.jpg" for i in range(NUM_ROWS)]
        for file in files:
            (folder / file).touch()
        captions = [f"a caption of ordinary length for the picture with the number {i}" for i in range(NUM_ROWS)]
        pairs = list(zip(files, captions, strict=True))
        table = "image,caption\n" + "".join(f"{file},{caption}\n" for file, caption in pairs)
        (folder / "rows.csv").write_text(table, encoding="utf-8")
        lines = (json.dumps({"image": file, "caption": caption}) + "\n" for file, caption in pairs)
        (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
        return [start(spec) for spec in (f"csv:{folder}/rows.csv", f"json:{folder}/rows.jsonl")]


def start(spec: str) -> str:
    """A line: the median of three processes."""
    command = [sys.executable, "-c", START, spec, str(NUM_ROWS)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    seconds, peak, rows = (median(float(run[i]) for run in runs) for i in range(3))
    return f"| `{spec.partition(':')[0]}` | {seconds:.1f} | {peak:,.0f} | {rows:,.0f} |"


if __name__ == "__main__":
    main()
