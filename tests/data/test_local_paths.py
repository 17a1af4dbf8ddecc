"""Which files and folders the name of a source means."""

from pathlib import Path

import pytest

from diptych.data.local_paths import local_paths


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("shapes", []),
        ("shapes:64", []),
        ("flickr8k", []),
        ("hf:owner/name", []),
        ("shards:https://host/a.tar", []),
        ("{0}", [""]),
        ("class-folder:{0}", [""]),
        ("csv:{0}/a.csv", ["a.csv"]),
        ("csv:{0}/a.csv?root={0}/pictures&caption=title", ["pictures", "a.csv"]),
        ("json:{0}/odd?name=x.json", ["odd?name=x.json"]),
        ("shards:{0}/none.tar", []),
        ("class-folder:{0}/" + 300 * "a", []),
        ("shards:{0}/*/0*.tar::{0}/other.tar?cache_gb=1", ["tars/00.tar", "tars/01.tar", "other.tar"]),
        ("shards:{0}/tars/{{00..01}}.tar", ["tars/00.tar", "tars/01.tar"]),
        ("shards:{0}/{{tars,none}}/00.tar", ["tars/00.tar"]),
        ("mix: 0.5*csv:{0}/a.csv?root={0}/pictures + 0.5*shapes", ["pictures", "a.csv"]),
    ],
)
def test_the_paths_of_a_source(tmp_path: Path, spec: str, found: list[str]) -> None:
    for folder in ("tars", "pictures"):
        (tmp_path / folder).mkdir()
    for name in ("a.csv", "odd?name=x.json", "tars/00.tar", "tars/01.tar", "other.tar"):
        (tmp_path / name).touch()
    assert sorted(local_paths(spec.format(tmp_path))) == sorted(tmp_path / name for name in found)
