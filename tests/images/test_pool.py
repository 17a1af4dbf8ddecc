"""Decoding in processes of their own: the same pixels, and limits that hold."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from diptych.core.errors import ImageError
from diptych.images.decode import decode
from diptych.images.pool import DecodePool
from diptych.images.transforms import PixelConfig, evaluation_pixels
from diptych.images.worker import memory_limit
from tests.images.hostile import EPS, encoded, png

CONFIG = PixelConfig(interpolation="bilinear", crop_rounding="down")


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(2, timeout_s=60, max_pixels=4_000_000) as opened:
        yield opened


def pixels(pool: DecodePool, content: bytes) -> np.ndarray:
    return pool.pixels(content, image_px=32, config=CONFIG)


def test_the_pixels_are_those_of_this_process(pool: DecodePool) -> None:
    for image_px in (32, (24, 48)):
        content = encoded("JPEG", 100, 60)
        found = pool.pixels(content, image_px=image_px, config=CONFIG)
        assert np.array_equal(found, evaluation_pixels(decode(content), image_px=image_px, config=CONFIG))


@pytest.mark.parametrize(
    "config",
    [
        PixelConfig(resize="squash", interpolation="lanczos", resize_px=40),
        PixelConfig(resize="pad", pad_color=(1, 2, 250)),
    ],
)
def test_the_processes_know_every_transform(pool: DecodePool, config: PixelConfig) -> None:
    content = encoded("JPEG", 100, 60)
    found = pool.pixels(content, image_px=32, config=config)
    assert np.array_equal(found, evaluation_pixels(decode(content), image_px=32, config=config))


def test_a_forked_process_has_decoders_of_its_own() -> None:
    content = encoded("JPEG", 100, 60)
    with DecodePool(1, timeout_s=60) as pool:
        expected = pixels(pool, content)
        context = multiprocessing.get_context("fork")
        answer = context.SimpleQueue()

        def child() -> None:
            with pool:
                is_equal = np.array_equal(pixels(pool, content), expected)
                answer.put((is_equal, pool.processes))

        process = context.Process(target=child)
        process.start()
        process.join(60)
        assert process.exitcode == 0
        is_equal, identifiers = answer.get()
        assert is_equal
        assert len(identifiers) == len(pool.processes) == 1
        assert identifiers != pool.processes
        np.testing.assert_array_equal(pixels(pool, content), expected)  # The child's end has ended no decoder here.
        assert len(pool.processes) == 1


def test_a_preview_is_small_and_has_its_format(pool: DecodePool) -> None:
    preview = pool.preview(encoded("PNG", 100, 60), width_px=50, form="WEBP")
    assert preview[8:12] == b"WEBP"
    assert decode(preview).size == (50, 30)


@pytest.mark.parametrize("content", [b"", b"abc", EPS, encoded("JPEG")[:200], png(3000, 3000), png(70_000, 1)[:60]])
def test_what_cannot_be_decoded_is_an_error_and_the_process_goes_on(pool: DecodePool, content: bytes) -> None:
    with pytest.raises(ImageError, match=f"<{len(content)} bytes>"):
        pixels(pool, content)
    assert pixels(pool, encoded("PNG")).shape == (3, 32, 32)


def test_a_picture_that_takes_too_long_fails_alone() -> None:
    """Its process is stopped here as a decoder that hangs would be; the pictures beside and after it are decoded."""
    with DecodePool(1, timeout_s=60) as pool:
        pixels(pool, encoded("PNG"))
        pool.timeout_s = 0.5
        (process,) = pool.processes
        os.kill(process, signal.SIGSTOP)
        with pytest.raises(ImageError, match=r"took more than 0\.5 seconds"):
            pixels(pool, encoded("PNG"))
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
        pool.timeout_s = 60
        assert pixels(pool, encoded("PNG")).shape == (3, 32, 32)


def test_a_process_that_crashes_is_replaced() -> None:
    with DecodePool(1) as pool:
        pixels(pool, encoded("PNG"))
        (process,) = pool.processes
        os.kill(process, signal.SIGSTOP)
        killer = threading.Timer(0.3, os.kill, (process, signal.SIGKILL))
        killer.start()
        with pytest.raises(ImageError, match="its decoder crashed"):
            pixels(pool, encoded("PNG"))
        killer.join()
        assert pixels(pool, encoded("PNG")).shape == (3, 32, 32)


def test_memory_is_limited() -> None:
    """Where only ten pixels are expected, a picture of 400 million does not fit, even if its size is not checked."""
    program = """
import resource, sys
from PIL import Image
from diptych.images import worker
Image.MAX_IMAGE_PIXELS = None
limit = worker.memory_limit(10)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
asked = {"task": "preview", "max_pixels": 10**9, "width_px": 9, "form": "PNG"}
print(worker._respond(sys.stdin.buffer.read(), asked))
"""
    found = subprocess.run([sys.executable, "-c", program], input=png(20_000, 20_000), capture_output=True, check=True)
    assert b"cannot be decoded (MemoryError" in found.stdout
    assert memory_limit(1) > memory_limit(0)


def test_threads_share_the_processes(pool: DecodePool) -> None:
    contents = [encoded("PNG", 10 + number, 12) for number in range(20)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda content: pixels(pool, content), contents))
    for content, one in zip(contents, found, strict=True):
        assert np.array_equal(one, evaluation_pixels(decode(content), image_px=32, config=CONFIG))


def test_the_processes_end_with_the_pool() -> None:
    with DecodePool(1) as pool:
        pixels(pool, encoded("PNG"))
        (process,) = pool.processes
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_the_processes_import_no_torch() -> None:
    program = "import sys, diptych.images.worker; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
