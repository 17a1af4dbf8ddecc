"""`diptych data ...`: look at data, and put it into another form."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diptych.cli.output import console, errors, print_skipped
from diptych.core.errors import ConfigError, DataError

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
    from diptych.recipes.choice import recipe as recipe_by_name
    from diptych.training.preview import training_preview

    if num < 1:
        raise ConfigError(f"--num is {num}; it must be at least 1")
    sheet = training_preview(source, recipe_by_name(recipe), num=num, seed=seed)
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise DataError(f"{out}: cannot be written ({error})") from None
    console().print(f"Written: {out}", soft_wrap=True)


def shards(
    source: Source,
    out: Annotated[Path, Parameter(help="Folder to write the tars into.")],
    /,
    *,
    per_shard: Annotated[int, Parameter(help="Samples a tar.")] = 5000,
) -> None:
    """Write WebDataset tars, for open_clip, webdataset, and Diptych itself."""
    from rich.progress import track

    from diptych.data.sources.choice import open_source
    from diptych.data.write_shards import write_shards

    opened = open_source(source)
    steps = iter(track(range(len(opened)), description="Writing", console=errors(), transient=True))
    written = write_shards(opened, out, per_shard=per_shard, on_sample=lambda: next(steps, None))
    print_skipped(written.skipped)
    names = f"{written.paths[0].name} to {written.paths[-1].name}" if written.paths else "no tars"
    console().print(f"{written.num_samples:,} samples in {len(written.paths)} tars: {out}, {names}", soft_wrap=True)
    if written.paths:
        last = written.paths[-1].stem
        pattern = f"{out}/{{00000..{last}}}.tar" if len(written.paths) > 1 else str(written.paths[0])
        console().print(f"Train on them:  --data 'shards:{pattern}'", soft_wrap=True)
