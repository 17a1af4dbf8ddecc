"""`diptych evaluate ...`: evaluate a model on a dataset."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from diptych.cli.loading import BundlePath
from diptych.cli.output import Json, print_json, print_line, print_table
from diptych.cli.reports import print_report
from diptych.cli.word_lists import read_classes
from diptych.core.address import redacted
from diptych.core.errors import ConfigError
from diptych.core.progress import bar

if TYPE_CHECKING:
    from diptych.data.sources.protocol import Source
    from diptych.evaluation.encoded import SourceEncoder
    from diptych.evaluation.report import Report

TrainSplit = Annotated[str, Parameter(help="Split that trains the classifier.")]
Template = Annotated[
    list[str] | None,
    Parameter(
        help="Prompt with {} for the class; a file of prompts; or imagenet-80, imagenet-7 or cifar-18. Repeat the option for "
        "an ensemble. Default: the prompts of the dataset."
    ),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Options of all evaluations: the samples, and the output."""

    data: Annotated[str, Parameter(help="Dataset to evaluate on, as kind:location.")]
    split: Annotated[str, Parameter(help="Split of the dataset; `all` uses all samples.")] = "val"
    max_samples: Annotated[int | None, Parameter(help="Maximum number of samples.")] = None
    val_fraction: Annotated[
        float | None,
        Parameter(help="Fraction of validation samples if the dataset has no val split. Default: as in training."),
    ] = None
    out: Annotated[
        Path | None,
        Parameter(
            help="Folder for results.json, report.html and images. The metrics are added to the bundle's model card, too."
        ),
    ] = None
    no_cache: Annotated[bool, Parameter(help="Do not use cached embeddings.")] = False
    as_json: Json = False


def retrieval(
    bundle: BundlePath,
    /,
    *,
    on: Measurement,
    captions: Annotated[
        Literal["all", "first"], Parameter(help="Captions per image to use: all, or only the first.")
    ] = "all",
) -> None:
    """Evaluate retrieval in both directions: recall at 1, 5 and 10, ranks, mean average precision."""
    from diptych.bundle.folder import add_metrics, is_bundle
    from diptych.evaluation.rendering import render_retrieval
    from diptych.evaluation.retrieval import evaluate_retrieval

    encoder = _encoder(bundle, on)
    (source,) = _samples(encoder, on, on.split)
    result = evaluate_retrieval(encoder, source, split=on.split, captions=captions)
    _report(render_retrieval(result), on, bundle)
    if on.out is not None and is_bundle(bundle) and "pairs" not in encoder.embedder.bundle.metrics.get("retrieval", {}):
        add_metrics(bundle, {"retrieval": asdict(result.report)})  # `classify --threshold auto` uses it.


def zero_shot(
    bundle: BundlePath,
    /,
    *,
    on: Measurement,
    template: Template = None,
    classes: Annotated[
        list[str] | None,
        Parameter(
            help="Class names in the order of the dataset, or a file with one name per line.", consume_multiple=True
        ),
    ] = None,
    allow_empty_classes: Annotated[bool, Parameter(help="Allow names in --classes that have no sample.")] = False,
) -> None:
    """Evaluate zero-shot classification of labeled images."""
    from diptych.evaluation.rendering import render_zero_shot
    from diptych.evaluation.zero_shot import evaluate_zero_shot

    if classes is not None:
        classes = read_classes(classes)
    encoder = _encoder(bundle, on)
    (source,) = _samples(encoder, on, on.split)
    result = evaluate_zero_shot(
        encoder,
        source,
        split=on.split,
        templates=_templates(template),
        classes=classes,
        all_must_occur=classes is not None and on.max_samples is None and not allow_empty_classes,
    )
    if classes is not None and not on.as_json:
        pairs = zip(source.classes, classes, strict=True)
        print_table(
            "Classes", ["name in the data", "number", "given name"], [[a, str(i), b] for i, (a, b) in enumerate(pairs)]
        )
    _report(render_zero_shot(result), on, bundle)


def probe(bundle: BundlePath, /, *, on: Measurement, train_split: TrainSplit = "train") -> None:
    """Evaluate a linear classifier that is trained on the image embeddings (linear probe)."""
    from diptych.evaluation.probe import evaluate_probe
    from diptych.evaluation.rendering import render_probe

    _check_splits(on, train_split)
    encoder = _encoder(bundle, on)
    test, train = _samples(encoder, on, on.split, train_split)
    report = evaluate_probe(encoder, train, test, split=on.split, train_split=train_split)
    _report(render_probe(report), on, bundle)


def knn(
    bundle: BundlePath,
    /,
    *,
    on: Measurement,
    train_split: TrainSplit = "train",
    neighbours: Annotated[int, Parameter(help="Number of nearest neighbors.")] = 20,
    temperature: Annotated[float, Parameter(help="The weight of a neighbor is exp(cosine / temperature).")] = 0.07,
) -> None:
    """Evaluate classification by the nearest neighbors of each image."""
    from diptych.evaluation.probe import evaluate_knn
    from diptych.evaluation.rendering import render_knn

    _check_splits(on, train_split)
    encoder = _encoder(bundle, on)
    test, train = _samples(encoder, on, on.split, train_split)
    report = evaluate_knn(
        encoder,
        train,
        test,
        split=on.split,
        train_split=train_split,
        neighbours=neighbours,
        temperature=temperature,
    )
    _report(render_knn(report), on, bundle)


