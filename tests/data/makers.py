"""Functions that write a small dataset of each kind into a folder and return its `kind:location`."""

import csv
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from diptych.core.errors import ImageError
from diptych.data.open_source import open_source
from diptych.data.sources.cifar import CIFAR10, CIFAR100, Cifar
from diptych.data.sources.protocol import Source
from diptych.data.tools.pack import pack
from diptych.data.tools.write_shards import write_shards
from diptych.images.decode import decode
from tests.conftest import draw_photos

NAMES = [f"{name}.png" for name in "abcd"]
CIFARS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
CIFAR_CLASSES = ["airplane", "aquarium_fish", "bear"]
ODD_NAMES = (
    "a b.png", "new\nline.png", "\U0001f408.png", "q\"uo'te.png", "-dash.png", "..two.png", "[red].png", ":cat:.png",
    "semi;pipe|comma,tab\t.png", "per%20cent?#.png", "x" * 240 + ".png", os.fsdecode(b"\xff\xfe.png"), "back\\slash.png",
    "$HOME`ls`.png", "{0..9}.png", "*.png",
)  # fmt: skip


def csv_file(folder: Path) -> str:
    """A table of four pictures, as open_clip's trainer reads it."""
    draw_photos(folder, NAMES)
    rows = [f"{folder.name}/{name}\tcaption {name}\tdog" for name in NAMES]
    (folder.parent / "set.tsv").write_text("filepath\ttitle\tlabel\n" + "\n".join(rows) + "\n", "utf-8")
    return f"csv:{folder.parent / 'set.tsv'}"


def tsv_folder(folder: Path) -> str:
    """Four pictures and `captions.txt`."""
    draw_photos(folder / "images", NAMES)
    (folder / "captions.txt").write_text("".join(f"{name}\tcaption {name}\r\n" for name in NAMES), "utf-8", newline="")
    return f"tsv-folder:{folder}"


def flickr8k_folder(folder: Path) -> str:
    """Kaggle's layout of Flickr8k."""
    draw_photos(folder / "Images", NAMES)
    rows = [f'{name},"one, of {name}"\n{name},two of {name}\n' for name in NAMES]
    (folder / "captions.txt").write_text("image,caption\n" + "".join(rows), "utf-8")
    return f"flickr8k:{folder}"


def coco_folder(folder: Path) -> str:
    """Three pictures of train, one of val."""
    for year, names in (("train2017", NAMES[:3]), ("val2017", NAMES[3:])):
        draw_photos(folder / year, names)
        (folder / "annotations").mkdir(exist_ok=True)
        content = {
            "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
            "annotations": [{"image_id": i, "caption": f"one {i} "} for i in range(len(names)) for _ in range(2)],
        }
        (folder / "annotations" / f"captions_{year}.json").write_text(json.dumps(content), "utf-8")
    return f"coco:{folder}"


def class_folder(folder: Path) -> str:
    """Two classes in train, one in val."""
    for part in ("train/sea_lion", "train/dog", "val/dog"):
        draw_photos(folder / part, NAMES[:2])
    return f"class-folder:{folder}"


def class_zip(folder: Path) -> str:
    """Two classes in a zip."""
    with zipfile.ZipFile(folder.parent / "set.zip", "w") as file:
        for name, names in {"cat": NAMES[:1], "dog": NAMES}.items():
            draw_photos(folder / name, names)
            for picture in names:
                file.write(folder / name / picture, f"{name}/{picture}")
    return f"class-folder:{folder.parent / 'set.zip'}"


