"""A run on data whose address has a secret: the secret lies in one file, and a resume finds it there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from diptych.cli.main import main
from diptych.core import remote
from diptych.core.settings import override
from diptych.data.open_source import open_source
from diptych.data.tools.write_shards import write_shards
from diptych.training.checkpoint.compatibility import differing_settings
from diptych.training.config import TrainConfig, hide_secrets, read_config, write_config
from tests.conftest import draw_photos
from tests.folder_server import Server

SECRET = "Xy7secretXy7"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_curves: None) -> Iterator[str]:
    """A tar of 24 pictures behind a server, with a token in its address."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_WAIT_S", 0.01)
    names = [f"{i:02d}.jpg" for i in range(24)]
    draw_photos(tmp_path / "images", names)
    (tmp_path / "captions.txt").write_text("".join(f"{name}\tcaption {name}\n" for name in names), "utf-8")
    write_shards(open_source(f"tsv-folder:{tmp_path}"), tmp_path / "tars", per_shard=24)
    server = Server(tmp_path / "tars")
    yield f"shards:{server.url}/00000.tar?token={SECRET}"
    server.close()


def _files_with_secret(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes())


def test_a_secret_lies_in_one_file_and_a_resume_finds_it(
    source: str, tiny_run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, given = tmp_path / "run", tmp_path / "given.yaml"
    changes = {"data.source": source, "data.train_split": "all", "data.val_split": "all", "batch_size": 8}
    write_config(override(tiny_run, changes), given)
    assert main(["train", "--config", str(given), "--steps", "2", "--out", str(run)]) == 0
    assert _files_with_secret(run) == ["secrets.yaml"]
    assert (run / "secrets.yaml").stat().st_mode & 0o777 == 0o600
    assert "token=..." in (run / "bundle" / "README.md").read_text("utf-8")
    assert read_config(run / "config.yaml").data.source == source
    assert main(["train", "--resume", str(run)]) == 0
    data = ["--data", source, "--split", "all", "--max-samples", "8"]
    assert main(["evaluate", "retrieval", str(run / "bundle"), *data, "--out", str(tmp_path / "report")]) == 0
    (run / "secrets.yaml").unlink()
    assert main(["train", "--resume", str(run)]) == 2
    printed = capsys.readouterr()
    assert "the secret was left out of this address" in printed.err
    assert SECRET not in printed.out + printed.err
    assert _files_with_secret(tmp_path) == ["secrets.yaml"]  # That of the file that was given.
    assert not [path for path in tmp_path.rglob("*") if SECRET in path.name]


def test_an_address_that_was_changed_by_hand_counts(tiny_run: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_config(override(tiny_run, {"data.source": f"shards:https://host/a.tar?sig={SECRET}"}), path)
    path.write_text(path.read_text("utf-8").replace("host/a.tar", "host/b.tar"), "utf-8")
    assert read_config(path).data.source == "shards:https://host/b.tar?sig=..."


def test_a_config_of_an_older_version_is_read_and_gives_its_secret_away(tiny_run: TrainConfig, tmp_path: Path) -> None:
    path, source = tmp_path / "config.yaml", f"shards:https://ann:{SECRET}@host/a.tar"
    config = override(tiny_run, {"data.source": source})
    write_config(config, path)
    plain = yaml.safe_load(path.read_text("utf-8"))
    plain["data"]["source"] = source
    path.write_text(yaml.safe_dump(plain), "utf-8")
    (tmp_path / "secrets.yaml").unlink()
    assert read_config(path) == config
    hide_secrets(path)
    assert _files_with_secret(tmp_path) == ["secrets.yaml"]
    assert read_config(path) == config


def test_a_renewed_secret_is_no_other_run() -> None:
    saved = {"init": f"https://host/w.pt?sig={SECRET}", "distill": {"teacher": f"https://h/a?sig={SECRET}"}}
    assert (
        differing_settings(saved, {"init": "https://host/w.pt?sig=new", "distill": {"teacher": "https://h/a?sig=..."}})
        == []
    )
    ((_, was, now),) = differing_settings(
        {"init": f"https://host/w.pt?sig={SECRET}"}, {"init": "https://host/v.pt?sig=1"}
    )
    assert (was, now) == ("'https://host/w.pt?sig=...'", "'https://host/v.pt?sig=...'")
