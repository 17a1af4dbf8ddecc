"""Encoding of a folder or an iterable of images. Shapes: N readable images, E embedding."""

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
"""The path of a folder, which is searched recursively, or an iterable of images."""
OnError: TypeAlias = Callable[[str, ImageError], None]
"""Called with the name of an image that cannot be read and the error."""


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """The images that could be read, with their embeddings."""

    names: tuple[str, ...]
    """The path of each image, or a description of an image without a path."""
    positions: tuple[int, ...]
    """The index of each image in the input."""
    emb: Float32[ndarray, "N E"]
    """Embeddings of unit length."""
    left_out: tuple[LeftOut, ...] = ()
    """Images of unsupported formats in the folder, by suffix."""


def encode_all(embedder: Encoder, images: Images, *, on_error: OnError | None, track: Track) -> EncodedImages:
    """Encode all images of a folder or an iterable.

    Only names and embeddings are stored in memory, not the images.

    Args:
        embedder: the encoder.
        images: a folder, or an iterable of images.
        on_error: called with (name, error) for each image or folder that cannot be read; it is then skipped.
        track: reports progress.

    Raises:
        ImageError: an image or a folder cannot be read and `on_error` is None, or no image can be read.
        DiptychError: there is no image.
    """
    listing = _list_folder(images)
    listed: Iterable[ImageInput] = images if listing is None else listing.paths  # type: ignore[assignment]
    for folder, reason in () if listing is None else listing.unreadable:
        error = ImageError(f"{folder}: {reason}")
        if on_error is None:
            raise error
        on_error(folder, error)
    names: list[str] = []
    errors: dict[int, ImageError] = {}

    def record_names() -> Iterator[ImageInput]:
        for image in listed:
            names.append(describe(image))
            yield image

    def record_error(position: int, error: ImageError) -> None:
        if on_error is None:
            raise error
        errors[position] = error
        on_error(names[position], error)

    with track("images", len(listed) if isinstance(listed, Sized) else None) as advance:
        emb = embedder.encode_images(record_names(), on_error=record_error, advance=advance)
    if not names:
        raise DiptychError("no image given; at least one is needed")
    if len(errors) == len(names):
        raise ImageError(f"none of {len(names)} images can be read; the first: {errors[0]}")
    positions = tuple(position for position in range(len(names)) if position not in errors)
    return EncodedImages(
        names=tuple(names[position] for position in positions),
        positions=positions,
        emb=emb[list(positions)] if errors else emb,
        left_out=() if listing is None else listing.left_out,
    )


def _list_folder(images: Images) -> Listing | None:
    """The listing of a folder; None if the images are not a folder."""
    if not isinstance(images, str | Path):
        check_list(images, "images")
        return None
    if path_kind(images) == "file":
        check_list(images, "images")
    return list_images(Path(images))
