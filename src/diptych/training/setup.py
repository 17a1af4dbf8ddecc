"""Prepares a run: opens its data and builds model, tokenizer, optimizers and training state."""

import copy
import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from diptych.bundle.folder import Bundle, require_bundle
from diptych.core.address import redacted
from diptych.core.errors import ConfigError, DiptychWarning
from diptych.core.fingerprint import DataFingerprint
from diptych.cpu import linear
from diptych.cpu.halves import ParallelHalves, can_halve
from diptych.data.batches.loader import DataConfig, TrainingExamples
from diptych.data.batches.order import steps_per_epoch
from diptych.data.open_source import open_source
from diptych.data.sources.identity import fingerprint_data
from diptych.data.sources.listing import missing_images
from diptych.data.sources.protocol import Source
from diptych.data.sources.splits import Splits
from diptych.data.sources.subset import take_few
from diptych.device.distributed import Ranks
from diptych.device.hardware import choose_device
from diptych.device.packed_texts import PackingSpec
from diptych.device.precision import resolve_precision
from diptych.inference.embedder import Embedder
from diptych.models.clip import CLIP
from diptych.models.packing import packing_spec
from diptych.tokenizers.load_tokenizer import tokenizer_file
from diptych.tokenizers.protocol import Tokenizer
from diptych.training.checkpoint.state import TrainingState
from diptych.training.checkpoint.store import Progress, load_checkpoint
from diptych.training.compilation import compile_blocks, decide_compile
from diptych.training.config import TrainConfig, hide_secrets, write_config
from diptych.training.distillation import Teacher, open_teacher
from diptych.training.optim.build import build_optimizers
from diptych.training.optim.ema import WeightAverage
from diptych.training.optim.freeze import apply_freeze, set_training_mode
from diptych.training.optim.schedule import Schedule
from diptych.training.parallel.tensors import copy_model
from diptych.training.parallel.wrap import replicate
from diptych.training.precision import check_precision
from diptych.training.report.skipped import SkippedSamples
from diptych.training.report.trackers import check_trackers
from diptych.training.run_folder import (
    CONFIG,
    SKIPPED,
    check_inputs_outside,
    clear_leftovers,
    create_run_folder,
    has_begun,
)
from diptych.training.starting_point import starting_point, with_resolved_towers
from diptych.training.step import TrainingStep


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """Everything that a run needs before its first step."""

    config: TrainConfig
    """The config of the run, with a precision other than `auto`. If the run starts from `init`, `config.model` describes that
    model."""
    path: Path
    """The run folder."""
    ranks: Ranks
    train_source: Source
    val_source: Source
    """The whole validation split."""
    val_subset: Source
    """At most `validation.samples` samples of it, for validation during the run."""
    tokenizer: Tokenizer
    assembly: "Assembly"
    examples: TrainingExamples
    schedule: Schedule
    skipped: SkippedSamples
    data: dict[str, DataFingerprint]
    """Fingerprints of the training and the validation data."""
    progress: Progress
    messages: tuple[str, ...]
    """Messages for the user, to be shown before the run starts."""


def set_up(config: TrainConfig, run: Path, ranks: Ranks, *, resume: bool, accept_changed_data: bool) -> RunSetup:
    """Open the data, build the model and its optimizers, and load the newest checkpoint or create the folder.

    Args:
        config: config of the run.
        run: the run folder, locked by this run (see `hold_run_folder`).
        ranks: the ranks of the run.
        resume: whether to start from the newest checkpoint, if there is one.
        accept_changed_data: whether the data may differ from that of the checkpoint.

    Raises:
        ConfigError: a setting contradicts another setting or the data.
        DataError: the data cannot be read.
        RunError: no checkpoint is intact, or the data has changed.
    """
    config = with_resolved_towers(config)
    train_source, val_source = open_data(config)
    is_resumed = resume and ranks.run_on_rank0(lambda: has_begun(run))
    device = choose_device(config.device)
    # FSDP does not support the gradient scaling that fp16 needs.
    precision = resolve_precision(config.precision, device, allows_fp16=config.parallel != "fsdp")
    config = replace(config, precision=precision)
    warning = check_precision(precision, device)
    messages = [] if warning is None else [warning]
    data = fingerprints(config, train_source, val_source, ranks)
    resumed = run if is_resumed else None
    start = starting_point(config, resumed, train_source, ranks, captions_hash=data["training"].captions)
    if config.init is not None:
        config = replace(config, model=start.model.config)
    planned = Schedule(config.schedule, steps_per_epoch(len(train_source), config.batch_size))
    compiles, reason = decide_compile(config.compile, device, planned)
    messages += [] if reason is None else [reason]
    assembly = assemble(replace(config, compile=compiles), start.model.to(device), start.tokenizer, ranks)
    packing = packing_spec(config.model.text, device, micro_batch=config.micro_batch)
    examples = training_examples(train_source, config, assembly.step.teacher, packing=packing)
    skipped = SkippedSamples(run / SKIPPED, ranks, num_samples=len(train_source), max_share=config.data.max_skipped)
    progress = Progress(step=0, elapsed_s=0.0, best_metric=-math.inf, best_step=None, skipped=())
    if is_resumed:
        progress = load_checkpoint(
            run,
            assembly.state,
            ranks,
            config=config,
            on_message=messages.append,
            data=data,
            accept_changed_data=accept_changed_data,
        )
        ranks.run_on_rank0(lambda: clear_leftovers(run))
        ranks.run_on_rank0(lambda: hide_secrets(run / CONFIG))
        skipped.go_on(progress.skipped)
        if config.schedule.minutes is not None:
            messages.append(
                "A schedule in minutes continues with the remaining time; the number of steps is not reproducible."
            )
    else:
        ranks.run_on_rank0(lambda: _write_new_folder(config, run, start.tokenizer))
        if resume:
            messages.append("The run was stopped before its first checkpoint, so it starts from the beginning")
    return RunSetup(
        config=config,
        path=run,
        ranks=ranks,
        train_source=train_source,
        val_source=val_source,
        val_subset=take_few(val_source, config.validation.samples),
        tokenizer=start.tokenizer,
        assembly=assembly,
        examples=examples,
        schedule=Schedule(config.schedule, steps_per_epoch(len(examples), config.batch_size)),
        skipped=skipped,
        data=data,
        progress=progress,
        messages=tuple(messages),
    )


