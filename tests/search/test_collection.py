"""An index in step with a folder, whatever becomes of its files, and however its writer ends."""

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.bundle.folder import require_bundle, save_bundle
from diptych.cli.main import main
from diptych.core.errors import ConfigError, ImageError, IndexingError
from diptych.index import build_signs
from diptych.index.address import is_address
from diptych.index.entry import FileStat
from diptych.index.open_index import index_exists, open_index
from diptych.inference.embedder import Embedder
from diptych.inference.loaded import LoadedBundle, load
from diptych.inference.query import Query, Term, parse_query
from diptych.search.collection import Update, open_or_create
from diptych.search.scan import ScannedFile, describe_picture
from tests.conftest import draw_photos
from tests.search.makers import names_in, refresh

ROOT = Path(__file__).parents[2]


def test_files_come_move_change_and_go(clip: LoadedBundle, photos: Path, place: str) -> None:
    assert refresh(place, clip, photos) == Update(added=6)
    assert refresh(place, clip, photos) == Update(unchanged=6)
    encode = clip.embedder.encode_images
    (photos / "a.png").rename(photos / "more" / "moved.png")
    shutil.copy(photos / "b.png", photos / "copy.png")
    Image.new("RGB", (30, 90), (1, 2, 3)).save(photos / "c.png")
    os.utime(photos / "d.png", (1, 1))  # Touched, but what it was.
    (photos / "e.png").unlink()
    (photos / "broken.jpg").write_bytes(b"no picture")
    (photos / ".hidden.png").write_bytes(b"no picture")
    (photos / "@eaDir").mkdir()
    (photos / "@eaDir" / "thumbnail.png").write_bytes(b"no picture")
    report = refresh(place, clip, photos)
    assert report == Update(
        unchanged=3,
        moved=1,
        copies=1,
        changed=1,
        vanished=1,
        hidden=2,
        unreadable=[(str(photos / "broken.jpg"), "is not a picture")],
    )
    assert names_in(place) == {"moved.png", "b.png", "copy.png", "c.png", "d.png", "e.png", "f.jpg"}
    report = refresh(place, clip, photos, prune=True)
    assert report == Update(unchanged=7, vanished=1, dropped=1, hidden=2)  # What is broken is not read again.
    assert names_in(place) == {"moved.png", "b.png", "copy.png", "c.png", "d.png", "f.jpg"}
    with open_index(place) as index:
        assert index.size()["unused"] == 0
        for entry in index.entries():
            np.testing.assert_allclose(index.vectors([entry.digest])[entry.digest], encode([entry.key])[0], atol=1e-6)


