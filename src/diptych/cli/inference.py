"""Commands that use a model: `diptych similarity`, `explain`, `classify`, `rank-images` and `rank-texts`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from diptych.cli.loading import DEFAULT_LOADING, BundlePath, Loading
from diptych.cli.output import Json, print_json, print_left_out, print_line, print_skipped, print_table
from diptych.cli.sheets import write_sheet
from diptych.cli.word_lists import read_classes, warn_of_classes
from diptych.core.encodings import read_lines
from diptych.core.errors import ConfigError
from diptych.core.formatting import percent
from diptych.core.paths import path_kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from diptych.core.errors import ImageError
    from diptych.images.formats import LeftOut
    from diptych.inference.classify import Classification
    from diptych.inference.similarity import Similarity

Sheet = Annotated[Path | None, Parameter(help="Write a contact sheet of the results to this image file.")]


def similarity(
    bundle: BundlePath,
    image: Annotated[str, Parameter(help="Image file, or a folder of them.")],
    /,
    *texts: Annotated[str, Parameter(help="Texts to compare the images with.")],
    plot: Annotated[Path | None, Parameter(help="Plot the matrix of cosines to this PNG, PDF or SVG file.")] = None,
    loading: Loading = DEFAULT_LOADING,
    as_json: Json = False,
) -> None:
    """Compare an image, or each image of a folder, with texts."""
    inputs = _Images([image])
    clip = loading.load(bundle)
    result = clip.similarity(inputs.paths, texts, on_error=inputs.on_error)
    if plot is not None:
        result.plot(plot)
    if as_json:
        print_json(result)
        return
    inputs.print_omissions()
    print_similarity(result)
    loading.print_min_cosine(clip, result.images)
    if plot is not None:
        print_line(f"Plot: {plot}")


def print_similarity(result: "Similarity", *, title: str | None = None) -> None:
    """Print the similarities of one image and its texts, or the matrix of cosines of several images.

    Args:
        result: the similarities.
        title: title of the table of a single image. By default, the name of the image.
    """
    if len(result.images) == 1:
        rows = [
            [text, f"{cosine:.3f}", percent(float(probability))]
            for text, cosine, probability in zip(result.texts, result.cosine[0], result.probability[0], strict=True)
        ]
        print_table(title or result.images[0], ["text", "cosine", "among these"], rows)
        return
    rows = [
        [image, *(f"{cosine:.3f}" for cosine in row)] for image, row in zip(result.images, result.cosine, strict=True)
    ]
    print_table("Cosines", ["image", *result.texts], rows)


def explain(
    bundle: BundlePath,
    image: Annotated[Path, Parameter(help="Image file.")],
    /,
    *texts: Annotated[str, Parameter(help="Texts. Each gets its own heat map.")],
    out: Annotated[Path, Parameter(help="Image file to write.")] = Path("heat.png"),
) -> None:
    """Draw heat maps of the parts of an image that match each text."""
    from diptych.inference.explain import explain as explain_image
    from diptych.inference.loaded import load

    explanation = explain_image(load(bundle).embedder, image, texts)
    try:
        explanation.sheet().save(out)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{out}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
    print_line(f"Heat: {out}")


def classify(
    bundle: BundlePath,
    /,
    *images: Annotated[str, Parameter(help="Image files, or one folder of them.")],
    classes: Annotated[
        list[str], Parameter(help="Class names, or a file with one name per line.", consume_multiple=True)
    ],
    template: Annotated[
        list[str] | None, Parameter(help="Prompt with {} for the class. Repeat the option for an ensemble of prompts.")
    ] = None,
    threshold: Annotated[
        str | None,
        Parameter(
            help="Cosine below which the result is `none of these`. `auto` uses the calibrated threshold of the bundle."
        ),
    ] = None,
    top: Annotated[int, Parameter(help="Number of classes to print per image. JSON contains all.")] = 5,
    sheet: Sheet = None,
    loading: Loading = DEFAULT_LOADING,
    as_json: Json = False,
) -> None:
    """Classify images, given only the names of the classes (zero-shot)."""
    from diptych.inference.classify import DEFAULT_TEMPLATES

    if top < 1:
        raise ConfigError(f"--top is {top}; it must be at least 1")
    names = read_classes(classes)
    if threshold is None:
        warn_of_classes(classes, names)
    inputs = _Images(images)
    clip = loading.load(bundle)
    results = clip.classify(
        inputs.paths,
        names,
        templates=template or DEFAULT_TEMPLATES,
        threshold=_threshold(threshold),
        on_error=inputs.on_error,
    )
    if sheet is not None:
        write_sheet(sheet, [("Classes", [(result.image, _best_class(result)) for result in results])])
    if as_json:
        print_json(results)
        return
    inputs.print_omissions()
    for result in results:
        rows = [[score.name, percent(score.probability), f"{score.cosine:.3f}"] for score in result.scores[:top]]
        suffix = f": none of these (below {result.threshold:.3f})" if result.best is None else ""
        print_table(f"{result.image}{suffix}", ["class", "probability", "cosine"], rows)
    loading.print_min_cosine(clip, [result.image for result in results])
    if sheet is not None:
        print_line(f"Sheet: {sheet}")


def _threshold(text: str | None) -> float | Literal["auto"] | None:
    if text is None:
        return None
    if text == "auto":
        return "auto"
    try:
        cosine = float(text)
    except ValueError:
        cosine = math.nan
    if not -1 <= cosine <= 1:
        raise ConfigError(f"--threshold is {text!r}; it must be a cosine within [-1, 1], or auto")
    return cosine


def _best_class(result: "Classification") -> str:
    return "none of these" if result.best is None else f"{result.best.name}  {percent(result.best.probability)}"


def rank_images(
    bundle: BundlePath,
    folder: Annotated[Path, Parameter(help="Folder of images, including subfolders.")],
    query: Annotated[str, Parameter(help='Text, or weighted terms such as \'"beach" + 0.5*photo.jpg - "people"\'.')],
    /,
    *,
    top: Annotated[int, Parameter(help="Number of results.")] = 5,
    sheet: Sheet = None,
    loading: Loading = DEFAULT_LOADING,
    as_json: Json = False,
) -> None:
    """Find the images in a folder that match a query best."""
    from diptych.inference.query import parse_query

    clip = loading.load(bundle)
    ranking = clip.rank_images(parse_query(query), folder, top=top)
    if sheet is not None:
        captions = [(result.item, f"{result.score:.2f}  {Path(result.item).name}") for result in ranking.results]
        write_sheet(sheet, [(ranking.query, captions)])
    if as_json:
        print_json(ranking)
        return
    print_skipped(ranking.skipped)
    print_left_out(ranking.left_out)
    print_table(
        ranking.query, ["image", "cosine"], [[result.item, f"{result.score:.3f}"] for result in ranking.results]
    )
    loading.print_min_cosine(clip, [result.item for result in ranking.results])
    if sheet is not None:
        print_line(f"Sheet: {sheet}")


def rank_texts(
    bundle: BundlePath,
    image: Annotated[str, Parameter(help="Image file, or weighted terms as in rank-images.")],
    /,
    *,
    texts: Annotated[Path, Parameter(help="File with one text per line.")],
    top: Annotated[int, Parameter(help="Number of results.")] = 5,
    sheet: Sheet = None,
    loading: Loading = DEFAULT_LOADING,
    as_json: Json = False,
) -> None:
    """Find the texts in a file that match an image best."""
    from diptych.inference.query import Query, Term, parse_query

    query = parse_query(image) if path_kind(image) is None else Query((Term(kind="image", value=image),))
    query_image = query.terms[0].value if [term.kind for term in query.terms] == ["image"] else None
    if sheet is not None and query_image is None:
        raise ConfigError("--sheet needs a single image to draw; the query is a text or has several terms")
    ranking = loading.load(bundle).rank_texts(query, read_lines(texts, what="texts"), top=top)
    if sheet is not None and query_image is not None:
        lines = "  |  ".join(f"{result.item} ({result.score:.2f})" for result in ranking.results)
        write_sheet(
            sheet, [(ranking.query, [(str(query_image), lines)])], tile_px=448, caption_lines=len(ranking.results)
        )
    if as_json:
        print_json(ranking)
        return
    print_table(ranking.query, ["text", "cosine"], [[result.item, f"{result.score:.3f}"] for result in ranking.results])
    if sheet is not None:
        print_line(f"Sheet: {sheet}")


class _Images:
    """The images of a command: the named files, or the images in the one named folder.

    Args:
        names: image files, or one folder.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.paths = names
        self.on_error: Callable[[str, ImageError], None] | None = None
        """A callback that records unreadable images of a folder; None for named files, which must be readable."""
        self._skipped: list[tuple[str, str]] = []
        self._left_out: Sequence[LeftOut] = ()
        if len(names) == 1 and path_kind(names[0]) == "folder":
            from diptych.images.listing import list_images

            listing = list_images(Path(names[0]))
            self.paths, self._left_out = [str(path) for path in listing.paths], listing.left_out
            self.on_error = self._add_skipped
            self._skipped += [(path, f"{path}: {reason}") for path, reason in listing.unreadable]

    def print_omissions(self) -> None:
        """Print to standard error which images were skipped because they are unreadable or of an unsupported format."""
        print_skipped(self._skipped)
        print_left_out(self._left_out)

    def _add_skipped(self, name: str, error: "ImageError") -> None:
        self._skipped.append((name, str(error)))
