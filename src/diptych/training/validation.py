"""Validation during training: loss, accuracies, retrieval and zero-shot accuracy on held-out samples."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, assert_never

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray
from PIL import Image
from torch import nn

from diptych.bundle.folder import require_bundle
from diptych.core.deprecation import RenamedAttribute
from diptych.core.errors import ConfigError
from diptych.core.randomness import keyed_generator
from diptych.core.sample import ImageInput
from diptych.core.settings import settings
from diptych.data.batches.groups import group_rows
from diptych.data.batches.loader import DataConfig
from diptych.data.sources.protocol import Source
from diptych.device.distributed import ALONE, Ranks
from diptych.evaluation.encoded import EncodedPairs, SourceEncoder
from diptych.evaluation.retrieval import RetrievalReport, rank_pairs
from diptych.evaluation.zero_shot import ZeroShotReport, evaluate_zero_shot, zero_shot_accuracy
from diptych.images.decode import decode
from diptych.images.sheet import SheetRow, contact_sheet
from diptych.inference.embedder import Embedder
from diptych.losses.contrastive import batch_accuracy
from diptych.training.loss import LossConfig

_NUM_HISTOGRAM_IMAGES = 512
_NUM_SHEET_IMAGES = 8
Metric: TypeAlias = Literal["recall", "map", "loss", "zero_shot"]


@settings
class ValidationConfig:
    """When a run is validated, and which metric selects its best step."""

    unsets: ClassVar[Mapping[str, tuple[str, ...]]] = {"times": ("epochs",)}
    """`times` in a config file replaces `epochs` of the recipe."""

    times: int = 8
    """Number of validations, evenly spaced over the run."""
    epochs: float | None = None
    """Epochs between two validations; replaces `times`."""
    samples: int = 512
    """Maximum number of validation images during the run: a fixed subset. The final evaluation uses all images."""
    metric: Metric = "recall"
    """Metric that selects `bundle-best`: mean R@1 of both directions (`recall`), their mean average precision (`map`), which
    distinguishes models with few correct top results, the validation `loss`, or `zero_shot` accuracy, for data with classes."""
    patience: int | None = None
    """End the run after this many consecutive validations without improvement; None disables early stopping."""

    def __post_init__(self) -> None:
        if self.times < 1 or self.samples < 2:
            raise ConfigError("validation.times must be at least 1, validation.samples at least 2")
        if self.epochs is not None and self.epochs <= 0:
            raise ConfigError(f"validation.epochs is {self.epochs}; it must be above 0")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"validation.patience is {self.patience}; it must be at least 1")

    def num_due(self, *, progress: float, epoch: float) -> float:
        """Number of validations scheduled so far; the fraction is the elapsed share of the interval to the next one.

        Args:
            progress: completed share of the run, within [0, 1].
            epoch: passes over the training data so far.
        """
        return progress * self.times if self.epochs is None else epoch / self.epochs


@dataclass(frozen=True)
class ValidationSamples:
    """Similarities of a few validation images and captions, for plots. Shapes: P matching pairs, Q other pairs."""

    partners: Float32[ndarray, " P"]
    """Cosine similarities of images and their own captions."""
    others: Float32[ndarray, " Q"]
    """Cosine similarities of images and the captions of other images."""
    best: tuple[tuple[ImageInput, str, float], ...]
    """(image, most similar of all captions, cosine similarity) of a few images."""

    def sheet(self) -> Image.Image:
        """A contact sheet of the images with their most similar captions."""
        tiles = [(decode(image), f"{cosine:.2f} {caption}") for image, caption, cosine in self.best]
        return contact_sheet([SheetRow("Most similar of all captions", tiles)], columns=4, tile_px=160, caption_lines=3)


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Results of one validation. Loss and accuracies use batches of the training batch size, to be comparable with training."""

    loss: float
    image_to_text: float
    """Image-to-text accuracy within a batch, within [0, 1]."""
    text_to_image: float
    """Text-to-image accuracy within a batch, within [0, 1]."""
    retrieval: RetrievalReport
    """Retrieval among all validation images and captions."""
    zero_shot: float | None = None
    """Zero-shot top-1 accuracy, within [0, 1]; None for data without classes."""

    samples: ValidationSamples | None = None
    """Similarities of a few images and captions, for plots."""

    def score(self, metric: Metric) -> float:
        """The value of a metric that selects the best step; higher is better, so the loss is negated."""
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

    def metrics(self) -> dict[str, float]:
        """The metrics by the names that they have in the event log."""
        recalls = {"image_to_text": self.retrieval.image_to_text, "text_to_image": self.retrieval.text_to_image}
        return {
            "val_loss": self.loss,
            "val_image_to_text": self.image_to_text,
            "val_text_to_image": self.text_to_image,
            **{f"val_{name}_r{k}": getattr(recall, f"r{k}") for name, recall in recalls.items() for k in (1, 5, 10)},
            **({} if self.zero_shot is None else {"val_zero_shot": self.zero_shot}),
        }

    figures = RenamedAttribute("metrics")


