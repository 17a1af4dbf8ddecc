"""Measure how the costs of an index grow with the number of its pictures, and compare with NumPy and faiss.

    python benchmarks/growth.py [--sizes 10000,100000,1000000] [--large] [--rows PATTERN] [--out FILE]

`--large` adds ten million pictures, which take 25 GB of disk. Rows that need hours or more memory than a small machine has are
left out there. Vectors have 512 numbers and are kept in float16. They are drawn like embeddings of a CLIP: pictures have a
common mean, which makes half of their squared length, and the rest has a falling spectrum (a hundred dimensions hold most of
it). Each picture is a mixture of two of N / 100 topics, so that it has some two hundred neighbors. Texts have another mean, and
share half of their content with a picture. Isotropic noise would be harder to search, and is no collection's. Each row is a
function of a `Collection` in `ROWS`; `--rows` chooses some. The exponent is log(time ratio) / log(size ratio), 1 if linear.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import log
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
from drawn import BATCH, DIM, Collection, drawn_entry, make, unit
from growth_commands import serve_filtered, show_runs, train_again, try_again
from harness import arguments, machine, table, write
from numpy.typing import NDArray
from PIL import Image

from diptych.core.cpu import has_fast_int8
from diptych.index.exact import encode, nearest
from diptych.index.filters import Filter, parse_filter
from diptych.index.local import LocalIndex
from diptych.index.open_index import open_index
from diptych.index.protocol import Index
from diptych.search.collection import COMPACT_SHARE, update
from diptych.search.duplicates import find_duplicates

TOP = 10
LARGE = 10_000_000
BYTES = 2500
"""Disk space per picture in bytes: vector, codes, bits, and rows in the database."""
ROUNDS = 5
FILTERS = [
    "size > 5000000",
    "size > 9900000",
    "path like '%/album-00001/%'",
    "caption like '%word1234 %'",
    "taken = 2007-05",
]
"""These filters match 50, 1, at most 5, 0.25 and 0.35 % of the pictures."""


class Row(NamedTuple):
    """A row of the table."""

    name: str
    unit: str
    measure: Callable[[Collection], float | None]
    """None where it does not apply."""
    most: int = LARGE
    """The largest number of pictures that it is measured with."""


def main() -> None:
    """Make an index of each size, measure all rows, print, and write the table."""
    given = arguments(__doc__, sizes="10000,100000,1000000", large=False, rows="")
    sizes = [int(float(size)) for size in given.sizes.split(",")] + ([LARGE] if given.large else [])
    place, needed = tempfile.gettempdir(), BYTES * max(sizes)
    free = shutil.disk_usage(place).free
    if free < needed:
        sys.exit(f"{place} has {free / 1e9:.0f} GB free, and {max(sizes):,} pictures need {needed / 1e9:.0f}")
    rows = [row for row in ROWS if re.search(given.rows, row.name)]
    columns = [_measure(size, rows) for size in sizes]
    lines = []
    for row in rows:
        values = [column[row.name] for column in columns]
        pairs = zip(sizes, values, sizes[1:], values[1:], strict=False)
        exponents = [log(b / a) / log(m / n) if a and b else None for n, a, m, b in pairs]
        lines.append([row.name, row.unit, *map(_shown, values), " / ".join(map(_shown, exponents))])
    write(
        given.out,
        "# Growth",
        f"`python benchmarks/growth.py`, {machine('numpy', 'faiss-cpu')}",
        f"Indexes of vectors of {DIM} numbers in float16; the {TOP} nearest unless a row says otherwise. Times are the best of "
        f"{ROUNDS}. The exponents are those between neighboring sizes; 1 is linear. The script says how vectors are drawn.",
        table(["what", "unit", *(f"{size:,}" for size in sizes), "exponents"], lines),
        "numpy and faiss read float32 vectors that are in memory; Diptych reads the files of the index, which are in the "
        "system's cache except in the rows on a cold disk. Where sign bits are no faster than exact search, they are refused.",
    )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _measure(num: int, rows: Sequence[Row]) -> dict[str, float | None]:
    with tempfile.TemporaryDirectory() as folder:
        collection = make(num, Path(folder) / "index")
        values = {}
        for row in rows:
            values[row.name] = row.measure(collection) if num <= row.most else None
            print(f"{num:,}: {row.name}: {_shown(values[row.name])} {row.unit}", flush=True)
        return values


def _best_ms(
    action: Callable[[NDArray[np.float32]], object], texts: NDArray[np.float32], rounds: int = ROUNDS
) -> float:
    """Return the milliseconds of an action on one text, the best of several rounds with different texts."""
    taken = []
    for number in range(rounds):
        began = time.perf_counter()
        action(texts[number : number + 1])
        taken.append(time.perf_counter() - began)
    return 1e3 * min(taken)


def search_exactly(collection: Collection) -> float:
    """Time one query with exact search (int8 codes or matrix products)."""
    with LocalIndex(collection.index) as index:
        vectors, codes = index._vectors(), index._file().codes(collection.num)
        return _best_ms(lambda text: nearest(vectors, text, top=TOP, codes=codes), collection.texts)


def search_by_numpy(collection: Collection) -> float:
    """Time one query with a matrix product in NumPy."""
    vectors = np.asarray(collection.vectors(), dtype=np.float32)

    def search(text: NDArray[np.float32]) -> object:
        scores = vectors @ text[0]
        best = np.argpartition(scores, len(scores) - TOP)[len(scores) - TOP :]
        return best[np.argsort(-scores[best])]

    return _best_ms(search, collection.texts)


def search_by_faiss(collection: Collection) -> float:
    """Time one query with faiss's flat index."""
    index = faiss.IndexFlatIP(DIM)
    for rows in _cut(collection.vectors()):
        index.add(rows)
    return _best_ms(lambda text: index.search(text, TOP), collection.texts)


