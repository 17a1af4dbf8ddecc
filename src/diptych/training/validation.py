"""How the model does on what it does not train on, measured as it trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, assert_never

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray
from PIL import Image

from diptych.core.errors import ConfigError
from diptych.core.randomness import keyed_generator
from diptych.core.sample import ImageInput
from diptych.core.settings import settings
from diptych.data.batches.groups import group_rows
from diptych.data.batches.loader import DataConfig
from diptych.data.sources.protocol import Source
from diptych.evaluation.encoded import EncodedPairs, SourceEncoder
from diptych.evaluation.retrieval import RetrievalReport, rank_pairs
from diptych.evaluation.zero_shot import ZeroShotReport, evaluate_zero_shot, zero_shot_accuracy
from diptych.images.decode import decode
from diptych.images.sheet import SheetRow, contact_sheet
from diptych.inference.embedder import Embedder
from diptych.losses.contrastive import batch_accuracy
from diptych.training.loss import LossConfig

_MOST = 512
_PICTURES = 8
Metric: TypeAlias = Literal["recall", "map", "loss", "zero_shot"]


@settings
class ValidationConfig:
    """When a run is measured on its validation split, and what its best moment is."""

    unsets: ClassVar[Mapping[str, tuple[str, ...]]] = {"times": ("epochs",)}
    """`times` in a config file replaces `epochs` of the recipe."""

    times: int = 8
    """So often, spread evenly over the run."""
    epochs: float | None = None
    """In place of `times`: after every so many passes over the training data."""
    samples: int = 512
    """At most so many validation images during the run; a stable subset. The end is measured on all."""
    metric: Metric = "recall"
    """What `bundle-best` is best at: mean R@1 of both directions (`recall`), their mean average precision (`map`), which tells
    apart models that seldom come first, the validation `loss`, or `zero_shot` accuracy, for data with classes."""
    patience: int | None = None
    """End the run after so many validations in a row that were no better than the best; None to go on."""

    def __post_init__(self) -> None:
        if self.times < 1 or self.samples < 2:
            raise ConfigError("validation.times must be at least 1, validation.samples at least 2")
        if self.epochs is not None and self.epochs <= 0:
            raise ConfigError(f"validation.epochs is {self.epochs}; it must be above 0")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"validation.patience is {self.patience}; it must be at least 1")


@dataclass(frozen=True)
class ValidationSamples:
    """Some pictures and their texts."""

    partners: Float32[ndarray, " P"]
    """Cosines of pictures and their own captions."""
    others: Float32[ndarray, " Q"]
    """Cosines of pictures and other pictures' captions."""
    best: tuple[tuple[ImageInput, str, float], ...]
    """Pictures, each with the caption of all that it is most like, and their cosine."""

    def sheet(self) -> Image.Image:
        """The pictures over their captions."""
        tiles = [(decode(image), f"{cosine:.2f} {caption}") for image, caption, cosine in self.best]
        return contact_sheet([SheetRow("Most similar of all captions", tiles)], columns=4, tile_px=160, caption_lines=3)


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Loss and accuracies are over batches of the training's size, so that they compare with the training's."""

    loss: float
    image_to_text: float
    """Share within [0, 1], as in a training batch."""
    text_to_image: float
    retrieval: RetrievalReport
    """All validation images and captions against each other."""
    zero_shot: float | None = None
    """Share of the images whose class came first, within [0, 1]; None for data without classes."""

    samples: ValidationSamples | None = None
    """A look at some of it, for people."""

    def score(self, metric: Metric) -> float:
        """The figure that the best moment is chosen by; more is better."""
        match metric:
            case "loss":
                return -self.loss
            case "zero_shot":
                assert self.zero_shot is not None
                return self.zero_shot
            case "recall":
                return self.retrieval.mean_r1
            case "map":
                return self.retrieval.mean_average_precision
            case _:
                assert_never(metric)

    def figures(self) -> dict[str, float]:
        """Flat names for the event log."""
        recalls = {"image_to_text": self.retrieval.image_to_text, "text_to_image": self.retrieval.text_to_image}
        return {
            "val_loss": self.loss,
            "val_image_to_text": self.image_to_text,
            "val_text_to_image": self.text_to_image,
            **{f"val_{name}_r{k}": getattr(recall, f"r{k}") for name, recall in recalls.items() for k in (1, 5, 10)},
            **({} if self.zero_shot is None else {"val_zero_shot": self.zero_shot}),
        }


def validate(
    embedder: Embedder, source: Source, *, config: DataConfig, loss: LossConfig, batch_size: int, seed: int
) -> Validation:
    """Encode a validation source once; from that, loss, accuracies and retrieval. Leaves the model in evaluation mode."""
    embedder.bundle.model.eval()
    encoder = SourceEncoder(embedder)
    pairs = encoder.encode_pairs(source)
    keys, labels = pairs.images.keys, pairs.images.labels
    firsts = np.searchsorted(pairs.image_of_text, np.arange(len(keys)))
    counts = np.bincount(pairs.image_of_text, minlength=len(keys)).tolist()
    drawn = [int(keyed_generator(seed, "val", key).integers(num)) for key, num in zip(keys, counts, strict=True)]
    chosen = firsts + drawn
    rows = keyed_generator(seed, "val-batches").permutation(len(keys))
    sums = np.zeros(3)
    size = min(batch_size, len(keys))
    starts = range(0, len(keys) - size + 1, size)
    for start in starts:
        batch = rows[start : start + size]
        groups = torch.tensor(
            group_rows(
                [keys[row] for row in batch],
                [pairs.captions[chosen[row]] for row in batch],
                [labels[row] for row in batch],
                positives=config.positives,
            )
        )
        image, text = torch.from_numpy(pairs.image_emb[batch]), torch.from_numpy(pairs.text_emb[chosen[batch]])
        bias = embedder.bundle.model.logit_bias
        value = loss(
            image, text, torch.tensor(embedder.logit_scale), None if bias is None else bias.detach().cpu(), groups
        )
        sums += [value.item(), *(accuracy.item() for accuracy in batch_accuracy(image, text, groups))]
    loss_mean, image_to_text, text_to_image = (float(value) for value in sums / len(starts))
    return Validation(
        loss=loss_mean,
        image_to_text=image_to_text,
        text_to_image=text_to_image,
        retrieval=rank_pairs(encoder, pairs, split=config.val_split).report,
        zero_shot=zero_shot_accuracy(encoder, pairs.image_emb, labels, source) if source.classes else None,
        samples=draw_samples(pairs, chosen),
    )


def draw_samples(pairs: EncodedPairs, chosen: Int64[ndarray, " I"]) -> ValidationSamples:
    """Look at the first few hundred pictures of a validation.

    Args:
        pairs: all that was encoded.
        chosen: of each picture, one of its captions.
    """
    cosine = pairs.image_emb[:_MOST] @ pairs.text_emb[chosen[:_MOST]].T
    own = np.eye(len(cosine), dtype=bool)
    with_all = pairs.image_emb[:_PICTURES] @ pairs.text_emb.T
    source, few = pairs.images.source, pairs.images.rows[:_PICTURES]
    best = tuple(
        (source[sample].image, pairs.captions[int(row.argmax())], float(row.max()))
        for sample, row in zip(few, with_all, strict=True)
    )
    return ValidationSamples(cosine[own], cosine[~own], best)


def measure_split(
    embedder: Embedder, source: Source, *, split: str, metric: Metric
) -> tuple[RetrievalReport, ZeroShotReport | None]:
    """Retrieval on a whole source, and its zero-shot accuracy if this is the metric of the run."""
    encoder = SourceEncoder(embedder)
    pairs = encoder.encode_pairs(source)
    retrieval = rank_pairs(encoder, pairs, split=split).report
    if metric != "zero_shot":
        return retrieval, None
    return retrieval, evaluate_zero_shot(encoder, source, split=split, images=pairs.images).report
