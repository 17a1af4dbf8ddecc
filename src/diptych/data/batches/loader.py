"""Load training batches from a source in worker processes. The batches do not depend on the number of workers.

Shapes: H height, W width.
"""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from torch.utils.data import DataLoader, Dataset, get_worker_info

from diptych.core.cpu import cores_of_rank
from diptych.core.errors import ConfigError, DataError, DiptychWarning, ImageError
from diptych.core.fingerprint import PicturesBy
from diptych.core.launched import local_size
from diptych.core.randomness import keyed_generator
from diptych.core.settings import settings
from diptych.data.batches.batch import Batch, ModelInput
from diptych.data.batches.captions import drop_words, names_side
from diptych.data.batches.groups import Positives, hash_positive_keys, positive_group_ids
from diptych.data.batches.order import Arrangement, BatchSampler
from diptych.data.batches.rows import CaptionChoice, RowTable
from diptych.data.batches.shared_memory import Workers, free_bytes, is_exhausted, plan_workers, too_small
from diptych.data.sources.protocol import Source
from diptych.data.sources.splits import FIRST_SPLIT_RULE, SPLIT_RULE
from diptych.device.distributed import ALONE, Ranks
from diptych.device.forks import unmoved_objects
from diptych.device.packed_texts import PackingSpec
from diptych.device.prefetch import prefetch
from diptych.images.augment import AugmentConfig, random_color_params, random_crop_params, training_pixels
from diptych.images.decode import decode_array
from diptych.images.transforms import PixelConfig, Pixels, height_width
from diptych.tokenizers.protocol import Tokenizer

_MAX_REPLACEMENTS = 50
"""Consecutive unreadable samples after which a worker returns an error."""
_MAX_DEATHS = 3
"""How often worker processes may be killed before training stops with an error."""
_DEATHS = ("DataLoader worker (pid", "Pin memory thread exited")
"""Beginnings of PyTorch's errors for a killed worker; the second occurs while a batch is transferred to the pinning thread."""
_CPU = torch.device("cpu")


