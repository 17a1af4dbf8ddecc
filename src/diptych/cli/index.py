"""`diptych index ...`."""

import os
import shlex
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.cli.loading import DEFAULT_LOADING, IndexPlace, Loading
from diptych.cli.output import (
    Json,
    confirm,
    print_facts,
    print_json,
    print_left_out,
    print_skipped,
    print_table,
    say,
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

_SHOWN_GROUPS, _SHOWN = 40, 10
"""Groups on a sheet, and pictures of each: more than that nobody looks through in one picture."""


def add(
    index: IndexPlace,
    /,
    *folders: Annotated[Path, Parameter(help="Pictures, subfolders included.")],
    bundle: Annotated[Path | None, Parameter(help="Who embeds; needed for a new index, which remembers it.")] = None,
    prune: Annotated[
        bool, Parameter(help="Drop entries of these folders whose file has gone.", negative="", show_default=False)
    ] = False,
    force: Annotated[
        bool,
        Parameter(
            help="Let --prune drop more than half of the index without confirmation.", negative="", show_default=False
        ),
    ] = False,
    half: Annotated[
        bool,
        Parameter(
            help="Let a new index keep float16 in place of float32, half the size.", negative="", show_default=False
        ),
    ] = False,
    follow_links: Annotated[
        bool,
        Parameter(
            help="Follow symbolic links to folders, and to files outside the folders.", negative="", show_default=False
        ),
    ] = False,
    exclude: Annotated[
        list[str] | None,
        Parameter(
            help="Leave out files and folders that match a pattern, such as '*.thumb.jpg' or '@eaDir'. Can be repeated.",
            negative="",
        ),
    ] = None,
    loading: Loading = DEFAULT_LOADING,
    as_json: Json = False,
) -> int:
    """Bring an index in step with folders: embed what is new or changed, recognise what moved.

    Started by torchrun, each process adds its share of the files to its own index; `index merge` joins them. The exit
    code is 2 if `--prune` would have dropped more than half of the index and was neither confirmed nor forced.
    """
    from diptych.search.collection import open_or_create, update
    from diptych.search.scan import scan

    if not folders:
        raise ConfigError("name the folders to index")
    clip = loading.load_for(index, bundle)
    whole, share = index, _share(index)
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
        say(f"More than a fifth of the vectors has no sign bits: {command('index', 'build', index, '--approximate')}")
    loading.tell_agreement(
        clip, [file.key for file in islice(scan(folders, follow_links=follow_links, exclude=exclude or ()), 64)]
    )
    if share is not None and share.rank == 0:
        say(f"When all are done: {command('index', 'merge', whole)} {_parts_of(whole, share.size)}")
    return code


def _is_outgrown(opened: "Index") -> bool:
    """Whether so many vectors were added after `build` that the exact scan of these takes much of a search."""
    from diptych.index.approximate import AnnInfo

    about = opened.built()
    return isinstance(about, AnnInfo) and opened.size()["vectors"] > 1.25 * about.num


def _confirm_prune(num_gone: int, num_entries: int) -> bool:
    return confirm(f"--prune drops {num_gone:,} of {num_entries:,} pictures. Is every disk mounted? Drop them?")


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
    said = ", ".join(f"{count:,} {name}" for name, count in parts.items() if count) or "nothing there"
    omitted = {
        "links that leave the folders and were not followed (--follow-links)": report.links,
        "hidden pictures and folders, and those of other programs": report.hidden,
        "excluded pictures and folders": report.excluded,
    }
    left = "".join(f"; {what}: {count:,}" for what, count in omitted.items() if count)
    say(f"{place}: {said}; {total:,} pictures{left}")
    print_left_out(report.left_out)
    if report.is_prune_refused:
        warn(
            f"--prune would drop {report.vanished:,} files, more than half of the index, and dropped none; "
            "if every disk is mounted, use --force"
        )
    elif report.vanished > report.dropped:
        say(f"{report.vanished:,} files have gone since; --prune drops them")
    if report.lost:
        warn(f"{report.lost:,} pictures have no vector and are not found; add their folders again")
    print_skipped([(key, f"{key}: {reason}") for key, reason in report.unreadable])
    for path, reason in report.unread_captions[:_SHOWN]:
        warn(f"{path}: {reason}; its captions are left out")
    if len(report.unread_captions) > _SHOWN:
        warn(f"{len(report.unread_captions) - _SHOWN:,} more files of captions could not be read")


def merge(
    index: IndexPlace,
    /,
    *parts: Annotated[str, Parameter(help="Indexes with vectors of the same model; they stay as they are.")],
) -> None:
    """Take up what other indexes hold, as those of several processes or machines."""
    from diptych.index.merge import merge as merge_indexes
    from diptych.index.open_index import open_index, open_or_create_index

    if not parts:
        raise ConfigError("name the indexes to take up")
    with ExitStack() as stack:
        opened = [stack.enter_context(open_index(part)) for part in parts]
        first = opened[0]
        target = stack.enter_context(
            open_or_create_index(index, dim=first.dim, model=first.model, bundle=first.bundle, aliases=first.models[1:])
        )
        num = merge_indexes(target, opened, track=bar)
        say(f"{target.place}: {num:,} taken up; {len(target):,} pictures")


def build(
    index: IndexPlace,
    /,
    *,
    approximate: Annotated[
        bool,
        Parameter(
            help="Search nearly exactly, for millions: by sign bits in a folder, by pgvector's HNSW in PostgreSQL. Without it, "
            "exactly again.",
            negative="",
            show_default=False,
        ),
    ] = False,
    bundle: Annotated[
        Path | None,
        Parameter(help="Who embeds the texts that the recall is measured with; by default that of the index."),
    ] = None,
    loading: Loading = DEFAULT_LOADING,
) -> None:
    """Make what helps to search an index; from its vectors, whenever you like.

    The recall of `--approximate` is measured with pictures, and with captions of the index or, without captions, general texts.
    """
    from diptych.index.address import is_address
    from diptych.index.hnsw import ENOUGH, Hnsw
    from diptych.index.open_index import open_index
    from diptych.search.collection import check_model
    from diptych.search.sample_texts import sample_texts

    clip = loading.load_for(index, bundle) if approximate else None
    with open_index(index) as opened, opened.writing():
        if clip is None:
            opened.build(None)
            say(f"{opened.place}: is searched exactly")
            return
        check_model(opened, clip)
        clip.embedder.on_cut = lambda _: None  # The ends of long captions matter little here.
        queries = clip.encode_queries(sample_texts(opened))
        about = opened.build("hnsw" if is_address(index) else "signs", queries=queries)
        say(f"{opened.place}: {about}; the exact scan finds further hits")
        if isinstance(about, Hnsw) and about.lowest_recall < ENOUGH:
            warn(f"the recall is below {ENOUGH}; {command('index', 'build', opened.place)} makes search exact again")


def stats(index: IndexPlace, /, *, as_json: Json = False) -> None:
    """Say what an index holds."""
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


def verify(index: IndexPlace, /) -> int:
    """Compare an index with its checksums; exit code 2 if it is damaged. An interrupted addition is no damage."""
    from diptych.index.open_index import open_index
    from diptych.index.vector_file import NEXT_ADD

    with open_index(index) as opened:
        place, faults, remarks = opened.place, opened.verify(), opened.remarks()
        folder = opened.common_folder() if any(NEXT_ADD in fault for fault in faults) else None
    for remark in remarks:
        say(f"{place}: {remark}")
    for fault in faults:
        warn(fault)
    if folder is not None:
        say(f"Repair it: {command('index', 'add', place, folder)}")
    if not faults:
        say(f"{place}: all is well")
    return 2 if faults else 0


def remove(
    index: IndexPlace,
    /,
    *paths: Annotated[Path, Parameter(help="Pictures, or folders with all that is in them.")],
    where: Annotated[str | None, Parameter(help="Remove what a filter lets through, as in search.")] = None,
) -> None:
    """Take pictures out of an index; their files stay."""
    from diptych.index.filters import parse_filter
    from diptych.index.open_index import open_index
    from diptych.search.collection import COMPACT_SHARE
    from diptych.search.keys import keys_below

    if not paths and where is None:
        raise ConfigError("name what to remove: paths, or --where")
    selected = None if where is None else parse_filter(where)
    with open_index(index) as opened, opened.writing():
        keys = keys_below(opened, paths, selected) if paths else opened.keys(selected)
        say(f"{opened.remove(keys):,} removed, {len(opened):,} left")
        had_bits = opened.built() is not None
        if not opened.compact(least_share=COMPACT_SHARE):
            num = opened.size()["unused"]
            if num:
                say(f"Their vectors stay in the files until: {command('index', 'compact', index)} ({num:,} are unused)")
        _print_lost_bits(opened, had_bits=had_bits)


def compact(index: IndexPlace, /) -> None:
    """Drop the vectors of removed pictures. In a folder, all other vectors are written anew."""
    from diptych.index.open_index import open_index

    with open_index(index) as opened, opened.writing():
        had_bits = opened.built() is not None
        say(f"{opened.place}: {opened.compact():,} vectors dropped, {opened.size()['vectors']:,} left")
        _print_lost_bits(opened, had_bits=had_bits)


def _print_lost_bits(opened: "Index", *, had_bits: bool) -> None:
    """Say that the sign bits went when the vectors were written anew."""
    if had_bits and opened.built() is None:
        again = command("index", "build", opened.place, "--approximate")
        say(f"The vectors were written anew, without sign bits: {again}")


def duplicates(
    index: IndexPlace,
    /,
    *,
    threshold: Annotated[float, Parameter(help="Minimum cosine of similar pictures.")] = 0.98,
    sheet: Annotated[Path | None, Parameter(help="Draw the groups into this PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Find identical files, copies of the same picture, and pictures that are similar according to the model.

    The cosine is the one with the first picture of the group. Groups of a looser kind include only one picture of each group
    of a stricter kind.
    """
    from diptych.index.open_index import open_index
    from diptych.search.duplicates import find_duplicates

    if not 0 < threshold <= 1:
        raise ConfigError(f"--threshold is {threshold}; a cosine above 0 and at most 1")
    with open_index(index) as opened:
        groups = find_duplicates(opened, threshold=threshold, track=bar)
    if as_json:
        print_json(groups)
    else:
        for number, group in enumerate(groups):
            rows = [[picture.key, f"{picture.cosine:.3f}"] for picture in group.pictures]
            print_table(f"Group {number + 1}: {group.kind}", ["path", "cosine"], rows)
        num = len({picture.key for group in groups for picture in group.pictures})
        say(f"{len(groups):,} groups, {num:,} pictures")
    if sheet is not None and groups:
        shown = groups[:_SHOWN_GROUPS]
        tiles = [
            (
                f"group {number + 1} of {len(groups):,}: {group.kind}, {len(group.pictures):,} pictures",
                [(picture.key, f"{picture.cosine:.3f}") for picture in group.pictures[:_SHOWN]],
            )
            for number, group in enumerate(shown)
        ]
        write_sheet(sheet, tiles)
        more = "" if len(shown) == len(groups) else f", the first {len(shown)} groups"
        say(f"Sheet: {sheet}{more}")


def _share(index: str) -> "Share | None":
    """Of a process that was launched together with others."""
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
    """A shell pattern for all parts. The `*` must stay outside the quotes."""
    before, after = _part_of(index, "*", size).rsplit("*", 1)
    return f"{shlex.quote(before)}*{after}"


def _part_of(index: str, rank: int | str, size: int) -> str:
    """Where one of several processes writes; of an address a folder beside, which is merged into it."""
    from diptych.index.address import is_address

    name = "index" if is_address(index) else index.rstrip("/")
    return f"{name}.part-{rank}-of-{size}"
