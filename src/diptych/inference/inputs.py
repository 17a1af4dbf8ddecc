"""Pictures as users hand them over: a folder, a list, or a generator without end in sight. Shapes: N readable, E embedding."""

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from jaxtyping import Float32
from numpy import ndarray

from diptych.core.errors import DiptychError, ImageError
from diptych.core.lists import check_list
from diptych.core.paths import path_kind
from diptych.core.progress import Track
from diptych.core.sample import ImageInput
from diptych.images.decode import describe
from diptych.images.formats import LeftOut
from diptych.images.listing import Listing, list_images
from diptych.inference.encoder import Encoder

Images: TypeAlias = str | Path | Iterable[ImageInput]
"""A folder, subfolders included, or images one by one."""
OnError: TypeAlias = Callable[[str, ImageError], None]
"""Called with the name of an image that cannot be read, and why."""


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """The images that could be read."""

    names: tuple[str, ...]
    """Paths, or what kind of thing it is."""
    positions: tuple[int, ...]
    """Where each stood among all."""
    emb: Float32[ndarray, "N E"]
    left_out: tuple[LeftOut, ...] = ()
    """Pictures of unsupported formats in the folder, by suffix."""


def encode_all(embedder: Encoder, images: Images, *, on_error: OnError | None, track: Track) -> EncodedImages:
    """Unit embeddings and names; memory is bounded by these, however many images there are.

    Args:
        embedder: the model.
        images: a folder or images.
        on_error: told of images that cannot be read, which are then left out.
        track: told how far it is.

    Raises:
        ImageError: an image cannot be read and there is no `on_error`, or none can be read.
        DiptychError: there is no image.
    """
    listing = _listed(images)
    listed: Iterable[ImageInput] = images if listing is None else listing.paths  # type: ignore[assignment]
    for folder, reason in () if listing is None else listing.unreadable:
        error = ImageError(f"{folder}: {reason}")
        if on_error is None:
            raise error
        on_error(folder, error)
    names: list[str] = []
    broken: dict[int, ImageError] = {}

    def named() -> Iterator[ImageInput]:
        for image in listed:
            names.append(describe(image))
            yield image

    def note(position: int, error: ImageError) -> None:
        if on_error is None:
            raise error
        broken[position] = error
        on_error(names[position], error)

    with track("images", len(listed) if isinstance(listed, Sized) else None) as advance:
        emb = embedder.encode_images(named(), on_error=note, advance=advance)
    if not names:
        raise DiptychError("no image given; at least one is needed")
    if len(broken) == len(names):
        raise ImageError(f"none of {len(names)} images can be read; the first: {broken[0]}")
    positions = tuple(position for position in range(len(names)) if position not in broken)
    return EncodedImages(
        names=tuple(names[position] for position in positions),
        positions=positions,
        emb=emb[list(positions)] if broken else emb,
        left_out=() if listing is None else listing.left_out,
    )


def _listed(images: Images) -> Listing | None:
    """The listing of a folder; None if the images are not a folder."""
    if not isinstance(images, str | Path):
        check_list(images, "images")
        return None
    if path_kind(images) == "file":
        check_list(images, "images")
    return list_images(Path(images))
