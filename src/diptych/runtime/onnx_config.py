"""The config of an ONNX folder: Diptych's own facts about an export, sealed with a checksum."""

import re
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from diptych.bundle.checksums import canonical_json, check_seal
from diptych.bundle.onnx_layout import ONNX_CONFIG
from diptych.core.errors import BundleError, ConfigError
from diptych.core.precision import GraphPrecision
from diptych.core.settings import from_plain, read_json, settings
from diptych.models.config import CLIPConfig
from diptych.tokenizers.load_tokenizer import tokenizer_file

ONNX_FORMAT = 1
"""Version of the format of `ONNX_CONFIG`."""
MAX_OPSET = 26
"""The newest opset version that this version of Diptych accepts."""
_NAME = re.compile(r"onnx/[\w.-]{1,100}")


def precision_suffix(precision: GraphPrecision) -> str:
    """Return what the name of a graph file ends with, by which transformers.js selects it.

    >>> precision_suffix("fp32"), precision_suffix("int8")
    ('', '_int8')
    """
    return "" if precision == "fp32" else f"_{precision}"


def graph_names(precision: GraphPrecision) -> tuple[str, str]:
    """Return the paths of the image graph and the text graph within an ONNX folder.

    >>> graph_names("int8")
    ('onnx/vision_model_int8.onnx', 'onnx/text_model_int8.onnx')
    """
    suffix = precision_suffix(precision)
    return f"onnx/vision_model{suffix}.onnx", f"onnx/text_model{suffix}.onnx"


def tokenizer_path(config: CLIPConfig) -> str:
    """Return the path of the bundle's tokenizer file within an ONNX folder.

    >>> tokenizer_path(CLIPConfig())
    'diptych/tokenizer.json'
    """
    return f"diptych/{tokenizer_file(config.text.tokenizer)}"


@settings
class OnnxConfig:
    """The content of `diptych/config.json` in an ONNX folder."""

    onnx_format: Literal[1]
    """Version of the format."""
    precision: GraphPrecision
    """Precision of the graphs."""
    opset: Annotated[int, Field(ge=1)]
    """Version of ONNX's operators in the graphs."""
    model: CLIPConfig
    """The architecture and the image transform."""
    logit_scale: Annotated[float, Field(gt=0)]
    """Factor of the cosine similarities before a softmax."""
    logit_bias: float | None = None
    """Added to the scaled cosine similarities; None if the model has no bias."""
    identity: Annotated[str, Field(pattern=r"^[0-9a-f]{12,64}$")]
    """The identity of the bundle that was exported."""
    aliases: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{12,64}$")], ...]
    """Its identity in indexes of earlier versions."""
    files: dict[str, str]
    """The SHA-256 of each file in `onnx` and of the tokenizer, by path."""
    metrics: dict[str, Any]
    """Metrics of the bundle, each with the protocol by which it was measured."""
    origin: dict[str, Any]
    """How the bundle was made."""
    min_cosine: float | None = None
    """Minimum cosine similarity to fp32 when the export was made; None for fp32."""
    sha256: str
    """Checksum of everything else."""

    def __post_init__(self) -> None:
        tokenizer = tokenizer_path(self.model)
        needed = {*graph_names(self.precision), tokenizer}
        if missing := sorted(needed - self.files.keys()):
            raise ConfigError(f"{ONNX_CONFIG} has no checksum of {missing[0]}")
        for name in self.files:
            if name != tokenizer and not _NAME.fullmatch(name):
                raise ConfigError(f"{ONNX_CONFIG} has a checksum of {name!r:.60}, which is no file of an export")

    @cached_property
    def variant(self) -> str:
        """Distinguishes the embeddings of a lower precision from those of the bundle, such as "int8-0123abcd"; "" for fp32.

        Two int8 exports of one bundle differ if they were calibrated with different images.
        """
        if self.precision == "fp32":
            return ""
        graphs = {name: checksum for name, checksum in self.files.items() if _NAME.fullmatch(name)}
        return f"{self.precision}-{sha256(canonical_json(graphs)).hexdigest()[:8]}"


def read_onnx_config(folder: Path) -> OnnxConfig:
    """Return the config of an ONNX folder.

    Raises:
        BundleError: it is damaged, or it has a newer format or opset than this version supports.
    """
    path = folder / ONNX_CONFIG
    try:
        content = read_json(path)
        if not isinstance(content, dict) or content.get("onnx_format") != ONNX_FORMAT:
            found = content.get("onnx_format") if isinstance(content, dict) else None
            raise BundleError(f"{path}: onnx_format is {found!r:.40}; this Diptych reads {ONNX_FORMAT}")
        check_seal(content, path, checked_files=[])
        config = from_plain(OnnxConfig, content, what=str(path))
    except ConfigError as error:
        raise BundleError(str(error)) from None
    if config.opset > MAX_OPSET:
        raise BundleError(
            f"{folder}: has opset {config.opset}, and this Diptych supports up to {MAX_OPSET}; export the bundle again"
        )
    return config
