"""Where the files of hits are: relative to the indexed folder, and absolute only where nobody else can ask."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from PIL import Image

from diptych.cli.main import main
from diptych.index.protocol import Index
from diptych.inference.loaded import LoadedBundle
from diptych.search.collection import open_or_create, update
from diptych.server.app import create_app
from tests.index.pictures import add, entry
from tests.server.site import Site, served


@pytest.fixture(scope="module")
def years(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures in two subfolders."""
    folder = tmp_path_factory.mktemp("years")
    for number, name in enumerate(("2023/trip/a.png", "2024/b.png")):
        path = folder / name
        path.parent.mkdir(parents=True)
        Image.new("RGB", (40, 40), (200, 100 * number, 0)).save(path)
    return folder


@pytest.fixture(scope="module")
def index(clip: LoadedBundle, years: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """Of that folder."""
    with open_or_create(tmp_path_factory.mktemp("paths") / "index", clip) as opened:
        update(opened, clip, [years])
        yield opened


def paths(site: Site, headers: Mapping[str, str] | None = None) -> dict[str, str | None]:
    """By relative path, the absolute one."""
    answer = site.ask("POST", "/v1/search", {"text": "a", "group_similar": 1.0}, headers)
    hits = [one for hit in answer.json["results"] for one in (hit, *hit["similar"])]
    for hit in hits:
        own = site.ask("GET", f"/v1/images/{hit['id']}", headers=headers).json
        assert (own["path"], own["absolute_path"]) == (hit["path"], hit["absolute_path"])
        assert hit["name"] == Path(hit["path"]).name
    return {hit["path"]: hit["absolute_path"] for hit in hits}


def test_relative_paths_alone_by_default(clip: LoadedBundle, index: Index, years: Path) -> None:
    with served(create_app(clip, index)) as site:
        assert paths(site) == {"2023/trip/a.png": None, "2024/b.png": None}
        assert str(years.parent).encode() not in site.ask("POST", "/v1/search", {"text": "a"}).content


def test_absolute_paths_but_not_through_a_proxy(clip: LoadedBundle, index: Index, years: Path) -> None:
    with served(create_app(clip, index, has_absolute_paths=True)) as site:
        assert paths(site) == {name: str(years / name) for name in ("2023/trip/a.png", "2024/b.png")}
        for header in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP", "X-Forwarded-Host"):
            assert set(paths(site, {header: "192.0.2.7"}).values()) == {None}


@pytest.mark.parametrize(
    "case",
    [
        ([], True),
        (["--host", "localhost"], True),
        (["--host", "0.0.0.0"], False),
        (["--allowed-host", "photos.example"], False),
        (["--api-key-file", "{keys}"], False),
    ],
)
def test_only_a_server_for_its_own_machine_gives_absolute_paths(
    tiny_bundle: Path, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[list[str], bool]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-24-characters-a")
    given: list[bool] = []
    monkeypatch.setattr("diptych.server.app.create_app", lambda *_, **more: given.append(more["has_absolute_paths"]))
    for name in ("serve", "exit_if_stuck"):
        monkeypatch.setattr(f"diptych.server.run.{name}", lambda *_: None)
    words = [word.replace("{keys}", str(keys)) for word in case[0]]
    assert main(["serve", str(tiny_bundle), "--index", index.place, "--port", "0", *words]) == 0
    assert given == [case[1]]


def test_pictures_that_share_only_the_root_have_no_relative_path(clip: LoadedBundle, tmp_path: Path) -> None:
    with open_or_create(tmp_path / "index", clip) as index:
        vector = clip.encode_texts(["a"])[0]
        add(index, [entry(1, digest="d1"), entry(2, key="/mnt/2.jpg", digest="d1")], {"d1": vector})
        with served(create_app(clip, index)) as site:
            hits = site.post("/v1/search", {"text": "a"})["results"]
    assert [(hit["name"], hit["path"]) for hit in hits] == [("2.jpg", None), ("1.jpg", None)]
