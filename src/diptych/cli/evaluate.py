"""`diptych evaluate ...`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from diptych.cli.loading import BundlePath
from diptych.cli.output import Json, print_json, print_table, say
from diptych.cli.reports import print_report
from diptych.cli.word_lists import read_classes
from diptych.core.address import redacted
from diptych.core.errors import ConfigError
from diptych.core.progress import bar

if TYPE_CHECKING:
    from diptych.data.sources.protocol import Source
    from diptych.evaluation.encoded import SourceEncoder
    from diptych.evaluation.report import Report
    from diptych.inference.loaded import LoadedBundle

TrainSplit = Annotated[str, Parameter(help="Which split the classifier learns from.")]
Template = Annotated[
    list[str] | None,
    Parameter(
        help="Prompt with {} for the class, several for an ensemble; or a file of them, or a set: imagenet-80, imagenet-7, "
        "cifar-18. The data's own if not given.",
        negative="",
    ),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What every evaluation is told: the samples, and where the figures go."""

    data: Annotated[str, Parameter(help="What to measure on, as kind:location.")]
    split: Annotated[str, Parameter(help="Which split of it; `all` takes everything.")] = "val"
    max_samples: Annotated[int | None, Parameter(help="Measure on at most so many samples.")] = None
    val_fraction: Annotated[
        float | None,
        Parameter(help="Share cut off as val where the data has no such split; the bundle's own if not given."),
    ] = None
    out: Annotated[
        Path | None,
        Parameter(
            help="Folder for results.json, report.html and pictures; the figures go into the bundle's card, too."
        ),
    ] = None
    no_cache: Annotated[
        bool, Parameter(help="Encode anew what was encoded before.", negative="", show_default=False)
    ] = False
    as_json: Json = False


def retrieval(
    bundle: BundlePath,
    /,
    *,
    on: Measurement,
    captions: Annotated[
        Literal["all", "first"], Parameter(help="All of each image, or the first alone (one-caption protocol).")
    ] = "all",
) -> None:
    """Find each image's texts and each text's image: R@1, R@5, R@10, ranks, mean average precision."""
    from diptych.bundle.folder import add_metrics, is_bundle
    from diptych.evaluation.rendering import tell_retrieval
    from diptych.evaluation.retrieval import evaluate_retrieval

    clip = _load(bundle)
    (source,) = _samples(clip, on, on.split)
    result = evaluate_retrieval(_encoder(clip, on), source, split=on.split, captions=captions)
    _tell(tell_retrieval(result), on, bundle)
    if on.out is not None and is_bundle(bundle) and "pairs" not in clip.bundle.metrics.get("retrieval", {}):
        add_metrics(bundle, {"retrieval": asdict(result.report)})  # What `classify --threshold auto` goes by.


def zero_shot(
    bundle: BundlePath,
    /,
    *,
    on: Measurement,
    template: Template = None,
    classes: Annotated[
        list[str] | None,
        Parameter(
            help="Names of the data's classes, in their order, or a file with one name per line.",
            consume_multiple=True,
            negative="",
        ),
    ] = None,
    allow_empty_classes: Annotated[
        bool, Parameter(help="Measure though some of --classes have no sample.", negative="", show_default=False)
    ] = False,
) -> None:
    """Classify labelled images from nothing but their classes' names."""
    from diptych.evaluation.rendering import tell_zero_shot
    from diptych.evaluation.zero_shot import evaluate_zero_shot

    if classes is not None:
        classes = read_classes(classes)
    clip = _load(bundle)
    (source,) = _samples(clip, on, on.split)
    result = evaluate_zero_shot(
        _encoder(clip, on),
        source,
        split=on.split,
        templates=_templates(template),
        classes=classes,
        all_must_occur=classes is not None and on.max_samples is None and not allow_empty_classes,
    )
    if classes is not None and not on.as_json:
        pairs = zip(source.classes, classes, strict=True)
        print_table(
            "Classes", ["the data's name", "number", "yours"], [[a, str(i), b] for i, (a, b) in enumerate(pairs)]
        )
    _tell(tell_zero_shot(result), on, bundle)


def probe(bundle: BundlePath, /, *, on: Measurement, train_split: TrainSplit = "train") -> None:
    """Train a linear classifier on the image embeddings of labelled data, and measure it."""
    from diptych.evaluation.probe import evaluate_probe
    from diptych.evaluation.rendering import tell_probe

    _check_splits(on, train_split)
    clip = _load(bundle)
    test, train = _samples(clip, on, on.split, train_split)
    report = evaluate_probe(_encoder(clip, on), train, test, split=on.split, train_split=train_split)
    _tell(tell_probe(report), on, bundle)


def knn(
    bundle: BundlePath,
    /,
    *,
    on: Measurement,
    train_split: TrainSplit = "train",
    neighbours: Annotated[int, Parameter(help="Nearest images that vote.")] = 20,
    temperature: Annotated[float, Parameter(help="A vote weighs exp(cosine / temperature).")] = 0.07,
) -> None:
    """Classify labelled images by the votes of their nearest neighbours."""
    from diptych.evaluation.probe import evaluate_knn
    from diptych.evaluation.rendering import tell_knn

    _check_splits(on, train_split)
    clip = _load(bundle)
    test, train = _samples(clip, on, on.split, train_split)
    report = evaluate_knn(
        _encoder(clip, on),
        train,
        test,
        split=on.split,
        train_split=train_split,
        neighbours=neighbours,
        temperature=temperature,
    )
    _tell(tell_knn(report), on, bundle)


