"""Count how many of open_clip's pretrained models Diptych reads.

    python scripts/open_clip_coverage.py [--out FILE] [--only MODEL ...]

For each (model, tag) pair of open_clip, the script writes the config that a local folder of the model would have, builds
open_clip's model on PyTorch's `meta` device, which needs no memory for weights, and compares the names and shapes of its
tensors with those that Diptych's reader expects. No weights are downloaded. The script writes the result to FILE as Markdown.

Needs `open_clip_torch`, `timm` and `transformers`.
"""

import argparse
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from diptych.bundle.open_clip import CONFIG, read_open_clip_config
from diptych.bundle.open_clip_text import ARCHITECTURE
from diptych.bundle.openai import openai_names, plain_names
from diptych.bundle.renaming import shape_text, to_theirs
from diptych.core.errors import DiptychError
from diptych.models.clip import CLIP
from diptych.models.config import TextConfig
from diptych.models.third_party import make_torchvision_importable
from tokenizers import Tokenizer, models, processors

_ROBERTA = {
    **{"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    **{"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "hidden_act": "gelu"},
    **{"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_NLLB = {
    **{"model_type": "m2m_100", "is_encoder_decoder": True, "d_model": 1024, "vocab_size": 256206},
    **{"encoder_attention_heads": 16, "decoder_attention_heads": 16, "encoder_layerdrop": 0, "decoder_layerdrop": 0},
    **{"activation_function": "relu", "max_position_embeddings": 1024, "scale_embedding": True},
    **{"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2},
}
TEXT_ENCODERS: dict[str, dict[str, Any]] = {
    "roberta-base": {"model_type": "roberta", "vocab_size": 50265, **_ROBERTA},
    "xlm-roberta-base": {"model_type": "xlm-roberta", "vocab_size": 250002, **_ROBERTA},
    "xlm-roberta-large": {"model_type": "xlm-roberta", "vocab_size": 250002, **_ROBERTA, **_LARGE},
    "facebook/nllb-200-distilled-600M": {
        **_NLLB,
        **{"encoder_layers": 12, "decoder_layers": 12, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096},
    },
    "facebook/nllb-200-distilled-1.3B": {
        **_NLLB,
        **{"encoder_layers": 24, "decoder_layers": 24, "encoder_ffn_dim": 8192, "decoder_ffn_dim": 8192},
    },
}
"""Configs of the text encoders that open_clip only names: the sizes, as published on the hub."""

FIRST = {"CLIP (ResNet)": 16, "CLIP (ViT)": 76}
"""Pairs by family that Diptych read before SigLIP's tokenizers and the towers of other libraries were added: 92 in all."""
_FAMILIES = {
    r"RN\d": "CLIP (ResNet)",
    r".*worldwide": "MetaCLIP 2",
    r"(xlm-)?roberta": "RoBERTa and XLM-R text towers",
    r"nllb": "NLLB-CLIP",
    r"convnext": "ConvNeXt",
    r"coca": "CoCa",
    r"EVA": "EVA",
    r".*SigLIP2": "SigLIP 2",
    r".*SigLIP": "SigLIP",
    r".*CLIPA": "CLIPA",
    r"MobileCLIP": "MobileCLIP and MobileCLIP 2",
    r"ViTamin": "ViTamin",
    r"PE-Core": "Perception Encoder",
    r"ViT-": "CLIP (ViT)",
}
"""Family names by a regular expression for open_clip's model names; the first match counts."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Whether Diptych reads one of open_clip's pretrained models."""

    model: str
    tag: str
    reason: str | None
    """Why it cannot be read; None if it can."""

    @property
    def family(self) -> str:
        """The family of the model."""
        return next(family for pattern, family in _FAMILIES.items() if re.match(pattern, self.model))


def main() -> None:
    """Print the result, and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--only", nargs="+", default=[], metavar="MODEL", help="names of models, such as ViT-B-32")
    options = parser.parse_args()
    results = check_all(options.only)
    if not results:
        parser.error(f"open_clip has none of {', '.join(options.only)}")
    text = report(results)
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


def check_all(only: Iterable[str] = ()) -> list[Result]:
    """Return a result for each (model, tag) pair of open_clip, or for those of some models."""
    open_clip, names = import_open_clip(), set(only)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    results = []
    for model, tag in open_clip.list_pretrained():
        if not names or model in names:
            if model not in shapes:
                shapes = {model: shapes_of(model)}  # The tags of a model follow each other.
            reason = reason_against(model, tag, shapes[model])
            results.append(Result(model=model, tag=tag, reason=reason))
    return results


def import_open_clip() -> Any:
    """Return the module `open_clip`, even if torchvision's compiled library does not load."""
    make_torchvision_importable()
    return import_module("open_clip")


def reason_against(model: str, tag: str, theirs: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return why Diptych cannot read a model; None if it can.

    Args:
        model: open_clip's name of the architecture.
        tag: open_clip's name of the weights.
        theirs: shape of each tensor in a weights file of the model.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_config(model, tag, folder)
        try:
            config = read_open_clip_config(folder)
        except DiptychError as error:
            return str(error).replace(f"{folder}/", "").replace(str(folder), "the folder")
    with torch.device("meta"):
        weights = {name: torch.empty(shape) for name, shape in theirs.items()}
    plain = plain_names(weights, has_own_text=isinstance(config.text, TextConfig))
    expected = to_theirs(CLIP.without_memory(config).state_dict(), openai_names(config))
    for name in sorted(expected.keys() | plain.keys()):
        ours, other = (tensors.get(name) for tensors in (expected, plain))
        if ours is None or other is None:
            return f"the tensor {name} is {'not expected' if ours is None else 'missing'}"
        if ours.shape != other.shape:
            return f"the tensor {name} is {shape_text(other.shape)}, expected {shape_text(ours.shape)}"
    return None


def write_config(model: str, tag: str, folder: Path) -> None:
    """Write the files of a local folder: the model's config, the tag's image transform, and a small tokenizer."""
    open_clip = import_open_clip()
    cfg = open_clip.get_model_config(model)
    base = open_clip.transform.PreprocessCfg(size=cfg["vision_cfg"].get("image_size", 224))
    preprocess = open_clip.transform.merge_preprocess_dict(base, open_clip.pretrained.get_pretrained_cfg(model, tag))
    folder.joinpath(CONFIG).write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}), encoding="utf-8")
    text = cfg["text_cfg"]
    if text.get("hf_tokenizer_name"):
        _write_tokenizer(folder)
    if text.get("hf_model_name"):
        folder.joinpath(ARCHITECTURE).write_text(json.dumps(TEXT_ENCODERS[text["hf_model_name"]]), encoding="utf-8")


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer with one word and XLM-R's special tokens. Reading a model's config needs no other entries."""
    engine = Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4}, unk_token="<unk>"))
    engine.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    engine.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    engine.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "sep_token": "</s>", **names}
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def shapes_of(model: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of an open_clip model at full size."""
    open_clip = import_open_clip()
    cfg = open_clip.get_model_config(model)
    cls = open_clip.model.CustomTextCLIP if cfg.pop("custom_text", False) else open_clip.model.CLIP
    if "multimodal_cfg" in cfg:
        cls = open_clip.CoCa
    with tempfile.TemporaryDirectory() as folder:
        if cfg["text_cfg"].get("hf_model_name"):
            cls = open_clip.model.CustomTextCLIP
            encoder = TEXT_ENCODERS[cfg["text_cfg"]["hf_model_name"]]
            Path(folder, "config.json").write_text(json.dumps(encoder), encoding="utf-8")
            cfg["text_cfg"] |= {"hf_model_name": folder, "hf_model_pretrained": False}
        with torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in cls(**cfg).state_dict().items()}


