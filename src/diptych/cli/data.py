"""`diptych data ...`: look at data, and put it into another form."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from diptych.cli.output import Json, json_text, print_json, print_skipped, say
from diptych.cli.reports import print_audit
from diptych.core.errors import ConfigError, DataError
from diptych.core.progress import bar

if TYPE_CHECKING:
    from diptych.data.sources.protocol import Source as SourceProtocol
    from diptych.data.tools.audit import Audit

_MAX_SHOWN = 1000
"""Samples of a sheet: with more, one picture takes gigabytes."""

Source = Annotated[str, Parameter(help="Pictures and captions, as kind:location, or a path alone.")]


def show(
    source: Source,
    /,
    *,
    out: Annotated[Path, Parameter(help="Picture to write.")] = Path("sheet.png"),
    num: Annotated[int, Parameter(name=["--num", "-n"], help="Samples to show.")] = 16,
    recipe: Annotated[str, Parameter(help="Recipe whose cropping, size and tokenizer are used.")] = "flickr30k-small",
    seed: Annotated[int, Parameter(help="Which samples, and which crops of them.")] = 0,
) -> None:
    """Draw what a model will see in training: cropped and resized pictures over the text of their tokens."""
    from diptych.cli.preview import training_preview
    from diptych.recipes.recipe import recipe as recipe_by_name

    if not 1 <= num <= _MAX_SHOWN:
        raise ConfigError(f"--num is {num}; it must be from 1 to {_MAX_SHOWN:,}")
    sheet = training_preview(source, recipe_by_name(recipe), num=num, seed=seed)
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise DataError(f"{out}: cannot be written ({error})") from None
    say(f"Written: {out}")


def audit(
    source: Source,
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Folder for audit.json and pictures.")] = None,
    split_by: Annotated[
        Literal["source", "run"],
        Parameter(
            help="Whose splits are looked at: those that the source itself names, or those that a run would cut."
        ),
    ] = "source",
    val_fraction: Annotated[float, Parameter(help="With --split-by run, the share of val.")] = 0.05,
    as_json: Json = False,
) -> None:
    """Say what is in the data before a run is: splits, sizes, broken and repeated pictures, captions."""
    from diptych.data.open_source import open_source
    from diptych.data.sources.splits import Splits
    from diptych.data.tools.audit import audit as look_at

    opened = open_source(source)
    splits = Splits(opened, val_fraction=val_fraction).names if split_by == "run" else None
    with bar("Reading", len(opened)) as step:
        found = look_at(opened, splits=splits, on_sample=step)
    if out is not None:
        _write_audit(opened, found, out)
    if as_json:
        print_json(_without_lists(found))
        return
    print_audit(source, found)
    if out is not None:
        say(f"Written: {', '.join(str(path) for path in sorted(out.iterdir()))}")


def _write_audit(opened: "SourceProtocol", found: "Audit", out: Path) -> None:
    from diptych.core.files import write_text
    from diptych.data.tools.audit_pictures import draw_histograms, suspicious_sheet

    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "audit.json", json_text(_without_lists(found)) + "\n")
        sheet = suspicious_sheet(opened, found)
        if sheet is not None:
            sheet.save(out / "suspicious.png")
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None
    draw_histograms(found, out / "histograms.png")


def _without_lists(found: "Audit") -> dict[str, object]:
    """Without the number of every caption and picture, which only the histograms need."""
    import dataclasses

    return {
        field.name: getattr(found, field.name)
        for field in dataclasses.fields(found)
        if field.name not in {"areas", "token_counts"}
    }


def pack(
    source: Source,
    out: Annotated[Path, Parameter(help="Folder to write into.")],
    /,
    *,
    image_px: Annotated[int, Parameter(help="Length of the short side; smaller pictures stay as they are.")] = 128,
    per_shard: Annotated[int, Parameter(help="Samples a file.")] = 2048,
) -> None:
    """Decode and shrink every picture once, so that training reads pixels. Broken off, it goes on when called again."""
    from diptych.data.open_source import open_source
    from diptych.data.tools.pack import pack as write_pack

    opened = open_source(source)
    with bar("Packing", len(opened)) as step:
        packed = write_pack(opened, out, image_px=image_px, per_shard=per_shard, on_sample=step)
    print_skipped(packed.skipped)
    kept = f", {packed.num_kept} of them from before" if packed.num_kept else ""
    say(f"{packed.num_samples:,} samples, {packed.num_bytes / 1e6:,.0f} MB in {packed.num_shards} files{kept}: {out}")
    say(f"Train on them:  --data 'packed:{out}'")


def shards(
    source: Source,
    out: Annotated[Path, Parameter(help="Folder to write the tars into.")],
    /,
    *,
    per_shard: Annotated[int, Parameter(help="Samples a tar.")] = 5000,
    layout: Annotated[
        Literal["webdataset", "clip-benchmark"], Parameter(help="Names and side files, as CLIP_benchmark expects them.")
    ] = "webdataset",
) -> None:
    """Write WebDataset tars, for open_clip, webdataset, and Diptych itself."""
    from diptych.data.open_source import open_source
    from diptych.data.tools.write_shards import write_shards

    opened = open_source(source)
    with bar("Writing", len(opened)) as step:
        written = write_shards(opened, out, per_shard=per_shard, layout=layout, on_sample=step)
    print_skipped(written.skipped)
    names = f"{written.paths[0].name} to {written.paths[-1].name}"
    say(f"{written.num_samples:,} samples in {len(written.paths)} tars: {out}, {names}")
    last = written.paths[-1].stem
    if layout == "clip-benchmark":
        say(f"Train on them:  --data 'shards:{out}'")
        return
    pattern = f"{out}/{{00000..{last}}}.tar" if len(written.paths) > 1 else str(written.paths[0])
    say(f"Train on them:  --data 'shards:{pattern}'")