def _cut(vectors: NDArray[np.float16]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(vectors), 65_536):
        yield np.asarray(vectors[start : start + 65_536], dtype=np.float32)


def search_by_signs(collection: Collection) -> float | None:
    """Time one query of the index by sign bits, including reading the entries."""
    with open_index(str(collection.index)) as index:
        if index.built() is None:
            return None
        return _best_ms(lambda text: index.search(text, top=TOP), collection.texts)


def recall_of_signs(collection: Collection) -> float | None:
    """Return the recall in percent, for texts that were not used to build the sign bits."""
    with LocalIndex(collection.index) as index:
        if index.built() is None:
            return None
        found = index.search(collection.texts, top=TOP)
        scores = nearest(index._vectors(), collection.texts, top=TOP)[1][:, -1]
    hits = [hit.score >= lowest for hits, lowest in zip(found, scores, strict=True) for hit in hits]
    return 100 * float(np.mean(hits))


_COLD = """
import sys, time
from pathlib import Path
import numpy as np
from diptych.index.open_index import open_index
from diptych.index import local
def num_read():
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["read_bytes"])
text, before, began = np.load(sys.argv[2]), num_read(), time.perf_counter()
with open_index(sys.argv[1]) as index:
    index.search(text, top=10)
print(1e3 * (time.perf_counter() - began), num_read() - before)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["RssAnon"].split()[0]) / 1024)
"""


def cold_search(collection: Collection, *, value: int) -> float | None:
    """The first query of a process when nothing of the index is in the system's cache.

    Args:
        collection: what is searched.
        value: 0 for the milliseconds, 1 for the bytes read per picture, 2 for the MiB of the process, mapped files aside.
    """
    if not hasattr(os, "posix_fadvise") or not Path("/proc/self/io").exists():
        return None
    text = collection.index.parent / "text.npy"
    np.save(text, collection.texts[:1])
    for path in collection.index.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    words = [sys.executable, "-c", _COLD, str(collection.index), str(text)]
    printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    return float(printed[value]) / (collection.num if value == 1 else 1)


def search_deep(collection: Collection, *, skip: int) -> float:
    """64 queries for their hits up to 10,001, from `skip` on."""
    taken = []
    with open_index(str(collection.index)) as index:
        for _ in range(2):  # The first also reads the vectors from the disk.
            began = time.perf_counter()
            index.search(collection.texts, top=10_001, skip=skip)
            taken.append(1e3 * (time.perf_counter() - began))
    return min(taken)


def search_filtered(collection: Collection, *, where: str, is_known: bool) -> float:
    """One query under a filter, in a process that has not seen the filter, or has; its hits equal those of brute force."""
    selected = parse_filter(where)
    with LocalIndex(collection.index) as index:

        def search(text: NDArray[np.float32]) -> object:
            if not is_known:
                index._passing = None
            return index.search(text, top=TOP, selected=selected)

        index.search(collection.texts[:1], top=TOP, selected=selected)
        taken = _best_ms(search, collection.texts)
        _check(index, collection.texts[0], selected)
        return taken


def _check(index: LocalIndex, text: NDArray[np.float32], selected: Filter) -> None:
    """Compare a filtered search with a product of the text and the vectors of all passing entries."""
    found = [hit.entry.key for hit in index.search(text[None], top=TOP, selected=selected)[0]]
    keys, vectors, scores = {e.digest: e.key for e in index.entries(selected)}, index._vectors(), dict[str, float]()
    rows = index._all("SELECT digest, place FROM vectors")
    places = [(keys[digest], place) for digest, place in rows if digest in keys]
    for start in range(0, len(places), BATCH):
        part = places[start : start + BATCH]
        products = np.asarray(vectors[[place for _, place in part]], dtype=np.float64) @ text.astype(np.float64)
        scores |= dict(zip((key for key, _ in part), products.tolist(), strict=True))
    best = sorted(scores.values(), reverse=True)[:TOP]
    if not np.allclose([scores[key] for key in found], best, rtol=0, atol=1e-6):
        sys.exit(f"{len(places):,} pictures: a filtered search differs from brute force")


