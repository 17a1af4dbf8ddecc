"""`diptych index ...`: create and maintain a search index of images."""

import os
import shlex
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.cli.loading import DEFAULT_LOADING, IndexAddress, Loading
from diptych.cli.output import (
    Json,
    confirm,
    print_facts,
    print_json,
    print_left_out,
    print_line,
    print_skipped,
    print_table,
    warn,
)
from diptych.cli.sheets import write_sheet
from diptych.core.errors import ConfigError
from diptych.core.program import command
from diptych.core.progress import bar

if TYPE_CHECKING:
    from diptych.index.entry import FileStat
    from diptych.index.protocol import Index
    from diptych.search.collection import Share, Update

_MAX_GROUPS, _MAX_ITEMS = 40, 10
"""Maximum number of groups on a contact sheet, and of images per group. Lists of warnings have the same length as a group."""


def add(
    index: IndexAddress,
    /,
    *folders: Annotated[Path, Parameter(help="Folders of images, including subfolders.")],
    bundle: Annotated[
        Path | None, Parameter(help="Bundle that embeds the images. Needed for a new index, which stores its path.")
    ] = None,
    prune: Annotated[bool, Parameter(help="Remove entries whose file in these folders is missing.")] = False,
    force: Annotated[
        bool, Parameter(help="Allow --prune to remove more than half of the index without confirmation.")
    ] = False,
    half: Annotated[bool, Parameter(help="Store the vectors of a new index as float16 instead of float32.")] = False,
    follow_links: Annotated[
        bool, Parameter(help="Follow symbolic links to folders, and to files outside the folders.")
    ] = False,
    exclude: Annotated[
        list[str] | None,
        Parameter(
            help="Skip files and folders that match a pattern, such as '*.thumb.jpg' or '@eaDir'. Can be repeated."
        ),
    ] = None,
    loading: Loading = DEFAULT_LOADING,
    as_json: Json = False,
) -> int:
    """Add folders of images to an index, or update it: new and changed files are embedded, moved files are recognized.

    Under torchrun, each process adds a part of the files to its own index; `index merge` merges them. The exit code is 2 if
    `--prune` would have removed more than half of the index and was neither confirmed nor forced.
    """
    from diptych.search.collection import open_or_create, update
    from diptych.search.scan import scan

    if not folders:
        raise ConfigError("name the folders to index")
    clip = loading.load_for(index, bundle)
    merged, share = index, _share(index)
    if share is not None:
        if prune:
            raise ConfigError("--prune is for one process, which sees all files; run it after index merge")
        index = _part_of(index, share.rank, share.size)
    with open_or_create(index, clip, kind="float16" if half else "float32") as opened:
        had_bits = opened.built() is not None
        may_prune = (lambda *_: True) if force else _confirm_prune
        report = update(
            opened,
            clip,
            folders,
            prune=prune,
            confirm=may_prune,
            follow_links=follow_links,
            exclude=exclude or (),
            share=share,
            track=bar,
        )
        place, total, is_outgrown = opened.place, len(opened), _is_outgrown(opened)
        _print_lost_bits(opened, had_bits=had_bits and not as_json)
    code = 2 if report.is_prune_refused else 0
    if as_json:
        print_json(report)
        return code
    _print_update(place, report, total)
    if is_outgrown:
        print_line(
            f"More than a fifth of the vectors has no sign bits: {command('index', 'build', index, '--approximate')}"
        )
    loading.print_min_cosine(
        clip, [file.key for file in islice(scan(folders, follow_links=follow_links, exclude=exclude or ()), 64)]
    )
    if share is not None and share.rank == 0:
        print_line(f"When all are done: {command('index', 'merge', merged)} {_parts_of(merged, share.size)}")
    return code


def _is_outgrown(opened: "Index") -> bool:
    """Whether more than a fifth of the vectors were added after `build`, so that scanning them slows down a search."""
    from diptych.index.approximate import AnnInfo

    built = opened.built()
    return isinstance(built, AnnInfo) and opened.size()["vectors"] > 1.25 * built.num


def _confirm_prune(num_missing: int, num_entries: int) -> bool:
    return confirm(f"--prune removes {num_missing:,} of {num_entries:,} pictures. Is every disk mounted? Remove them?")