def robustness(bundle: BundlePath, /, *, on: Measurement, template: Template = None) -> None:
    """Measure under brightness, blur, noise, JPEG and rotation at five strengths."""
    from diptych.evaluation.rendering import tell_robustness
    from diptych.evaluation.robustness import evaluate_robustness

    clip = _load(bundle)
    (source,) = _samples(clip, on, on.split)
    result = evaluate_robustness(_encoder(clip, on), source, split=on.split, templates=_templates(template))
    _tell(tell_robustness(result), on, bundle)


def compare(*bundles: BundlePath, on: Measurement, template: Template = None) -> None:
    """Compare models on the same samples: zero-shot where the data has labels, else retrieval."""
    from diptych.evaluation.compare import compare_retrieval, compare_zero_shot
    from diptych.evaluation.rendering import tell_comparison
    from diptych.evaluation.retrieval import evaluate_retrieval
    from diptych.evaluation.zero_shot import evaluate_zero_shot

    if len(bundles) < 2:
        raise ConfigError("a comparison needs at least two bundles")
    clips = [_load(bundle) for bundle in bundles]
    encoders = [_encoder(clip, on) for clip in clips]
    (source,) = _samples(clips[0], on, on.split)
    names = _short_names(bundles)
    if source.classes:
        templates = _templates(template)
        answers = [evaluate_zero_shot(encoder, source, split=on.split, templates=templates) for encoder in encoders]
        comparison = compare_zero_shot(names, answers)
    else:
        found = [evaluate_retrieval(encoder, source, split=on.split) for encoder in encoders]
        comparison = compare_retrieval(names, found)
    _tell(tell_comparison(comparison), on, None)


def _load(bundle: Path) -> "LoadedBundle":
    from diptych.inference.loaded import load

    return load(bundle)


def _encoder(clip: "LoadedBundle", on: Measurement) -> "SourceEncoder":
    from diptych.evaluation.cache import EmbeddingCache
    from diptych.evaluation.encoded import SourceEncoder

    return SourceEncoder(clip.embedder, cache=None if on.no_cache else EmbeddingCache(), track=bar)


def _samples(clip: "LoadedBundle", on: Measurement, *splits: str) -> "list[Source]":
    """The samples of each split, as the bundle's training cut them; of the one to measure on, no more than were asked for."""
    from diptych.data.open_source import open_source
    from diptych.data.sources.splits import FIRST_SPLIT_RULE, SPLIT_RULE, take_split
    from diptych.data.sources.subset import take_few

    fraction = float(clip.bundle.origin.get("val_fraction", 0.05)) if on.val_fraction is None else on.val_fraction
    if not 0 < fraction < 1:
        raise ConfigError(f"--val-fraction is {fraction}; it is a share, between 0 and 1")
    if on.max_samples is not None and on.max_samples < 1:
        raise ConfigError(f"--max-samples is {on.max_samples}; it must be at least 1")
    whole = open_source(on.data)
    # A bundle keeps the rule that cut its training data, so that it is never measured on pictures it was trained on.
    origin = clip.bundle.origin
    rule = int(origin.get("split_rule", FIRST_SPLIT_RULE if "train_split_hash" in origin else SPLIT_RULE))
    parts = [take_split(whole, split, val_fraction=fraction, rule=rule) for split in splits]
    return [take_few(parts[0], on.max_samples), *parts[1:]]


def _check_splits(on: Measurement, train_split: str) -> None:
    if on.split == train_split:
        raise ConfigError(
            f"--split and --train-split are both {on.split}: a classifier is not measured on what it learned"
        )


def _templates(given: list[str] | None) -> tuple[str, ...]:
    """Those asked for; none, and the data's own are taken."""
    from diptych.data.sources.templates import resolve_templates

    return resolve_templates(given) if given else ()


def _short_names(bundles: Sequence[Path]) -> list[str]:
    """As much of each path as tells it from the others."""
    longest = max(len(path.parts) for path in bundles)
    depth = next((n for n in range(1, longest) if len({path.parts[-n:] for path in bundles}) == len(bundles)), longest)
    return [str(Path(*path.parts[-depth:])) for path in bundles]


def _tell(report: "Report", on: Measurement, bundle: Path | None) -> None:
    """Print, and write what was asked for."""
    from diptych.bundle.folder import add_evaluation, is_bundle
    from diptych.evaluation.report import PAGE, write_report

    print_json(report.metrics) if on.as_json else print_report(report)
    if on.out is None:
        return
    data = redacted(on.data)
    about = {"data": data, **({} if bundle is None else {"bundle": str(bundle)})}
    write_report(replace(report, about=about), on.out)
    written = f"Report: {on.out / PAGE}"
    if bundle is not None and is_bundle(bundle):
        add_evaluation(bundle, f"{report.title}, {data}", summary=report.summary, protocol=report.protocol)
        written += f"; figures added to {bundle / 'README.md'}"
    if not on.as_json:
        say(written)
