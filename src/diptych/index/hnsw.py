"""What is known of an HNSW index in PostgreSQL: how it is searched, and the recall that was measured."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace

RECALL_TOP = 10
"""Number of hits for which the recall is measured."""
ENOUGH = 0.98
"""The recall that `ef_search` is raised for."""
MAX_SCAN_TUPLES = 20_000
"""Vectors that a scan reads before it stops, at most; pgvector's default."""
_FIRST_EF, _LAST_EF = 128, 1000
"""Fewer candidates are not enough for the first 100 hits; pgvector allows no more."""
_GROWN = 2
"""The recall is out of date when the index has more than this many times the vectors."""


@dataclass(frozen=True, kw_only=True)
class Hnsw:
    """A graph on the vectors in half precision, and what was measured after it was built."""

    num: int
    """Vectors of the index at that time. Later ones are in the graph, too."""
    ef_search: int
    """Candidates that a walk through the graph keeps. Their exact cosines rank them."""
    recall: float
    """Share of the 10 nearest pictures that are found, for pictures of the index."""
    num_pictures: int
    text_recall: float | None = None
    """The same for texts; None if there were none."""
    num_texts: int = 0
    exact_ms: float
    """Time of an exact search, as a median."""
    approximate_ms: float
    num_now: int | None = None
    """Vectors of the index now; not stored."""

    @property
    def lowest_recall(self) -> float:
        """The lower one of both recalls."""
        return self.recall if self.text_recall is None else min(self.recall, self.text_recall)

    @property
    def max_scan_tuples(self) -> int:
        """Vectors that a scan with a filter reads before it stops: about so many that it takes as long as an exact search."""
        return min(MAX_SCAN_TUPLES, int(self.ef_search * self.exact_ms / self.approximate_ms))

    def to_row(self) -> str:
        """The value of the row `hnsw` in the table `about`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_about(cls, about: Mapping[str, str]) -> "Hnsw | None":
        """The inverse of `to_row`, from the rows of the table `about`; None if nothing was built."""
        if "hnsw" not in about:
            return None
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in json.loads(about["hnsw"]).items() if name in known})

    def at(self, num: int) -> "Hnsw":
        """The same, with the number of vectors now."""
        return replace(self, num_now=num)

    def __str__(self) -> str:
        """One line for people, with a remark if the index has more than doubled since the measurement.

        >>> hnsw = Hnsw(num=50_000, ef_search=128, recall=0.9871, num_pictures=100, exact_ms=90, approximate_ms=4)
        >>> str(hnsw)
        'HNSW on halfvec, ef_search 128, recall at 10 0.987 on 100 pictures, 4.0 ms per query instead of 90.0'
        >>> str(hnsw.at(120_000)).partition("; ")[2]
        'measured with 50,000 vectors, now 120,000: build it again'
        """
        texts = "" if self.text_recall is None else f" and {self.text_recall:.3f} on {self.num_texts} texts"
        said = (
            f"HNSW on halfvec, ef_search {self.ef_search}, recall at {RECALL_TOP} {self.recall:.3f} on "
            f"{self.num_pictures} pictures{texts}, {self.approximate_ms:.1f} ms per query instead of {self.exact_ms:.1f}"
        )
        if self.num_now is not None and self.num_now > _GROWN * self.num:
            said += f"; measured with {self.num:,} vectors, now {self.num_now:,}: build it again"
        return said


def choose_ef_search(measure: Callable[[int], Hnsw]) -> Hnsw:
    """The first measurement with a recall of 0.98, or the last one.

    Args:
        measure: the recall and the times with a value of `ef_search`. The value is doubled up to 1,000, the greatest that
            pgvector allows, unless the exact search is faster already.
    """
    ef_search = _FIRST_EF
    while True:
        built = measure(ef_search)
        if built.lowest_recall >= ENOUGH or built.approximate_ms >= built.exact_ms or ef_search == _LAST_EF:
            return built
        ef_search = min(2 * ef_search, _LAST_EF)
