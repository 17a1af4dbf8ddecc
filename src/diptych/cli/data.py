"""`diptych data ...`: inspect and convert datasets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from diptych.cli.output import Json, json_text, print_json, print_line, print_skipped
from diptych.cli.reports import print_audit
from diptych.core.errors import ConfigError, DataError
from diptych.core.progress import bar

if TYPE_CHECKING:
    from diptych.data.sources.protocol import Source as SourceProtocol
    from diptych.data.tools.audit import Audit

_MAX_SHOWN = 1000
"""Maximum number of samples of a contact sheet. A larger sheet would take gigabytes of memory."""

Source = Annotated[str, Parameter(help="Dataset of images and captions as kind:location, or only a path.")]


def show(
    source: Source,
    /,
    *,
    out: Annotated[Path, Parameter(help="Image file to write.")] = Path("sheet.png"),
    num: Annotated[int, Parameter(name=["--num", "-n"], help="Number of samples.")] = 16,
    recipe: Annotated[str, Parameter(help="Recipe whose preprocessing is applied.")] = "flickr30k-small",
    seed: Annotated[int, Parameter(help="Random seed of the crops and captions.")] = 0,
) -> None:
    """Draw a contact sheet of training samples after preprocessing, with the text of their tokens."""
    from diptych.cli.preview import training_preview
    from diptych.recipes.recipe import recipe as recipe_by_name

    if not 1 <= num <= _MAX_SHOWN:
        raise ConfigError(f"--num is {num}; it must be from 1 to {_MAX_SHOWN:,}")
    sheet = training_preview(source, recipe_by_name(recipe), num=num, seed=seed)
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise DataError(f"{out}: cannot be written ({error})") from None
    print_line(f"Written: {out}")


def audit(
    source: Source,
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Folder for audit.json and images.")] = None,
    split_by: Annotated[
        Literal["source", "run"],
        Parameter(help="Splits to report: those that the dataset defines, or those that a run would make."),
    ] = "source",
    val_fraction: Annotated[float, Parameter(help="Fraction of validation samples with --split-by run.")] = 0.05,
    as_json: Json = False,
) -> None:
    """Report on a dataset: splits, image sizes, unreadable and duplicate images, captions."""
    from diptych.data.open_source import open_source
    from diptych.data.sources.splits import Splits
    from diptych.data.tools.audit import audit as audit_source

    opened = open_source(source)
    splits = Splits(opened, val_fraction=val_fraction).names if split_by == "run" else None
    with bar("Reading", len(opened)) as step:
        result = audit_source(opened, splits=splits, on_sample=step)
    if out is not None:
        _write_audit(opened, result, out)
    if as_json:
        print_json(_without_lists(result))
        return
    print_audit(source, result)
    if out is not None:
        print_line(f"Written: {', '.join(str(path) for path in sorted(out.iterdir()))}")


def _write_audit(opened: "SourceProtocol", result: "Audit", out: Path) -> None:
    from diptych.core.files import write_text
    from diptych.data.tools.audit_pictures import draw_histograms, suspicious_sheet

    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "audit.json", json_text(_without_lists(result)) + "\n")
        sheet = suspicious_sheet(opened, result)
        if sheet is not None:
            sheet.save(out / "suspicious.png")
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None
    draw_histograms(result, out / "histograms.png")


def _without_lists(result: "Audit") -> dict[str, object]:
    """The fields of an audit without the values per caption and per image, which only the histograms need."""
    return {name: value for name, value in vars(result).items() if name not in {"areas", "token_counts"}}


def pack(
    source: Source,
    out: Annotated[Path, Parameter(help="Folder to write to.")],
    /,
    *,
    image_px: Annotated[
        int, Parameter(help="Length of the shorter side in pixels. Smaller images are not resized.")
    ] = 128,
    per_shard: Annotated[int, Parameter(help="Number of samples per file.")] = 2048,
) -> None:
    """Decode and resize all images once, for faster training. Run it again to continue after an interruption."""
    from diptych.data.open_source import open_source
    from diptych.data.tools.pack import pack as write_pack

    opened = open_source(source)
    with bar("Packing", len(opened)) as step:
        packed = write_pack(opened, out, image_px=image_px, per_shard=per_shard, on_sample=step)
    print_skipped(packed.skipped)
    existing = f", {packed.num_kept} of them from an earlier call" if packed.num_kept else ""
    size = f"{packed.num_bytes / 1e6:,.0f} MB in {packed.num_shards} files{existing}"
    print_line(f"{packed.num_samples:,} samples, {size}: {out}")
    print_line(f"Train on them:  --data 'packed:{out}'")


def shards(
    source: Source,
    out: Annotated[Path, Parameter(help="Folder to write the tar files to.")],
    /,
    *,
    per_shard: Annotated[int, Parameter(help="Number of samples per tar file.")] = 5000,
    layout: Annotated[
        Literal["webdataset", "clip-benchmark"], Parameter(help="Layout of file names and metadata files.")
    ] = "webdataset",
) -> None:
    """Convert a dataset to WebDataset tar files, as used by open_clip, webdataset and Diptych."""
    from diptych.data.open_source import open_source
    from diptych.data.tools.write_shards import write_shards

    opened = open_source(source)
    with bar("Writing", len(opened)) as step:
        written = write_shards(opened, out, per_shard=per_shard, layout=layout, on_sample=step)
    print_skipped(written.skipped)
    names = f"{written.paths[0].name} to {written.paths[-1].name}"
    print_line(f"{written.num_samples:,} samples in {len(written.paths)} tars: {out}, {names}")
    last = written.paths[-1].stem
    if layout == "clip-benchmark":
        print_line(f"Train on them:  --data 'shards:{out}'")
        return
    pattern = f"{out}/{{00000..{last}}}.tar" if len(written.paths) > 1 else str(written.paths[0])
    print_line(f"Train on them:  --data 'shards:{pattern}'")
