"""`diptych evaluate ...`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diptych.cli.output import print_json
from diptych.cli.reports import print_retrieval, print_zero_shot

Data = Annotated[str, Parameter(help="What to measure on, as kind:location.")]
Split = Annotated[str, Parameter(help="Which split of it; `all` takes everything.")]
MaxSamples = Annotated[int | None, Parameter(help="Measure on at most so many samples.")]
ValFraction = Annotated[float, Parameter(help="Share cut off as val where the data has no such split.")]
Json = Annotated[bool, Parameter(name="--json", help="Print JSON instead of a table.", negative="")]


def retrieval(
    bundle: Annotated[Path, Parameter(help="Bundle folder.")],
    /,
    *,
    data: Data,
    split: Split = "val",
    max_samples: MaxSamples = None,
    val_fraction: ValFraction = 0.05,
    as_json: Json = False,
) -> None:
    """Find each image's texts and each text's image: R@1, R@5, R@10, median rank."""
    from diptych.data.sources.choice import open_source
    from diptych.data.sources.subset import take_few, take_split
    from diptych.evaluation.retrieval import evaluate_retrieval
    from diptych.inference.loaded import load

    source = take_few(take_split(open_source(data), split, val_fraction=val_fraction), max_samples)
    report = evaluate_retrieval(load(bundle).embedder, source, split=split)
    print_json(report) if as_json else print_retrieval(report)


def zero_shot(
    bundle: Annotated[Path, Parameter(help="Bundle folder.")],
    /,
    *,
    data: Data,
    split: Split = "val",
    template: Annotated[
        list[str] | None, Parameter(help="Prompt with {} for the class; give several for an ensemble.")
    ] = None,
    classes: Annotated[
        list[str] | None, Parameter(help="Names for the data's classes, in their order.", consume_multiple=True)
    ] = None,
    max_samples: MaxSamples = None,
    val_fraction: ValFraction = 0.05,
    as_json: Json = False,
) -> None:
    """Classify labelled images from nothing but their classes' names."""
    from diptych.data.sources.choice import open_source
    from diptych.data.sources.subset import take_few, take_split
    from diptych.evaluation.zero_shot import evaluate_zero_shot
    from diptych.inference.classify import DEFAULT_TEMPLATES
    from diptych.inference.loaded import load

    source = take_few(take_split(open_source(data), split, val_fraction=val_fraction), max_samples)
    report = evaluate_zero_shot(
        load(bundle).embedder, source, split=split, templates=template or DEFAULT_TEMPLATES, classes=classes
    )
    print_json(report) if as_json else print_zero_shot(report)
