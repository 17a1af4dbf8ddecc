"""A hostile world in the midst of a run: it goes on and counts, or stops and says why."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.cli.main import main
from diptych.core.errors import ConfigError, DataError
from diptych.core.settings import override
from diptych.data.open_source import open_source
from diptych.data.tools.pack import pack
from diptych.data.tools.write_shards import write_shards
from diptych.training.config import TrainConfig, write_config
from diptych.training.run import train
from tests.conftest import as_nobody, draw_photos
from tests.images.hostile import png_chunk
from tests.training.listener import Listener

pytestmark = pytest.mark.usefixtures("no_curves", "fresh_console")


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _noise(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).convert(mode)


def _huge_png() -> bytes:
    """A header that claims 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + png_chunk(b"IEND", b"")
    )


def _hostile(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Odd pictures: names of those that are used, and names of those that cannot be, with the reason."""
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 60), dtype=np.uint16))
    good = {
        "cmyk.jpg": _saved(_noise("CMYK"), "JPEG"),
        "palette.png": _saved(_noise("P"), "PNG", transparency=bytes(range(256))),
        "deep.png": _saved(deep, "PNG"),
        "moving.gif": _saved(_noise(), "GIF", save_all=True, append_images=[_noise("L").convert("RGB")]),
        "tiny.png": _saved(_noise().resize((1, 1)), "PNG"),
        "line.png": _saved(_noise().resize((900, 1)), "PNG"),
        "really a png.jpg": _saved(_noise(), "PNG"),
    }
    broken = {
        "empty.jpg": (b"", "is not a picture"),
        "half.jpg": (_saved(_noise(), "JPEG")[:1500], "truncated"),
        "text.jpg": (b"<html>404</html>", "is not a picture"),
        "bomb.png": (_huge_png(), "60000x60000 is over the limit of 200000000 pixels"),
        "closed.png": (_saved(_noise(), "PNG"), "permission denied"),
    }
    for name, content in {**good, **{name: content for name, (content, _) in broken.items()}}.items():
        (folder / name).write_bytes(content)
    (folder / "closed.png").chmod(0)
    (folder / "folder.jpg").mkdir()
    (folder / "link.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    reasons = {name: reason for name, (_, reason) in broken.items()}
    return list(good), {
        **reasons,
        "folder.jpg": "is a folder",
        "link.jpg": "no such file",
        "pipe.jpg": "is not a regular file",
    }


def _set_of(folder: Path, names: list[str]) -> str:
    """Of the names that are numbers each fifth is for validation."""
    is_val = [name[:3].isdigit() and int(name[:3]) % 5 == 0 for name in names]
    rows = [
        {"image": name, "caption": f"picture {name}", "split": "val" if val else "train"}
        for name, val in zip(names, is_val, strict=True)
    ]
    (folder / "rows.json").write_text(json.dumps(rows), "utf-8")
    return f"json:{folder / 'rows.json'}"


def _plain_set(folder: Path, num: int) -> str:
    names = [f"{i:03d}.png" for i in range(num)]
    draw_photos(folder, names)
    return _set_of(folder, names)


def _listed(run: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (run / "skipped.jsonl").read_text("utf-8").splitlines()]
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row["reason"] for row in rows}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_each_hostile_picture_is_used_or_counted(
    tiny_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory, open_place: Path, workers: str
) -> None:
    draw_photos(open_place, [f"{i:03d}.png" for i in range(40)])
    good, broken = _hostile(open_place)
    source = _set_of(open_place, [*good, *broken, *(f"{i:03d}.png" for i in range(40))])
    changes = {"data.source": source, "data.workers": workers, "data.max_skipped": "0.2", "schedule.steps": "12"}
    train(
        override(tiny_run, changes), tmp_path_factory.mktemp("warm") / "run"
    )  # All is imported before nobody is who runs.
    place = open_place / "runs"
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    with as_nobody():
        result = train(override(tiny_run, changes), place / "run")
    listed = _listed(place / "run")
    assert result.num_skipped == len(broken)
    assert {name: reason in listed[name] for name, reason in broken.items()} == dict.fromkeys(broken, True)
    assert listed.keys() == broken.keys()
    with (
        as_nobody(),
        pytest.raises(DataError, match=r"cannot be read, more than 1% .*listed in .*skipped\.jsonl; the f"),
    ):
        train(override(tiny_run, {**changes, "data.max_skipped": "0.01"}), place / "strict")
    assert _listed(place / "strict").keys() <= broken.keys()


def _in_tars(source: str, out: Path) -> tuple[str, Path]:
    tar = write_shards(open_source(source), out, per_shard=30).paths[1]
    return f"shards:{out}/*.tar", tar


def _packed(source: str, out: Path) -> tuple[str, Path]:
    pack(open_source(source), out, image_px=32, per_shard=30)
    return f"packed:{out}", out / "00001.pixels"


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.filterwarnings("ignore:a data worker was killed")  # Cut between the look and the touch: SIGBUS.
@pytest.mark.parametrize("harm", ["gone", "cut", "closed and anew"])
@pytest.mark.parametrize("form", [_in_tars, _packed])
def test_a_shard_that_goes_in_the_midst_of_a_run(
    tiny_run: TrainConfig, tmp_path: Path, form: Callable[[str, Path], tuple[str, Path]], harm: str, workers: str
) -> None:
    """Who has it open reads on when it is deleted; what is cut off is skipped, in training and in validation, and counted."""
    (tmp_path / "set").mkdir()
    source, shard = form(_plain_set(tmp_path / "set", 60), tmp_path / "out")
    whole = shard.stat().st_size

    def do_harm() -> None:
        match harm:
            case "gone":
                shard.unlink()
            case "cut":
                os.truncate(shard, whole // 4)
            case _:
                shard.rename(shard.with_suffix(".old"))
                shard.write_bytes(b"")

    changes = {"data.source": source, "data.workers": workers, "schedule.steps": "24", "data.max_skipped": "0.9"}
    result = train(override(tiny_run, changes), tmp_path / "run", observers=[Listener(4, do_harm)])
    assert result.steps == 24  # Workers are eight batches ahead at most.
    assert result.retrieval is not None
    if harm == "cut":
        reasons = set(_listed(tmp_path / "run").values())
        assert result.num_skipped > 3
        assert all(
            shard.name in reason and ("ends before" in reason or "was truncated" in reason) for reason in reasons
        )
        assert int(result.retrieval.protocol["skipped_images"]) > 0
    os.truncate(shard, 0) if shard.exists() else shard.write_bytes(b"")
    with pytest.raises(DataError, match=shard.name):  # The next start says at once what is wrong.
        train(override(tiny_run, changes), tmp_path / "again")


def test_a_shard_that_is_cut_stops_a_strict_run(tiny_run: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    source, shard = _in_tars(_plain_set(tmp_path / "set", 60), tmp_path / "out")
    vandal = Listener(2, lambda: os.truncate(shard, 100))
    with pytest.raises(
        DataError, match=r"cannot be read, more than 1% .*skipped\.jsonl; the first: .*00001\.tar: ends bef"
    ):
        train(override(tiny_run, {"data.source": source}), tmp_path / "run", observers=[vandal])


def test_a_folder_that_goes_in_the_midst_of_a_run(tiny_run: TrainConfig, tmp_path: Path) -> None:
    """As when a disk is unmounted."""
    (tmp_path / "set").mkdir()
    source = _plain_set(tmp_path / "set", 60)
    changes = {"data.source": source, "data.max_skipped": "0.9"}
    vandal = Listener(2, lambda: (tmp_path / "set").rename(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match=r"\.png: no such file"):
        train(override(tiny_run, changes), tmp_path / "run", observers=[vandal])


# Too little


def _run_by_hand(
    capsys: pytest.CaptureFixture[str], tiny_run: TrainConfig, tmp_path: Path, source: str, *words: str
) -> str:
    """Empty where the run came to its end, else the one line that it said."""
    write_config(override(tiny_run, {"schedule.steps": "3"}), tmp_path / "c.yaml")
    capsys.readouterr()
    line = ["train", "--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run"), "--overwrite"]
    code = main([*line, "--data", source, *words])
    err = capsys.readouterr().err
    assert code == (2 if err else 0)
    assert err.count("\n") == bool(err)
    return err


@pytest.mark.parametrize("num", [1, 2, 3, 5, 30])
def test_the_way_out_of_too_few_samples_is_one(
    capsys: pytest.CaptureFixture[str], tiny_run: TrainConfig, tmp_path: Path, num: int
) -> None:
    """Whoever does what the messages say comes to a run, in three steps at most."""
    draw_photos(tmp_path / "set", [f"{i}.png" for i in range(num)])
    table = "image,caption\n" + "".join(f"{i}.png,picture {i}\n" for i in range(num))
    (tmp_path / "set" / "rows.csv").write_text(table, "utf-8")
    source, words, said = f"csv:{tmp_path / 'set' / 'rows.csv'}", list[str](), ""
    for _ in range(4):
        said = _run_by_hand(capsys, tiny_run, tmp_path, source, *words)
        if "--data.val-split all" in said:
            words += ["--data.val-split", "all"]
        elif "--data.train-split all" in said:
            words += ["--data.train-split", "all"]
        elif "--batch-size" in said:
            words += ["--batch-size", said.split("--batch-size ")[1].split()[0]]
        else:
            break
    assert said == ("" if num > 1 else f"diptych: {source}: holds 1 sample; a run needs 2 or more\n")
    assert num == 1 or words


def test_one_sample_of_many_is_too_few(tiny_run: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"only 1 of .* samples is for training; .*: set a larger --max-samples"):
        train(override(tiny_run, {"data.max_samples": "1"}), tmp_path / "run")
    draw_photos(tmp_path / "set", [f"{i}.png" for i in range(4)])
    for one, says in (
        ("train", "set --data.train-split all"),
        ("val", "'val' has 1 of 4 samples; .*all samples$"),
    ):
        splits = [one, *["train" if one == "val" else "val"] * 3]
        rows = [{"image": f"{i}.png", "caption": "x", "split": split} for i, split in enumerate(splits)]
        (tmp_path / "set" / "rows.json").write_text(json.dumps(rows), "utf-8")
        with pytest.raises(ConfigError, match=says):
            train(override(tiny_run, {"data.source": f"json:{tmp_path}/set/rows.json"}), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("csv:rows.csv", b"image,caption\n", "rows.csv: holds no rows"),
        ("json:rows.json", b"[]", "rows.json: holds no rows"),
        ("json:rows.jsonl", b"\n\n", "rows.jsonl: holds no rows"),
        ("tsv-folder:captions.txt", b"", "captions.txt: holds no rows"),
        ("shards:none.tar", b"\0" * 10240, "1 tars hold no samples"),
        ("class-folder:none.zip", b"PK\x05\x06" + bytes(18), "holds no class folders with pictures"),
        ("coco:captions_x.json", b'{"images": [], "annotations": []}', "holds no rows"),
        ("flickr30k:results.csv", b"image| number| caption\n", "holds no captions"),
        ("class-folder:", None, "holds no class folders with pictures"),
        ("cc3m:", None, "contains neither tars"),
        ("hf:", None, "contains no dataset"),
        ("packed:", None, "holds no pack.json"),
    ],
)
def test_nothing_at_all_is_said_on_one_line(
    capsys: pytest.CaptureFixture[str],
    tiny_run: TrainConfig,
    tmp_path: Path,
    *,
    name: str,
    content: bytes | None,
    says: str,
) -> None:
    kind, _, file = name.partition(":")
    place = tmp_path / "set"
    (place / "images").mkdir(parents=True)
    if content is not None:
        (place / file).write_bytes(content)
        place = place if kind in {"tsv-folder", "flickr30k"} else place / file
    assert says in _run_by_hand(capsys, tiny_run, tmp_path, f"{kind}:{place}")
    assert not (tmp_path / "run").exists()
    for command, *more in (["audit"], ["show", "--out", "s.png"], ["pack", "packed"], ["shards", "tars"]):
        assert main(["data", command, f"{kind}:{place}", *more]) == 2
        err = capsys.readouterr().err
        assert says in err
        assert err.count("\n") == 1
