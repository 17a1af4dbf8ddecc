"""The process in which `DecodePool` decodes images. It does not import torch and is killed when it takes too long.

A request consists of a JSON frame and a frame with an encoded image; the response consists of a JSON frame and a frame of
bytes. A frame is its length in eight bytes, followed by its content. Neither side unpickles anything.
"""

import io
import json
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from diptych.core.errors import ImageError
from diptych.images.decode import decode
from diptych.images.fingerprints import fingerprint
from diptych.images.transforms import PixelConfig, evaluation_pixels

_LENGTH = struct.Struct("<Q")
_BASE_BYTES, _BYTES_PER_PIXEL = 768 * 2**20, 12
"""Memory of a process: a base for the interpreter and the file, and per pixel RGBA, RGB and copies between them."""


def memory_limit(max_pixels: int) -> int:
    """Return the limit of a process's address space in bytes; decoding fails with MemoryError if it needs more."""
    return _BASE_BYTES + _BYTES_PER_PIXEL * max_pixels


def send_frame(connection: socket.socket, content: bytes | memoryview) -> None:
    """Send one frame."""
    connection.sendall(_LENGTH.pack(len(content)))
    connection.sendall(content)


def receive_frame(connection: socket.socket, *, max_bytes: int) -> bytearray:
    """Receive one frame.

    Raises:
        EOFError: the other side closed the connection.
        ValueError: the frame is longer than `max_bytes`.
    """
    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
    if length > max_bytes:
        raise ValueError(f"a frame of {length} bytes is over the limit of {max_bytes}")
    return _receive(connection, length)


def _receive(connection: socket.socket, num: int) -> bytearray:
    content = bytearray(num)
    view, offset = memoryview(content), 0
    while offset < num:
        received = connection.recv_into(view[offset:])
        if not received:
            raise EOFError
        offset += received
    return content


def _pixels(content: bytes, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Return the model's input, as computed by `evaluation_pixels`, and the perceptual hash of the whole image."""
    config = PixelConfig(**{name: _as_tuple(value) for name, value in request["config"].items()})
    picture = decode(content, max_pixels=request["max_pixels"])
    pixels = evaluation_pixels(picture, image_px=_as_tuple(request["image_px"]), config=config)
    phash = fingerprint(picture) if request.get("with_phash") else None
    return {"shape": pixels.shape, "phash": phash}, pixels.tobytes()


def _as_tuple(value: Any) -> Any:
    """Return a list from JSON as a tuple, and any other value unchanged."""
    return tuple(value) if isinstance(value, list) else value


def _phash(content: bytes, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Return the perceptual hash of the image."""
    return {"phash": fingerprint(decode(content, max_pixels=request["max_pixels"]))}, b""


def _preview(content: bytes, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Return the image resized to fit into a square, encoded in another format."""
    picture = decode(content, max_pixels=request["max_pixels"])
    picture.thumbnail((request["width_px"], request["width_px"]), Image.Resampling.BICUBIC, reducing_gap=2.0)
    written = io.BytesIO()
    picture.save(written, request["form"], quality=82)
    return {}, written.getvalue()


_TASKS: dict[str, Callable[[bytes, dict[str, Any]], tuple[dict[str, Any], bytes]]] = {
    "pixels": _pixels,
    "phash": _phash,
    "preview": _preview,
}


def _respond(content: bytes, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    try:
        return _TASKS[request["task"]](content, request)
    except ImageError as error:
        return {"error": str(error)}, b""
    except Exception as error:  # Pillow may decode an image that it cannot resize or write.
        return {"error": f"<{len(content)} bytes>: cannot be decoded ({type(error).__name__})"}, b""


def main() -> None:
    """Answer requests until the other side closes the connection."""
    descriptor, max_pixels, max_bytes, timeout_s = (int(word) for word in sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent handles Ctrl-C and may still need this process.
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit(max_pixels), memory_limit(max_pixels)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    np.zeros(1)  # Initialize NumPy before the first image.
    connection = socket.socket(fileno=descriptor)
    send_frame(connection, b"ready")
    while True:
        try:
            request = json.loads(bytes(receive_frame(connection, max_bytes=2**20)))
            content = bytes(receive_frame(connection, max_bytes=max_bytes))
        except EOFError:
            return
        # If the parent is killed meanwhile, no other process would end a decoder that hangs.
        signal.alarm(timeout_s + 5)
        meta, payload = _respond(content, request)
        signal.alarm(0)
        send_frame(connection, json.dumps(meta).encode())
        send_frame(connection, payload)


if __name__ == "__main__":
    main()
