"""`diptych demo`: train, evaluate and use a tiny CLIP, in under three minutes on two cores."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.cli.inference import print_similarity
from diptych.cli.output import print_line, print_table
from diptych.cli.reports import print_retrieval
from diptych.cli.train import train_with_display
from diptych.core.formatting import percent
from diptych.core.program import command

if TYPE_CHECKING:
    from PIL.Image import Image

    from diptych.data.sources.protocol import Source
    from diptych.inference.loaded import LoadedBundle

QUERIES = (
    "a red circle",
    "a large green triangle",
    "a small blue circle",
    "a purple square on a white background",
    "an orange triangle on a black background",
    "a red square",
)
_NUM_PICTURES = 120


def demo(
    *,
    out: Annotated[Path, Parameter(help="Run folder. An earlier demo in it is replaced.")] = Path("runs/demo"),
    epochs: Annotated[float | None, Parameter(help="Number of epochs. Default: that of the recipe.")] = None,
) -> int:
    """Train a tiny CLIP on drawings of colored shapes, then evaluate and use it."""
    from diptych.core.settings import override
    from diptych.data.sources.shapes import NOVEL_CLASSES
    from diptych.inference.loaded import load
    from diptych.recipes.demo import demo as demo_recipe

    config = demo_recipe() if epochs is None else override(demo_recipe(), {"schedule.epochs": epochs})
    print_line("Drawing 6 colours x 3 shapes. Three pairs stay out of training: " + ", ".join(NOVEL_CLASSES) + ".")
    result = train_with_display(config, out, overwrite=_holds_demo(out))
    if result.interrupted:
        print_line(f"Stopped and saved. Continue with: {command('train', '--resume', out)}")
        return 0
    assert result.bundle is not None
    assert result.retrieval is not None
    print_retrieval(result.retrieval)
    clip = load(result.bundle)
    _evaluate(clip, config.data.source)
    pictures = _write_pictures(out / "pictures", config.data.source)
    _use(clip, pictures)
    _search_sheet(clip, config.data.source).save(out / "search.png")
    _index(clip, pictures[0].parent, out / "index")
    _print_next(out, pictures)
    return 0


def _holds_demo(run: Path) -> bool:
    """Whether a folder contains an earlier demo, which a new one may replace."""
    from diptych.core.errors import DiptychError
    from diptych.training.config import read_config
    from diptych.training.run_folder import CONFIG

    try:
        return (run / CONFIG).is_file() and read_config(run / CONFIG).recipe == "demo"
    except DiptychError:
        return False


def _evaluate(clip: "LoadedBundle", data: str) -> None:
    from dataclasses import asdict

    from diptych.bundle.folder import add_metrics
    from diptych.data.open_source import open_source
    from diptych.data.sources.splits import take_split
    from diptych.evaluation.encoded import SourceEncoder
    from diptych.evaluation.zero_shot import evaluate_zero_shot

    rows, metrics = [], {}
    for split, description in (("val", "unseen pictures, 15 known pairs"), ("novel", "3 pairs held out of training")):
        source = take_split(open_source(data), split)
        encoder = SourceEncoder(clip.embedder)
        report = evaluate_zero_shot(encoder, source, split=split).report
        rows.append([description, str(report.protocol["images"]), percent(report.top1)])
        metrics[f"zero_shot_{split}"] = asdict(report)
    rows.append(["chance, 18 names", "", percent(1 / 18)])
    print_table("Zero-shot classification into 18 color-shape pairs", ["", "pictures", "accuracy"], rows)
    if clip.path is not None:
        add_metrics(clip.path, metrics)


def _write_pictures(folder: Path, data: str) -> list[Path]:
    """Write 120 validation images as files, for the commands that the demo suggests at its end."""
    folder.mkdir(exist_ok=True)
    return [_save(picture, folder / f"{key}.png") for key, picture in _pictures(data, _NUM_PICTURES)]


def _use(clip: "LoadedBundle", pictures: list[Path]) -> None:
    from diptych.data.sources.shapes import COLOURS, SHAPES, ShapesSource

    picture = pictures[0]
    texts = ("a red circle", "a blue circle", "a red triangle", "a green square")
    print_similarity(clip.similarity([picture], texts), title=f"Similarity: {picture.name} and four texts")

    names = [f"{color} {shape}" for color in COLOURS for shape in SHAPES]
    results = clip.classify(pictures[1:4], names, templates=ShapesSource.templates)
    rows = [[Path(r.image).name, r.scores[0].name, percent(r.scores[0].probability)] for r in results]
    print_table("Classification among 18 names", ["picture", "class", "probability"], rows)

    ranking = clip.rank_images("a large yellow triangle", pictures, top=3)
    rows = [[Path(result.item).name, f"{result.score:.3f}"] for result in ranking.results]
    print_table(f"Images for a text: {ranking.query}", ["picture", "cosine"], rows)

    ranking = clip.rank_texts(pictures[4], [f"a {name}" for name in names], top=3)
    rows = [[result.item, f"{result.score:.3f}"] for result in ranking.results]
    print_table(f"Texts for an image: {pictures[4].name}", ["text", "cosine"], rows)


def _search_sheet(clip: "LoadedBundle", data: str) -> "Image":
    from diptych.images.sheet import SheetRow, contact_sheet
    from diptych.inference.rank import rank_images_for_texts

    pictures = [picture for _, picture in _pictures(data, None)]
    rankings = rank_images_for_texts(clip.embedder, QUERIES, pictures, top=5)
    rows = []
    for ranking in rankings:
        suffix = "   (a pair held out of training)" if ranking.query == "a red square" else ""
        tiles = [(pictures[result.position], f"{result.score:.2f}") for result in ranking.results]
        rows.append(SheetRow(ranking.query + suffix, tiles))
    return contact_sheet(rows, tile_px=128)


def _index(clip: "LoadedBundle", pictures: Path, folder: Path) -> None:
    """Index a folder of images. An existing index is replaced, because it has the vectors of another model."""
    from diptych.index.open_index import index_exists
    from diptych.search.collection import open_or_create, update

    if index_exists(folder):
        shutil.rmtree(folder)
    with open_or_create(folder, clip) as index:
        update(index, clip, [pictures])


def _pictures(data: str, limit: int | None) -> "list[tuple[str, Image]]":
    """Keys and images of the validation split and, if there is no limit, of the split with held-out pairs."""
    from diptych.data.open_source import open_source
    from diptych.data.sources.splits import take_split
    from diptych.images.decode import decode

    source = open_source(data)
    splits: list[Source] = [take_split(source, "val")]
    if limit is None:
        splits.append(take_split(source, "novel"))
    samples = [split[i] for split in splits for i in range(len(split))][:limit]
    return [(sample.key, decode(sample.image)) for sample in samples]


def _save(picture: "Image", path: Path) -> Path:
    picture.save(path)
    return path


def _print_next(out: Path, pictures: list[Path]) -> None:
    print_line()
    print_line(f"Curves: {out / 'curves.png'}")
    print_line(f"Search: {out / 'search.png'}")
    print_line()
    print_line("Try next:", style="bold")
    bundle = out / "bundle"
    for line in (
        command("rank-images", bundle, pictures[0].parent, "a small green circle", "--sheet", "found.png"),
        command("classify", bundle, pictures[0], "--classes", "red circle", "blue square", "--template", "a {}"),
        command("similarity", bundle, pictures[0], "a red circle", "a blue square"),
        command("evaluate", "zero-shot", bundle, "--data", "shapes", "--split", "novel"),
        command("train", "--help"),
    ):
        print_line("  " + line)
    print_line()
    print_line("Or open a page that searches while you type:", style="bold")
    print_line("  " + command("serve", bundle, "--index", out / "index"))
