"""Tars behind a server: fetched once, kept within bounds, missed in plain words."""

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych.core import remote
from diptych.core.errors import ConfigError, DataError, ImageError
from diptych.core.remote import FileCache, list_remote
from diptych.data.open_source import open_source
from diptych.data.tools.write_shards import write_shards
from tests.conftest import draw_photos
from tests.folder_server import Server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Twelve pictures in three tars of 10 kB each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_WAIT_S", 0.01)
    names = [f"{i:02d}.jpg" for i in range(12)]
    draw_photos(tmp_path / "images", names)
    (tmp_path / "captions.txt").write_text("".join(f"{name}\tcaption {name}\n" for name in names), "utf-8")
    write_shards(open_source(f"tsv-folder:{tmp_path}"), tmp_path / "tars", per_shard=4)
    server = Server(tmp_path / "tars")
    yield server
    server.close()


def _cached(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache" / "diptych" / "files").iterdir() if path.suffix == ".tar"]


def test_a_server_is_as_good_as_a_folder(server: Server, tmp_path: Path) -> None:
    here = open_source(f"shards:{server.folder}/{{00000..00002}}.tar")
    there = open_source(f"shards:{server.url}/{{00000..00002}}.tar")
    for i in range(12):
        assert (there[i].key, there[i].captions, there[i].image) == (here[i].key, here[i].captions, here[i].image)
    assert sorted(server.fetched()) == ["00000.tar", "00001.tar", "00002.tar"]
    again = open_source(f"shards:{server.url}/{{00000..00002}}.tar")
    assert [again.captions(i) for i in range(12)] == [here.captions(i) for i in range(12)]
    assert again[11].image == here[11].image
    assert not server.fetched()


def test_a_tar_that_has_changed_is_indexed_anew(server: Server) -> None:
    open_source(f"shards:{server.url}/00000.tar")
    (server.folder / "00001.tar").replace(server.folder / "00000.tar")
    with (server.folder / "00000.tar").open("ab") as file:
        file.write(bytes(10240))
    source = open_source(f"shards:{server.url}/00000.tar")
    assert source.captions(0) == ("caption 04.jpg",)
    assert source.image_size(0) == len(source[0].image)  # type: ignore[arg-type]


def test_the_cache_keeps_within_its_bounds(server: Server, tmp_path: Path) -> None:
    size = (server.folder / "00000.tar").stat().st_size
    source = open_source(f"shards:{server.url}/{{00000..00002}}.tar?cache_gb={2.5 * size / 1e9}")
    assert len(_cached(tmp_path)) == 2
    server.fetched()
    images = [source[i].image for i in range(12)]
    assert len(_cached(tmp_path)) == 2
    assert len(set(images)) == 12
    assert len(server.fetched()) <= 3
    tight = open_source(f"shards:{server.url}/{{00000..00002}}.tar?cache_gb=1e-9")
    assert [tight[i].image for i in (11, 0, 5)] == [images[i] for i in (11, 0, 5)]
    assert len(_cached(tmp_path)) == 1


@pytest.mark.parametrize("gb", ["0", "-3", "many"])
def test_a_bound_is_a_number_above_zero(server: Server, gb: str) -> None:
    with pytest.raises(DataError, match=f"cache_gb is '{gb}'; it is a number of gigabytes above 0"):
        open_source(f"shards:{server.url}/00000.tar?cache_gb={gb}")


def test_a_server_without_the_file_and_none_at_all(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/00007\.tar: no such file"):
        open_source(f"shards:{server.url}/00007.tar")
    source = open_source(f"shards:{server.url}/00000.tar")
    for path in _cached(tmp_path):
        path.unlink()
    (server.folder / "00000.tar").unlink()
    with pytest.raises(ImageError, match=r"/00000\.tar: no such file"):
        source[0]
    server.close()
    with pytest.raises(DataError, match="its server cannot be reached"):
        open_source(f"shards:{server.url}/00001.tar")
    with pytest.raises(DataError, match="its server cannot be reached"):
        FileCache(max_bytes=10**9).local(f"{server.url}/00001.tar")


def test_a_protocol_without_its_package_names_the_extra() -> None:
    message = r"gs:// needs an extra: pip install 'diptych\[remote\]'"
    for pattern in ("gs://bucket/0.tar", "gs://bucket/*.tar"):
        with pytest.raises(ConfigError, match=message):
            open_source(f"shards:{pattern}")
    with pytest.raises(ConfigError, match=message):
        FileCache(max_bytes=1).local("gs://bucket/0.tar")


def test_a_glob_is_listed(server: Server) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    for name in ("b", "a"):
        files.pipe(f"/tars/{name}.tar", (server.folder / "00000.tar").read_bytes())
    assert list_remote("memory://tars/*.tar") == ["memory:///tars/a.tar", "memory:///tars/b.tar"]
    assert open_source("shards:memory://tars/*.tar").key(4) == "b/000000000"
    with pytest.raises(DataError, match="no tar matches"):
        list_remote("memory://nothing/*.tar")


def _fetch(url: str, folder: Path) -> None:
    FileCache(folder, max_bytes=10**9).local(url)


def test_processes_share_what_one_of_them_fetches(server: Server, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_fetch, args=(f"{server.url}/00000.tar", tmp_path / "kept")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert server.fetched() == ["00000.tar"]
    assert [path.name for path in (tmp_path / "kept").iterdir() if not path.name.startswith(".")]


def test_a_copy_in_use_survives_being_thrown_out(server: Server, tmp_path: Path) -> None:
    source = open_source(f"shards:{server.url}/00000.tar")
    before = source[0].image
    for path in _cached(tmp_path):
        os.unlink(path)  # noqa: PTH108  (as another process does)
    assert source[0].image == before
