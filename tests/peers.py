"""Other people's CLIPs, against which ours is checked. The only place that imports them, and only when one is asked for.

`from tests import peers` costs nothing; `peers.open_clip` and `peers.transformers` import on first use.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import library

_PEERS = {
    "open_clip": "open_clip",
    "timm": "timm",
    "transformers": "transformers",
    "classification_metrics": "clip_benchmark.metrics.zeroshot_classification",
    "benchmark_datasets": "clip_benchmark.datasets.builder",
    "retrieval_metrics": "clip_benchmark.metrics.zeroshot_retrieval",
}
"""By the name they have here, their modules."""


def __getattr__(name: str) -> Any:
    if name not in _PEERS:
        raise AttributeError(f"no peer is called '{name}'; there are {', '.join(_PEERS)}")
    _make_torchvision_importable()
    return import_module(_PEERS[name])


@cache
def _make_torchvision_importable() -> library.Library | None:
    """Declares two operators where torchvision's own library, built for CUDA, does not load beside a torch for the CPU.

    torchvision wants their schemas when it is imported; nothing here calls them. What is returned must be kept: its
    declarations go when it does.
    """
    torchvision = find_spec("torchvision")
    try:
        for folder in (torchvision and torchvision.submodule_search_locations) or ():
            torch.ops.load_library(Path(folder) / "_C.so")
    except OSError:
        declared = library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return declared
    return None
