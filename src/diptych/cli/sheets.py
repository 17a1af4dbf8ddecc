"""Contact sheets that commands draw."""

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
    """Draw rows of pictures, each row a heading and (picture, caption); those that have gone since are left out and told.

    Raises:
        ConfigError: it cannot be written.
    """
    from diptych.core.errors import ImageError
    from diptych.images.decode import decode
    from diptych.images.sheet import SheetRow, contact_sheet

    drawn = []
    for heading, pictures in rows:
        tiles = []
        for key, caption in pictures:
            try:
                tiles.append((decode(key), caption or Path(key).name))
            except ImageError as error:
                warn(str(error))
        drawn.append(SheetRow(heading, tiles))
    whole = [row for row in drawn if row.pictures]
    columns = min(5, max((len(row.pictures) for row in whole), default=1))
    try:
        contact_sheet(whole, columns=columns, tile_px=tile_px, caption_lines=caption_lines).save(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
