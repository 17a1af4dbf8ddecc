"""The example programs in an ONNX folder. They rank texts for an image and need neither Diptych nor PyTorch."""

from importlib.resources import files

from diptych.export.example_pixels import transform_lines
from diptych.models.config import CLIPConfig
from diptych.tokenizers.preparation import TextPreparation
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

_TOKENS = '''def token_ids(texts):
    """Return token ids and attention mask, padded to the longest text."""
    encoded = Tokenizer.from_file(str(FOLDER / "tokenizer.json")).encode_batch(texts)
    return np.array([text.ids for text in encoded]), np.array([text.attention_mask for text in encoded])'''

_SENTENCEPIECE_IMPORTS = """import json
import re
import string
import sys
from pathlib import Path

@FTFY@import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from sentencepiece import SentencePieceProcessor"""

_SENTENCEPIECE_TOKENS = '''def prepared(text):
    """Return the text as the model expects it."""
@PREPARED@
    return text


def token_ids(texts):
    """Return token ids and attention mask, padded to the longest text."""
    pieces = SentencePieceProcessor(model_file=str(FOLDER / "diptych/tokenizer.model"))
    start, end = @MARKS@
    room = @CONTEXT@ - len(start) - len(end)
    rows = [start + pieces.encode(prepared(text))[:room] + end or [@PAD@] for text in texts]
    mask = np.array([[i < len(row) for i in range(max(map(len, rows)))] for row in rows])
    ids = np.full(mask.shape, @PAD@)
    ids[mask] = np.concatenate(rows)
    return ids.astype(np.int64), mask.astype(np.int64)'''

_REPAIR = "text = html.unescape(html.unescape(ftfy.fix_text(text)))"
_PUNCTUATION = 'text = text.translate(str.maketrans("", "", string.punctuation))'
_COLLAPSE = 'text = re.sub(r"\\s+", " ", text).strip()'
_LOWER = "text = text.lower()"
_CLEANING = {
    "none": [],
    "whitespace": [_REPAIR, _COLLAPSE],
    "lower": [_REPAIR, _COLLAPSE, _LOWER],
    "canonicalize": [_REPAIR, 'text = text.replace("_", " ")', _PUNCTUATION, _LOWER, _COLLAPSE],
}
_CASES = {
    "full": _LOWER,
    "character": 'text = text.replace("\u03a3", "\u03c3").lower()',
    "ascii": "text = text.translate(str.maketrans(string.ascii_uppercase, string.ascii_lowercase))",
}

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
    preparation = config.text.preparation
    is_cleaned = tokenizer.kind == "sentencepiece" and preparation.clean != "none"
    package, imports, tokens = {
        "hashing": ([], _HASHING_IMPORTS, _HASHING_TOKENS),
        "sentencepiece": (["sentencepiece", *["ftfy"] * is_cleaned], _SENTENCEPIECE_IMPORTS, _SENTENCEPIECE_TOKENS),
    }.get(tokenizer.kind, (["tokenizers"], _IMPORTS, _TOKENS))
    marks = tuple([] if i is None else [i] for i in (tokenizer.start_id, tokenizer.end_id))
    return _filled(
        "example.py",
        PACKAGES=" ".join(["onnxruntime", *package, "Pillow", "numpy"]),
        IMPORTS=("import html\n" if is_cleaned else "") + imports,
        TOKENS=tokens,
        FTFY="import ftfy\n" if is_cleaned else "",
        PREPARED="\n".join(f"    {step}" for step in _steps(preparation)),
        MARKS=marks,
        RESIZE=transform_lines(config),
        IMAGE_GRAPH=graphs[0],
        TEXT_GRAPH=graphs[1],
        CONTEXT=tokenizer.context_length,
        VOCAB=tokenizer.vocab_size,
        START=tokenizer.start_id,
        END=tokenizer.end_id,
        PAD=tokenizer.pad_id,
    )


def _steps(preparation: TextPreparation) -> list[str]:
    """Return statements that are equivalent to `prepare_text`."""
    return [
        *_CLEANING[preparation.clean],
        *([_CASES[preparation.case_rule]] if preparation.lowercase else []),
        *([_PUNCTUATION, _COLLAPSE] if preparation.remove_punctuation else []),
    ]


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
