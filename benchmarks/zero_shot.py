"""Compare building a zero-shot classifier, with 80 templates per class, with open_clip and CLIP_benchmark.

    python benchmarks/zero_shot.py [--out FILE] [--classes 1000] [--peer-classes 10]

All sides use the text tower of ViT-B/32 with the same random weights, float32, and all cores. The peers, both with open_clip's
model, process one class at a time, and each class takes equally long. Therefore only a few classes are measured for them, and
the time is scaled to the number of classes. All sides alternate in one process; their weights are compared first.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from harness import arguments, in_turn, machine, must_agree, table, write
from sides import in_open_clip, own_bundle
from tests import peers

from diptych.bundle.folder import Bundle
from diptych.data.sources.templates import resolve_templates
from diptych.inference.classify import class_embeddings
from diptych.inference.embedder import Embedder
from diptych.models.prefix_tree import common_prefix_lengths, in_order

ROUNDS = 1
"""Number of rounds after the warm-up; a round of 80,000 prompts takes minutes."""
TEMPLATES = resolve_templates(["imagenet-80"])


def main() -> None:
    """Compare, measure, print, and write the table."""
    given = arguments(__doc__, classes=1000, peer_classes=10, rounds=ROUNDS)
    names = list(peers.open_clip.IMAGENET_CLASSNAMES)[: given.classes]
    few = names[: given.peer_classes]
    bundle = own_bundle()
    peer, embedder = in_open_clip(bundle), Embedder(bundle)

    def open_clips(classes: list[str]) -> Any:
        built = peers.open_clip.build_zero_shot_classifier(peer.model, peer.tokenizer, classes, _functions())
        return built.T.numpy()

    def clip_benchmarks(classes: list[str]) -> Any:
        texts = [text.replace("{}", "{c}") for text in TEMPLATES]
        build = peers.classification_metrics.zero_shot_classifier
        return build(peer.model, peer.tokenizer, classes, texts, "cpu", amp=False).T.numpy()

    theirs = {"open_clip": open_clips, "CLIP_benchmark": clip_benchmarks}
    ours = class_embeddings(embedder, few[:3], TEMPLATES)
    difference = max(float(np.abs(ours - build(few[:3])).max()) for build in theirs.values())
    must_agree("weights", difference, at_most=1e-5)
    sides = {name: partial(build, few) for name, build in theirs.items()}
    times = in_turn(
        {"Diptych": lambda: class_embeddings(embedder, names, TEMPLATES), **sides},
        rounds=given.rounds,
    )
    scale = len(names) / len(few)
    prompts = len(TEMPLATES) * len(names)
    rows = [["Diptych", f"{_num_nodes(bundle, names):,}", f"{times.median('Diptych'):.0f}", "", ""]]
    rows += [
        [
            name,
            f"{77 * prompts:,}",
            f"{times.median(name) * scale:.0f}",
            f"{len(few)} classes: {times.median(name):.1f} s",
            f"**{times.ratio(name, 'Diptych') * scale:.1f} x**",
        ]
        for name in theirs
    ]
    write(
        given.out,
        "# Weights of a zero-shot classifier",
        f"`python benchmarks/zero_shot.py --classes {len(names)}`, {machine('open_clip_torch', 'clip_benchmark')}",
        f"{len(TEMPLATES)} templates x {len(names):,} classes, text tower of `vit-b-32`; medians of all rounds "
        f"after the first: {given.rounds}.",
        table(["side", "tokens", "seconds", "measured", "ratio, round by round"], rows),
        f"Largest difference of a weight: {difference:.1e}.",
    )


def _functions() -> list[Callable[[str], str]]:
    return [lambda name, text=text: text.replace("{}", name) for text in TEMPLATES]  # type: ignore[misc]


def _num_nodes(bundle: Bundle, names: list[str]) -> int:
    """Return the number of distinct prefixes of all prompts."""
    encoded = bundle.tokenizer.encode([text.replace("{}", name) for name in names for text in TEMPLATES])
    order = in_order(encoded.ids, encoded.lengths)
    return int((encoded.lengths[order] - common_prefix_lengths(encoded.ids[order], encoded.lengths[order])).sum())


if __name__ == "__main__":
    main()
