"""Links, sidecars and files that are not what they seem, in an indexed folder."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from diptych.cli.main import main
from diptych.index.filters import parse_filter
from diptych.index.open_index import open_index
from diptych.inference.loaded import LoadedBundle
from diptych.search import collection, scan
from diptych.search.collection import Update, open_or_create
from tests.conftest import draw_photos
from tests.search.makers import refresh


def _captions(index_folder: Path) -> dict[str, tuple[str, ...]]:
    with open_index(index_folder) as index:
        return {Path(entry.key).name: entry.captions for entry in index.entries()}


def _names(index_folder: Path, root: Path) -> set[str]:
    with open_index(index_folder) as index:
        return {str(Path(entry.key).relative_to(root)) for entry in index.entries()}


@pytest.fixture
def outside(tmp_path: Path, photos: Path) -> Path:
    """A folder with two pictures, one with captions; links from `photos` lead to all of it."""
    folder = tmp_path / "outside"
    draw_photos(folder, [f"{number}.png" for number in range(8)])  # The first ones are those of `photos`.
    for number in range(6):
        (folder / f"{number}.png").unlink()
    (folder / "6.txt").write_text("private", "utf-8")
    (photos / "linked").symlink_to(folder)
    (photos / "g.png").symlink_to(folder / "6.png")
    (photos / "a.txt").symlink_to(folder / "6.txt")
    (photos / "inside.png").symlink_to(photos / "more" / "f.jpg")
    return folder


def test_links_out_of_the_folder_are_counted_and_not_followed(
    clip: LoadedBundle, photos: Path, outside: Path, index_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refresh(index_folder, clip, photos) == Update(added=6, copies=1, links=3)
    assert _names(index_folder, photos) == {"a.png", "b.png", "c.png", "d.png", "e.png", "inside.png", "more/f.jpg"}
    assert set(_captions(index_folder).values()) == {()}
    assert main(["index", "add", str(index_folder), str(photos)]) == 0
    assert (
        "7 pictures; links that leave the folders and were not followed (--follow-links): 3" in capsys.readouterr().out
    )
    assert main(["index", "add", str(index_folder), str(photos), "--json"]) == 0
    assert '"links": 3' in capsys.readouterr().out


def test_links_are_followed_on_request(clip: LoadedBundle, photos: Path, outside: Path, index_folder: Path) -> None:
    report = refresh(index_folder, clip, photos, follow_links=True)
    assert (report.added + report.copies, report.links) == (10, 0)
    assert {"g.png", "linked/6.png", "linked/7.png"} < _names(index_folder, photos)
    assert _captions(index_folder)["a.png"] == ("private",)
    with open_index(index_folder) as index:
        assert index.targets() == {
            str(photos / "g.png"): str(outside / "6.png"),
            str(photos / "linked/6.png"): str(outside / "6.png"),
            str(photos / "linked/7.png"): str(outside / "7.png"),
            str(photos / "inside.png"): str(photos / "more/f.jpg"),
        }
    assert refresh(index_folder, clip, photos, follow_links=True) == Update(unchanged=10)
    report = refresh(index_folder, clip, photos, prune=True)
    assert (report.unchanged, report.recaptioned, report.dropped, report.links) == (6, 1, 3, 3)
    assert main(["index", "add", str(index_folder), str(photos), "--follow-links"]) == 0
    assert main(["index", "remove", str(index_folder), str(photos / "linked")]) == 0
    assert "linked/7.png" not in _names(index_folder, photos)


def test_a_linked_picture_is_removed_and_what_it_leads_to_stays(
    clip: LoadedBundle, outside: Path, index_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    (tmp_path / "alias").symlink_to(tmp_path)
    (tmp_path / "pictures").symlink_to(photos)
    refresh(index_folder, clip, photos, outside, follow_links=True)
    before = _names(index_folder, tmp_path)
    removed = {
        tmp_path / "alias" / "photos" / "inside.png": {"photos/inside.png"},
        tmp_path / "pictures" / "g.png": {"photos/g.png"},
        photos / "linked" / "6.png": {"photos/linked/6.png"},
        tmp_path / "alias" / "pictures" / "linked": {"photos/linked/7.png"},
        tmp_path / "pictures" / "more": {"photos/more/f.jpg"},
        tmp_path / "nowhere": set[str](),
        tmp_path / "pictures": {f"photos/{name}.png" for name in "abcde"},
    }
    for path, names in removed.items():
        assert main(["index", "remove", str(index_folder), str(path)]) == 0
        assert f"{len(names)} removed" in capsys.readouterr().out
        assert before - _names(index_folder, tmp_path) == names
        before -= names
    assert before == {"outside/6.png", "outside/7.png"}


def test_links_in_a_circle_end(clip: LoadedBundle, photos: Path, index_folder: Path) -> None:
    for number in range(12):  # Each leads to all the others: twelve factorial paths.
        (photos / f"n{number}").mkdir()
        for other in range(12):
            (photos / f"n{number}" / f"to{other}").symlink_to(photos / f"n{other}")
    (photos / "n3" / "up").symlink_to(photos)
    (photos / "more" / "self.png").symlink_to("self.png")
    looped = (str(photos / "more" / "self.png"), "cannot be read (Too many levels of symbolic links)")
    assert refresh(index_folder, clip, photos, follow_links=True) == Update(added=6, unreadable=[looped])


def test_a_link_that_is_turned_elsewhere_is_read_again(clip: LoadedBundle, photos: Path, index_folder: Path) -> None:
    (photos / "link.png").symlink_to(photos / "a.png")
    size = (photos / "b.png").stat().st_size
    (photos / "a.png").write_bytes((photos / "a.png").read_bytes().ljust(size, b"\0"))
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes().ljust((photos / "a.png").stat().st_size, b"\0"))
    for name in ("a.png", "b.png"):
        os.utime(photos / name, (1, 1))
    refresh(index_folder, clip, photos)
    (photos / "link.png").unlink()
    (photos / "link.png").symlink_to(photos / "b.png")
    assert refresh(index_folder, clip, photos).changed == 1
    with open_index(index_folder) as index:
        assert index.digest_of(str(photos / "link.png")) == index.digest_of(str(photos / "b.png"))


def test_captions_that_come_change_and_go(
    clip: LoadedBundle,
    photos: Path,
    index_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (photos / "a.txt").write_text("first", "utf-8")
    refresh(index_folder, clip, photos)
    monkeypatch.setattr(clip.embedder, "encode_images", lambda images, **_: pytest.fail("embedded") if images else [])
    (photos / "a.txt").write_text("second\nand third", "utf-8")
    (photos / "more" / "f.txt").write_text("new", "utf-8")
    assert refresh(index_folder, clip, photos) == Update(unchanged=4, recaptioned=2)
    assert _captions(index_folder)["a.png"] == ("second", "and third")
    assert _captions(index_folder)["f.jpg"] == ("new",)
    os.utime(photos / "a.txt", (1, 1))  # Touched, but what it was.
    assert refresh(index_folder, clip, photos) == Update(unchanged=6)
    (photos / "a.txt").unlink()
    assert main(["index", "add", str(index_folder), str(photos)]) == 0
    assert "1 with new captions, 5 as before; 6 pictures" in capsys.readouterr().out
    assert _captions(index_folder)["a.png"] == ()
    assert refresh(index_folder, clip, photos) == Update(unchanged=6)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_captions_are_decoded_by_their_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding in {"utf-16-le", "utf-16-be"} else ""
    (tmp_path / "a.txt").write_bytes(f"{mark}ein Fuchs 🦊\r\n\r\nänd\n".encode(encoding))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (file,) = scan.scan([tmp_path])
    assert scan.read_captions(file.sidecar) == ("ein Fuchs 🦊", "änd")


def test_captions_in_other_encodings_are_read_as_the_training_data_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Grüße\r\n".encode("cp1252"))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (file,) = scan.scan([tmp_path])
    assert scan.read_captions(file.sidecar) == ("Grüße",)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_sidecar_of_windows_is_found_by_its_lines(
    clip: LoadedBundle, photos: Path, index_folder: Path, encoding: str
) -> None:
    refresh(index_folder, clip, photos)
    (photos / "b.txt").write_text('the "red" fox\r\nC:\\new\r\n', encoding)
    assert refresh(index_folder, clip, photos).recaptioned == 1
    with open_index(index_folder) as index:
        for text in ("caption = 'the \"red\" fox'", r"caption = 'C:\new'"):
            assert [Path(entry.key).name for entry in index.entries(parse_filter(text))] == ["b.png"]


def test_captions_that_cannot_be_read_cost_no_picture(
    clip: LoadedBundle, photos: Path, index_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "a.txt").write_bytes(b"x" * (2**20 + 1))
    os.mkfifo(photos / "b.txt")
    (photos / "c.txt").symlink_to("/dev/zero")
    report = refresh(index_folder, clip, photos)
    too_large = (str(photos / "a.txt"), "cannot be read (has more than 1,048,576 bytes)")
    no_file = (str(photos / "b.txt"), "cannot be read (is not a regular file)")
    assert (report.added, sorted(report.unread_captions)) == (6, [too_large, no_file])
    # It is not read again until it changes.
    assert refresh(index_folder, clip, photos) == Update(unchanged=6, unread_captions=[no_file])
    os.utime(photos / "a.txt", (1, 1))
    assert main(["index", "add", str(index_folder), str(photos)]) == 0
    assert "a.txt: cannot be read (has more than 1,048,576 bytes); its captions are left out" in capsys.readouterr().err


@pytest.mark.parametrize("becomes", ["fifo", "device", "link", "nothing", "folder", "larger"])
def test_a_file_that_changes_under_the_scan_fails_alone(
    clip: LoadedBundle, photos: Path, index_folder: Path, monkeypatch: pytest.MonkeyPatch, becomes: str
) -> None:
    path, whole = photos / "c.png", scan.scan

    def scanned(*given: object, **more: object) -> object:
        files = list(whole(*given, **more))  # type: ignore[arg-type]
        content = path.read_bytes()
        path.unlink()
        match becomes:
            case "fifo":
                os.mkfifo(path)
            case "device":
                path.symlink_to("/dev/zero")
            case "link":
                shutil.copy(photos / "a.png", photos.parent / "other.png")
                path.symlink_to(photos.parent / "other.png")
            case "folder":
                path.mkdir()
            case "larger":
                path.write_bytes(content + b"\0" * 9)
            case _:
                pass
        return files

    monkeypatch.setattr(collection, "scan", scanned)
    report = refresh(index_folder, clip, photos)
    assert report.added == 5
    ((name, reason),) = report.unreadable
    assert name == str(path)
    reasons = {"link": "is a symbolic link", "device": "is a symbolic link", "nothing": "No such file or directory"}
    reasons["larger"] = "grew while it was indexed; the next addition reads it"
    assert reason == f"cannot be read ({reasons.get(becomes, 'is not a regular file')})"
    monkeypatch.setattr(collection, "scan", whole)
    assert refresh(index_folder, clip, photos).added == (becomes == "larger")


def test_a_file_that_is_too_large_is_not_read(
    clip: LoadedBundle, photos: Path, index_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (photos / "huge.png").open("wb") as file:
        file.truncate(2**29 + 1)  # It takes no room on the disk.
    report = refresh(index_folder, clip, photos)
    assert report == Update(
        added=6, unreadable=[(str(photos / "huge.png"), "cannot be read (has more than 536,870,912 bytes)")]
    )


def test_a_picture_without_access_is_no_gone_one(
    clip: LoadedBundle, photos: Path, index_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh(index_folder, clip, photos)
    stamp = scan._file_stat

    def refused(item: os.DirEntry[str]) -> object:
        if item.name == "b.png":
            raise PermissionError(13, "Permission denied")
        return stamp(item)

    monkeypatch.setattr(scan, "_file_stat", refused)
    report = refresh(index_folder, clip, photos, prune=True)
    assert report == Update(unchanged=5, unreadable=[(str(photos / "b.png"), "cannot be read (Permission denied)")])


def test_a_model_is_known_by_each_of_its_names(
    clip: LoadedBundle, photos: Path, index_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh(index_folder, clip, photos)
    before = clip.identities
    monkeypatch.setitem(vars(clip), "base_identities", ("sha256-of-it", *before))
    with open_or_create(index_folder, clip) as index:
        assert index.models == before  # Reading changes nothing.
    assert refresh(index_folder, clip, photos) == Update(unchanged=6)
    with open_index(index_folder) as index:
        assert index.models == ("sha256-of-it", *before)
    with open_or_create(tmp_path / "new", clip) as new:
        assert new.models == ("sha256-of-it", *before)
