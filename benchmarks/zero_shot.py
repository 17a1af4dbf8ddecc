"""Times the weights of a zero-shot classifier, 80 templates around 1,000 classes, against open_clip's way to make them.

    python benchmarks/zero_shot.py [--out FILE] [--classes 1000] [--peer-classes 20]

The text tower of ViT-B/32 with the same random weights on both sides, float32, all cores. open_clip works class by class, each
taking as long as any other, so that a few of them are measured and the time is given for as many classes as ours. Both sides
take turns in one process, and their weights are compared first.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import peers

from diptych.bundle.choice import export_bundle
from diptych.bundle.folder import Bundle
from diptych.data.sources.templates import resolve_templates
from diptych.inference.classify import class_embeddings
from diptych.inference.embedder import Embedder
from diptych.models.clip import CLIP
from diptych.models.prefix_tree import in_order, shared_beginnings
from diptych.presets import preset
from diptych.tokenizers.clip_bpe import ClipBPETokenizer

ROUNDS = 3
TEMPLATES = resolve_templates(["imagenet-80"])


def main() -> None:
    """Compare, measure, print, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--peer-classes", type=int, default=20)
    arguments = parser.parse_args()
    names = list(peers.open_clip.IMAGENET_CLASSNAMES)[: arguments.classes]
    few = names[: arguments.peer_classes]
    bundle, model, tokenizer = _both_sides()
    embedder = Embedder(bundle)

    def theirs(classes: list[str]) -> Any:
        return peers.open_clip.build_zero_shot_classifier(model, tokenizer, classes, _functions()).T.numpy()

    difference = float(np.abs(class_embeddings(embedder, few[:3], TEMPLATES) - theirs(few[:3])).max())
    if difference > 1e-5:
        sys.exit(f"the sides do not compute the same: weights differ by {difference:.1e}")
    times = [
        (_time(lambda: class_embeddings(embedder, names, TEMPLATES)), _time(lambda: theirs(few))) for _ in range(ROUNDS)
    ]
    scale = len(names) / len(few)
    ratio = median(peer * scale / own for own, peer in times)
    own, peer = (median(side) for side in zip(*times, strict=True))
    text = "\n".join(
        [
            "# Weights of a zero-shot classifier",
            "",
            f"`python benchmarks/zero_shot.py`, {date.today()}, {platform.machine()}, {os.cpu_count()} cores,",
            f"Python {platform.python_version()}, torch {version('torch')}, open_clip_torch {version('open_clip_torch')}.",
            f"{len(TEMPLATES)} templates x {len(names):,} classes, text tower of `vit-b-32`; medians of {ROUNDS} rounds.",
            "",
            "| side | tokens | seconds | |",
            "|---|---|---|---|",
            f"| Diptych | {_num_nodes(bundle, names):,} | {own:.0f} | |",
            f"| open_clip | {77 * len(TEMPLATES) * len(names):,} | {peer * scale:.0f} | {len(few)} classes: {peer:.1f} s |",
            "",
            f"Ratio, round by round: **{ratio:.1f} x**. Largest difference of a weight: {difference:.1e}.",
            "",
        ]
    )
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


def _both_sides() -> tuple[Bundle, Any, Any]:
    """One model with random weights, and as open_clip loads it."""
    torch.manual_seed(0)
    bundle = Bundle(model=CLIP(preset("vit-b-32")).eval(), tokenizer=ClipBPETokenizer(context_length=77))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "theirs"
        export_bundle(bundle, "open-clip", place)
        model = peers.open_clip.create_model(f"local-dir:{place}").eval()
        tokenizer = peers.open_clip.get_tokenizer(f"local-dir:{place}")
    return bundle, model, tokenizer


def _functions() -> list[Callable[[str], str]]:
    return [lambda name, text=text: text.replace("{}", name) for text in TEMPLATES]  # type: ignore[misc]


def _num_nodes(bundle: Bundle, names: list[str]) -> int:
    """Different beginnings among all prompts."""
    encoded = bundle.tokenizer.encode([text.replace("{}", name) for name in names for text in TEMPLATES])
    order = in_order(encoded.ids, encoded.lengths)
    return int((encoded.lengths[order] - shared_beginnings(encoded.ids[order], encoded.lengths[order])).sum())


def _time(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
