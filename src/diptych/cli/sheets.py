"""Writes contact sheets for commands."""

from collections.abc import Sequence
from pathlib import Path

from diptych.cli.output import warn
from diptych.core.errors import ConfigError


def write_sheet(
    path: Path,
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]],
    *,
    tile_px: int = 180,
    caption_lines: int = 1,
) -> None:
    """Write a contact sheet. Images that can no longer be read are left out with a warning.

    Args:
        path: image file to write.
        rows: for each row, its heading and its images as pairs of path and caption. An empty caption becomes the file name.
        tile_px: width and height of an image on the sheet, in pixels.
        caption_lines: maximum number of lines per caption.

    Raises:
        ConfigError: the file cannot be written.
    """
    from diptych.core.errors import ImageError
    from diptych.images.decode import decode
    from diptych.images.sheet import SheetRow, contact_sheet

    all_rows = []
    for heading, pictures in rows:
        tiles = []
        for key, caption in pictures:
            try:
                tiles.append((decode(key), caption or Path(key).name))
            except ImageError as error:
                warn(str(error))
        all_rows.append(SheetRow(heading, tiles))
    sheet_rows = [row for row in all_rows if row.pictures]
    columns = min(5, max((len(row.pictures) for row in sheet_rows), default=1))
    try:
        contact_sheet(sheet_rows, columns=columns, tile_px=tile_px, caption_lines=caption_lines).save(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