def test_only_what_is_new_is_embedded(
    clip: LoadedBundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh(tmp_path / "index", clip, photos)
    (photos / "a.png").rename(photos / "z.png")
    draw_photos(photos, ["0.png", "1.png", *(f"n{i}.png" for i in range(8)), "new.png"])
    counted = list[int]()
    encode = Embedder.encode_images

    def counting(embedder: Embedder, images: list[bytes], **more: object) -> object:
        counted.append(len(images))
        return encode(embedder, images, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Embedder, "encode_images", counting)
    report = refresh(tmp_path / "index", clip, photos)
    assert report.moved == 1
    assert sum(counted) == report.added


def test_what_files_say_of_themselves(clip: LoadedBundle, tmp_path: Path) -> None:
    pictures = tmp_path / "photos"
    pictures.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by a quarter.
    exif.get_ifd(0x8769)[0x9003] = "2024:05:01 12:30:00"
    Image.new("RGB", (40, 20), (9, 9, 9)).save(pictures / "a.jpg", exif=exif)
    (pictures / "a.txt").write_text("a dark field\nnothing\n\n", encoding="utf-8")
    Image.new("RGB", (40, 20)).save(pictures / "b.png")
    Image.new("RGB", (40, 20)).save(pictures / "c.tif", exif=exif)
    refresh(tmp_path / "index", clip, pictures)
    with open_index(tmp_path / "index") as index:
        a, b, c = index.entries()
    assert (a.width, a.height, a.taken, a.captions) == (20, 40, "2024-05-01 12:30:00", ("a dark field", "nothing"))
    assert (b.width, b.height, b.taken, b.captions) == (40, 20, None, ())
    assert (c.width, c.height) == (20, 40)


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("2024:05:01 12:30:00", "2024-05-01 12:30:00"),
        ("2024:05:01", "2024-05-01"),
        ("2024:05:01 \x1b]52;c;Y3VybA==\x07", "2024-05-01"),
        ("2024:05:01 12:30:00\x1b[2J", "2024-05-01"),
        ("2024:05:01 24:00:00", "2024-05-01"),
        ("2024:13:01 12:30:00", None),
        ("2024:02:30", None),
        ("0000:00:00 00:00:00", None),
        ("2024:05:01\x1b[2J 12:30:00", None),
    ],
)
def test_when_a_picture_was_taken_is_a_time_or_nothing(written: str, taken: str | None) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8769)[0x9003] = written
    Image.new("RGB", (4, 4)).save(file, format="JPEG", exif=exif)
    scanned = ScannedFile(key="a.jpg", stamp=FileStat(size=1, modified_ns=1))
    assert describe_picture(scanned, file.getvalue(), ()).taken == taken


def test_names_that_are_no_text_are_left_out(clip: LoadedBundle, photos: Path, place: str) -> None:
    shutil.copy(photos / "a.png", os.fsdecode(os.fsencode(photos) + b"/caf\xe9.png"))
    told = (f"{photos}/caf\\xe9.png", "has a name that is not UTF-8")
    assert refresh(place, clip, photos) == Update(added=6, unreadable=[told])
    assert refresh(place, clip, photos) == Update(unchanged=6, unreadable=[told])
    assert len(names_in(place)) == 6


def test_another_models_vectors_are_refused(
    clip: LoadedBundle, tiny_bundle: Path, photos: Path, place: str, tmp_path: Path
) -> None:
    refresh(place, clip, photos)
    assert refresh(place, load(tiny_bundle, device="cpu"), photos).unchanged == 6
    changed = require_bundle(load(tiny_bundle, device="cpu").bundle)
    with torch.no_grad():
        next(changed.model.text_tower.parameters()).view(-1)[1] += 0.1
    save_bundle(changed, tmp_path / "changed")
    other = load(tmp_path / "changed", device="cpu")
    assert other.identities[1] == clip.identities[1]  # Its old name, of some of the numbers, is the same.
    with pytest.raises(IndexingError, match="make another index"):
        open_or_create(place, other)
    with pytest.raises(IndexingError, match="no such folder"):
        refresh(place, clip, tmp_path / "nowhere")


