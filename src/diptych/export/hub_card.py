"""The model card (README.md) of a repository on the hub."""

from collections.abc import Mapping
from typing import Any

from diptych.bundle.card import model_card, usage, with_evaluations
from diptych.bundle.licenses import LICENSE, license_metadata
from diptych.models.clip import CLIP

_FRONT_MATTER = """---
library_name: diptych
pipeline_tag: zero-shot-image-classification
tags:
- clip
{tags}{license}---
"""
_ONNX = """
## Without PyTorch

The files at the root of this repository are an ONNX export of the model. `diptych.load` uses it if PyTorch is not installed.
For ONNX Runtime and transformers.js, see `example.py` and, if it exists, `example.mjs`.
"""


def hub_card(
    model: CLIP, address: str, *, origin: Mapping[str, Any], metrics: Mapping[str, Any], has_onnx: bool
) -> str:
    """Return the content of README.md with the metadata fields that the hub reads, including the license if it is known.

    Args:
        model: the model.
        address: address of the repository, such as `hf:user/name`.
        origin: facts about the origin of the model by name.
        metrics: metrics of the bundle; the card lists those under `evaluations`.
        has_onnx: whether the repository contains the ONNX export.
    """
    example = usage(address, install="pip install 'diptych[train,hub]'")
    card = model_card(model, origin, title=address.rpartition("/")[2], example=example)
    card += _ONNX if has_onnx else ""
    evaluations = metrics.get("evaluations")
    if isinstance(evaluations, Mapping) and evaluations:
        card = with_evaluations(card, evaluations)
    stated = origin.get(LICENSE)
    metadata = license_metadata(stated if isinstance(stated, str) else None)
    tags = "- onnx\n- transformers.js\n" if has_onnx else ""
    return _FRONT_MATTER.format(tags=tags, license=metadata) + "\n" + card