def _print_update(place: str, report: "Update", total: int) -> None:
    parts = {
        "new": report.added,
        "changed": report.changed,
        "moved": report.moved,
        "copies of others": report.copies,
        "with new captions": report.recaptioned,
        "embedded again (their vectors were damaged)": report.repaired,
        "as before": report.unchanged,
        "dropped": report.dropped,
    }
    changes = ", ".join(f"{count:,} {name}" for name, count in parts.items() if count) or "nothing there"
    omitted = {
        "links that leave the folders and were not followed (--follow-links)": report.links,
        "hidden pictures and folders, and those of other programs": report.hidden,
        "excluded pictures and folders": report.excluded,
    }
    omissions = "".join(f"; {what}: {count:,}" for what, count in omitted.items() if count)
    print_line(f"{place}: {changes}; {total:,} pictures{omissions}")
    print_left_out(report.left_out)
    if report.is_prune_refused:
        warn(
            f"--prune would drop {report.vanished:,} files, more than half of the index, and dropped none; "
            "if every disk is mounted, use --force"
        )
    elif report.vanished > report.dropped:
        print_line(f"{report.vanished:,} files have gone since; --prune drops them")
    if report.lost:
        warn(f"{report.lost:,} pictures have no vector and are not found; add their folders again")
    print_skipped([(key, f"{key}: {reason}") for key, reason in report.unreadable])
    for path, reason in report.unread_captions[:_MAX_ITEMS]:
        warn(f"{path}: {reason}; its captions are left out")
    if len(report.unread_captions) > _MAX_ITEMS:
        warn(f"{len(report.unread_captions) - _MAX_ITEMS:,} more files of captions could not be read")


def merge(
    index: IndexAddress,
    /,
    *parts: Annotated[str, Parameter(help="Indexes to merge, with vectors of the same model. They are not changed.")],
) -> None:
    """Merge other indexes into an index, such as those of several processes or machines."""
    from diptych.index.merge import merge as merge_indexes
    from diptych.index.open_index import open_index, open_or_create_index

    if not parts:
        raise ConfigError("name the indexes to merge")
    with ExitStack() as stack:
        opened = [stack.enter_context(open_index(part)) for part in parts]
        first = opened[0]
        target = stack.enter_context(
            open_or_create_index(index, dim=first.dim, model=first.model, bundle=first.bundle, aliases=first.models[1:])
        )
        num = merge_indexes(target, opened, track=bar)
        print_line(f"{target.place}: {num:,} merged; {len(target):,} pictures")


def build(
    index: IndexAddress,
    /,
    *,
    approximate: Annotated[
        bool,
        Parameter(
            help="Build an index for approximate search: sign bits in a folder, HNSW in PostgreSQL. Without the option, an "
            "existing one is removed."
        ),
    ] = False,
    bundle: Annotated[
        Path | None,
        Parameter(help="Bundle that embeds the texts for measuring the recall. Default: that of the index."),
    ] = None,
    loading: Loading = DEFAULT_LOADING,
) -> None:
    """Prepare an index for approximate search, which is faster for millions of images, or for exact search.

    The recall of approximate search is measured with images and captions of the index, or with general texts if the index has
    no captions.
    """
    from diptych.index.address import is_address
    from diptych.index.hnsw import ENOUGH, Hnsw
    from diptych.index.open_index import open_index
    from diptych.search.check_model import check_model
    from diptych.search.sample_texts import sample_texts

    clip = loading.load_for(index, bundle) if approximate else None
    with open_index(index) as opened, opened.writing():
        if clip is None:
            opened.build(None)
            print_line(f"{opened.place}: is searched exactly")
            return
        check_model(opened, clip)
        clip.embedder.on_cut = lambda _: None  # No warning: truncated captions are good enough for measuring recall.
        queries = clip.encode_queries(sample_texts(opened))
        built = opened.build("hnsw" if is_address(index) else "signs", queries=queries)
        print_line(f"{opened.place}: {built}; the exact scan finds further hits")
        if isinstance(built, Hnsw) and built.lowest_recall < ENOUGH:
            warn(f"the recall is below {ENOUGH}; {command('index', 'build', opened.place)} makes search exact again")


def stats(index: IndexAddress, /, *, as_json: Json = False) -> None:
    """Print statistics of an index."""
    from diptych.index.open_index import open_index

    with open_index(index) as opened:
        size = opened.size()
        place, facts = opened.place, {"model": f"{opened.model} ({opened.bundle})", "numbers a vector": str(opened.dim)}
        facts["search"] = str(opened.built() or "exact")
    if as_json:
        print_json({**size, **facts})
        return
    counts = {name: f"{count:,}" for name, count in size.items()}
    print_facts(place, {**counts, **facts})


def verify(index: IndexAddress, /) -> int:
    """Verify the checksums of an index. The exit code is 2 if it is damaged; an interrupted `index add` is no damage."""
    from diptych.index.open_index import open_index
    from diptych.index.vector_file import NEXT_ADD

    with open_index(index) as opened:
        place, faults, remarks = opened.place, opened.verify(), opened.remarks()
        folder = opened.common_folder() if any(NEXT_ADD in fault for fault in faults) else None
    for remark in remarks:
        print_line(f"{place}: {remark}")
    for fault in faults:
        warn(fault)
    if folder is not None:
        print_line(f"Repair it: {command('index', 'add', place, folder)}")
    if not faults:
        print_line(f"{place}: all is well")
    return 2 if faults else 0


