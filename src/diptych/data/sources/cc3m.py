"""`cc3m:DIR`: Conceptual Captions (Sharma et al. 2018) as img2dataset leaves it, in tars or in numbered folders of files.

Beside each shard lie its statistics (`00000_stats.json`), which img2dataset writes last: they say how many of the URLs still
gave a picture, and a shard without them is not finished.
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
    """What the statistics of all shards say together."""

    num_shards: int = 0
    totals: Counter[str] = field(default_factory=Counter)
    unfinished: list[Path] = field(default_factory=list)
    """Shards without statistics."""

    def __str__(self) -> str:
        said = []
        count, successes = self.totals["count"], self.totals["successes"]
        if successes < count:
            download, resize = self.totals["failed_to_download"], self.totals["failed_to_resize"]
            reasons = f"{download:,} failed to download, {resize:,} to be resized"
            said.append(f"{successes:,} of {count:,} URLs were fetched ({reasons})")
        if self.unfinished:
            first = ", ".join(path.name for path in self.unfinished[:_NUM_LISTED]) + (
                ", ..." if len(self.unfinished) > _NUM_LISTED else ""
            )
            num = f"{len(self.unfinished)} of {self.num_shards} shards"
            said.append(f"{num} are unfinished, without _stats.json ({first}); img2dataset goes on if it is run again")
        return "; ".join(said)


def read_cc3m(location: str) -> Source:
    """The pictures that were fetched, with a caption each; what was not is counted, and said in a warning.

    Raises:
        DataError: there is no such folder, or no picture in it yet: the message says how to fetch them.
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
    said = [str(fetched)] if str(fetched) else []
    if left_out:
        listed = ", ".join(f"{count} with {reason}" for reason, count in left_out.most_common())
        said.append(f"{left_out.total()} of {len(source) + left_out.total()} samples are left out: {listed}")
    if said:
        warnings.warn(f"cc3m:{root}: {'; '.join(said)}", DiptychWarning, stacklevel=2)
    return source


def _folders(root: Path) -> Iterator[tuple[Path, str | None]]:
    """Where shards may lie, and the split that the folder's name gives them."""
    yield root, None
    for name, split in _SPLITS.items():
        if (root / name).is_dir():
            yield listable(root / name), split


def _numbered(folder: Path) -> list[Path]:
    """The shards of img2dataset's `--output_format files`."""
    return sorted(path for path in folder.glob("[0-9]*") if path.name.isdigit() and path.is_dir())


def _statistics(shards: Sequence[Path]) -> _Fetched:
    fetched = _Fetched(num_shards=len(shards))
    bare = []
    for shard in shards:
        try:
            content = json.loads(shard.with_name(f"{shard.stem}_stats.json").read_text(encoding="utf-8"))
            names = ("count", "successes", "failed_to_download", "failed_to_resize")
            fetched.totals.update({name: int(content[name]) for name in names})
        except (OSError, ValueError, KeyError, TypeError):  # Not there, or not written to its end.
            bare.append(shard)
    # Tars under names of their own and without any statistics were put up by somebody, and are whole.
    is_copy = len(bare) == len(shards) and not any(shard.stem.isdigit() for shard in shards)
    fetched.unfinished = [] if is_copy else bare
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
    """Whether anything of a tar that img2dataset has not finished is there yet."""
    try:
        return len(LocalTar(path).index().keys) > 0
    except DataError:
        return False


def _split_in_name(name: str) -> str | None:
    """The split of a tar that is called after it.

    >>> _split_in_name("cc3m-validation-0007"), _split_in_name("00007")
    ('val', None)
    """
    found = _SPLIT_IN_NAME.search(name.lower())
    return _SPLITS[found.group()] if found else None


def _from_folders(root: Path, folders: Sequence[tuple[Path, str | None]]) -> tuple[Listing, Counter[str]]:
    builder, left_out = ListingBuilder(root, where=root), Counter[str]()
    for folder, split in folders:
        for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES):
            caption = _caption_beside(path)
            if caption:
                builder.add(path.relative_to(root).as_posix(), [caption], split=split)
            else:
                left_out["no caption"] += 1
    return builder.build(check_images=False), left_out


def _caption_beside(image: Path) -> str:
    """From the text file, else from the JSON; empty if neither has one."""
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
    return DataError(f"cc3m:{root}: holds no tars, nor numbered folders of pictures, as img2dataset leaves them")


def _not_fetched(table: Path) -> DataError:
    """How to fetch the pictures of a table; the official one lacks the heading that img2dataset needs."""
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
