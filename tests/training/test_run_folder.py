"""`--overwrite` replaces runs, and of them only what runs write."""

from pathlib import Path

import pytest

from diptych.bundle.folder import load_bundle, save_bundle
from diptych.core.errors import ConfigError, RunError
from diptych.core.settings import override
from diptych.training.config import TrainConfig, write_config
from diptych.training.run import train
from diptych.training.run_folder import CONFIG, EVENTS, LOCK, check_inputs_outside, check_run_folder, create_run_folder
from diptych.tuning.study_folder import create_study_folder
from tests.conftest import draw_photos


def _content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("config", "traces", "reason"),
    [
        ("seed: 0\nbackbone: resnet\n", "", "it has data"),
        ("seed: 0\n", "", "it has data"),
        ("seed: 0\n", "checkpoints/last.pt", "it has checkpoints|it has data"),
        ("backbone: resnet\n", EVENTS, "config.yaml is not that of a run .*backbone"),
        ("- a\n- list\n", LOCK, "config.yaml is not that of a run"),
    ],
)
def test_a_project_with_a_config_is_no_run(
    tiny_run: TrainConfig, tmp_path: Path, config: str, traces: str, reason: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("image,caption\n")
    (tmp_path / CONFIG).write_text(config)
    if traces:
        (tmp_path / traces).parent.mkdir(exist_ok=True)
        (tmp_path / traces).touch()
    before = _content(tmp_path)
    for overwrite in (True, False):
        with pytest.raises(RunError, match=f"({reason}).*choose another folder with --out"):
            train(tiny_run, tmp_path, overwrite=overwrite)
    assert _content(tmp_path) == before


def test_a_project_is_not_resumed(tiny_run: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("seed: 0\n")
    (tmp_path / "main.py").write_text("")
    with pytest.raises(RunError, match="holds no run to resume"):
        train(tiny_run, tmp_path, resume=True)
    assert _content(tmp_path) == {CONFIG: "seed: 0\n", "main.py": ""}


@pytest.mark.parametrize("trace", [EVENTS, LOCK, "checkpoints/step-00000005/state.json"])
def test_what_a_run_did_not_write_stays(tiny_run: TrainConfig, tmp_path: Path, trace: str) -> None:
    write_config(tiny_run, tmp_path / CONFIG)
    for name in ("notes.txt", "pictures/a.png", "bundle-of-mine/weights", trace, "bundle/config.json", "curves.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    check_run_folder(tmp_path, overwrite=True, resume=False)
    create_run_folder(tmp_path)
    kept = {CONFIG, "notes.txt", "pictures/a.png", "bundle-of-mine/weights", *({LOCK} if trace == LOCK else ())}
    assert _content(tmp_path).keys() == kept


def test_a_bundle_is_a_trace_of_a_run(tiny_run: TrainConfig, tmp_path: Path, tiny_bundle: Path) -> None:
    write_config(tiny_run, tmp_path / CONFIG)
    (tmp_path / "notes.txt").touch()
    save_bundle(load_bundle(tiny_bundle), tmp_path / "bundle")
    check_run_folder(tmp_path, overwrite=True, resume=False)


def test_a_run_that_hardly_began_is_replaced(tiny_run: TrainConfig, tmp_path: Path) -> None:
    write_config(tiny_run, tmp_path / CONFIG)
    (tmp_path / "tokenizer.json").touch()
    check_run_folder(tmp_path, overwrite=True, resume=False)


@pytest.mark.parametrize(
    "source", ["csv:{0}/set/rows.csv", "mix: shapes:64 + csv:{0}/set/rows.csv", "csv:{1}/rows.csv?root={0}/set"]
)
def test_data_in_the_run_folder_is_refused(tiny_run: TrainConfig, tmp_path: Path, source: str) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    draw_photos(run / "set", [f"{i}.png" for i in range(40)])
    other.mkdir()
    for folder in (run / "set", other):
        (folder / "rows.csv").write_text("image,caption\n" + "".join(f"{i}.png,picture {i}\n" for i in range(40)))
    write_config(tiny_run, run / CONFIG)
    (run / EVENTS).touch()
    config = override(tiny_run, {"data.source": source.format(run, other)})
    with pytest.raises(ConfigError, match=r"run: contains an input of the run \(data.source: .*/set.*; choose another"):
        train(config, run, overwrite=True)
    assert (run / EVENTS).exists()
    link = tmp_path / "link"
    link.symlink_to(run)
    with pytest.raises(ConfigError, match="link: contains an input of the run"):
        check_inputs_outside(config, link)
    check_inputs_outside(config, tmp_path / "runs")


@pytest.mark.parametrize("setting", ["init", "distill.teacher"])
def test_weights_in_the_run_folder_are_refused(
    tiny_run: TrainConfig, tmp_path: Path, tiny_bundle: Path, setting: str
) -> None:
    save_bundle(load_bundle(tiny_bundle), tmp_path / "bundle")
    config = override(tiny_run, {setting: str(tmp_path / "bundle")})
    with pytest.raises(ConfigError, match=f"contains an input of the run \\({setting}: "):
        check_inputs_outside(config, tmp_path)


def test_another_tools_tune_yaml_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "tune.yaml").write_text("num_samples: 10\n")
    with pytest.raises(ConfigError, match="is not empty and holds no study"):
        create_study_folder(tmp_path, storage=None)
    assert (tmp_path / "tune.yaml").read_text() == "num_samples: 10\n"