@settings
class DataConfig:
    """Settings of the training and validation data."""

    source: str = "shapes"
    """Data source, as `kind:location`."""
    train_split: str = "train"
    """Split used for training."""
    val_split: str = "val"
    """Split used for validation."""
    val_fraction: float = 0.05
    """Fraction of the samples held out as `val` if the source has no such split."""
    split_rule: int = SPLIT_RULE
    """Version of the rule that assigns samples to `train` and `val`; 1 in runs of earlier versions (`sources/splits.py`)."""
    max_samples: int | None = None
    """Maximum number of training samples; they are a stable subset."""
    caption: CaptionChoice = "random"
    """Captions of an image used in an epoch: one at `random`, the `first`, `all` (each image-caption pair once, so the epoch
    has as many rows as there are captions), or all joined into one text (`join`)."""
    positives: Positives = "caption"
    """Which rows count as positives in addition to an image's own caption: `caption`, `class`, or none (`pair`)."""
    positives_in_batch: Arrangement = "any"
    """How rows that are positives of each other are arranged: `any`, at most one per batch (`apart`), or `together`."""
    shards_at_once: int = 16
    """Number of tars that are shuffled together at a time; their local copies must fit into the cache."""
    max_skipped: float = 0.01
    """Fraction of unreadable samples above which training stops; up to three are always allowed, unless it is 0."""
    skip_missing: bool = False
    """Skip rows of a table whose image file is missing, with a warning, instead of raising an error at the start."""
    fingerprint: PicturesBy = "sizes"
    """How a resumed run detects replaced images: by the `sizes` of their files, or by their `contents`, which reads all
    images once."""
    workers: int | None = None
    """Number of worker processes; 0 loads the data in the training process. The default is one per two cores, at most 8, for
    training on a CPU, and the number of cores minus one on other devices. The ranks of a machine share its cores."""

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1 or not 0 <= self.max_skipped < 1:
            raise ConfigError(
                f"data.val_fraction {self.val_fraction} and data.max_skipped {self.max_skipped} must be shares below 1"
            )
        if self.split_rule not in {FIRST_SPLIT_RULE, SPLIT_RULE}:
            raise ConfigError(
                f"data.split_rule is {self.split_rule}; this version of Diptych knows {FIRST_SPLIT_RULE} and {SPLIT_RULE}"
            )
        if self.shards_at_once < 1:
            raise ConfigError(f"data.shards_at_once is {self.shards_at_once}; it must be at least 1")
        if self.max_samples is not None and self.max_samples < 1:
            raise ConfigError(f"data.max_samples is {self.max_samples}; it must be at least 1")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"data.workers is {self.workers}; it must be at least 0")

    @property
    def num_workers(self) -> int:
        """Number of worker processes on a CPU, with the default resolved."""
        if self.workers is not None:
            return self.workers
        return max(1, min(8, (os.cpu_count() or 1) // (2 * local_size())))

    def workers_on(self, device: torch.device) -> int:
        """Number of worker processes for training on a device, with the default resolved."""
        if self.workers is not None or device.type == "cpu":
            return self.num_workers
        return max(1, cores_of_rank() - 1)


@dataclass(frozen=True)
class InputSpec:
    """How images and captions are preprocessed for a model."""

    image_px: Pixels
    pixels: PixelConfig
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Example:
    """One row of a batch before collation."""

    key: str
    pixels: UInt8[ndarray, "3 H W"]
    caption: str
    label: int | None
    skipped: tuple[tuple[str, str], ...]
    read_s: float
    source_pixels: int
    teacher_pixels: UInt8[ndarray, "3 H2 W2"] | None = None


@dataclass(eq=False)
class TrainingExamples(Dataset["Example | DataError"]):
    """Dataset of decoded and augmented rows.

    All random choices are keyed by (seed, epoch, key), so every process returns the same row.
    """

    source: Source
    _: KW_ONLY
    config: DataConfig
    augment: AugmentConfig
    pixels: PixelConfig
    image_px: Pixels
    seed: int
    teacher: InputSpec | None = None
    packing: PackingSpec | None = None
    """How the captions are packed for the text tower; None if the tower does it."""

    def __post_init__(self) -> None:
        self.rows = RowTable(self.source, self.config.caption)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> Example | DataError:
        """Return the row at (epoch, index). An unreadable sample is replaced by another one, chosen deterministically.

        After fifty consecutive unreadable samples, a `DataError` is returned. It is not raised, because the training process
        would print an exception of a worker with its whole traceback.
        """
        epoch, index = epoch_and_index
        skipped: list[tuple[str, str]] = []
        for attempt in range(_MAX_REPLACEMENTS):
            try:
                return self._example(epoch, index, tuple(skipped))
            except ImageError as error:
                key = self.source.key(self.rows[index][0])
                skipped.append((key, str(error)))
                index = int(keyed_generator(self.seed, "replace", epoch, key, attempt).integers(len(self)))
        return DataError(f"{_MAX_REPLACEMENTS} unreadable images in a row, the last: {skipped[-1][1]}")

    def _example(self, epoch: int, index: int, skipped: tuple[tuple[str, str], ...]) -> Example:
        began = time.perf_counter()
        number, which = self.rows[index]
        sample = self.source[number]
        key = (sample.key, which) if self.config.caption == "all" else (sample.key,)
        generator = keyed_generator(self.seed, "augment", epoch, *key)
        match self.config.caption:
            case "random":
                caption = sample.captions[int(generator.integers(len(sample.captions)))]
            case "join":
                caption = " ".join(sample.captions)
            case _:
                caption = sample.captions[which]
        image = decode_array(sample.image)
        crop = random_crop_params(
            image.shape[1], image.shape[0], self.augment, generator, image_px=self.image_px, mode=self.pixels.resize
        )
        if crop.flipped and names_side(caption):
            crop = crop._replace(flipped=False)
        colors = random_color_params(self.augment, generator, image_px=self.image_px)
        pixels = training_pixels(image, crop, image_px=self.image_px, config=self.pixels, colors=colors)
        if self.augment.drop_words:
            caption = drop_words(caption, self.augment.drop_words, generator)
        teacher_pixels = None
        if self.teacher is not None:  # The same crop, without color changes and erasing.
            teacher_pixels = training_pixels(image, crop, image_px=self.teacher.image_px, config=self.teacher.pixels)
        return Example(
            sample.key,
            pixels,
            caption,
            sample.label,
            skipped,
            read_s=time.perf_counter() - began,
            source_pixels=image.shape[0] * image.shape[1],
            teacher_pixels=teacher_pixels,
        )


@dataclass(frozen=True)
class Collate:
    """Collate function of the data loader: tokenizes the captions and stacks the rows into a `Batch`."""

    tokenizer: Tokenizer
    positives: Positives
    teacher: InputSpec | None = None
    packing: PackingSpec | None = None

    def __call__(self, rows: list[Example | DataError]) -> Batch | DataError:
        """Return the batch of the rows, in their order, or the first error among them."""
        examples = [row for row in rows if isinstance(row, Example)]
        if len(examples) < len(rows):
            return next(row for row in rows if isinstance(row, DataError))
        keys = tuple(example.key for example in examples)
        captions = tuple(example.caption for example in examples)
        distinct = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        encoded = self.tokenizer.encode(tuple(distinct))
        ids, lengths = torch.from_numpy(encoded.ids), torch.from_numpy(encoded.lengths)
        labels = [example.label for example in examples]
        positive_keys = hash_positive_keys(keys, captions, labels, positives=self.positives)
        return Batch(
            pixels=torch.from_numpy(np.stack([example.pixels for example in examples])),
            ids=ids,
            lengths=lengths,
            text_of_row=torch.tensor([distinct[caption] for caption in captions]),
            positive_groups=positive_group_ids(positive_keys, ALONE),
            positive_keys=positive_keys,
            keys=keys,
            captions=captions,
            packed=() if self.packing is None else self.packing.pack(ids, lengths, num_pairs=len(examples)),
            for_teacher=self._for_teacher(examples, tuple(distinct)),
            skipped=tuple(skip for example in examples for skip in example.skipped),
            num_cut=encoded.num_cut,
            read_s=sum(example.read_s for example in examples),
            source_pixels=sum(example.source_pixels for example in examples),
        )

    def _for_teacher(self, examples: list[Example], captions: tuple[str, ...]) -> ModelInput | None:
        if self.teacher is None:
            return None
        encoded = self.teacher.tokenizer.encode(captions)
        pixels = np.stack([example.teacher_pixels for example in examples if example.teacher_pixels is not None])
        ids, lengths = torch.from_numpy(encoded.ids), torch.from_numpy(encoded.lengths)
        return ModelInput(pixels=torch.from_numpy(pixels), ids=ids, lengths=lengths)


def training_batches(
    examples: TrainingExamples,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    first_step: int = 0,
    ranks: Ranks = ALONE,
    device: torch.device = _CPU,
) -> Iterator[Batch]:
    """Yield batches indefinitely, starting at `first_step`. With several ranks, each rank gets its own part of every batch.

    If a worker process is killed, the workers are restarted at the current step, with a `DiptychWarning`.

    Args:
        examples: the rows of the batches.
        tokenizer: tokenizer of the model.
        batch_size: number of rows per batch, over all ranks.
        first_step: number of batches to skip.
        ranks: the ranks that share each batch.
        device: the device that trains the model. It decides the number of workers, and batches for a CUDA device are in
            page-locked memory and are copied to it one step ahead (`prefetch`). Otherwise the batches are on the host.

    Raises:
        DataError: fifty consecutive samples are unreadable, workers were killed three times, or the shared memory is too small
            for the workers.
    """
    config = examples.config
    rows = examples.rows.for_order(
        positives=config.positives, arrangement=config.positives_in_batch, blocks_at_once=config.shards_at_once
    )
    collate = _SharedCollate(Collate(tokenizer, config.positives, examples.teacher, examples.packing))
    batch_bytes = -(-batch_size // ranks.size) * _row_bytes(examples, tokenizer)
    workers = plan_workers(config.workers_on(device), batch_bytes=batch_bytes)

    def load_from(step: int) -> Iterator[Batch | DataError]:
        sampler = BatchSampler(rows, batch_size=batch_size, seed=examples.seed, first_step=step, ranks=ranks)
        return _load(examples, sampler, collate, workers, is_pinned=device.type == "cuda")

    with unmoved_objects() if workers.num else nullcontext():
        loaded = _restart_killed_workers(load_from, first_step, num_workers=workers.num, batch_bytes=batch_bytes)
        yield from prefetch(loaded, device)


@dataclass(frozen=True)
class _SharedCollate:
    """Collate function that puts the batches of a worker into shared memory.

    PyTorch would do so in a thread of the worker. If there is too little memory, that thread loses the batch, and the training
    process waits for it forever.
    """

    collate: Collate

    def __call__(self, rows: list[Example | DataError]) -> Batch | DataError:
        batch = self.collate(rows)
        if isinstance(batch, DataError) or get_worker_info() is None:
            return batch
        try:
            batch.share_memory()
        except RuntimeError as error:
            if free_bytes() is None or "shared memory" not in str(error):
                raise
            return too_small(batch.num_bytes)
        return batch


def _row_bytes(examples: TrainingExamples, tokenizer: Tokenizer) -> int:
    """Approximate size of a row of a batch: its pixels, and up to five numbers of 8 bytes per token."""
    height, width = height_width(examples.image_px)
    num = 3 * height * width + 40 * tokenizer.context_length
    return num if examples.teacher is None else num + _teacher_bytes(examples.teacher)


def _teacher_bytes(teacher: InputSpec) -> int:
    height, width = height_width(teacher.image_px)
    return 3 * height * width + 8 * teacher.tokenizer.context_length


def _restart_killed_workers(
    load_from: Callable[[int], Iterator[Batch | DataError]], step: int, *, num_workers: int, batch_bytes: int
) -> Iterator[Batch]:
    """Yield the batches of `load_from(step)`; call it again at the current step if its workers are killed."""
    for death in range(1, _MAX_DEATHS + 1):
        try:
            for batch in load_from(step):
                if isinstance(batch, DataError):
                    raise batch
                yield batch
                step += 1
        # ConnectionError and EOFError occur if the worker is killed while it transfers a batch.
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith(_DEATHS):
                raise
            if is_exhausted(batch_bytes):
                raise too_small(batch_bytes) from None
            if death == _MAX_DEATHS:
                raise DataError(
                    f"worker processes were killed {death} times, most likely because memory ran out; try fewer "
                    f"(--data.workers {num_workers // 2}) or smaller batches"
                ) from None
            text = f"a data worker was killed at step {step}; restarted {num_workers} workers"
            warnings.warn(text, DiptychWarning, stacklevel=2)


def _load(
    examples: TrainingExamples, sampler: BatchSampler, collate: _SharedCollate, workers: Workers, *, is_pinned: bool
) -> Iterator[Batch | DataError]:
    loader = DataLoader(
        examples,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers.num,
        prefetch_factor=workers.ahead if workers.num else None,
        worker_init_fn=_start_worker,
        pin_memory=is_pinned,
    )
    before = signal.getsignal(signal.SIGCHLD)
    batches: Iterator[Batch | DataError] = iter(loader)
    if workers.num and threading.current_thread() is threading.main_thread():
        # PyTorch's handler raises at any point of the training process, for example within an optimizer step. A killed
        # worker is also detected when the next batch is fetched.
        is_from_pytorch = getattr(before, "__module__", "").startswith("torch.")
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if is_from_pytorch else before)
    return batches


def _start_worker(_number: int) -> None:
    """Use one thread per worker, and leave Ctrl-C to the training process, which finishes its step and saves."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