def remove(
    index: IndexAddress,
    /,
    *paths: Annotated[Path, Parameter(help="Image files or folders to remove.")],
    where: Annotated[str | None, Parameter(help="Remove only images that match a filter, as in search.")] = None,
) -> None:
    """Remove images from an index. Their files are not deleted."""
    from diptych.index.filters import parse_filter
    from diptych.index.open_index import open_index
    from diptych.search.collection import COMPACT_SHARE
    from diptych.search.keys import keys_below

    if not paths and where is None:
        raise ConfigError("name what to remove: paths, or --where")
    selected = None if where is None else parse_filter(where)
    with open_index(index) as opened, opened.writing():
        keys = keys_below(opened, paths, selected) if paths else opened.keys(selected)
        print_line(f"{opened.remove(keys):,} removed, {len(opened):,} left")
        had_bits = opened.built() is not None
        if not opened.compact(least_share=COMPACT_SHARE):
            num = opened.size()["unused"]
            if num:
                print_line(
                    f"Their vectors stay in the files until: {command('index', 'compact', index)} ({num:,} are unused)"
                )
        _print_lost_bits(opened, had_bits=had_bits)


def compact(index: IndexAddress, /) -> None:
    """Delete the vectors of removed images. In a folder, all other vectors are rewritten."""
    from diptych.index.open_index import open_index

    with open_index(index) as opened, opened.writing():
        had_bits = opened.built() is not None
        print_line(f"{opened.place}: {opened.compact():,} vectors dropped, {opened.size()['vectors']:,} left")
        _print_lost_bits(opened, had_bits=had_bits)


def _print_lost_bits(opened: "Index", *, had_bits: bool) -> None:
    """Print that the sign bits were lost because the vectors were rewritten."""
    if had_bits and opened.built() is None:
        rebuild = command("index", "build", opened.place, "--approximate")
        print_line(f"The vectors were rewritten, without sign bits. Build them again: {rebuild}")


def duplicates(
    index: IndexAddress,
    /,
    *,
    threshold: Annotated[float, Parameter(help="Minimum cosine of similar images.")] = 0.98,
    sheet: Annotated[Path | None, Parameter(help="Write a contact sheet of the groups to this image file.")] = None,
    as_json: Json = False,
) -> None:
    """Find groups of identical files, copies of the same image, and images that the model embeds similarly.

    The printed cosine is that with the first image of the group. A group of copies contains only one image of each group
    of identical files, and a group of similar images only one image of each group of copies.
    """
    from diptych.index.open_index import open_index
    from diptych.search.duplicates import find_duplicates

    if not 0 < threshold <= 1:
        raise ConfigError(f"--threshold is {threshold}; it must be a cosine above 0 and at most 1")
    with open_index(index) as opened:
        groups = find_duplicates(opened, threshold=threshold, track=bar)
    if as_json:
        print_json(groups)
    else:
        for number, group in enumerate(groups):
            rows = [[picture.key, f"{picture.cosine:.3f}"] for picture in group.pictures]
            print_table(f"Group {number + 1}: {group.kind}", ["path", "cosine"], rows)
        num = len({picture.key for group in groups for picture in group.pictures})
        print_line(f"{len(groups):,} groups, {num:,} pictures")
    if sheet is not None and groups:
        drawn = groups[:_MAX_GROUPS]
        tiles = [
            (
                f"group {number + 1} of {len(groups):,}: {group.kind}, {len(group.pictures):,} pictures",
                [(picture.key, f"{picture.cosine:.3f}") for picture in group.pictures[:_MAX_ITEMS]],
            )
            for number, group in enumerate(drawn)
        ]
        write_sheet(sheet, tiles)
        suffix = "" if len(drawn) == len(groups) else f", the first {len(drawn)} groups"
        print_line(f"Sheet: {sheet}{suffix}")


def _share(index: str) -> "Share | None":
    """The part of the files that this process indexes under torchrun; None for a single process."""
    from diptych.index.open_index import index_exists, open_index
    from diptych.search.collection import Share

    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return None
    known: dict[str, FileStat] = {}
    if index_exists(index):
        with open_index(index) as opened:
            lost = opened.lost()
            known = {key: stamp for key, stamp in opened.stamps().items() if key not in lost}
    return Share(rank=int(os.environ["RANK"]), size=size, known=known)


def _parts_of(index: str, size: int) -> str:
    """A shell pattern that matches the indexes of all processes. The `*` must be outside the quotes."""
    before, after = _part_of(index, "*", size).rsplit("*", 1)
    return f"{shlex.quote(before)}*{after}"


def _part_of(index: str, rank: int | str, size: int) -> str:
    """Folder of the index of one process. For an index in PostgreSQL it is a folder, too, which is merged into it later."""
    from diptych.index.address import is_address

    name = "index" if is_address(index) else index.rstrip("/")
    return f"{name}.part-{rank}-of-{size}"