def _write_new_folder(config: TrainConfig, run: Path, tokenizer: Tokenizer) -> None:
    create_run_folder(run)
    write_config(config, run / CONFIG)
    tokenizer.save(run / tokenizer_file(tokenizer.kind))


def open_data(config: TrainConfig) -> tuple[Source, Source]:
    """Open the data source of a run. Returns its training samples and its validation samples.

    Raises:
        DataError: the source cannot be read, or does not have the splits of the config.
        ConfigError: there are fewer training samples than `batch_size`, fewer than two validation samples, or no labels for
            validation by zero-shot accuracy.
    """
    data = config.data
    with missing_images(skip=data.skip_missing):
        source = open_source(data.source)
    splits = Splits(source, val_fraction=data.val_fraction, rule=data.split_rule)
    _warn_of_unused_splits(data, splits)
    _check_sizes(data, splits)
    train_source = take_few(splits.take(data.train_split), data.max_samples)
    if config.batch_size > len(train_source):
        raise ConfigError(
            f"batch_size {config.batch_size} is larger than the training data ({len(train_source)} samples); "
            f"set --batch-size {max(2, len(train_source) // 2)} or less"
        )
    val_source = splits.take(data.val_split)
    if config.validation.metric == "zero_shot" and any(val_source.label(i) is None for i in range(len(val_source))):
        raise ConfigError(
            "validation.metric is 'zero_shot', but not all of the data has labels; set it to recall, map or loss"
        )
    return train_source, val_source


def fingerprints(
    config: TrainConfig, train_source: Source, val_source: Source, ranks: Ranks
) -> dict[str, DataFingerprint]:
    """The fingerprints of the training and the validation data, computed on rank 0."""
    sources = {"training": train_source, "validation": val_source}
    return ranks.run_on_rank0(
        lambda: {name: fingerprint_data(source, pictures=config.data.fingerprint) for name, source in sources.items()}
    )


def check_start(config: TrainConfig, ranks: Ranks, *, run: Path | None) -> None:
    """Check what can be checked before a folder is created or changed.

    Args:
        config: config of the run.
        ranks: the ranks of the run.
        run: the run folder; None for a run that is resumed.

    Raises:
        ConfigError: the batch cannot be divided among the ranks, a tracker is missing, or the data lies in the run folder.
    """
    check_joint_batch(config, ranks)
    ranks.run_on_rank0(lambda: check_trackers(config.logs))
    if run is not None:
        ranks.run_on_rank0(lambda: check_inputs_outside(config, run))


