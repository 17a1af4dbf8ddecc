"""Pictures, encoded for requests."""

import base64
import io

from PIL import Image


def jpeg() -> bytes:
    """A small JPEG of noise, which differs from call to call."""
    written = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(written, "JPEG")
    return written.getvalue()


def coded(content: bytes) -> str:
    """Bytes in base64, for JSON."""
    return base64.b64encode(content).decode()
