"""The fingerprint of a data set: one hash per kind of column, so that a comparison shows which columns changed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

PicturesBy: TypeAlias = Literal["sizes", "contents"]
"""How pictures are identified: by the size of their files, or by a hash of their content."""

FORMAT_VERSION = 1
PARTS = ("keys", "captions", "labels", "splits", "pictures", "mixture")
_HEX_DIGITS = 32


@dataclass(frozen=True, kw_only=True)
class DataFingerprint:
    """Hashes of a data set's rows, in order. A copy has the same fingerprint: location and file times are not included."""

    num_rows: int
    """Number of samples."""
    keys: str
    """Hash of the keys; 32 hexadecimal digits, like the other hashes."""
    captions: str
    """Hash of all captions of every sample."""
    labels: str
    """Hash of the labels and the names of the classes."""
    splits: str
    """Hash of the splits that the source itself defines."""
    pictures: str
    """Hash of the sizes of the picture files, or of their content hashes."""
    pictures_by: PicturesBy
    """The quantity from which `pictures` was computed."""
    mixture: str
    """Hash of the shares of the sources of a mixture."""

    @property
    def digest(self) -> str:
        """One hash of all parts, 32 hexadecimal digits."""
        return _hex(json.dumps([FORMAT_VERSION, self.to_plain()], sort_keys=True).encode())

    @property
    def short(self) -> str:
        """The first 12 digits of `digest`, for reports and bundles."""
        return self.digest[:12]

    def to_plain(self) -> dict[str, Any]:
        """Return the fingerprint as a dict that can be written as JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "DataFingerprint":
        """Return the fingerprint from the dict that `to_plain` returned.

        Raises:
            TypeError: a part is missing or unknown.
        """
        return cls(**plain)

    def changes_since(self, before: "DataFingerprint") -> str | None:
        """Describe the differences from an earlier fingerprint; None if there are none.

        Pictures are compared only if both fingerprints have the same `pictures_by`.

        >>> def example(**changed):
        ...     hashes = dict.fromkeys(PARTS, "00") | changed
        ...     return DataFingerprint(num_rows=2, pictures_by="sizes", **hashes)
        >>> example(captions="ff").changes_since(example())
        'captions differ; keys, labels, splits and pictures are the same'
        """
        compared = [part for part in PARTS if part != "pictures" or self.pictures_by == before.pictures_by]
        differing = [part for part in compared if getattr(self, part) != getattr(before, part)]
        if not differing and self.num_rows == before.num_rows:
            return None
        equal = [part for part in compared if part not in differing and part != "mixture"]
        phrases = []
        if self.num_rows != before.num_rows:
            phrases.append(f"it has {self.num_rows:,} samples instead of {before.num_rows:,}")
        if differing:
            phrases.append(f"{_listed(differing)} {'differs' if differing == ['mixture'] else 'differ'}")
        if equal:
            phrases.append(f"{_listed(equal)} {'are' if len(equal) > 1 or equal[0].endswith('s') else 'is'} the same")
        return "; ".join(phrases)


class FingerprintBuilder:
    """Computes a fingerprint from rows that are added in order, in chunks. The sizes of the chunks do not affect the result.

    >>> one, two = FingerprintBuilder("sizes"), FingerprintBuilder("sizes")
    >>> one.add("pictures", np.array([10, 20]))
    >>> for size in (10, 20):
    ...     two.add("pictures", np.array([size]))
    >>> one.build(classes=(), parts=()) == two.build(classes=(), parts=())
    True
    """

    def __init__(self, pictures_by: PicturesBy) -> None:
        self.pictures_by = pictures_by
        self.num_rows = 0
        self._streams = {part: {name: sha256() for name in ("values", "lengths", "counts")} for part in PARTS}
        self._split_codes: dict[str, int] = {}

    def add(
        self,
        part: str,
        values: NDArray[Any],
        *,
        lengths: NDArray[np.int64] | None = None,
        counts: NDArray[np.int64] | None = None,
    ) -> None:
        """Append the next rows of a part.

        Args:
            part: one of `PARTS`.
            values: numbers, or the concatenated bytes of all texts.
            lengths: for texts: the number of bytes of each.
            counts: the number of texts of each row; None if every row has one.
        """
        for name, array in (("values", values), ("lengths", lengths), ("counts", counts)):
            if array is not None:
                kind = np.uint8 if array.dtype == np.uint8 else np.dtype("<i8")
                self._streams[part][name].update(np.ascontiguousarray(array, dtype=kind).data)

    def add_splits(self, codes: NDArray[np.integer[Any]], names: Sequence[str]) -> None:
        """Append the splits of the next rows. The fingerprint does not depend on the order of `names`.

        Args:
            codes: for each row an index into `names`, or -1 for no split.
            names: names of the splits.
        """
        numbered = np.full(len(names) + 1, -1, dtype=np.int64)
        found, first = np.unique(codes, return_index=True)
        for code in found[np.argsort(first)].tolist():
            if code >= 0:
                numbered[code] = self._split_codes.setdefault(names[code], len(self._split_codes))
        self.add("splits", numbered[codes])

    def build(self, *, classes: Sequence[str], parts: Sequence[tuple[int, float]]) -> DataFingerprint:
        """Return the fingerprint of all rows that were added.

        Args:
            classes: names of the labels.
            parts: for a mixture, the end row and the share of each source.
        """
        meta: dict[str, Any] = {
            "labels": list(classes),
            "splits": list(self._split_codes),
            "mixture": [[end, f"{share:.9g}"] for end, share in parts],
        }
        hashes = {}
        for part, streams in self._streams.items():
            suffix = json.dumps([FORMAT_VERSION, part, meta.get(part)]).encode()
            hashes[part] = _hex(b"".join(stream.digest() for stream in streams.values()) + suffix)
        return DataFingerprint(num_rows=self.num_rows, pictures_by=self.pictures_by, **hashes)


def _hex(content: bytes) -> str:
    return sha256(content).hexdigest()[:_HEX_DIGITS]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