def robustness(bundle: BundlePath, /, *, on: Measurement, template: Template = None) -> None:
    """Evaluate under changes of brightness, blur, noise, JPEG compression and rotation at five strengths."""
    from diptych.evaluation.rendering import render_robustness
    from diptych.evaluation.robustness import evaluate_robustness

    encoder = _encoder(bundle, on)
    (source,) = _samples(encoder, on, on.split)
    result = evaluate_robustness(encoder, source, split=on.split, templates=_templates(template))
    _report(render_robustness(result), on, bundle)


def compare(*bundles: BundlePath, on: Measurement, template: Template = None) -> None:
    """Compare models on the same samples: zero-shot if the dataset has labels, otherwise retrieval."""
    from diptych.evaluation.compare import compare_retrieval, compare_zero_shot
    from diptych.evaluation.rendering import render_comparison
    from diptych.evaluation.retrieval import evaluate_retrieval
    from diptych.evaluation.zero_shot import evaluate_zero_shot

    if len(bundles) < 2:
        raise ConfigError("a comparison needs at least two bundles")
    encoders = [_encoder(bundle, on) for bundle in bundles]
    (source,) = _samples(encoders[0], on, on.split)
    names = _short_names(bundles)
    if source.classes:
        templates = _templates(template)
        classified = [evaluate_zero_shot(encoder, source, split=on.split, templates=templates) for encoder in encoders]
        comparison = compare_zero_shot(names, classified)
    else:
        retrieved = [evaluate_retrieval(encoder, source, split=on.split) for encoder in encoders]
        comparison = compare_retrieval(names, retrieved)
    _report(render_comparison(comparison), on, None)


def _encoder(bundle: Path, on: Measurement) -> "SourceEncoder":
    from diptych.evaluation.cache import EmbeddingCache
    from diptych.evaluation.encoded import SourceEncoder
    from diptych.inference.loaded import load

    return SourceEncoder(load(bundle).embedder, cache=None if on.no_cache else EmbeddingCache(), track=bar)


def _samples(encoder: "SourceEncoder", on: Measurement, *splits: str) -> "list[Source]":
    """The samples of each split, split as in the training of the bundle. `--max-samples` limits the first split only.

    Raises:
        ConfigError: an option is out of range.
    """
    from diptych.data.open_source import open_source
    from diptych.data.sources.splits import FIRST_SPLIT_RULE, SPLIT_RULE, take_split
    from diptych.data.sources.subset import take_few

    origin = encoder.embedder.bundle.origin
    fraction = float(origin.get("val_fraction", 0.05)) if on.val_fraction is None else on.val_fraction
    if not 0 < fraction < 1:
        raise ConfigError(f"--val-fraction is {fraction}; it must be between 0 and 1")
    if on.max_samples is not None and on.max_samples < 1:
        raise ConfigError(f"--max-samples is {on.max_samples}; it must be at least 1")
    whole = open_source(on.data)
    # A bundle stores the rule that split its training data, so that it is never evaluated on its training images.
    rule = int(origin.get("split_rule", FIRST_SPLIT_RULE if "train_split_hash" in origin else SPLIT_RULE))
    parts = [take_split(whole, split, val_fraction=fraction, rule=rule) for split in splits]
    return [take_few(parts[0], on.max_samples), *parts[1:]]


def _check_splits(on: Measurement, train_split: str) -> None:
    if on.split == train_split:
        raise ConfigError(
            f"--split and --train-split are both {on.split}: a classifier must not be evaluated on its training data"
        )


def _templates(names: list[str] | None) -> tuple[str, ...]:
    """The prompt templates of the option `--template`; empty to use those of the dataset."""
    from diptych.data.sources.templates import resolve_templates

    return resolve_templates(names) if names else ()


def _short_names(bundles: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths, with the same number of parts, that are all different."""
    longest = max(len(path.parts) for path in bundles)
    depth = next((n for n in range(1, longest) if len({path.parts[-n:] for path in bundles}) == len(bundles)), longest)
    return [str(Path(*path.parts[-depth:])) for path in bundles]


def _report(report: "Report", on: Measurement, bundle: Path | None) -> None:
    """Print a report. With `--out`, write it to a folder and add its summary to the model card of the bundle."""
    from diptych.bundle.folder import add_evaluation, is_bundle
    from diptych.evaluation.report import PAGE, write_report

    print_json(report.metrics) if on.as_json else print_report(report)
    if on.out is None:
        return
    data = redacted(on.data)
    meta = {"data": data, **({} if bundle is None else {"bundle": str(bundle)})}
    write_report(replace(report, about=meta), on.out)
    message = f"Report: {on.out / PAGE}"
    if bundle is not None and is_bundle(bundle):
        add_evaluation(bundle, f"{report.title}, {data}", summary=report.summary, protocol=report.protocol)
        message += f"; metrics added to {bundle / 'README.md'}"
    if not on.as_json:
        print_line(message)
