"""The process in which `DecodePool` decodes pictures. It imports no torch, and is killed when it takes too long.

A request is a frame of JSON and a frame of an encoded picture; the answer is a frame of JSON and a frame of bytes. A frame is
its length in eight bytes, then its content. Neither side unpickles anything.
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
"""Memory of a process: what the interpreter and the file take, and for each pixel RGBA, RGB and copies between them."""


def memory_limit(max_pixels: int) -> int:
    """Bytes of address space that a process gets; beyond them decoding fails with MemoryError."""
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
    view, place = memoryview(content), 0
    while place < num:
        received = connection.recv_into(view[place:])
        if not received:
            raise EOFError
        place += received
    return content


def _pixels(content: bytes, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The model's input, as `evaluation_pixels` computes it, and the perceptual hash of the whole picture."""
    image_px, config = asked["image_px"], asked["config"]
    picture = decode(content, max_pixels=asked["max_pixels"])
    pixels = evaluation_pixels(
        picture,
        image_px=tuple(image_px) if isinstance(image_px, list) else image_px,
        config=PixelConfig(
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
            crop_rounding=config["crop_rounding"],
        ),
    )
    phash = fingerprint(picture) if asked.get("with_phash") else None
    return {"shape": pixels.shape, "phash": phash}, pixels.tobytes()


def _phash(content: bytes, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The perceptual hash."""
    return {"phash": fingerprint(decode(content, max_pixels=asked["max_pixels"]))}, b""


def _preview(content: bytes, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The picture within a square, as a file of another format."""
    picture = decode(content, max_pixels=asked["max_pixels"])
    picture.thumbnail((asked["width_px"], asked["width_px"]), Image.Resampling.BICUBIC, reducing_gap=2.0)
    written = io.BytesIO()
    picture.save(written, asked["form"], quality=82)
    return {}, written.getvalue()


_TASKS: dict[str, Callable[[bytes, dict[str, Any]], tuple[dict[str, Any], bytes]]] = {
    "pixels": _pixels,
    "phash": _phash,
    "preview": _preview,
}


def _answer(content: bytes, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    try:
        return _TASKS[asked["task"]](content, asked)
    except ImageError as error:
        return {"error": str(error)}, b""
    except Exception as error:  # A picture that Pillow decodes may still be one that it cannot resize or write.
        return {"error": f"<{len(content)} bytes>: cannot be decoded ({type(error).__name__})"}, b""


def main() -> None:
    """Answer requests until the other side closes the connection."""
    descriptor, max_pixels, max_bytes, timeout_s = (int(word) for word in sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which may still need this process.
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit(max_pixels), memory_limit(max_pixels)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    np.zeros(1)  # What numpy sets up is set up before the first picture.
    connection = socket.socket(fileno=descriptor)
    send_frame(connection, b"ready")
    while True:
        try:
            asked = json.loads(bytes(receive_frame(connection, max_bytes=2**20)))
            content = bytes(receive_frame(connection, max_bytes=max_bytes))
        except EOFError:
            return
        # If the parent is killed meanwhile, nobody else ends a decoder that hangs.
        signal.alarm(timeout_s + 5)
        told, payload = _answer(content, asked)
        signal.alarm(0)
        send_frame(connection, json.dumps(told).encode())
        send_frame(connection, payload)


if __name__ == "__main__":
    main()