def cifar_pixels(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Two pictures of noise, of shape (2, 3072), with the pixel order of CIFAR's files."""
    return np.random.default_rng(number).integers(0, 256, (2, 3072), dtype=np.uint8)


def python_files(cifar: Cifar, folder: Path) -> Path:
    """Write pickles as the authors' Python 2 did, with protocol 2 and texts as bytes. Returns the folder."""
    folder.mkdir()
    for number, name in enumerate(name for names in cifar.pickles.values() for name in names):
        batch = {b"data": cifar_pixels(number), cifar.label_key.encode(): [number % 3, 2]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {cifar.names_file[1].encode(): [name.encode() for name in CIFAR_CLASSES]}
    (folder / cifar.names_file[0]).write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def binary_files(cifar: Cifar, folder: Path) -> Path:
    """Write the same pictures and labels in the binary format. Returns the folder."""
    folder.mkdir()
    for number, name in enumerate(f"{name}.bin" for names in cifar.pickles.values() for name in names):
        labels = np.zeros((2, cifar.label_bytes), dtype=np.uint8)
        labels[:, -1] = [number % 3, 2]
        (folder / name).write_bytes(np.concatenate([labels, cifar_pixels(number)], axis=1).tobytes())
    (folder / cifar.names_text).write_text("\n".join(CIFAR_CLASSES) + "\n\n")
    return folder


def cifar_archive(folder: Path, name: str = "mine.tar.gz") -> Path:
    """Write a compressed tar of the folder next to it. Returns the path of the tar."""
    path = folder.parent / name
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname="cifar-batches")
    return path


def cifar10_folder(folder: Path) -> str:
    """Twelve pictures in the layout of the python archive."""
    return f"cifar10:{python_files(CIFAR10, folder)}"


def write_tar(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """Write a tar. A member whose content is a string is a hard link to the member with that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.LNKTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def shards_folder(folder: Path) -> str:
    """Four pictures in two tars."""
    write_shards(open_source(csv_file(folder)), folder / "tars", per_shard=3)
    return f"shards:{folder}/tars/*.tar"


def packed_folder(folder: Path) -> str:
    """Four pictures in two files."""
    pack(open_source(csv_file(folder)), folder / "packed", image_px=32, per_shard=3)
    return f"packed:{folder}/packed"


def mixture(folder: Path) -> str:
    """A folder with classes and two tars."""
    return f"mix: 1*{class_folder(folder / 'classes')} + 3*{shards_folder(folder / 'shards')}"


def picture_bytes(folder: Path, num: int) -> list[bytes]:
    """The contents of the files of `num` different pictures."""
    names = [f"{i}.png" for i in range(num)]
    draw_photos(folder, names)
    return [(folder / name).read_bytes() for name in names]


def saved_splits(folder: Path) -> str:
    """`save_to_disk` of two splits, with several captions and a label each."""
    contents = picture_bytes(folder.parent / "drawn", 4)
    features = Features({"image": Image(), "caption": List(Value("string")), "label": ClassLabel(names=["cat", "dog"])})
    tables = {}
    for split, num in (("train", 4), ("validation", 2)):
        rows = {
            "image": [{"bytes": content, "path": None} for content in contents[:num]],
            "caption": [[f"{split} {i} ", "and"] for i in range(num)],
            "label": [i % 2 for i in range(num)],
        }
        tables[split] = Dataset.from_dict(rows, features=features)
    DatasetDict(tables).save_to_disk(folder)
    return f"hf:{folder}"


def saved_labels(folder: Path) -> str:
    """`save_to_disk` of one table without a split: plain bytes and a text as the label."""
    rows = {"img": picture_bytes(folder.parent / "drawn", 4), "class": ["dog", "sea_lion", "dog", None]}
    rows["text"] = [None, "", " ", "no class"]
    Dataset.from_dict(rows).save_to_disk(folder)
    return f"hf:{folder}"


def cc3m_folder(folder: Path) -> str:
    """Tars that are named after their splits, as on the hub."""
    for split in ("train", "validation"):
        write_shards(open_source(csv_file(folder)), folder.parent / split)
        (folder.parent / split / "00000.tar").rename(folder / f"cc3m-{split}-0000.tar")
    return f"cc3m:{folder}"


MAKERS: dict[str, Callable[[Path], str]] = {
    "csv": csv_file,
    "tsv-folder": tsv_folder,
    "flickr8k": flickr8k_folder,
    "coco": coco_folder,
    "class-folder": class_folder,
    "class-folder in a zip": class_zip,
    "shards": shards_folder,
    "packed": packed_folder,
    "mix": mixture,
    "cifar10": cifar10_folder,
    "cc3m": cc3m_folder,
    "hf": saved_splits,
    "hf with labels": saved_labels,
}

FIXTURES = {"json": "json_file", "flickr30k": "flickr_folder"}
"""Kinds of data that a fixture writes, by kind."""
SOURCE_KINDS = ("shapes", *FIXTURES, *MAKERS)


def spec_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """The `kind:location` of one of `SOURCE_KINDS`. Data without a fixture is written into the folder."""
    if kind == "shapes":
        return "shapes:10"
    if kind in FIXTURES:
        return f"{kind}:{request.getfixturevalue(FIXTURES[kind])}"
    return MAKERS[kind](folder)


def keys_of(source: Source) -> list[str]:
    """The keys of all samples, in order."""
    return [source.key(i) for i in range(len(source))]


def broken(source: Source) -> list[str]:
    """The error message of each sample that cannot be decoded."""
    reasons = []
    for i in range(len(source)):
        try:
            decode(source[i].image)
        except ImageError as error:
            reasons.append(str(error))
    return reasons


def odd_set(folder: Path, kind: str) -> str:
    """Write pictures with unusual names in a layout, as far as it supports them. Returns the `kind:location`."""
    draw_photos(folder / "images", [f"{i}.png" for i in range(len(ODD_NAMES))])
    for i, name in enumerate(ODD_NAMES):
        (folder / "images" / f"{i}.png").rename(folder / "images" / name)
    rows = [{"image": f"images/{name}", "caption": f"of {name}"} for name in ODD_NAMES]
    annotations = [{"image_id": i, "caption": name} for i, name in enumerate(ODD_NAMES)]
    images = [{"id": i, "file_name": name} for i, name in enumerate(ODD_NAMES)]
    match kind:
        case "csv":
            with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file)
                table.writerows([["image", "caption"], *([row["image"], row["caption"]] for row in rows[:11])])
            return f"csv:{folder / 'rows.csv'}"
        case "json":
            (folder / "rows.json").write_text(json.dumps(rows), "utf-8")
            return f"json:{folder / 'rows.json'}"
        case "tsv-folder":
            lines = (os.fsencode(f"{name}\tx\n") for name in ODD_NAMES if name.isprintable())
            (folder / "captions.txt").write_bytes(b"".join(lines))
            return f"tsv-folder:{folder}"
        case "coco":
            (folder / "captions_train.json").write_text(json.dumps({"images": images, "annotations": annotations}))
            return f"coco:{folder}"
        case "class-folder":
            for name in ODD_NAMES:
                (folder / "classes" / name[:-4]).mkdir(parents=True)
                (folder / "images" / name).rename(folder / "classes" / name[:-4] / name)
            return f"class-folder:{folder / 'classes'}"
    with tarfile.open(folder / "odd.tar", "w") as tar:
        for name in ODD_NAMES:
            stem = name[:-4].replace(".", "_")
            tar.add(folder / "images" / name, f"{stem}.png")
            (folder / "text").write_text("x")
            tar.add(folder / "text", f"{stem}.txt")
    return f"shards:{folder / 'odd.tar'}"
