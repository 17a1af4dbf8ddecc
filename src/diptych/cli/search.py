"""`diptych search`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.cli.loading import DEFAULT_LOADING, IndexPlace, Loading
from diptych.cli.output import Json, print_json, print_table, say
from diptych.cli.sheets import write_sheet
from diptych.cli.timing import Laps
from diptych.core.errors import ConfigError

if TYPE_CHECKING:
    from diptych.inference.query import Query
    from diptych.search.similar import HitGroup


def search(
    index: IndexPlace,
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
    group_similar: Annotated[
        bool,
        Parameter(help="Fold near-equal pictures into the best of them.", negative="", show_default=False),
    ] = False,
    similar_cosine: Annotated[
        float | None, Parameter(help="Minimum cosine of near-equal pictures; 0.95 by default.")
    ] = None,
    sheet: Annotated[Path | None, Parameter(help="Draw them into this PNG.")] = None,
    bundle: Annotated[Path | None, Parameter(help="Where the index's bundle lies now, if it has moved.")] = None,
    timing: Annotated[
        bool, Parameter(help="Say on standard error where the time went.", negative="", show_default=False)
    ] = False,
    loading: Loading = DEFAULT_LOADING,
    as_json: Json = False,
) -> None:
    """Find pictures of an index by texts and pictures."""
    laps = Laps()
    # One short text: threads that wait by spinning gain nothing, and where other work is under way lose half a second.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch  # noqa: F401  (to be timed by itself)

    laps.end("import torch")
    from diptych.index.filters import parse_filter
    from diptych.index.open_index import open_index
    from diptych.search.collection import check_model
    from diptych.search.similar import HitGroup, search_groups

    if top < 1:
        raise ConfigError(f"--top is {top}; it must be at least 1")
    threshold = _threshold(group_similar=group_similar, similar_cosine=similar_cosine)
    asked = _query(query, image or [], minus or [])
    selected = None if where is None else parse_filter(where)
    with open_index(index) as opened:
        clip = loading.load_for(index, bundle)
        check_model(opened, clip)
        laps.end("load the bundle")
        vector = clip.encode_queries([asked])
        laps.end("embed the query")
        if threshold is None:
            groups = [HitGroup(hit=hit, similar=()) for hit in opened.search(vector, top=top, selected=selected)[0]]
        else:
            groups = search_groups(opened, vector[0], top=top, threshold=threshold, selected=selected)
        laps.end("search")
    if as_json:
        print_json([vars(one.hit) | ({"similar": one.similar} if group_similar else {}) for one in groups])
    else:
        _print_groups(asked, groups, has_similar=group_similar)
    if sheet is not None and groups:
        write_sheet(sheet, [(str(asked), [(one.hit.entry.key, f"{one.hit.score:.3f}") for one in groups])])
        if not as_json:
            say(f"Sheet: {sheet}")
    if timing:
        laps.end("show")
        laps.tell()


def _query(query: str | None, images: "Sequence[Path]", minus: "Sequence[str]") -> "Query":
    from diptych.inference.query import Query, Term, parse_query

    terms = [*parse_query(query).terms] if query is not None else []
    terms += [Term(kind="image", value=str(path)) for path in images]
    terms += [Term(kind="text", value=text, weight=-1.0) for text in minus]
    return Query(tuple(terms))


def _threshold(*, group_similar: bool, similar_cosine: float | None) -> float | None:
    """The minimum cosine of near-equal pictures; None without `--group-similar`."""
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
        say("Nothing found; the index is empty, or the filter lets nothing through")
        return
    rows = [[one.hit.entry.key, f"{one.hit.score:.3f}", one.hit.entry.taken or ""] for one in groups]
    headings = ["path", "cosine", "taken"]
    if has_similar:
        headings.append("similar")
        rows = [[*row, f"+{len(one.similar)}" if one.similar else ""] for row, one in zip(rows, groups, strict=True)]
    print_table(str(query), headings, rows)
