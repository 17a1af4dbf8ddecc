"""How the model does on what it does not train on, measured as it trains."""

from dataclasses import dataclass

import numpy as np
import torch

from diptych.core.randomness import keyed_generator
from diptych.data.groups import group_rows
from diptych.data.loader import DataConfig
from diptych.data.sources.protocol import Source
from diptych.evaluation.pairs import encode_pairs
from diptych.evaluation.retrieval import RetrievalReport, report_retrieval
from diptych.inference.embedder import Embedder
from diptych.losses.contrastive import batch_accuracy, clip_loss


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Loss and accuracies are over batches of the training's size, so that they compare with the training's."""

    loss: float
    image_to_text: float
    """Share within [0, 1], as in a training batch."""
    text_to_image: float
    retrieval: RetrievalReport
    """All validation images and captions against each other."""

    def figures(self) -> dict[str, float]:
        """Flat names for the event log."""
        recalls = {"image_to_text": self.retrieval.image_to_text, "text_to_image": self.retrieval.text_to_image}
        return {
            "val_loss": self.loss,
            "val_image_to_text": self.image_to_text,
            "val_text_to_image": self.text_to_image,
            **{f"val_{name}_r{k}": getattr(recall, f"r{k}") for name, recall in recalls.items() for k in (1, 5, 10)},
        }


def validate(embedder: Embedder, source: Source, *, config: DataConfig, batch_size: int, seed: int) -> Validation:
    """Encode a validation source once; from that, loss, accuracies and retrieval. Leaves the model in evaluation mode."""
    embedder.bundle.model.eval()
    pairs = encode_pairs(embedder, source)
    samples = pairs.samples
    firsts = np.searchsorted(pairs.image_of_text, np.arange(len(samples)))
    chosen = firsts + [int(keyed_generator(seed, "val", s.key).integers(len(s.captions))) for s in samples]
    rows = keyed_generator(seed, "val-batches").permutation(len(samples))
    sums = np.zeros(3)
    size = min(batch_size, len(samples))
    starts = range(0, len(samples) - size + 1, size)
    for start in starts:
        batch = rows[start : start + size]
        groups = torch.tensor(
            group_rows(
                [samples[row].key for row in batch],
                [pairs.captions[chosen[row]] for row in batch],
                [samples[row].label for row in batch],
                positives=config.positives,
            )
        )
        image, text = torch.from_numpy(pairs.image_emb[batch]), torch.from_numpy(pairs.text_emb[chosen[batch]])
        loss = clip_loss(image, text, torch.tensor(embedder.logit_scale), groups)
        sums += [loss.item(), *(accuracy.item() for accuracy in batch_accuracy(image, text, groups))]
    loss_mean, image_to_text, text_to_image = (float(value) for value in sums / len(starts))
    return Validation(
        loss=loss_mean,
        image_to_text=image_to_text,
        text_to_image=text_to_image,
        retrieval=report_retrieval(embedder, source, pairs, split=config.val_split),
    )
