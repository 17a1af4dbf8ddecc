"""From a source to batches, in worker processes, the same whatever their number. Shapes: H W pixels."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from torch.utils.data import DataLoader, Dataset

from diptych.core.distributed import ALONE, Ranks
from diptych.core.errors import ConfigError, DataError, DiptychWarning, ImageError
from diptych.core.fingerprint import PicturesBy
from diptych.core.forks import unmoved_objects
from diptych.core.launch import local_size
from diptych.core.randomness import keyed_generator
from diptych.core.settings import settings
from diptych.data.batches.batch import Batch, ModelInput
from diptych.data.batches.captions import drop_words, names_side
from diptych.data.batches.groups import Positives, hash_positive_keys, positive_group_ids
from diptych.data.batches.order import Arrangement, BatchSampler
from diptych.data.batches.rows import CaptionChoice, RowTable
from diptych.data.sources.protocol import Source
from diptych.data.sources.splits import FIRST_SPLIT_RULE, SPLIT_RULE
from diptych.images.augment import AugmentConfig, random_look, random_view, training_pixels
from diptych.images.decode import decode_array
from diptych.images.transforms import PixelConfig, Pixels
from diptych.tokenizers.protocol import Tokenizer

_MAX_REPLACEMENTS = 50
"""Unreadable samples in a row before a worker gives up."""
_MAX_DEATHS = 3
"""Times that worker processes may be killed before the run gives up."""


@settings
class DataConfig:
    """What a run trains and validates on."""

    source: str = "shapes"
    """`kind:location` of the pictures and captions."""
    train_split: str = "train"
    """Split that the run trains on."""
    val_split: str = "val"
    """Split that the run is measured on."""
    val_fraction: float = 0.05
    """Share of the samples held back as `val` where the source itself has no such split."""
    split_rule: int = SPLIT_RULE
    """Version of the rule that assigns samples to `train` and `val`; 1 in runs of earlier versions (`sources/splits.py`)."""
    max_samples: int | None = None
    """Train on at most so many samples; a stable subset."""
    caption: CaptionChoice = "random"
    """Which captions of an image an epoch sees: one at `random`, the `first`, `all` of them (each pair once, so an epoch is as
    long as there are captions), or all in one text (`join`)."""
    positives: Positives = "caption"
    """What counts as a positive beside a picture's own caption: `caption`, `class`, or nothing (`pair`)."""
    positives_in_batch: Arrangement = "any"
    """Where rows go that are known to be positives of each other: `any`, never two into a batch (`apart`), or `together`."""
    shards_at_once: int = 16
    """Tars that are shuffled into each other at a time, where there are more; their copies must fit into the cache."""
    max_skipped: float = 0.01
    """Share of unreadable samples above which the run stops; up to three are always allowed, unless it is 0."""
    skip_missing: bool = False
    """Leave out rows of a table whose image file is not there, with a warning; otherwise they are an error at the start."""
    fingerprint: PicturesBy = "sizes"
    """How a resumed run notices replaced pictures: by the `sizes` of their files, or by their `contents`, which reads all
    pictures once."""
    workers: int | None = None
    """Processes that read ahead; 0 reads in the training process. By default one for every two cores, at most
    8; ranks of a machine share its cores."""

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
        """The processes that read ahead, with the default resolved."""
        if self.workers is not None:
            return self.workers
        return max(1, min(8, (os.cpu_count() or 1) // (2 * local_size())))


@dataclass(frozen=True)
class InputSpec:
    """How a model reads pictures and captions."""

    image_px: Pixels
    pixels: PixelConfig
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Example:
    """One row of a batch, before it is put together."""

    key: str
    pixels: UInt8[ndarray, "3 H W"]
    caption: str
    label: int | None
    skipped: tuple[tuple[str, str], ...]
    read_s: float
    source_pixels: int
    teacher_pixels: UInt8[ndarray, "3 H2 W2"] | None = None


class TrainingExamples(Dataset["Example | DataError"]):
    """Decoded and augmented rows. Every choice is keyed by (seed, epoch, key), so any process gives the same row."""

    def __init__(
        self,
        source: Source,
        *,
        config: DataConfig,
        augment: AugmentConfig,
        pixels: PixelConfig,
        image_px: Pixels,
        seed: int,
        teacher: InputSpec | None = None,
    ) -> None:
        self.source = source
        self.teacher = teacher
        self.config = config
        self.augment = augment
        self.pixels = pixels
        self.image_px = image_px
        self.seed = seed
        self.rows = RowTable(source, config.caption)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> Example | DataError:
        """The row at (epoch, index); an unreadable sample is replaced by another, always the same one.

        Fifty unreadable samples in a row give an error, as a value: raised here, it would reach the training process as a
        traceback of the worker's.
        """
        epoch, index = place
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
        view = random_view(image.shape[1], image.shape[0], self.augment, generator, image_px=self.image_px)
        if view.flipped and names_side(caption):
            view = view._replace(flipped=False)
        look = random_look(self.augment, generator, image_px=self.image_px)
        pixels = training_pixels(image, view, image_px=self.image_px, config=self.pixels, look=look)
        if self.augment.drop_words:
            caption = drop_words(caption, self.augment.drop_words, generator)
        of_teacher = None
        if (
            self.teacher is not None
        ):  # It sees the same part of the picture, in its own colours and with nothing erased.
            of_teacher = training_pixels(image, view, image_px=self.teacher.image_px, config=self.teacher.pixels)
        return Example(
            sample.key,
            pixels,
            caption,
            sample.label,
            skipped,
            read_s=time.perf_counter() - began,
            source_pixels=image.shape[0] * image.shape[1],
            teacher_pixels=of_teacher,
        )


@dataclass(frozen=True)
class Collate:
    """Puts rows together into a batch."""

    tokenizer: Tokenizer
    positives: Positives
    teacher: InputSpec | None = None

    def __call__(self, rows: list[Example | DataError]) -> Batch | DataError:
        """The batch of the rows, in their order, or the first error among them."""
        examples = [row for row in rows if isinstance(row, Example)]
        if len(examples) < len(rows):
            return next(row for row in rows if isinstance(row, DataError))
        keys = tuple(example.key for example in examples)
        captions = tuple(example.caption for example in examples)
        distinct = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        encoded = self.tokenizer.encode(tuple(distinct))
        marks = hash_positive_keys(keys, captions, [example.label for example in examples], positives=self.positives)
        return Batch(
            pixels=torch.from_numpy(np.stack([example.pixels for example in examples])),
            ids=torch.from_numpy(encoded.ids),
            lengths=torch.from_numpy(encoded.lengths),
            text_of_row=torch.tensor([distinct[caption] for caption in captions]),
            groups=positive_group_ids(marks, ALONE),
            marks=marks,
            keys=keys,
            captions=captions,
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
) -> Iterator[Batch]:
    """Batches from a step on, without end: stop taking them when the run is done. Of several ranks each gets its part of them.

    Where a worker process is killed, new ones go on with the batch that was due, and a warning says so.

    Raises:
        DataError: fifty samples in a row were unreadable, or workers are killed again and again.
    """
    config = examples.config
    rows = examples.rows.for_order(
        positives=config.positives, arrangement=config.positives_in_batch, blocks_at_once=config.shards_at_once
    )
    collate = Collate(tokenizer, config.positives, examples.teacher)

    def walk(step: int) -> Iterator[Batch | DataError]:
        order = BatchSampler(rows, batch_size=batch_size, seed=examples.seed, first_step=step, ranks=ranks)
        return _walk(examples, order, collate)

    with unmoved_objects() if config.num_workers else nullcontext():
        yield from _restart_killed_workers(walk, first_step, num_workers=config.num_workers)


def _restart_killed_workers(
    walk: Callable[[int], Iterator[Batch | DataError]], step: int, *, num_workers: int
) -> Iterator[Batch]:
    """The batches of a walk from this step on, and of another one where its workers are killed."""
    for death in range(1, _MAX_DEATHS + 1):
        try:
            for batch in walk(step):
                if isinstance(batch, DataError):
                    raise batch
                yield batch
                step += 1
        except (
            RuntimeError,
            ConnectionError,
            EOFError,
        ) as error:  # The last two: it died while it handed over a batch.
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
                raise
            if death == _MAX_DEATHS:
                raise DataError(
                    f"worker processes were killed {death} times, most likely for want of memory; try fewer "
                    f"(--data.workers {num_workers // 2}) or smaller batches"
                ) from None
            text = f"a process that reads ahead was killed at step {step}; {num_workers} new ones go on"
            warnings.warn(text, DiptychWarning, stacklevel=2)


def _walk(examples: TrainingExamples, order: BatchSampler, collate: Collate) -> Iterator[Batch | DataError]:
    workers = examples.config.num_workers
    loader = DataLoader(
        examples,
        batch_sampler=order,
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker,
    )
    before = signal.getsignal(signal.SIGCHLD)
    batches: Iterator[Batch | DataError] = iter(loader)
    if workers and threading.current_thread() is threading.main_thread():
        # PyTorch's handler raises in the midst of whatever the process does, a step of the optimizer maybe. The
        # death is found out when a batch is asked for, too.
        is_pytorchs = getattr(before, "__module__", "").startswith("torch.")
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if is_pytorchs else before)
    return batches


def _start_worker(_number: int) -> None:
    """One thread a worker, and Ctrl-C is for the training process: it finishes its step and saves."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
