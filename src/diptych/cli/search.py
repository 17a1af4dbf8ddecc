"""`diptych search`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.cli.loading import DEFAULT_LOADING, IndexAddress, Loading
from diptych.cli.output import Json, print_json, print_line, print_table
from diptych.cli.sheets import write_sheet
from diptych.cli.timing import Stopwatch
from diptych.core.errors import ConfigError

if TYPE_CHECKING:
    from diptych.inference.query import Query
    from diptych.search.similar import HitGroup


def search(
    index: IndexAddress,
    query: Annotated[
        str | None, Parameter(help='Text, or weighted terms such as \'"beach" + 0.5*photo.jpg - "people"\'.')
    ] = None,
    /,
    *,
    image: Annotated[list[Path] | None, Parameter(help="Image file to add to the query.")] = None,
    minus: Annotated[list[str] | None, Parameter(help="Text to subtract from the query.")] = None,
    where: Annotated[
        str | None, Parameter(help="Filter, such as \"taken > 2024-01-01 and width >= 800 and path like '%trip%'\".")
    ] = None,
    top: Annotated[int, Parameter(help="Number of results.")] = 20,
    group_similar: Annotated[bool, Parameter(help="Group near-duplicates under the best hit.")] = False,
    similar_cosine: Annotated[float | None, Parameter(help="Minimum cosine of near-duplicates. Default: 0.95.")] = None,
    sheet: Annotated[Path | None, Parameter(help="Write a contact sheet of the results to this image file.")] = None,
    bundle: Annotated[Path | None, Parameter(help="Bundle to use, if that of the index has moved.")] = None,
    timing: Annotated[bool, Parameter(help="Print timings to standard error.")] = False,
    loading: Loading = DEFAULT_LOADING,
    as_json: Json = False,
) -> None:
    """Search an index with texts and images."""
    stopwatch = Stopwatch()
    # For one short text, spinning threads gain nothing, and they cost half a second if other programs use the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from diptych.index.filters import parse_filter
    from diptych.index.open_index import open_index
    from diptych.search.check_model import check_model
    from diptych.search.similar import HitGroup, search_groups

    if top < 1:
        raise ConfigError(f"--top is {top}; it must be at least 1")
    threshold = _threshold(group_similar=group_similar, similar_cosine=similar_cosine)
    terms = _query(query, image or [], minus or [])
    selected = None if where is None else parse_filter(where)
    with open_index(index) as opened:
        clip = loading.load_for(index, bundle)
        check_model(opened, clip)
        stopwatch.lap("load the bundle")
        vector = clip.encode_queries([terms])
        stopwatch.lap("embed the query")
        if threshold is None:
            groups = [HitGroup(hit=hit, similar=()) for hit in opened.search(vector, top=top, selected=selected)[0]]
        else:
            groups = search_groups(opened, vector[0], top=top, threshold=threshold, selected=selected)
        stopwatch.lap("search")
    if as_json:
        print_json([vars(group.hit) | ({"similar": group.similar} if group_similar else {}) for group in groups])
    else:
        _print_groups(terms, groups, has_similar=group_similar)
    if sheet is not None and groups:
        write_sheet(sheet, [(str(terms), [(group.hit.entry.key, f"{group.hit.score:.3f}") for group in groups])])
        if not as_json:
            print_line(f"Sheet: {sheet}")
    if timing:
        stopwatch.lap("show")
        stopwatch.print()


def _query(query: str | None, images: "Sequence[Path]", minus: "Sequence[str]") -> "Query":
    from diptych.inference.query import Query, Term, parse_query

    terms = [*parse_query(query).terms] if query is not None else []
    terms += [Term(kind="image", value=str(path)) for path in images]
    terms += [Term(kind="text", value=text, weight=-1.0) for text in minus]
    return Query(tuple(terms))


def _threshold(*, group_similar: bool, similar_cosine: float | None) -> float | None:
    """The minimum cosine of near-duplicates; None without `--group-similar`."""
    from diptych.search.similar import SIMILAR_COSINE, check_threshold

    if not group_similar:
        if similar_cosine is not None:
            raise ConfigError("--similar-cosine needs --group-similar")
        return None
    threshold = SIMILAR_COSINE if similar_cosine is None else similar_cosine
    check_threshold(threshold)
    return threshold


def _print_groups(query: "Query", groups: "Sequence[HitGroup]", *, has_similar: bool) -> None:
    if not groups:
        print_line("Nothing found: the index is empty, or no image matches the filter")
        return
    rows = [[group.hit.entry.key, f"{group.hit.score:.3f}", group.hit.entry.taken or ""] for group in groups]
    headings = ["path", "cosine", "taken"]
    if has_similar:
        headings.append("similar")
        similar = [f"+{len(group.similar)}" if group.similar else "" for group in groups]
        rows = [[*row, cell] for row, cell in zip(rows, similar, strict=True)]
    print_table(str(query), headings, rows)