def report(results: list[Result]) -> str:
    """Return the results as Markdown: a table by family, and why some models cannot be read."""
    lines = ["# open_clip's pretrained models", "", _INTRODUCTION, ""]
    lines += ["| family | pairs | before | now |", "|---|---|---|---|"]
    families = sorted({result.family for result in results})
    for family in families:
        of_family = [result for result in results if result.family == family]
        num_read = sum(result.reason is None for result in of_family)
        lines.append(f"| {family} | {len(of_family)} | {FIRST.get(family, 0)} | {num_read} |")
    num_read = sum(result.reason is None for result in results)
    first = sum(FIRST.get(family, 0) for family in families)
    lines.append(f"| **all** | **{len(results)}** | **{first}** | **{num_read}** |")
    reasons = Counter(re.sub(r"'[^']*'", "'…'", result.reason) for result in results if result.reason is not None)
    if reasons:
        lines += ["", "Not read:", ""]
        lines += [
            f"- {number} {'pair' if number == 1 else 'pairs'}: {reason}" for reason, number in reasons.most_common()
        ]
    return "\n".join(lines) + "\n"


_INTRODUCTION = """\
open_clip lists its pretrained models as pairs of an architecture and a tag for its weights. `scripts/open_clip_coverage.py`
builds each model at full size without weights, derives the config that its folder would have, and compares the names and
shapes of its tensors with those that Diptych expects. It downloads nothing: open_clip's configs only name the text encoders
of nine models, so the script contains their sizes. The column "before" counts the pairs that Diptych read before it supported
SigLIP's tokenizers, CLIPA, CoCa and the towers of timm and transformers."""


if __name__ == "__main__":
    main()
