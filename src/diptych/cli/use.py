"""`diptych similarity`, `explain`, `classify`, `rank-images` and `rank-texts`: what a bundle is for."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diptych.cli.output import Json, print_json, print_skipped, print_table, say
from diptych.core.errors import ConfigError, DataError
from diptych.core.figures import percent

BundlePath = Annotated[Path, Parameter(help="Bundle folder, or whatever `diptych import` reads.")]


def similarity(
    bundle: BundlePath,
    image: Annotated[Path, Parameter(help="An image file.")],
    /,
    *texts: Annotated[str, Parameter(help="Texts to compare it with.")],
    as_json: Json = False,
) -> None:
    """Compare an image with texts."""
    from diptych.inference.loaded import load

    result = load(bundle).similarity([image], texts)
    if as_json:
        print_json(result)
        return
    rows = [
        [text, f"{cosine:.3f}", percent(float(probability))]
        for text, cosine, probability in zip(result.texts, result.cosine[0], result.probability[0], strict=True)
    ]
    print_table(str(image), ["text", "cosine", "among these"], rows)


def explain(
    bundle: BundlePath,
    image: Annotated[Path, Parameter(help="An image file.")],
    /,
    *texts: Annotated[str, Parameter(help="Texts, each explained by itself.")],
    out: Annotated[Path, Parameter(help="PNG to draw.")] = Path("heat.png"),
) -> None:
    """Draw which parts of an image speak for each text."""
    from diptych.inference.explain import explain as explain_image
    from diptych.inference.loaded import load

    found = explain_image(load(bundle).embedder, image, texts)
    try:
        found.sheet().save(out)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{out}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
    say(f"Heat: {out}")


def classify(
    bundle: BundlePath,
    /,
    *images: Annotated[Path, Parameter(help="Image files.")],
    classes: Annotated[list[str], Parameter(help="Names of the classes.", consume_multiple=True, negative="")],
    template: Annotated[
        list[str] | None, Parameter(help="Prompt with {} for the class; give several for an ensemble.", negative="")
    ] = None,
    top: Annotated[int, Parameter(help="Classes to show for each image; JSON has all.")] = 5,
    as_json: Json = False,
) -> None:
    """Classify images from nothing but the names of the classes."""
    from diptych.inference.classify import DEFAULT_TEMPLATES
    from diptych.inference.loaded import load

    if top < 1:
        raise ConfigError(f"--top is {top}; it must be at least 1")
    results = load(bundle).classify(images, classes, templates=template or DEFAULT_TEMPLATES)
    if as_json:
        print_json(results)
        return
    for result in results:
        rows = [[score.name, percent(score.probability), f"{score.cosine:.3f}"] for score in result.scores[:top]]
        print_table(result.image, ["class", "probability", "cosine"], rows)


def rank_images(
    bundle: BundlePath,
    folder: Annotated[Path, Parameter(help="Folder of images; its subfolders count.")],
    text: Annotated[str, Parameter(help="What to look for.")],
    /,
    *,
    top: Annotated[int, Parameter(help="Results to show.")] = 5,
    sheet: Annotated[Path | None, Parameter(help="Also write a contact sheet of the results.")] = None,
    as_json: Json = False,
) -> None:
    """Find the images of a folder that fit a text best."""
    from diptych.inference.loaded import load

    ranking = load(bundle).rank_images(text, folder, top=top)
    if sheet is not None:
        _write_sheet(sheet, text, [(result.item, result.score) for result in ranking.results])
    if as_json:
        print_json(ranking)
        return
    print_skipped(ranking.skipped)
    print_table(text, ["image", "cosine"], [[result.item, f"{result.score:.3f}"] for result in ranking.results])
    if sheet is not None:
        say(f"Contact sheet: {sheet}")


def rank_texts(
    bundle: BundlePath,
    image: Annotated[Path, Parameter(help="An image file.")],
    /,
    *,
    texts: Annotated[Path, Parameter(help="File with one text a line.")],
    top: Annotated[int, Parameter(help="Results to show.")] = 5,
    as_json: Json = False,
) -> None:
    """Find the texts of a file that fit an image best."""
    from diptych.inference.loaded import load

    ranking = load(bundle).rank_texts(image, _read_lines(texts), top=top)
    if as_json:
        print_json(ranking)
        return
    print_table(str(image), ["text", "cosine"], [[result.item, f"{result.score:.3f}"] for result in ranking.results])


def _read_lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text") from None
    texts = [line for line in lines if line]
    if not texts:
        raise DataError(f"{path}: holds no texts")
    return texts


def _write_sheet(path: Path, heading: str, results: list[tuple[str, float]]) -> None:
    from diptych.images.decode import decode
    from diptych.images.sheet import SheetRow, contact_sheet

    pictures = [(decode(item), f"{score:.2f}  {Path(item).name}") for item, score in results]
    try:
        contact_sheet([SheetRow(heading, pictures)], columns=5, tile_px=180).save(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be written ({error})") from None
