"""Packs: what was in the source, smaller; broken off, damaged, mended."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.core.errors import ConfigError, DataError, ImageError
from diptych.data.open_source import open_source
from diptych.data.sources.identity import split_hash
from diptych.data.sources.packed import PACK
from diptych.data.sources.protocol import Source
from diptych.data.sources.splits import take_split
from diptych.data.tools.pack import Packed, pack, shrink
from diptych.images.decode import decode
from tests.conftest import draw_photos


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Ten photos of 60x40, one of them broken, one another one's copy."""
    names = [f"{i}.jpg" for i in range(10)]
    draw_photos(tmp_path / "set" / "images", names)
    (tmp_path / "set" / "images" / "3.jpg").write_bytes(b"broken")
    (tmp_path / "set" / "images" / "5.jpg").write_bytes((tmp_path / "set" / "images" / "4.jpg").read_bytes())
    (tmp_path / "set" / "captions.txt").write_text("".join(f"{name}\tcaption {name}\n" for name in names), "utf-8")
    return open_source(f"tsv-folder:{tmp_path / 'set'}")


def _pack(source: Source, out: Path, **settings: int) -> Packed:
    return pack(source, out, **{"image_px": 16, "per_shard": 4, **settings})  # type: ignore[arg-type]


def _contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_a_pack_is_the_source_shrunk(source: Source, tmp_path: Path) -> None:
    packed = _pack(source, tmp_path / "out")
    assert (packed.num_samples, packed.num_shards, packed.num_kept) == (9, 3, 0)
    assert packed.num_bytes == 9 * 16 * 24 * 3
    assert packed.skipped[0][0] == "3.jpg"
    after = open_source(str(tmp_path / "out"))
    readable = [i for i in range(10) if i != 3]
    for j, i in enumerate(readable):
        assert (after.key(j), after.captions(j), after.image_size(j)) == (
            source.key(i),
            source.captions(i),
            source.image_size(i),
        )
        expected = np.asarray(decode(source[i].image).resize((24, 16), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(np.asarray(after[j].image) - expected).max() <= 2
    held = {part.key(i) for part in (take_split(after, "val", val_fraction=0.4),) for i in range(len(part))}
    before = take_split(source, "val", val_fraction=0.4)
    assert held == {before.key(i) for i in range(len(before))} - {"3.jpg"}
    assert 0 < len(held) < 9


def test_labels_templates_and_splits_are_kept(tmp_path: Path) -> None:
    source = open_source("shapes:30")
    _pack(source, tmp_path / "out", per_shard=1000)
    after = open_source(f"packed:{tmp_path / 'out'}")
    assert (after.classes, after.templates, len(after)) == (source.classes, source.templates, len(source))
    for i in range(0, len(source), 97):
        assert (after.label(i), after.split(i)) == (source.label(i), source.split(i))
    assert split_hash(after) == split_hash(source)


@pytest.mark.parametrize("harm", ["nothing", "last shard gone", "cut", "flipped bit", "pixels gone", "half written"])
def test_packing_again_goes_on_and_mends(source: Source, tmp_path: Path, harm: str) -> None:
    out = tmp_path / "out"
    _pack(source, out)
    whole, pixels = _contents(out), out / "00001.pixels"
    match harm:
        case "last shard gone":
            told = json.loads((out / "pack.json").read_text("utf-8"))
            del told["written"]["00002"], told["checksums"]
            (out / "pack.json").write_text(json.dumps(told), "utf-8")
            (out / "00002.npz").unlink()
            with pytest.raises(DataError, match="is incomplete; pack again with the same settings to continue"):
                open_source(f"packed:{out}")
        case "cut":
            pixels.write_bytes(pixels.read_bytes()[:100])
            with pytest.raises(DataError, match=r"00001\.pixels: is missing or truncated; pack again to repair it"):
                open_source(f"packed:{out}")
        case "flipped bit":
            pixels.write_bytes(b"\x01" + pixels.read_bytes()[1:])
        case "pixels gone":
            pixels.unlink()
        case "half written":
            (out / ".00001.pixels.0a1b2c3d.tmp").write_bytes(b"half")
            (out / "00001.npz").write_bytes(b"other")
            with pytest.raises(DataError, match=r"00001\.npz: is missing or damaged"):
                open_source(f"packed:{out}")
    seen: list[int] = []
    again = pack(source, out, image_px=16, per_shard=4, on_sample=lambda: seen.append(1))
    assert (again.num_samples, again.num_kept, len(seen)) == (9, 3 if harm == "nothing" else 2, 10)
    assert _contents(out) == whole


def test_a_shard_that_vanishes_in_use_is_an_image_error(source: Source, tmp_path: Path) -> None:
    _pack(source, tmp_path / "out")
    packed = open_source(f"packed:{tmp_path / 'out'}")
    (tmp_path / "out" / "00001.pixels").unlink()
    assert packed[0].key == "0.jpg"
    with pytest.raises(ImageError, match=r"00001\.pixels: cannot be read"):
        packed[5]


def test_what_may_not_be_packed_into(source: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _pack(source, out)
    with pytest.raises(DataError, match="holds a pack with another image_px; choose another folder or remove it"):
        _pack(source, out, image_px=17)
    with pytest.raises(DataError, match=r"holds a pack of other data \(it has 1,085 samples instead of 10; keys, "):
        _pack(open_source("shapes:5"), out)
    about = json.loads((out / PACK).read_text("utf-8"))
    (out / PACK).write_text(json.dumps({k: v for k, v in about.items() if k != "source"} | {"source_hash": "0" * 12}))
    assert len(open_source(f"packed:{out}")) == 9
    with pytest.raises(DataError, match="holds a pack of an earlier version, which can only be read"):
        _pack(source, out)
    with pytest.raises(DataError, match="is not empty and holds no pack"):
        _pack(source, tmp_path / "set")
    with pytest.raises(DataError, match="cannot be written"):
        _pack(source, tmp_path / "set" / "captions.txt" / "out")
    with pytest.raises(ConfigError, match="must be at least 1"):
        _pack(source, out, image_px=0)
    (out / "pack.json").write_text("{", "utf-8")
    with pytest.raises(DataError, match=r"pack\.json: is damaged"):
        open_source(f"packed:{out}")
    (out / "pack.json").write_text('{"format_version": 99}', "utf-8")
    with pytest.raises(DataError, match="has format 99; this Diptych reads 1"):
        open_source(f"packed:{out}")
    (out / "pack.json").unlink()
    with pytest.raises(DataError, match=r"holds no pack\.json; diptych data pack writes one"):
        open_source(f"packed:{out}")


def test_nothing_readable_is_no_pack(source: Source, tmp_path: Path) -> None:
    for path in (tmp_path / "set" / "images").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"none of 10 pictures can be read; the first: .*is not a picture"):
        _pack(source, tmp_path / "out")


def test_long_and_small_pictures_keep_their_proportions() -> None:
    assert shrink(np.zeros((1, 5000, 3), dtype=np.uint8), 128).shape == (1, 5000, 3)
    assert shrink(np.zeros((256, 5000, 3), dtype=np.uint8), 128).shape == (128, 2500, 3)
    assert shrink(np.zeros((300, 129, 3), dtype=np.uint8), 128).shape == (298, 128, 3)
