"""`diptych evaluate ...`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.cli.output import Json, print_json
from diptych.cli.reports import print_retrieval, print_zero_shot
from diptych.core.errors import ConfigError

if TYPE_CHECKING:
    from diptych.data.sources.protocol import Source
    from diptych.inference.loaded import LoadedBundle

Data = Annotated[str, Parameter(help="What to measure on, as kind:location.")]
Split = Annotated[str, Parameter(help="Which split of it; `all` takes everything.")]
MaxSamples = Annotated[int | None, Parameter(help="Measure on at most so many samples.")]
ValFraction = Annotated[
    float | None,
    Parameter(help="Share cut off as val where the data has no such split; the bundle's own if not given."),
]


def retrieval(
    bundle: Annotated[Path, Parameter(help="Bundle folder, or whatever `diptych import` reads.")],
    /,
    *,
    data: Data,
    split: Split = "val",
    max_samples: MaxSamples = None,
    val_fraction: ValFraction = None,
    as_json: Json = False,
) -> None:
    """Find each image's texts and each text's image: R@1, R@5, R@10, median rank."""
    from diptych.evaluation.retrieval import evaluate_retrieval
    from diptych.inference.loaded import load

    clip = load(bundle)
    source = _source(clip, data, split, val_fraction, max_samples)
    report = evaluate_retrieval(clip.embedder, source, split=split)
    print_json(report) if as_json else print_retrieval(report)


def zero_shot(
    bundle: Annotated[Path, Parameter(help="Bundle folder, or whatever `diptych import` reads.")],
    /,
    *,
    data: Data,
    split: Split = "val",
    template: Annotated[
        list[str] | None,
        Parameter(
            help="Prompt with {} for the class, several for an ensemble; the data's own if not given.", negative=""
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        Parameter(help="Names for the data's classes, in their order.", consume_multiple=True, negative=""),
    ] = None,
    max_samples: MaxSamples = None,
    val_fraction: ValFraction = None,
    as_json: Json = False,
) -> None:
    """Classify labelled images from nothing but their classes' names."""
    from diptych.evaluation.zero_shot import evaluate_zero_shot
    from diptych.inference.classify import DEFAULT_TEMPLATES
    from diptych.inference.loaded import load

    clip = load(bundle)
    source = _source(clip, data, split, val_fraction, max_samples)
    report = evaluate_zero_shot(
        clip.embedder, source, split=split, templates=template or source.templates or DEFAULT_TEMPLATES, classes=classes
    )
    print_json(report) if as_json else print_zero_shot(report)


def _source(
    clip: "LoadedBundle", data: str, split: str, val_fraction: float | None, max_samples: int | None
) -> "Source":
    """The samples to measure on, split as the bundle's training split them."""
    from diptych.data.sources.choice import open_source
    from diptych.data.sources.subset import take_few, take_split

    fraction = float(clip.bundle.origin.get("val_fraction", 0.05)) if val_fraction is None else val_fraction
    if not 0 < fraction < 1:
        raise ConfigError(f"--val-fraction is {fraction}; it is a share, between 0 and 1")
    if max_samples is not None and max_samples < 1:
        raise ConfigError(f"--max-samples is {max_samples}; it must be at least 1")
    return take_few(take_split(open_source(data), split, val_fraction=fraction), max_samples)
