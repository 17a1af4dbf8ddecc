"""`diptych search`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.cli.laps import Laps
from diptych.cli.loading import DEFAULT_LOADING, IndexPlace, Loading
from diptych.cli.output import Json, print_json, print_table, say
from diptych.cli.sheets import write_sheet
from diptych.core.errors import ConfigError

if TYPE_CHECKING:
    from diptych.index.entry import Found
    from diptych.inference.query import Query


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
    from diptych.index.choice import open_index
    from diptych.index.filters import parse_filter
    from diptych.inference.query import Query, Term, parse_query
    from diptych.search.collection import check_model

    if top < 1:
        raise ConfigError(f"--top is {top}; it must be at least 1")
    terms = [*parse_query(query).terms] if query is not None else []
    terms += [Term(kind="image", value=str(path)) for path in image or []]
    terms += [Term(kind="text", value=text, weight=-1.0) for text in minus or []]
    asked = Query(tuple(terms))
    chosen = None if where is None else parse_filter(where)
    with open_index(index) as opened:
        clip = loading.load_for(index, bundle)
        check_model(opened, clip)
        laps.end("load the bundle")
        vector = clip.encode_queries([asked])
        laps.end("embed the query")
        (found,) = opened.search(vector, top=top, chosen=chosen)
        laps.end("search")
    if as_json:
        print_json(found)
    else:
        _print_found(asked, found)
    if sheet is not None and found:
        write_sheet(sheet, [(str(asked), [(hit.entry.key, f"{hit.score:.3f}") for hit in found])])
        if not as_json:
            say(f"Sheet: {sheet}")
    if timing:
        laps.end("show")
        laps.tell()


def _print_found(query: "Query", found: "Sequence[Found]") -> None:
    if not found:
        say("Nothing found; the index is empty, or the filter lets nothing through")
        return
    rows = [[hit.entry.key, f"{hit.score:.3f}", hit.entry.taken or ""] for hit in found]
    print_table(str(query), ["path", "cosine", "taken"], rows)
