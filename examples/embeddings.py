"""Use a trained model: embeddings, similarities and zero-shot classification.

The script trains a model on drawn shapes for a few seconds, enough to distinguish colors. To use another bundle, write
`clip = diptych.load("path/to/bundle")` instead.
"""

import tempfile
from pathlib import Path

import diptych
from diptych.core.settings import override
from diptych.data.sources.shapes import COLOURS
from diptych.data.sources.splits import take_split
from diptych.inference.loaded import LoadedBundle
from diptych.recipes.recipe import recipe


def train_briefly(run: Path) -> LoadedBundle:
    """Train on drawn shapes for 80 steps and return the model."""
    changes = {
        "data.source": "shapes:600",
        "data.workers": 0,
        "schedule.epochs": None,
        "schedule.steps": 80,
        "schedule.warmup_steps": 10,
        "batch_size": 64,
        "validation.times": 1,
        "validation.samples": 64,
        "device": "cpu",
    }
    result = diptych.train(override(recipe("demo"), changes), run)
    assert result.bundle is not None
    return diptych.load(result.bundle, device="cpu")


def main() -> None:
    """Train, then use the model on validation pictures."""
    with tempfile.TemporaryDirectory() as folder:
        clip = train_briefly(Path(folder) / "run")
    unseen = take_split(diptych.open_source("shapes:600"), "val")
    samples = [unseen[i] for i in (0, 4, 8, 12)]
    images = [sample.image for sample in samples]
    texts = [f"a {colour} circle" for colour in COLOURS]

    # Embeddings have unit length, so their dot products are cosines.
    image_emb, text_emb = clip.encode_images(images), clip.encode_texts(texts)
    print("embeddings:", image_emb.shape, text_emb.shape)
    print("cosines:\n", (image_emb @ text_emb.T).round(2))

    # The same cosines, and their softmax over the texts at the model's temperature.
    similar = clip.similarity(images, texts)
    print("probabilities:\n", similar.probability.round(2))

    # Zero-shot classification: only the class names are needed.
    answers = clip.classify(images, tuple(COLOURS), templates=("a {} circle", "a {} square", "a {} triangle"))
    for sample, answer in zip(samples, answers, strict=True):
        best = answer.scores[0]
        print(f"{sample.captions[0]!r} is classified as {best.name!r} ({best.probability:.0%})")


if __name__ == "__main__":
    main()
