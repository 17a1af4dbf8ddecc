"""Decode untrusted images in separate processes with limits on time and memory. Shapes: H height, W width."""

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from diptych.core.errors import DiptychError, ImageError
from diptych.core.files import MAX_IMAGE_BYTES
from diptych.core.settings import to_plain
from diptych.images.opener import MAX_PIXELS
from diptych.images.transforms import PixelConfig, Pixels
from diptych.images.worker import receive_frame, send_frame

_START_S = 60.0
"""Maximum start time of a process in seconds, on a busy machine."""


class DecodePool:
    """Pool of processes that decode images. A process that times out or crashes is replaced, and only its image fails.

    The processes import neither torch nor the model. Each has a memory limit (`worker.memory_limit`) and cannot write files.
    Threads can share a pool; a forked process starts its own decoders. Use the pool as a context manager, or call `close`.
    """

    def __init__(
        self,
        num_processes: int = 2,
        *,
        timeout_s: float = 60.0,
        max_pixels: int = MAX_PIXELS,
        on_phash: Callable[[bytes, int], object] | None = None,
    ) -> None:
        """Create the pool. Each process is started when it decodes its first image.

        Args:
            num_processes: maximum number of images that are decoded at the same time.
            timeout_s: maximum wall-clock time per image, in seconds.
            max_pixels: maximum width times height of an image.
            on_phash: called by `pixels` in the calling thread with the content and the perceptual hash of each image. If it is
                None, no hash is computed.
        """
        self.on_phash = on_phash
        self.timeout_s, self.max_pixels = timeout_s, max_pixels
        self._num, self._is_closed = num_processes, False
        self._reset()

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pixels(self, content: bytes, *, image_px: Pixels, config: PixelConfig) -> UInt8[ndarray, "3 H W"]:
        """Return the model's input, as computed by `evaluation_pixels` from the decoded image.

        Raises:
            ImageError: the image cannot be decoded within the limits.
            DiptychError: no process can be started.
        """
        with_phash = self.on_phash is not None
        meta, payload = self._run("pixels", content, image_px=image_px, config=to_plain(config), with_phash=with_phash)
        if self.on_phash is not None:
            self.on_phash(content, int(meta["phash"]))
        return np.frombuffer(payload, dtype=np.uint8).reshape(meta["shape"])

    def phash(self, content: bytes) -> int:
        """Return the perceptual hash of the decoded image, as computed by `fingerprint`.

        Raises:
            ImageError: the image cannot be decoded within the limits.
            DiptychError: no process can be started.
        """
        return int(self._run("phash", content)[0]["phash"])

    def preview(self, content: bytes, *, width_px: int, form: Literal["JPEG", "WEBP", "PNG"]) -> bytes:
        """Return the image resized to fit into a square of `width_px` pixels, encoded as `form`. Small images are not enlarged.

        Raises:
            ImageError: the image cannot be decoded within the limits.
            DiptychError: no process can be started.
        """
        return bytes(self._run("preview", content, width_px=width_px, form=form)[1])

    def start(self) -> None:
        """Start all idle processes now, so that the first images are not delayed.

        Raises:
            DiptychError: no process can be started.
        """
        started = [_Process(self.timeout_s, self.max_pixels) for _ in range(self._idle.qsize())]
        for process in started:
            held = self._idle.get()
            if held is not None:
                held.kill()
            self._idle.put(process)

    @property
    def processes(self) -> list[int]:
        """The process ids of the idle processes."""
        return [held.identifier for held in list(self._idle.queue) if held is not None]

    def close(self) -> None:
        """Kill the idle processes now, and the others after their current image."""
        self._is_closed = True
        if os.getpid() != self._owner:
            return
        with contextlib.suppress(queue.Empty):
            while True:
                process = self._idle.get_nowait()
                if process is not None:
                    process.kill()

    def _reset(self) -> None:
        """Replace the processes by idle slots; a forked process must not use those of its parent."""
        idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(self._num):
            idle.put(None)
        self._idle, self._owner = idle, os.getpid()

    def _run(self, task: str, content: bytes, **more: Any) -> tuple[dict[str, Any], bytearray]:
        if os.getpid() != self._owner:
            self._reset()
        name = f"<{len(content)} bytes>"
        if len(content) > MAX_IMAGE_BYTES:
            raise ImageError(f"{name}: is over the limit of {MAX_IMAGE_BYTES // 2**20} MiB")
        request = json.dumps({"task": task, "max_pixels": self.max_pixels, **more}).encode()
        with self._process() as process:
            try:
                meta, payload = process.exchange(request, content, timeout_s=self.timeout_s)
            except TimeoutError:
                raise ImageError(f"{name}: took more than {self.timeout_s:g} seconds to decode") from None
            except (OSError, EOFError, ValueError):
                raise ImageError(f"{name}: its decoder crashed") from None
        if "error" in meta:
            raise ImageError(str(meta["error"]))
        return meta, payload

    @contextlib.contextmanager
    def _process(self) -> Iterator["_Process"]:
        """Yield an idle process, or a new one; it is killed if the block raises."""
        process = self._idle.get()
        try:
            if process is None or not process.is_running:
                process = _Process(self.timeout_s, self.max_pixels)
            yield process
        except BaseException:
            if process is not None:
                process.kill()
            process = None
            raise
        finally:
            if process is not None and self._is_closed:
                process.kill()
                process = None
            self._idle.put(process)


class _Process:
    """A decoder process and the connection to it."""

    def __init__(self, timeout_s: float, max_pixels: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            words = [theirs.fileno(), max_pixels, MAX_IMAGE_BYTES, int(timeout_s) + 1]
            package = str(Path(__file__).parents[2])
            path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
            self._process = subprocess.Popen(
                [sys.executable, "-m", "diptych.images.worker", *map(str, words)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # Decoders print warnings of their own.
                env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        self._connection = ours
        try:
            self._connection.settimeout(_START_S)
            receive_frame(self._connection, max_bytes=16)
        except (OSError, EOFError, ValueError):
            self.kill()
            raise DiptychError(
                "the processes that decode pictures do not start; "
                f"'{sys.executable} -m diptych.images.worker 0 1 1 1' shows why"
            ) from None

    @property
    def identifier(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def exchange(self, request: bytes, content: bytes, *, timeout_s: float) -> tuple[dict[str, Any], bytearray]:
        """Send a request with an image, and return the metadata and payload of the response.

        Raises:
            TimeoutError: the whole exchange takes longer than `timeout_s`.
            OSError, EOFError, ValueError: the process ended, or its response is malformed.
        """
        until = time.monotonic() + timeout_s
        for frame in (request, content):
            self._limit(until)
            send_frame(self._connection, frame)
        self._limit(until)
        meta = json.loads(bytes(receive_frame(self._connection, max_bytes=2**20)))
        self._limit(until)
        payload = receive_frame(self._connection, max_bytes=MAX_IMAGE_BYTES)
        if not isinstance(meta, dict):
            raise ValueError("the response is not an object")
        return meta, payload

    def _limit(self, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