def check_joint_batch(config: TrainConfig, ranks: Ranks) -> None:
    """Check that the batch can be divided evenly among the ranks.

    Raises:
        ConfigError: `batch_size` is not a multiple of the number of ranks, or each rank's share not one of `micro_batch`.
    """
    size, num = config.batch_size, ranks.size
    if size % num:
        near = [size // num * num, (size // num + 1) * num]
        raise ConfigError(
            f"batch_size {size} does not divide among {num} ranks; {max(near[0], num)} or {near[1]} would"
        )
    if config.micro_batch is not None and size // num % config.micro_batch:
        raise ConfigError(
            f"micro_batch is {config.micro_batch}; it must divide the {size // num} pairs of each of {num} ranks"
        )


def _warn_of_unused_splits(data: DataConfig, splits: Splits) -> None:
    """Warn about each split that neither this run nor an evaluation with default settings reads."""
    used = {"train", "val", "test", "novel", data.train_split, data.val_split}
    if "all" in used:
        return
    for name, size in splits.sizes().items():
        if name not in used:
            text = (
                f"{redacted(data.source)}: the {size:,} samples of split '{name}' are not used; to use them, rename the "
                "split, or choose it with --data.train-split or --data.val-split"
            )
            warnings.warn(text, DiptychWarning, stacklevel=3)


def _check_sizes(data: DataConfig, splits: Splits) -> None:
    """Check that there are at least two samples for training and for validation: one sample has no negatives."""
    num = len(splits.source)
    if num < 2:
        raise ConfigError(f"{data.source}: holds {num} sample; a run needs 2 or more")
    sizes = {**splits.sizes(), "all": num}
    num_train, num_val = (sizes.get(name, 0) for name in (data.train_split, data.val_split))
    if min(num_train, data.max_samples or num_train) == 1:
        way_out = "set --data.train-split all" if num_train == 1 else "set a larger --max-samples"
        raise ConfigError(f"only 1 of {num} samples is for training; contrastive training needs at least 2: {way_out}")
    if num_val == 1 or (num_val == 0 and data.val_split == "val"):
        more = "" if splits.has_own_val else f", or a larger --data.val-fraction than {data.val_fraction:g}"
        raise ConfigError(
            f"the validation split '{data.val_split}' has {num_val} of {num} samples; it needs 2 or more: "
            f"set --data.val-split all to measure on all samples{more}"
        )


def training_examples(
    source: Source, config: TrainConfig, teacher: Teacher | None = None, *, packing: PackingSpec | None = None
) -> TrainingExamples:
    """The training examples of a run: rows of a source, prepared for its model and its teacher."""
    return TrainingExamples(
        source,
        config=config.data,
        augment=config.augment,
        pixels=config.model.pixels,
        image_px=config.model.image.image_px,
        seed=config.seed,
        teacher=None if teacher is None else teacher.input_spec,
        packing=packing,
    )


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """The model of a run with everything that trains, evaluates and saves it."""

    model: CLIP
    step: TrainingStep
    state: TrainingState
    """Content of checkpoints."""
    embedder: Embedder
    """Embedder with the weights that are evaluated and saved in bundles: the model's own or their average, unsharded."""

    def refresh_eval_model(self) -> None:
        """Copy the current weights, or their average, to the embedder. All ranks must call it."""
        eval_model = require_bundle(self.embedder.bundle).model
        if self.step.average is not None:
            self.step.average.copy_to(eval_model)
        elif eval_model is not self.model:
            copy_model(self.model, eval_model)


def assemble(config: TrainConfig, model: CLIP, tokenizer: Tokenizer, ranks: Ranks) -> Assembly:
    """Prepare a model for training: freeze, compile and replicate it, load its teacher, and build its optimizers.

    Args:
        config: config of the run.
        model: the model, on its device.
        tokenizer: tokenizer of the model.
        ranks: the ranks that train it.

    Raises:
        ConfigError: the config freezes more layers than there are, or `compile` is true and a compiler is missing.
        BundleError: the teacher cannot be read.
    """
    device = model.log_logit_scale.device
    precision = resolve_precision(config.precision, device)
    linear.optimize(model)
    model.set_gradient_checkpointing(config.gradient_checkpointing)
    apply_freeze(model, config.lock)
    set_training_mode(model, config.lock)
    is_sharded = ranks.size > 1 and config.parallel == "fsdp"
    eval_model = copy.deepcopy(model) if config.ema is not None or is_sharded else model
    if config.compile is True:  # `set_up` decides what `auto` means for a run.
        compile_blocks(model, image_sizes_vary=bool(config.schedule.small_first))
    replicas = replicate(model, config.parallel, ranks)
    average = None if config.ema is None else WeightAverage(model, config.ema)
    optimizers = build_optimizers(model, config.optimizer)
    step = TrainingStep(
        model,
        optimizers,
        loss=config.loss,
        max_grad_norm=config.optimizer.max_grad_norm,
        micro_batch=config.micro_batch,
        precision=precision,
        average=average,
        replicas=replicas,
        teacher=open_teacher(config.distill, device, precision),
        teacher_weight=config.distill.weight,
        runner=ParallelHalves() if ranks.size == 1 and precision == "fp32" and can_halve(model) else None,
    )
    extras = {"average": average, "scaler": step.scaler if step.scaler.is_enabled() else None}
    state = TrainingState(
        model=model, optimizers=optimizers, extras={name: part for name, part in extras.items() if part is not None}
    )
    evaluated = Bundle(model=eval_model, tokenizer=tokenizer)
    embedder = Embedder(evaluated, precision=precision if device.type == "cuda" else "fp32")
    return Assembly(model=model, step=step, state=state, embedder=embedder)
