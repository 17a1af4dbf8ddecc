"""Plots of an audit: histograms of caption lengths and image sizes, and a contact sheet of suspicious samples."""

from pathlib import Path

from PIL import Image

from diptych.core.errors import DataError, ImageError
from diptych.data.sources.protocol import Source
from diptych.data.tools.audit import Audit
from diptych.images.decode import decode
from diptych.images.sheet import SheetRow, contact_sheet

_MAX_SHOWN = 12
_MAX_OF_GROUP = 4
_INK, _FAINT = "#2b5d8a", "#999999"


def draw_histograms(audit: Audit, path: Path) -> None:
    """Write histograms of the captions' token counts and of the images' sizes to `path`.

    Raises:
        DataError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  (the import takes 0.5 s)

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(audit.token_counts, bins=range(2, max(audit.token_counts, default=2) + 2), color=_INK)
    left.axvline(77, color=_FAINT, linestyle="--")
    left.set(title=f"{audit.num_captions:,} captions", xlabel="tokens, CLIP's tokenizer (dashed: its context)")
    sides = [area**0.5 for area in audit.areas]
    right.hist(sides, bins=40, range=(0, 1.05 * max(sides, default=1)), color=_INK)
    right.set(title=f"{len(audit.areas):,} pictures", xlabel="side of a square of the same area, in pixels")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None


def suspicious_sheet(source: Source, audit: Audit) -> Image.Image | None:
    """Return a contact sheet of the images that are identical, similar, or in several splits; None if there are none."""
    across = {key for group in audit.across_splits for key in group}
    index = {source.key(i): i for i in range(len(source))}
    titles = {
        "The same picture more than once": audit.same,
        "Pictures that look alike": [group for group in audit.alike if group[0] not in across],
        "In different splits": audit.across_splits,
    }
    rows = []
    for title, groups in titles.items():
        pictures = []
        for key in [key for group in groups for key in group[:_MAX_OF_GROUP]][:_MAX_SHOWN]:
            try:
                pictures.append((decode(source[index[key]].image), key))
            except ImageError:
                continue
        if pictures:
            rows.append(SheetRow(f"{title}: {sum(map(len, groups)):,}", pictures))
    return contact_sheet(rows, columns=6, tile_px=150) if rows else None
