"""Mutated pictures, decoded as `serve` and `index add` decode those of strangers."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from diptych.core.errors import ImageError
from diptych.images.decode import decode
from diptych.images.pool import DecodePool
from diptych.images.transforms import PixelConfig, evaluation_pixels
from diptych.images.worker import memory_limit
from tests.attack.target import Outcome
from tests.images import hostile

_MAX_PIXELS, _TIMEOUT_S = 4_000_000, 10.0
_CONFIG = PixelConfig()


@cache
def seeds() -> list[bytes]:
    """Pictures of every format, and some that are hostile as they are."""
    plain = [hostile.encoded(form, 64, 48) for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")]
    return [
        *plain,
        hostile.encoded("JPEG", 64, 48, progressive=True),
        hostile.encoded("TIFF", 64, 48, compression="tiff_lzw"),
        hostile.encoded("WEBP", 64, 48, lossless=True),
        hostile.encoded("JPEG", 64, 48, exif=hostile.tiff_directory(20, 500, exif=True)),
        hostile.progressive_with_scans(60, 1000, 1000),
        hostile.png(1, 600_000),
        hostile.png(2000, 1999),
        hostile.png(60_000, 60_000)[:500],
        hostile.gif_with_comments(4000),
        hostile.jpeg_with_segments(4000),
        hostile.tiff_directory(400, 50_000),
        hostile.ppm_with_comment(4000),
        hostile.EPS,
        b"P3 1000 1000 255 " + b"1 " * 500_000,
    ]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut out, repeated or put in; most of them near the start, where the structure is."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = min(len(changed), int(len(changed) * rng.random() ** rng.choice((1, 3))))
        match rng.randrange(6):
            case 0:
                changed[place : place + 1] = bytes([rng.randrange(256)])
            case 1 if place < len(changed):
                changed[place] ^= 1 << rng.randrange(8)
            case 2:
                changed[place : place + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", rng.randbytes(4)))
            case 3:
                del changed[place : place + rng.randrange(1, 64)]
            case 4:
                changed[place:place] = changed[place : place + rng.randrange(1, 256)] * rng.choice((1, 10, 1000))
            case _:
                del changed[place + 16 :]
    return bytes(changed[: 8 * 2**20])


def decode_mutants(num: int, *, seed: int) -> Outcome:
    """Decode mutants in two processes, every tenth picture a whole one whose pixels are compared."""
    rng, sources, outcome = random.Random(seed), seeds(), Outcome()
    known = sources[0]
    expected = evaluation_pixels(decode(known), image_px=32, config=_CONFIG)
    given = [known if number % 10 == 0 else mutated(rng.choice(sources), rng) for number in range(num)]
    num_read, slowest, peak = 0, 0.0, 0
    lock = threading.Lock()

    def one(number: int) -> None:
        nonlocal num_read, slowest, peak
        began = time.monotonic()
        try:
            pixels = pool.pixels(given[number], image_px=32, config=_CONFIG)
            broken = number % 10 == 0 and not np.array_equal(pixels, expected)
        except ImageError as error:
            pixels, broken = None, number % 10 == 0
            if "crashed" in str(error):
                outcome.failures.append(f"picture {number}: {error}")
        with lock:
            num_read += pixels is not None
            slowest = max(slowest, time.monotonic() - began)
            peak = max(peak, *(_peak_of(process) for process in pool.processes))
            if broken:
                outcome.failures.append(f"picture {number}: a whole picture was affected by the others")

    with DecodePool(2, timeout_s=_TIMEOUT_S, max_pixels=_MAX_PIXELS) as pool, ThreadPoolExecutor(2) as threads:
        list(threads.map(one, range(num)))
    if peak > memory_limit(_MAX_PIXELS):
        outcome.failures.append(f"a process that decodes took {peak:,} bytes")
    taken = f"slowest {slowest:.1f} s, at most {peak / 2**20:.0f} MiB per process"
    outcome.summary = f"pictures: {num:,} decoded, {num_read:,} readable, {taken}"
    return outcome


def _peak_of(process: int) -> int:
    """The most memory that a process has held, in bytes."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
