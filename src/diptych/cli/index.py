"""`diptych index ...` and `diptych search`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.cli.output import Json, print_facts, print_json, print_skipped, print_table, say, warn
from diptych.cli.sheets import write_sheet
from diptych.core.errors import ConfigError, IndexingError
from diptych.core.progress import bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diptych.index.entry import Found
    from diptych.inference.loaded import LoadedBundle
    from diptych.inference.query import Query

IndexPath = Annotated[Path, Parameter(help="Folder of the index.")]


def add(
    index: IndexPath,
    /,
    *folders: Annotated[Path, Parameter(help="Pictures, subfolders included.")],
    bundle: Annotated[Path | None, Parameter(help="Who embeds; needed for a new index, which remembers it.")] = None,
    prune: Annotated[
        bool, Parameter(help="Drop entries of these folders whose file has gone.", negative="", show_default=False)
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring an index in step with folders: embed what is new or changed, recognise what moved."""
    from diptych.search.collection import open_or_create, update

    if not folders:
        raise ConfigError("name the folders to index")
    clip = _bundle_of(index, bundle)
    with open_or_create(index, clip) as opened:
        report = update(opened, clip, folders, prune=prune, track=bar)
        total = len(opened)
    if as_json:
        print_json(report)
        return
    parts = {
        "new": report.added,
        "changed": report.changed,
        "moved": report.moved,
        "copies of others": report.copies,
        "as before": report.unchanged,
        "dropped": report.dropped,
    }
    said = ", ".join(f"{count:,} {name}" for name, count in parts.items() if count) or "nothing there"
    say(f"{index}: {said}; {total:,} pictures")
    if report.vanished > report.dropped:
        say(f"{report.vanished:,} files have gone since; --prune drops them")
    print_skipped(report.unreadable)


def stats(index: IndexPath, /, *, as_json: Json = False) -> None:
    """Say what an index holds."""
    from diptych.index.store import Index

    with Index(index) as opened:
        size = opened.size()
        facts = {"model": f"{opened.model} ({opened.bundle})", "numbers a vector": str(opened.dim)}
    if as_json:
        print_json({**size, **facts})
        return
    counts = {name: f"{count:,}" for name, count in size.items()}
    print_facts(str(index), {**counts, **facts})


def verify(index: IndexPath, /) -> int:
    """Check that an index is whole; exit code 2 where it is not."""
    from diptych.index.store import Index

    with Index(index) as opened:
        faults = opened.verify()
    for fault in faults:
        warn(fault)
    if not faults:
        say(f"{index}: all is well")
    return 2 if faults else 0


def remove(
    index: IndexPath,
    /,
    *paths: Annotated[Path, Parameter(help="Pictures, or folders with all that is in them.")],
    where: Annotated[str | None, Parameter(help="Remove what a filter lets through, as in search.")] = None,
) -> None:
    """Take pictures out of an index; their files stay."""
    from diptych.index.filters import parse_filter
    from diptych.index.store import Index

    if not paths and where is None:
        raise ConfigError("name what to remove: paths, or --where")
    chosen = None if where is None else parse_filter(where)
    with Index(index) as opened, opened.writing():
        keys = [entry.key for entry in opened.entries(chosen)]
        if paths:
            places = tuple(str(path.resolve()) for path in paths)
            keys = [key for key in keys if any(key == place or key.startswith(f"{place}/") for place in places)]
        say(f"{opened.remove(keys):,} removed, {len(opened):,} left")
        opened.compact()


def duplicates(
    index: IndexPath,
    /,
    *,
    threshold: Annotated[float, Parameter(help="Cosine from which two pictures are near-identical.")] = 0.98,
    sheet: Annotated[Path | None, Parameter(help="Draw the groups into this PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Find groups of pictures that are the same, or nearly."""
    from diptych.index.store import Index

    if not 0 < threshold <= 1:
        raise ConfigError(f"--threshold is {threshold}; a cosine above 0 and at most 1")
    with Index(index) as opened:
        groups = opened.groups(threshold)
    if as_json:
        print_json(groups)
    else:
        for number, group in enumerate(groups):
            print_table(f"Group {number + 1}", ["path"], [[key] for key in group])
        say(f"{len(groups):,} groups, {sum(map(len, groups)):,} pictures")
    if sheet is not None and groups:
        write_sheet(
            sheet, [(f"group {number + 1}", [(key, "") for key in group]) for number, group in enumerate(groups)]
        )
        say(f"Sheet: {sheet}")


def search(
    index: IndexPath,
    query: Annotated[
        str | None, Parameter(help='A text; or terms, as in \'"beach" + 0.5*photo.jpg - "people"\'.')
    ] = None,
    /,
    *,
    image: Annotated[list[Path] | None, Parameter(help="Pictures to look for, too.", negative="")] = None,
    minus: Annotated[list[str] | None, Parameter(help="Texts to stay away from.", negative="")] = None,
    where: Annotated[
        str | None, Parameter(help="Filter, as in \"taken > 2024-01-01 and width >= 800 and path like '%trip%'\".")
    ] = None,
    top: Annotated[int, Parameter(help="How many to show.")] = 20,
    sheet: Annotated[Path | None, Parameter(help="Draw them into this PNG.")] = None,
    bundle: Annotated[Path | None, Parameter(help="Where the index's bundle lies now, if it has moved.")] = None,
    as_json: Json = False,
) -> None:
    """Find pictures of an index by texts and pictures."""
    from diptych.index.filters import parse_filter
    from diptych.index.store import Index
    from diptych.inference.query import Query, Term, parse_query
    from diptych.search.collection import check_model

    if top < 1:
        raise ConfigError(f"--top is {top}; it must be at least 1")
    terms = [*parse_query(query).terms] if query is not None else []
    terms += [Term(kind="image", value=str(path)) for path in image or []]
    terms += [Term(kind="text", value=text, weight=-1.0) for text in minus or []]
    asked = Query(tuple(terms))
    chosen = None if where is None else parse_filter(where)
    with Index(index) as opened:
        clip = _bundle_of(index, bundle)
        check_model(opened, clip.identity, clip.path)
        (found,) = opened.search(clip.encode_queries([asked]), top=top, chosen=chosen)
    if as_json:
        print_json(found)
    else:
        _print_found(asked, found)
    if sheet is not None and found:
        write_sheet(sheet, [(str(asked), [(hit.entry.key, f"{hit.score:.3f}") for hit in found])])
        say(f"Sheet: {sheet}")


def _print_found(query: "Query", found: "Sequence[Found]") -> None:
    if not found:
        say("Nothing found; the index is empty, or the filter lets nothing through")
        return
    rows = [[hit.entry.key, f"{hit.score:.3f}", hit.entry.taken or ""] for hit in found]
    print_table(str(query), ["path", "cosine", "taken"], rows)


def _bundle_of(index: Path, bundle: Path | None) -> "LoadedBundle":
    """The bundle that was named, or that the index remembers."""
    from diptych.index.store import Index
    from diptych.inference.loaded import load

    if bundle is not None:
        return load(bundle)
    if not (index / "index.db").is_file():
        raise IndexingError(f"{index}: holds no index yet; a new one needs --bundle")
    with Index(index) as opened:
        place = opened.bundle
    if not place or not Path(place).exists():
        raise IndexingError(
            f"{index}: was made with {place or 'a bundle without a place'}, which is not there; name it with --bundle"
        )
    return load(place)
