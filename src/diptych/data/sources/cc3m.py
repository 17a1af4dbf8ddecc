"""`cc3m:DIR`: Conceptual Captions (Sharma et al. 2018) as written by img2dataset, as tars or numbered folders of files.

The statistics of each shard (`00000_stats.json`) contain the number of URLs that could be downloaded. img2dataset writes them
last, so a shard without them is unfinished.
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diptych.core.errors import DataError, DiptychWarning
from diptych.data.sources.listing import Listing, ListingBuilder
from diptych.data.sources.location import existing_folder, listable
from diptych.data.sources.protocol import Source
from diptych.data.sources.shards import ShardsSource
from diptych.data.storage.tars import LocalTar
from diptych.images.decode import IMAGE_SUFFIXES

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|validation|valid|val|test)(?![a-z])")
_NUM_LISTED = 3


@dataclass
class _Fetched:
    """Sum of the statistics of all shards."""

    num_shards: int = 0
    totals: Counter[str] = field(default_factory=Counter)
    unfinished: list[Path] = field(default_factory=list)
    """Shards without statistics."""

    def __str__(self) -> str:
        notes = []
        count, successes = self.totals["count"], self.totals["successes"]
        if successes < count:
            download, resize = self.totals["failed_to_download"], self.totals["failed_to_resize"]
            reasons = f"{download:,} failed to download, {resize:,} to be resized"
            notes.append(f"{successes:,} of {count:,} URLs were fetched ({reasons})")
        if self.unfinished:
            first = ", ".join(path.name for path in self.unfinished[:_NUM_LISTED]) + (
                ", ..." if len(self.unfinished) > _NUM_LISTED else ""
            )
            num = f"{len(self.unfinished)} of {self.num_shards} shards"
            notes.append(f"{num} are unfinished, without _stats.json ({first}); run img2dataset again to continue")
        return "; ".join(notes)


def read_cc3m(location: str) -> Source:
    """Return the downloaded images with their captions. A warning reports failed downloads and samples that are left out.

    Raises:
        DataError: the folder does not exist or contains no images. The message explains how to download them.
    """
    root = Path(location)
    if root.suffix == ".tsv" and root.is_file():
        raise _not_fetched(root)
    existing_folder(root, kind="cc3m")
    tars = [(path, split) for folder, split in _folders(root) for path in sorted(folder.glob("*.tar"))]
    folders = [(path, split) for folder, split in _folders(root) for path in _numbered(folder)]
    if not tars and not folders:
        raise _nothing_there(root)
    fetched = _statistics([path for path, _ in tars or folders])
    source, left_out = _from_tars(root, tars, fetched) if tars else _from_folders(root, folders)
    notes = [str(fetched)] if str(fetched) else []
    if left_out:
        listed = ", ".join(f"{count} with {reason}" for reason, count in left_out.most_common())
        notes.append(f"{left_out.total()} of {len(source) + left_out.total()} samples are left out: {listed}")
    if notes:
        warnings.warn(f"cc3m:{root}: {'; '.join(notes)}", DiptychWarning, stacklevel=2)
    return source


def _folders(root: Path) -> Iterator[tuple[Path, str | None]]:
    """Yield the folders that may contain shards, and the split that each folder's name implies."""
    yield root, None
    for name, split in _SPLITS.items():
        if (root / name).is_dir():
            yield listable(root / name), split


def _numbered(folder: Path) -> list[Path]:
    """Return the shards that img2dataset writes with `--output_format files`."""
    return sorted(path for path in folder.glob("[0-9]*") if path.name.isdigit() and path.is_dir())


def _statistics(shards: Sequence[Path]) -> _Fetched:
    fetched = _Fetched(num_shards=len(shards))
    without_stats = []
    for shard in shards:
        try:
            content = json.loads(shard.with_name(f"{shard.stem}_stats.json").read_text(encoding="utf-8"))
            names = ("count", "successes", "failed_to_download", "failed_to_resize")
            fetched.totals.update({name: int(content[name]) for name in names})
        except (OSError, ValueError, KeyError, TypeError):  # Missing, or not completely written.
            without_stats.append(shard)
    # Renamed tars without any statistics are a published copy and complete.
    is_copy = len(without_stats) == len(shards) and not any(shard.stem.isdigit() for shard in shards)
    fetched.unfinished = [] if is_copy else without_stats
    return fetched


def _from_tars(
    root: Path, tars: Sequence[tuple[Path, str | None]], fetched: _Fetched
) -> tuple[ShardsSource, Counter[str]]:
    whole = [(path, split) for path, split in tars if path not in fetched.unfinished or _has_samples(path)]
    splits = [split or _split_in_name(path.stem) for path, split in whole]
    source = ShardsSource([LocalTar(path) for path, _ in whole], splits=splits) if whole else None
    if source is None or not len(source):
        raise DataError(f"cc3m:{root}: {len(tars)} tars hold no samples{f'; {fetched}' if str(fetched) else ''}")
    return source, source.problems()


def _has_samples(path: Path) -> bool:
    """Return whether an unfinished tar of img2dataset contains samples already."""
    try:
        return len(LocalTar(path).index().keys) > 0
    except DataError:
        return False


def _split_in_name(name: str) -> str | None:
    """Return the split in the name of a tar; None if there is none.

    >>> _split_in_name("cc3m-validation-0007"), _split_in_name("00007")
    ('val', None)
    """
    found = _SPLIT_IN_NAME.search(name.lower())
    return _SPLITS[found.group()] if found else None


def _from_folders(root: Path, folders: Sequence[tuple[Path, str | None]]) -> tuple[Listing, Counter[str]]:
    builder, left_out = ListingBuilder(root, where=root), Counter[str]()
    for folder, split in folders:
        for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES):
            caption = _caption_of(path)
            if caption:
                builder.add(path.relative_to(root).as_posix(), [caption], split=split)
            else:
                left_out["no caption"] += 1
    return builder.build(check_images=False), left_out


def _caption_of(image: Path) -> str:
    """Return the caption in the text file, else that in the JSON file; empty if there is none."""
    try:
        return image.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        pass
    try:
        caption = json.loads(image.with_suffix(".json").read_text(encoding="utf-8")).get("caption")
    except (OSError, ValueError, AttributeError):
        return ""
    return caption.strip() if isinstance(caption, str) else ""


def _nothing_there(root: Path) -> DataError:
    if any(True for folder, _ in _folders(root) for _ in folder.glob("*.parquet")):
        way_out = f"if they hold the pictures, read them as hf:{root}?image=jpg&caption=caption"
        return DataError(f"cc3m:{root}: holds parquet files, and neither tars nor folders of pictures; {way_out}")
    tables = sorted(root.glob("*.tsv"))
    if tables:
        return _not_fetched(tables[0])
    return DataError(f"cc3m:{root}: contains neither tars nor numbered folders of pictures as written by img2dataset")


def _not_fetched(table: Path) -> DataError:
    """Return an error that explains how to fetch the images of a table. The official table lacks the header row."""
    with table.open(encoding="utf-8", errors="replace") as file:
        has_heading = "url" in file.readline().lower().split()
    heading = "" if has_heading else rf"sed -i '1s/^/caption\turl\n/' {table} && "
    command = (
        f"img2dataset --url_list {table} --input_format tsv --url_col url --caption_col caption "
        "--output_format webdataset --image_size 256 --output_folder"
    )
    return DataError(
        f"{table}: has captions and URLs, but no pictures; fetch them, then use cc3m:OUT: {heading}{command} OUT"
    )
