"""Other people's CLIPs, against which ours is checked. The only place that imports them, and only when one is asked for.

`from tests import peers` costs nothing; `peers.open_clip` and `peers.transformers` import on first use.
"""

from importlib import import_module
from typing import Any

from diptych.models.third_party import make_torchvision_importable

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
    make_torchvision_importable()
    return import_module(_PEERS[name])