def find_similar(collection: Collection) -> float:
    """Time the search for duplicates; the perceptual hashes are in the index."""
    return _ms(collection, find_duplicates)


def verify(collection: Collection) -> float:
    """Time the comparison of all checksums."""
    return _ms(collection, lambda index: index.verify())


def add_few(collection: Collection, *, folder: str) -> float:
    """Time adding a folder of 90 new pictures: scanning, decoding, and embedding with a tiny model."""
    place = collection.index.parent / folder
    place.mkdir()
    rng = np.random.default_rng(len(folder))
    for number in range(90):
        Image.fromarray(rng.integers(256, size=(48, 48, 3), dtype=np.uint8)).save(place / f"{number}.png")
    with open_index(str(collection.index)) as index:
        began = time.perf_counter()
        report = update(index, collection.clip, [place])
        assert report.added == 90
        return 1e3 * (time.perf_counter() - began)


def remove_one(collection: Collection) -> float:
    """Time removing a picture as `diptych index remove` does."""
    key = drawn_entry(7).key

    def remove(index: Index) -> None:
        with index.writing():
            assert index.remove([key]) == 1
            index.compact(least_share=COMPACT_SHARE)

    return _ms(collection, remove)


def compact(collection: Collection) -> float:
    """Time rewriting all vectors after a third of them was removed."""
    keys = [drawn_entry(number).key for number in range(0, collection.num, 3)]
    with open_index(str(collection.index)) as index, index.writing():
        index.remove(keys)

    def run(index: Index) -> None:
        with index.writing():
            assert index.compact() >= len(keys)

    return _ms(collection, run)


def _ms(collection: Collection, action: Callable[[Index], object]) -> float:
    with open_index(str(collection.index)) as index:
        began = time.perf_counter()
        action(index)
        return 1e3 * (time.perf_counter() - began)


def search_narrow(collection: Collection, *, is_coded: bool) -> float | None:
    """Time 64 random queries of vectors whose cosines with the queries have a standard deviation of 0.004."""
    if is_coded and not has_fast_int8():
        return None
    rng = np.random.default_rng(1)
    mean, queries = (unit(rng.standard_normal((num, DIM), dtype=np.float32)) for num in (1, 64))
    vectors = unit(mean + 0.004 * rng.standard_normal((min(collection.num, 200_000), DIM), dtype=np.float32))
    codes = encode(vectors) if is_coded else None
    began = time.perf_counter()
    nearest(vectors, queries, top=TOP, codes=codes)
    return 1e3 * (time.perf_counter() - began)


ROWS = [
    Row("exact search", "ms", search_exactly),
    Row("numpy, argpartition", "ms", search_by_numpy, 10**6),
    Row("faiss flat", "ms", search_by_faiss, 10**6),
    Row("search by sign bits", "ms", search_by_signs),
    Row("their recall at 10, texts", "%", recall_of_signs),
    Row("first search from a cold disk", "ms", partial(cold_search, value=0)),
    Row("read for it", "bytes a picture", partial(cold_search, value=1)),
    Row("memory of its process, mapped files aside", "MiB", partial(cold_search, value=2)),
    Row("index build --approximate", "s", lambda collection: collection.build_s),
    Row("64 queries, top 10,001: the last ten", "ms", partial(search_deep, skip=9991)),
    Row("64 queries, top 10,001: all", "ms", partial(search_deep, skip=0)),
    *(
        Row(f"--where {where!r}, {'again' if is_known else 'the first time'}", "ms", measure)
        for where in FILTERS
        for is_known in (False, True)
        for measure in [partial(search_filtered, where=where, is_known=is_known)]
    ),
    Row("serve, 16 clients, --where 'size > 9900000'", "ms an answer", partial(serve_filtered, where=FILTERS[1])),
    Row("index duplicates", "ms", find_similar, 10**6),
    Row("index verify", "ms", verify),
    Row("index add of 90 new pictures", "ms", partial(add_few, folder="new")),
    Row("the same with 90 more", "ms", partial(add_few, folder="more")),
    Row("index remove of one picture", "ms", remove_one),
    Row("index compact of a third", "ms", compact, 10**6),
    Row("train on as many rows, second start to first step", "ms", train_again, 10**6),
    Row("runs serve, runs of 5,000 steps, first request", "ms", partial(show_runs, is_first=True), 10**6),
    Row("the next request", "ms", partial(show_runs, is_first=False), 10**6),
    Row("tune, one more trial after N / 500", "ms", try_again, 10**6),
    Row("narrow collection (at most 200,000), 64 queries, no codes", "ms", partial(search_narrow, is_coded=False)),
    Row("the same with codes, on CPUs with VNNI", "ms", partial(search_narrow, is_coded=True)),
]


if __name__ == "__main__":
    main()