def test_kills_lose_and_double_nothing(tiny_bundle: Path, tmp_path: Path, place: str) -> None:
    pictures, num_kills = tmp_path / "photos", 6 if is_address(place) else 20
    pictures.mkdir()
    generator = np.random.default_rng(0)
    for number in range(600):
        Image.fromarray(generator.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(pictures / f"{number:03d}.png")
    draw = random.Random(0)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.search.writer", place, str(tiny_bundle), str(pictures)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        done, ends = 0, list[str]()
        for _ in range(num_kills):
            process.stdin.write("go\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            time.sleep(draw.uniform(0, 0.1))
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            ends.append(process.stdout.readline())
            if index_exists(place):
                with open_index(place) as index:
                    assert index.verify() == []
                    assert len(index) >= done
                    done = len(index)
        process.stdin.close()
    assert ends.count("killed\n") >= num_kills // 2
    assert main(["index", "add", place, str(pictures), "--bundle", str(tiny_bundle)]) == 0
    clip = load(tiny_bundle, device="cpu")
    with open_index(place) as index:
        assert index.verify() == []
        assert index.size() | {"bytes": 0} == {"entries": 600, "vectors": 600, "unused": 0, "unreadable": 0, "bytes": 0}
        for entry in index.entries()[::37]:
            np.testing.assert_allclose(
                index.vectors([entry.digest])[entry.digest], clip.encode_images([entry.key])[0], atol=1e-6
            )


_SIX = """
import os, sys
from pathlib import Path
from diptych.inference.loaded import load
from diptych.search.collection import open_or_create, update
clip = load(sys.argv[2], device="cpu")
clip.encode_texts(["warm"])
children = []
start, go = os.pipe()
for number in range(6):
    if (child := os.fork()) == 0:
        os.close(go)
        os.read(start, 1)  # Ends when the parent closes its end, for all at once.
        with open_or_create(sys.argv[1], clip) as index:
            update(index, clip, [Path(sys.argv[3]) / str(number)])
        os._exit(0)
    children.append(child)
os.close(go)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


@pytest.mark.slow
def test_six_processes_that_create_it_at_once_take_turns(tiny_bundle: Path, tmp_path: Path, place: str) -> None:
    pictures = tmp_path / "photos"
    for number in range(6):
        (pictures / str(number)).mkdir(parents=True)
        for other in range(20):
            Image.new("RGB", (20, 20), (40 * number, 10 * other, 0)).save(pictures / str(number) / f"{other}.png")
    arguments = [sys.executable, "-c", _SIX, place, str(tiny_bundle), str(pictures)]
    subprocess.run(arguments, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=300)
    with open_index(place) as index:
        assert (index.verify(), index.remarks(), len(index)) == ([], [], 120)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("a dog in the snow", [("text", "a dog in the snow", 1)]),
        ("black-and-white cat", [("text", "black-and-white cat", 1)]),
        (
            '"beach" + 0.5*photo.jpg - "people"',
            [("text", "beach", 1), ("image", "photo.jpg", 0.5), ("text", "people", -1)],
        ),
        ("- people + beach", [("text", "people", -1), ("text", "beach", 1)]),
        ('2 * "a + b" - .5*c', [("text", "a + b", 2), ("text", "c", -0.5)]),
        ('"photo.jpg"', [("text", "photo.jpg", 1)]),
        ("3 dogs", [("text", "3 dogs", 1)]),
    ],
)
def test_queries(text: str, terms: list[tuple[str, str, float]]) -> None:
    assert [(term.kind, term.value, term.weight) for term in parse_query(text).terms] == terms


@pytest.mark.parametrize("text", ["", "  ", '""', '"open', 'a + ""', 'a "b'])
def test_queries_that_say_nothing(text: str) -> None:
    with pytest.raises(ConfigError, match=r"empty|cannot be parsed"):
        parse_query(text)


def test_a_query_is_the_weighted_sum(clip: LoadedBundle, photos: Path) -> None:
    picture = str(photos / "a.png")
    found = clip.encode_queries([parse_query(f'"red" + 0.5*{picture} - "blue"')])[0]
    red, blue = clip.encode_texts(["red", "blue"])
    expected = red + 0.5 * clip.encode_images([picture])[0] - blue
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)
    with pytest.raises(ConfigError, match="cancel out"):
        clip.encode_queries([parse_query('"red" - "red"')])
    with pytest.raises(ConfigError, match="nothing to search for"):
        clip.encode_queries([Query(())])
    with pytest.raises(ImageError, match="no such file"):
        clip.encode_queries([Query((Term(kind="image", value="none.jpg"),))])


def test_the_commands(
    tiny_bundle: Path, photos: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "found.png"
    if is_address(place):
        place = place.replace("tester@", "tester:secret@")  # A server that trusts all does not ask for it.

    def said(*words: str, code: int = 0) -> str:
        assert main(list(words)) == code
        captured = capsys.readouterr()
        assert "secret" not in captured.out + captured.err
        return captured.out + captured.err

    assert "needs --bundle" in said("index", "add", place, str(photos), code=2)
    assert "6 new; 6 pictures" in said("index", "add", place, str(photos), "--bundle", str(tiny_bundle))
    assert "6 as before" in said("index", "add", place, str(photos))
    assert "all is well" in said("index", "verify", place)
    assert "entries" in said("index", "stats", place)
    assert said("search", place, "a red circle", "--top", "4", "--sheet", str(sheet)).count("photos") == 4
    assert sheet.stat().st_size > 1000
    picture = str(photos / "b.png")
    assert (
        said("search", place, "--image", picture, "--top", "1").count("b.png") == 2
    )  # The query, and the picture itself.
    assert "f.jpg" in said("search", place, "red", "--minus", "blue", "--where", "path like '%.jpg'")
    assert "Nothing found" in said("search", place, "red", "--where", "width > 9999")
    assert '"score"' in said("search", place, "red", "--json")
    assert "unknown field" in said("search", place, "red", "--where", "colour = red", code=2)
    assert "nothing to search for" in said("search", place, code=2)
    shutil.copy(photos / "a.png", photos / "twin.png")
    (photos / "bad.jpg").write_bytes(b"no picture")
    assert f"1 images could not be read and were left out: {photos}/bad.jpg: is not" in said(
        "index", "add", place, str(photos)
    )
    assert "Group 1: identical files" in said("index", "duplicates", place, "--threshold", "1", "--sheet", str(sheet))
    assert "1 removed, 6 left" in said("index", "remove", place, str(photos / "more"))
    assert "name what to remove" in said("index", "remove", place, code=2)
    assert "holds no index" in said("search", str(photos), "red", code=2)


def test_processes_take_shares_and_the_parts_are_joined(
    tiny_bundle: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw_photos(photos, [f"more/{i}.png" for i in range(10)])
    place = str(tmp_path / "index")

    def launched() -> list[str]:
        told = []
        for rank in range(3):
            monkeypatch.setenv("WORLD_SIZE", "3")
            monkeypatch.setenv("RANK", str(rank))
            assert main(["index", "add", place, str(photos), "--bundle", str(tiny_bundle)]) == 0
            told.append(capsys.readouterr().out)
        assert main(["index", "add", place, str(photos), "--bundle", str(tiny_bundle), "--prune"]) == 2
        assert "--prune is for one process" in capsys.readouterr().err
        monkeypatch.delenv("WORLD_SIZE")
        return told

    first = launched()
    assert f"When all are done: diptych index merge {place} {place}.part-*-of-3" in first[0]
    assert not index_exists(place)
    parts = sorted(map(str, tmp_path.glob("index.part-*-of-3")))
    held = [names_in(part) for part in parts]
    assert sum(map(len, held)) == 16
    assert all(held)
    assert main(["index", "merge", place, *parts]) == 0
    assert "16 merged; 16 pictures" in capsys.readouterr().out
    assert names_in(place) == set.union(*held)
    assert main(["index", "add", place, str(photos)]) == 0
    assert "16 as before" in capsys.readouterr().out
    for part in parts:
        shutil.rmtree(part)
    draw_photos(photos, ["new.png"])
    launched()
    assert sum(len(names_in(part)) for part in parts) == 1
    assert main(["index", "merge", place]) == 2
    monkeypatch.setattr(build_signs, "MIN_SPEEDUP", 0)  # So few are faster without.
    assert main(["index", "build", place, "--approximate"]) == 0
    assert "signs of 11 vectors, 11 compared: 100.0 % of the 10 nearest; " in capsys.readouterr().out
    assert main(["index", "stats", place]) == 0
    assert "signs of 11 vectors" in capsys.readouterr().out
    assert main(["search", place, "red", "--timing"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[-1] for line in lines] == [
        "start",
        "load the bundle",
        "embed the query",
        "search",
        "show",
        "total",
    ]
    assert main(["index", "build", place]) == 0
    assert "is searched exactly" in capsys.readouterr().out