def validate(
    embedder: Embedder,
    source: Source,
    *,
    config: DataConfig,
    loss: LossConfig,
    batch_size: int,
    seed: int,
    ranks: Ranks = ALONE,
) -> Validation:
    """Encode a validation source once and compute loss, accuracies, retrieval and zero-shot accuracy from the embeddings.

    One caption per image enters loss and accuracies; which one depends only on `seed` and the image's key. The model is in
    evaluation mode meanwhile.

    Args:
        embedder: the model to validate.
        source: validation images and captions, at least two.
        config: data settings of the run; decides which pairs of a batch are positives.
        loss: loss of the run.
        batch_size: number of pairs per batch, at most the number of images.
        seed: seed for the selection of captions and the order of the batches.
        ranks: the ranks that share the encoding. All of them must call this function; rank 0 computes the metrics.
    """
    with _evaluation_mode(require_bundle(embedder.bundle).model):
        pairs = _encode_pairs(embedder, source, ranks)
        return ranks.run_on_rank0(
            lambda: _validate_pairs(embedder, source, pairs, config=config, loss=loss, batch_size=batch_size, seed=seed)
        )


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within the block, all modules are in evaluation mode; afterwards each has the mode that it had before."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


def _encode_pairs(embedder: Embedder, source: Source, ranks: Ranks) -> EncodedPairs:
    """Encode images and captions, shared among ranks."""
    buffers = tuple(require_bundle(embedder.bundle).model.buffers())
    if ranks.size > 1 and buffers:  # The running averages of batch norm differ between the ranks of a DDP model.
        shared = ranks.run_on_rank0(lambda: [buffer.cpu() for buffer in buffers])
        for buffer, value in zip(buffers, shared, strict=True):
            buffer.copy_(value)
    return SourceEncoder(embedder, ranks=ranks).encode_pairs(source)


def _validate_pairs(
    embedder: Embedder,
    source: Source,
    pairs: EncodedPairs,
    *,
    config: DataConfig,
    loss: LossConfig,
    batch_size: int,
    seed: int,
) -> Validation:
    encoder = SourceEncoder(embedder)
    keys, labels = pairs.images.keys, pairs.images.labels
    firsts = np.searchsorted(pairs.image_of_text, np.arange(len(keys)))
    counts = np.bincount(pairs.image_of_text, minlength=len(keys)).tolist()
    drawn = [int(keyed_generator(seed, "val", key).integers(num)) for key, num in zip(keys, counts, strict=True)]
    selected = firsts + drawn  # (I,): a row of `pairs.text_emb` for each image.
    rows = keyed_generator(seed, "val-batches").permutation(len(keys))
    sums = np.zeros(3)
    size = min(batch_size, len(keys))
    starts = range(0, len(keys) - size + 1, size)
    for start in starts:
        batch = rows[start : start + size]
        groups = torch.tensor(
            group_rows(
                [keys[row] for row in batch],
                [pairs.captions[selected[row]] for row in batch],
                [labels[row] for row in batch],
                positives=config.positives,
            )
        )
        image, text = torch.from_numpy(pairs.image_emb[batch]), torch.from_numpy(pairs.text_emb[selected[batch]])
        bias = require_bundle(embedder.bundle).model.logit_bias
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
        samples=draw_samples(pairs, selected),
    )


def draw_samples(pairs: EncodedPairs, selected: Int64[ndarray, " I"]) -> ValidationSamples:
    """Compute the similarities of the first 512 images, and the most similar captions of the first 8.

    Args:
        pairs: the encoded validation data.
        selected: for each image, the row of one of its captions.
    """
    first = slice(_NUM_HISTOGRAM_IMAGES)
    cosine = pairs.image_emb[first] @ pairs.text_emb[selected[first]].T  # (images, images)
    is_own = np.eye(len(cosine), dtype=bool)
    to_all = pairs.image_emb[:_NUM_SHEET_IMAGES] @ pairs.text_emb.T  # (8, captions)
    source, rows = pairs.images.source, pairs.images.rows[:_NUM_SHEET_IMAGES]
    best = tuple(
        (source[sample].image, pairs.captions[int(row.argmax())], float(row.max()))
        for sample, row in zip(rows, to_all, strict=True)
    )
    return ValidationSamples(cosine[is_own], cosine[~is_own], best)


def measure_split(
    embedder: Embedder, source: Source, *, split: str, metric: Metric, ranks: Ranks = ALONE
) -> tuple[RetrievalReport, ZeroShotReport | None]:
    """Evaluate retrieval on a whole source, and zero-shot accuracy if `metric` is `zero_shot` (otherwise None).

    With several ranks, all of them must call this function. They share the encoding; rank 0 computes the metrics.
    """

    def measure() -> tuple[RetrievalReport, ZeroShotReport | None]:
        encoder = SourceEncoder(embedder)
        retrieval = rank_pairs(encoder, pairs, split=split).report
        if metric != "zero_shot":
            return retrieval, None
        return retrieval, evaluate_zero_shot(encoder, source, split=split, images=pairs.images).report

    with _evaluation_mode(require_bundle(embedder.bundle).model):
        pairs = _encode_pairs(embedder, source, ranks)
        return ranks.run_on_rank0(measure)
