"""Searches in PostgreSQL, exact and by pgvector's HNSW index. Shapes: E embedding.

The HNSW index returns `ef_search` candidates by their cosines in half precision. With a filter, the index is scanned until the
same number of candidates match the filter, or until the scan has taken about as long as an exact search. The server ranks the
candidates by their cosines in full precision. The candidates, and the decision whether to use them, do not depend on the number
of hits, so a smaller request returns the first hits of a larger one. The exact search runs if there are fewer than 100
candidates, if the hundredth one may be tied with a vector that is not a candidate, if few pictures match the filter, and for
hits after the first 100.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from jaxtyping import Float32
from numpy import ndarray

from diptych.index.dialects import Condition
from diptych.index.hnsw import Hnsw
from diptych.index.postgres_pool import Connection

TOP = 100
"""Maximum number of hits that are taken from candidates."""
_SAMPLED = 1000
"""Approximate number of entries on which a filter is tried first."""
Row: TypeAlias = tuple[Any, ...]
"""The score and the columns of an entry. The first column is the key."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The parameters of a search, which are the same for all its queries."""

    columns: str
    """Columns of an entry."""
    condition: Condition
    """The WHERE clause of a filter."""
    top: int
    """Number of the last hit to return."""
    skip: int = 0
    """Number of first hits to leave out."""


def exact(connection: Connection, query: Float32[ndarray, " E"], request: Request) -> list[Row]:
    """The nearest entries. The server compares the query with all entries that the filter selects."""
    sql = f"""
        SELECT -(embedding <#> %s), {request.columns} FROM entries JOIN vectors USING (digest){request.condition.sql}
        ORDER BY embedding <#> %s, place, key LIMIT %s OFFSET %s
    """
    values = (query, *request.condition.values, query, max(0, request.top - request.skip), request.skip)
    return connection.execute(sql.encode(), values).fetchall()


def set_effort(connection: Connection, ef_search: int, max_scan_tuples: int) -> None:
    """Set the parameters of HNSW scans until the transaction ends."""
    settings = {
        "hnsw.ef_search": ef_search,
        "hnsw.iterative_scan": "relaxed_order",
        "hnsw.max_scan_tuples": max_scan_tuples,
    }
    calls = ", ".join(["set_config(%s, %s, true)"] * len(settings))
    connection.execute(f"SELECT {calls}".encode(), [text for setting in settings.items() for text in map(str, setting)])


def passes_often(connection: Connection, condition: Condition, hnsw: Hnsw) -> bool:
    """Whether a scan of the HNSW index probably finds enough entries that the filter selects."""
    if not condition.sql:
        return True
    sample = "SELECT count(*) FROM entries TABLESAMPLE SYSTEM (%s) REPEATABLE (0)"
    sql = f"SELECT ({sample}{condition.sql}), ({sample})"
    percent = min(100.0, 100 * _SAMPLED / hnsw.num)
    num_selected, num = connection.execute(sql.encode(), (percent, *condition.values, percent)).fetchone() or (0, 0)
    return bool(num_selected * hnsw.max_scan_tuples >= num * hnsw.ef_search)


def approximate(
    connection: Connection, query: Float32[ndarray, " E"], request: Request, *, ef_search: int
) -> list[Row]:
    """The nearest entries by the HNSW index, or by the exact search if it has too few candidates. Call `set_effort` first."""
    order = "ORDER BY distance, place, key"
    sql = f"""
        SELECT is_sure, -distance, {request.columns} FROM (
            SELECT *, nth_value(distance, {TOP}) OVER everything < max(distance) OVER everything AS is_sure FROM (
                SELECT entries.*, place, distance FROM (
                    SELECT DISTINCT digest, place, distance FROM (
                        SELECT digest, place, embedding <#> %s AS distance
                        FROM vectors JOIN entries USING (digest){request.condition.sql}
                        ORDER BY embedding::halfvec({len(query)}) <#> %s::halfvec({len(query)}) LIMIT {ef_search}
                    ) AS scanned
                ) AS near JOIN entries USING (digest){request.condition.sql}
            ) AS candidates
            WINDOW everything AS ({order} ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
        ) AS ranked {order} LIMIT %s
    """
    # The scan may stop between two entries of the same vector. The outer join adds the other entries.
    values = (query, *request.condition.values, query, *request.condition.values, min(request.top, TOP))
    rows = connection.execute(sql.encode(), values).fetchall()
    if not rows or not rows[0][0]:
        return exact(connection, query, request)
    first = [row[1:] for row in rows]
    if request.top <= TOP:
        return first[request.skip :]
    # Hits after the first 100 come from the exact search without the hits found so far.
    both = f"{request.condition.sql} AND" if request.condition.sql else " WHERE"
    others = Condition(f"{both} key <> ALL(%s)", (*request.condition.values, [row[1] for row in first]))
    rest = replace(request, condition=others, top=request.top - TOP, skip=max(0, request.skip - TOP))
    return [*first[request.skip :], *exact(connection, query, rest)]
