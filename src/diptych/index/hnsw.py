"""Description of an HNSW index in PostgreSQL: search parameters and measured recall."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace

RECALL_TOP = 10
"""Number of hits for which the recall is measured."""
ENOUGH = 0.98
"""Target recall. `ef_search` is increased until it is reached."""
MAX_SCAN_TUPLES = 20_000
"""Maximum number of vectors that a scan reads before it stops; the default of pgvector."""
_FIRST_EF, _LAST_EF = 128, 1000
"""Range of `ef_search`: the first 100 hits need at least 100 candidates, and pgvector allows at most 1,000."""
_GROWN = 2
"""The measured recall is outdated when the number of vectors has grown by more than this factor."""


@dataclass(frozen=True, kw_only=True)
class Hnsw:
    """An HNSW graph of the vectors in half precision, and the measurements made after it was built."""

    num: int
    """Number of vectors when the graph was built. Vectors that are added later enter the graph, too."""
    ef_search: int
    """Number of candidates per query. They are ranked by their exact cosines."""
    recall: float
    """Share of the 10 nearest pictures that are found, within [0, 1]; measured with pictures of the index as queries."""
    num_pictures: int
    """Number of picture queries."""
    text_recall: float | None = None
    """The same for text queries; None if there were none."""
    num_texts: int = 0
    """Number of text queries."""
    exact_ms: float
    """Median time of an exact search in milliseconds."""
    approximate_ms: float
    """Median time of an approximate search in milliseconds."""
    num_now: int | None = None
    """Current number of vectors in the index; not stored."""

    @property
    def lowest_recall(self) -> float:
        """The lower one of `recall` and `text_recall`."""
        return self.recall if self.text_recall is None else min(self.recall, self.text_recall)

    @property
    def max_scan_tuples(self) -> int:
        """Number of vectors that a scan with a filter reads before it stops; it then takes about as long as an exact search."""
        return min(MAX_SCAN_TUPLES, int(self.ef_search * self.exact_ms / self.approximate_ms))

    def to_row(self) -> str:
        """The value of the row `hnsw` in the table `about`, as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_about(cls, about: Mapping[str, str]) -> "Hnsw | None":
        """The description that `to_row` wrote, from the rows of the table `about`; None if nothing was built."""
        if "hnsw" not in about:
            return None
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in json.loads(about["hnsw"]).items() if name in known})

    def at(self, num: int) -> "Hnsw":
        """A copy with the current number of vectors."""
        return replace(self, num_now=num)

    def __str__(self) -> str:
        """A one-line summary, with a remark if the index has more than doubled since the measurement.

        >>> hnsw = Hnsw(num=50_000, ef_search=128, recall=0.9871, num_pictures=100, exact_ms=90, approximate_ms=4)
        >>> str(hnsw)
        'HNSW on halfvec, ef_search 128, recall at 10 0.987 on 100 pictures, 4.0 ms per query instead of 90.0'
        >>> str(hnsw.at(120_000)).partition("; ")[2]
        'measured with 50,000 vectors, now 120,000: build it again'
        """
        texts = "" if self.text_recall is None else f" and {self.text_recall:.3f} on {self.num_texts} texts"
        summary = (
            f"HNSW on halfvec, ef_search {self.ef_search}, recall at {RECALL_TOP} {self.recall:.3f} on "
            f"{self.num_pictures} pictures{texts}, {self.approximate_ms:.1f} ms per query instead of {self.exact_ms:.1f}"
        )
        if self.num_now is not None and self.num_now > _GROWN * self.num:
            summary += f"; measured with {self.num:,} vectors, now {self.num_now:,}: build it again"
        return summary


def choose_ef_search(measure: Callable[[int], Hnsw]) -> Hnsw:
    """The first measurement with a recall of at least 0.98, or the last one.

    `ef_search` is doubled up to 1,000, the maximum of pgvector, unless the exact search is faster already.

    Args:
        measure: measures the recall and the times for a value of `ef_search`.
    """
    ef_search = _FIRST_EF
    while True:
        built = measure(ef_search)
        if built.lowest_recall >= ENOUGH or built.approximate_ms >= built.exact_ms or ef_search == _LAST_EF:
            return built
        ef_search = min(2 * ef_search, _LAST_EF)
