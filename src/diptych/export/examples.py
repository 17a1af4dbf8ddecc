"""The example programs in an ONNX folder. They rank texts for an image and need neither Diptych nor PyTorch."""

from importlib.resources import files

from diptych.images.transforms import height_width
from diptych.models.config import CLIPConfig
from diptych.tokenizers.protocol import Tokenizer

TRANSFORMERS_JS = "4.3.2"
"""Version of transformers.js that the example is tested with."""

_IMPORTS = """import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer"""

_HASHING_IMPORTS = """import json
import re
import sys
import unicodedata
from pathlib import Path
from zlib import crc32

import numpy as np
import onnxruntime
from PIL import Image, ImageOps"""

_SQUARE = "size = (max(width, image.width * height // image.height), max(height, image.height * width // image.width))"
_RECTANGLE = """scale = max(height / image.height, width / image.width)
    size = (round(image.width * scale), round(image.height * scale))"""

_TOKENS = '''def token_ids(texts):
    """Return token ids and attention mask, padded to the longest text."""
    encoded = Tokenizer.from_file(str(FOLDER / "tokenizer.json")).encode_batch(texts)
    return np.array([text.ids for text in encoded]), np.array([text.attention_mask for text in encoded])'''

_HASHING_TOKENS = '''def token_ids(texts):
    """Return token ids and attention mask, padded to the longest text. Each id is the hash of a word."""
    rows = []
    for text in texts:
        words = re.findall(r"\\w+|[^\\w\\s]", unicodedata.normalize("NFC", text).lower())[: @CONTEXT@ - 2]
        rows.append([@START@, *(4 + crc32(word.encode()) % (@VOCAB@ - 4) for word in words), @END@])
    mask = np.array([[i < len(row) for i in range(max(map(len, rows)))] for row in rows])
    ids = np.full(mask.shape, @PAD@)
    ids[mask] = np.concatenate(rows)
    return ids.astype(np.int64), mask.astype(np.int64)'''


def python_example(config: CLIPConfig, tokenizer: Tokenizer, *, graphs: tuple[str, str]) -> str:
    """Return the content of `example.py`, which needs only onnxruntime, Pillow, NumPy and, in most cases, tokenizers.

    Args:
        config: the config of the model.
        tokenizer: its tokenizer.
        graphs: paths of the image graph and the text graph within the folder.
    """
    height, width = height_width(config.image.image_px)
    is_hashing = tokenizer.kind == "hashing"
    packages = ["onnxruntime", *([] if is_hashing else ["tokenizers"]), "Pillow", "numpy"]
    return _filled(
        "example.py",
        PACKAGES=" ".join(packages),
        IMPORTS=_HASHING_IMPORTS if is_hashing else _IMPORTS,
        TOKENS=_HASHING_TOKENS if is_hashing else _TOKENS,
        SIZE=_SQUARE if height == width else _RECTANGLE,
        ROUND="round" if config.pixels.crop_rounding == "even" else "int",
        IMAGE_GRAPH=graphs[0],
        TEXT_GRAPH=graphs[1],
        CONTEXT=tokenizer.context_length,
        VOCAB=tokenizer.vocab_size,
        START=tokenizer.start_id,
        END=tokenizer.end_id,
        PAD=tokenizer.pad_id,
    )


def javascript_example(*, dtype: str) -> str:
    """Return the content of `example.mjs`, which needs transformers.js and the `tokenizer.json` of the folder.

    Args:
        dtype: the data type by which transformers.js selects the graph files: `fp32`, `fp16` or `int8`.
    """
    return _filled("example.mjs", VERSION=TRANSFORMERS_JS, DTYPE=dtype)


def _filled(name: str, **values: object) -> str:
    """The content of a template file, with each `@NAME@` replaced by its value."""
    text = files("diptych.export").joinpath(f"{name}.template").read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text
