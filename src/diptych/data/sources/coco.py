"""`coco:FILE` or `coco:DIR`: COCO captions (Lin et al. 2014), as `captions_*.json` and folders of images."""

import json
from pathlib import Path
from typing import Any

from diptych.core.errors import DataError
from diptych.data.sources.listing import Listing, ListingBuilder
from diptych.data.sources.location import existing_folder, listable, read_location
from diptych.data.storage.inputs import looked_up, reads, warn


def read_coco(location: str) -> Listing:
    """Read one caption file, or all in a folder. The names give the split: `captions_train2017.json` has images in `train2017`.

    Raises:
        DataError: a file is missing or has another layout, or images are missing.
    """
    path, options = read_location(location, ("root",))
    files = _caption_files(path)
    root = Path(options["root"]) if "root" in options else _common_root(files)
    builder = ListingBuilder(root, where=path)
    for file in files:
        name = file.stem.removeprefix("captions_")
        folder = "" if "root" in options else f"{_image_folder(root, name)}/"
        split = next((split for split in ("train", "val", "test") if name.startswith(split)), None)
        for image, captions in _read(file).items():
            builder.add(f"{folder}{image}", captions, split=split)
    return builder.build()


def _caption_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    folders = [existing_folder(path, kind="coco"), path / "annotations"]
    for folder in folders:
        reads(folder)
    files = sorted(file for folder in folders if folder.is_dir() for file in listable(folder).glob("captions_*.json"))
    if not files:
        raise DataError(f"{path}: holds no captions_*.json, nor does its annotations/")
    return files


def _common_root(files: list[Path]) -> Path:
    folder = files[0].parent
    return folder.parent if folder.name == "annotations" else folder


def _image_folder(root: Path, name: str) -> str:
    """Return the folder of a caption file's images, relative to the root."""
    candidates = (name, f"images/{name}", "images")
    for folder in (root, root / "images"):
        reads(folder)
    found = next((candidate for candidate in candidates if looked_up(root / candidate).is_dir()), None)
    if found is None:
        raise DataError(f"{root}: has none of {', '.join(candidates)}; say where the images are: coco:FILE?root=DIR")
    return found


def _read(path: Path) -> dict[str, list[str]]:
    """Return the captions by image file name."""
    reads(path)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[str, list[str]] = {}
        for annotation in content["annotations"]:
            captions.setdefault(names[annotation["image_id"]], []).append(annotation["caption"].strip())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: is not in COCO's layout ({type(error).__name__}: {error})") from None
    uncaptioned = [name for name in names.values() if name not in captions]
    if uncaptioned:
        what = f"{len(uncaptioned)} of {len(names)} images have no caption"
        text = f"{path}: {what} and are left out (the first: {uncaptioned[0]})"
        warn(text)
    return captions
