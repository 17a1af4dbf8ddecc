"""Pictures as requests hold them."""

import base64
import io

from PIL import Image


def jpeg() -> bytes:
    """A small picture of noise, other noise at each call."""
    written = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(written, "JPEG")
    return written.getvalue()


def coded(content: bytes) -> str:
    """Bytes as JSON holds them."""
    return base64.b64encode(content).decode()
