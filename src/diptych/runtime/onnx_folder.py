"""Read ONNX folders, which `diptych export --to onnx` writes.

    config.json, preprocessor_config.json, tokenizer.json    for other libraries
    onnx/vision_model.onnx, onnx/text_model.onnx             the graphs; the names of lower precisions end in _fp16 or _int8
    diptych/config.json                                      model config, logit scale, identity, metrics, checksums
    diptych/tokenizer.json (or .model)                       the bundle's tokenizer file

Graphs are read when they are first used: a text search does not read the image tower.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diptych.bundle.checksums import Verify, check_file
from diptych.bundle.read_tokenizer import read_tokenizer
from diptych.core.errors import BundleError
from diptych.core.precision import Precision
from diptych.images.transforms import height_width
from diptych.models.config import CLIPConfig
from diptych.runtime.onnx_config import OnnxConfig, graph_names, read_onnx_config, tokenizer_path
from diptych.runtime.sessions import Sessions
from diptych.runtime.towers import OnnxTowers
from diptych.tokenizers.protocol import Tokenizer


@dataclass(frozen=True, kw_only=True)
class OnnxModel:
    """The model of an ONNX folder (`diptych.inference.towers.Model`)."""

    facts: OnnxConfig
    """The content of `diptych/config.json`."""
    tokenizer: Tokenizer
    """Converts texts to ids."""
    sessions: Sessions
    """The ONNX Runtime sessions of the two graphs."""

    @property
    def config(self) -> CLIPConfig:
        """The architecture and the image transform."""
        return self.facts.model

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine similarities before a softmax."""
        return self.facts.logit_scale

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the bundle, each with the protocol by which it was measured."""
        return self.facts.metrics

    @property
    def origin(self) -> dict[str, Any]:
        """How the bundle was made."""
        return self.facts.origin

    @property
    def variant(self) -> str:
        """Distinguishes the embeddings of a lower precision from those of the bundle; "" for fp32 (`OnnxConfig.variant`)."""
        return self.facts.variant

    def identities(self) -> tuple[str, ...]:
        """The identity of the bundle that was exported, then its identity in indexes of earlier versions."""
        return self.facts.identity, *self.facts.aliases

    def towers(self, precision: Precision | None = None) -> OnnxTowers:
        """The two graphs with the interface that the embedder uses. `precision` is ignored: the files determine it."""
        return self._towers

    @cached_property
    def _towers(self) -> OnnxTowers:
        return OnnxTowers(self.sessions, pixels=self.config.pixels, precision=self.facts.precision)


def load_onnx(
    folder: Path, *, provider: str | None = None, threads: int | None = None, verify: Verify = "auto"
) -> OnnxModel:
    """Return the model of an ONNX folder. Its graphs are read when they are first used.

    Args:
        folder: the folder.
        provider: execution provider of ONNX Runtime, such as "cuda", "coreml" or "openvino"; None for the CPU.
        threads: number of threads of ONNX Runtime; None for `OMP_NUM_THREADS`, or else the number of cores that the process may
            use.
        verify: `auto` checks the checksum of a large file once, and again only if its size, times or inode change; `full`
            always checks all files.

    Raises:
        BundleError: the export is incomplete or damaged, or this version does not support its format, opset or precision.
        ConfigError: ONNX Runtime has no such provider.
    """
    facts = read_onnx_config(folder)
    try:
        missing = [name for name in facts.files if not (folder / name).is_file()]
        if missing:
            raise BundleError(f"{folder}: is an incomplete export; {missing[0]} is missing: export the bundle again")
        for name, expected in facts.files.items():
            check_file(folder / name, expected, verify=verify)
        tokenizer = read_tokenizer(facts.model, folder / tokenizer_path(facts.model))
    except OSError as error:
        raise BundleError(f"{folder}: cannot be read ({error.strerror or error})") from None
    image, text = (folder / name for name in graph_names(facts.precision))
    size, dim = height_width(facts.model.image.image_px), facts.model.embed_dim
    sessions = Sessions(image=image, text=text, image_size=size, dim=dim, provider=provider, threads=threads)
    return OnnxModel(facts=facts, tokenizer=tokenizer, sessions=sessions)
