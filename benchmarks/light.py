"""Compare the use of ONNX exports without PyTorch with the use of bundles: size, cold search, encoding, memory at rest.

    python benchmarks/light.py [--environment DIR] [--rclip DIR] [--out FILE]

The environment without PyTorch and that of rclip are created in a temporary folder, or in `--environment` and `--rclip`, where
they are kept. The models are those of `small-data` and ViT-B/32, with random weights. rclip searches the same vectors with the
same graph as the export of the ViT-B/32, because its own graphs would have to be downloaded from a hub.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import rclip_peer
import torch
from harness import Times, apart, arguments, in_turn, machine, table, turns, write
from numpy.typing import NDArray

import diptych
from diptych.bundle.folder import Bundle, save_bundle
from diptych.export.onnx_folder import export_onnx
from diptych.index.entry import Entry, FileStat
from diptych.index.open_index import create_index
from diptych.models.clip import CLIP
from diptych.presets import preset
from diptych.runtime.onnx_config import graph_names
from diptych.tokenizers.clip_bpe import ClipBPETokenizer
from diptych.tokenizers.learned_bpe import LearnedBPETokenizer

NUM = 100_000
ROUNDS = 7
QUERY = "a dog in the snow"
_REPOSITORY = Path(__file__).resolve().parents[1]
_INSTALLERS = ("pip", "setuptools", "pkg_resources", "_distutils_hack")
"""Packages that every virtual environment contains."""
_WORDS = [
    "a",
    "the",
    "red",
    "small",
    "young",
    "dog",
    "cat",
    "child",
    "boat",
    "runs",
    "sleeps",
    "in",
    "snow",
    "park",
    "water",
]


def main() -> None:
    """Compare, measure, print, and write the tables."""
    given = arguments(__doc__, environment="", rclip="", rounds=ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        light = Path(given.environment) if given.environment else place / "light"
        rclip = Path(given.rclip) if given.rclip else place / "rclip"
        rclip_peer.install(rclip)
        downloaded = _install(light, place / "wheels")
        models = {"small-data": _small(place), "ViT-B/32": _vit(place)}
        cold, splits = _cold_searches(models, light, rclip, place, rounds=given.rounds)
        encoding = [row for name, paths in models.items() for row in _encoding_rows(name, paths, rounds=given.rounds)]
        memory = [
            [name, *(f"{_memory_mib(light, paths[kind]):.0f}" if kind in paths else "" for kind in ("fp32", "int8"))]
            for name, paths in models.items()
        ]
        write(
            given.out,
            "# Use without PyTorch",
            f"`python benchmarks/light.py`, {machine('onnxruntime', 'numpy')}",
            f"`pip install 'diptych[serve]'` without PyTorch: {_size_mib(light):.0f} MiB on the disk (at most 280), "
            f"{downloaded:.0f} MiB to download.",
            f"`diptych search` for a text among {NUM:,} pictures, the whole process, seconds, medians of {given.rounds} "
            "rounds in turn. The exports run in the environment without PyTorch, the bundles in the one with it. "
            f"rclip {rclip_peer.VERSION} searches the same vectors with the same text graph, and finds the same picture:",
            table(["model", "bundle", "export", "rclip", "at most"], cold),
            "Where the time goes (`--timing`):",
            *(f"```\n{split}\n```" for split in splits),
            f"Milliseconds per picture or text, medians of {given.rounds} rounds in turn, each side in its own process:",
            table(["model", "what", "batch", "PyTorch", "ONNX Runtime", "ratio", "int8", "fp32 / int8"], encoding),
            "Memory of the server at rest, MiB:",
            table(["model", "fp32", "int8"], memory),
        )


def _install(place: Path, wheels: Path) -> float:
    """Create the environment unless it exists; the size of what pip downloads, in MiB."""
    constraints, source = _REPOSITORY / "constraints.txt", wheels.with_name("source")
    shutil.copytree(_REPOSITORY / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(_REPOSITORY / name, source / name)
    what = [f"{source}[serve]", "--constraint", str(constraints), "--quiet", "--disable-pip-version-check"]
    if not (place / "bin" / "diptych").exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([str(place / "bin/python"), "-m", "pip", "install", *what], check=True)
    subprocess.run([str(place / "bin/python"), "-m", "pip", "download", "--dest", str(wheels), *what], check=True)
    return sum(file.stat().st_size for file in wheels.iterdir() if not file.name.startswith("diptych")) / 2**20


def _size_mib(environment: Path) -> float:
    (packages,) = environment.glob("lib/python*/site-packages")
    entries = [entry for entry in packages.iterdir() if not entry.name.startswith(_INSTALLERS)]
    files = (file for entry in entries for file in ([entry] if entry.is_file() else entry.rglob("*")))
    return sum(os.lstat(file).st_blocks * 512 for file in files) / 2**20


def _small(place: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    captions = [" ".join(rng.choice(_WORDS, 8)) for _ in range(2000)]
    config = preset("photos-convnet")
    text = config.text
    tokenizer = LearnedBPETokenizer.train(captions, vocab_size=text.vocab_size, context_length=text.context_length)
    config = replace(config, text=replace(text, vocab_size=tokenizer.vocab_size))
    return _exported(Bundle(model=CLIP(config).eval(), tokenizer=tokenizer), place / "small", precisions=("fp32",))


def _vit(place: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    bundle = Bundle(model=CLIP(preset("vit-b-32")).eval(), tokenizer=ClipBPETokenizer(context_length=77))
    return _exported(bundle, place / "vit", precisions=("fp32", "int8"))


def _exported(bundle: Bundle, place: Path, *, precisions: tuple[Any, ...]) -> dict[str, Path]:
    """The paths of the bundle and of its exports by precision."""
    paths = {"bundle": place / "bundle", **{precision: place / precision for precision in precisions}}
    save_bundle(bundle, paths["bundle"])
    for precision in precisions:
        export_onnx(bundle, paths[precision], precision=precision)
    return paths


def _cold_searches(
    models: dict[str, dict[str, Path]], light: Path, rclip: Path, place: Path, *, rounds: int
) -> tuple[list[list[str]], list[str]]:
    rows, splits = list[list[str]](), list[str]()
    limits = {"small-data": 0.5, "ViT-B/32": 0.6}
    for name, paths in models.items():
        index = place / f"index-{len(rows)}"
        vectors = _make_index(index, paths["bundle"])
        export = paths.get("int8", paths["fp32"])
        words = ["search", str(index), QUERY, "--timing", "--bundle"]
        commands = {
            "bundle": [str(Path(sys.executable).with_name("diptych")), *words, str(paths["bundle"])],
            "export": [str(light / "bin/diptych"), *words, str(export)],
        }
        sides = {side: partial(_run, command) for side, command in commands.items()}
        if name == "ViT-B/32":  # rclip has CLIP's tokenizer.
            data = place / "rclip-data"
            rclip_peer.write_data(data, rclip, export / graph_names("int8")[1], vectors)
            sides["rclip"] = partial(_run_rclip, rclip, data)
            _check_hits(sides)
        times = in_turn(sides, rounds=rounds)
        kind = "int8" if "int8" in paths else "fp32"
        medians = [f"{times.median(side):.2f}" if side in sides else "" for side in ("bundle", "export", "rclip")]
        rows.append([f"{name}, {kind}", *medians, f"{limits[name]}"])
        splits.append(f"{name}, {kind}\n{_run(commands['export']).stderr.strip()}")
    return rows, splits


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, check=True, capture_output=True, text=True)


def _run_rclip(environment: Path, data: Path) -> "subprocess.CompletedProcess[str]":
    command = [str(environment / "bin/rclip"), "--no-indexing", "--top", "20", QUERY]
    variables = {**os.environ, "RCLIP_DATADIR": str(data)}
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=data, env=variables)


def _check_hits(sides: Mapping[str, Callable[[], "subprocess.CompletedProcess[str]"]]) -> None:
    """Exit if the best hits of rclip and of the export differ."""
    first = {side: re.search(r"/(\d+)\.jpg", sides[side]().stdout) for side in ("export", "rclip")}
    names = {side: None if found is None else found[1] for side, found in first.items()}
    if None in names.values() or len({*names.values()}) > 1:
        sys.exit(f"the best hits differ ({names}); nothing is timed")


def _make_index(index: Path, bundle: Path) -> NDArray[np.float32]:
    """Create an index of random vectors, and return them."""
    clip = diptych.load(bundle, device="cpu")
    dim = clip.bundle.config.embed_dim
    vectors = np.random.default_rng(0).standard_normal((NUM, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with create_index(str(index), dim=dim, model=clip.identity, bundle=str(bundle)) as opened, opened.writing():
        for start in range(0, NUM, 10_000):
            numbers = range(start, start + 10_000)
            entries = [Entry(key=f"/p/{i}.jpg", digest=f"{i}", stamp=FileStat(size=i, modified_ns=i)) for i in numbers]
            opened.add(entries, {f"{i}": vectors[i] for i in numbers})
    return vectors


def _encoding_rows(name: str, paths: dict[str, Path], *, rounds: int) -> Iterator[list[str]]:
    for what in ("pictures", "texts"):
        for batch in (1, 32):
            times = _encoding_times(paths, what, batch, rounds=rounds)
            ms = {side: times.median(side) / batch * 1e3 for side in times.of}
            row = [
                name,
                what,
                str(batch),
                f"{ms['bundle']:.2f}",
                f"{ms['fp32']:.2f}",
                f"{times.ratio('bundle', 'fp32'):.2f} x",
            ]
            has_int8 = "int8" in paths
            yield [*row, *((f"{ms['int8']:.2f}", f"{times.ratio('fp32', 'int8'):.2f} x") if has_int8 else ("", ""))]


def _encoding_times(paths: dict[str, Path], what: str, batch: int, *, rounds: int) -> Times:
    """Seconds per batch of each side, each in its own process, one after another in every round."""
    calls = 10 if batch == 1 else 1
    with apart({side: partial(_encoder, path, what, batch, calls) for side, path in paths.items()}) as actions:
        for action in actions.values():
            action()
        taken: dict[str, list[float]] = {side: [] for side in paths}
        for side in turns(paths, rounds=rounds):
            began = time.perf_counter()
            actions[side]()
            taken[side].append((time.perf_counter() - began) / calls)
    return Times(taken)


def _encoder(path: Path, what: str, batch: int, calls: int) -> Callable[[], object]:
    """A function that encodes a batch several times."""
    embedder = diptych.load(path, device="cpu", batch_size=batch).embedder
    rng = np.random.default_rng(0)
    side = embedder.bundle.config.image.image_px
    shape = (3, side, side) if isinstance(side, int) else (3, *side)
    pixels = list(rng.integers(0, 256, (batch, *shape), dtype=np.uint8))
    texts = [" ".join(rng.choice(_WORDS, rng.integers(4, 16))) + f" {number}" for number in range(batch)]

    def act() -> None:
        for _ in range(calls):
            if what == "pictures":
                embedder.encode_pixels(pixels)
            else:
                embedder.encode_texts(texts)

    return act


def _memory_mib(light: Path, export: Path) -> float:
    """Resident memory of the server after its first answer to a text, in MiB: the median of three starts."""
    return median(_one_memory_mib(light, export) for _ in range(3))


def _one_memory_mib(light: Path, export: Path) -> float:
    with _serving(light, export) as (process, address):
        body = b'{"texts": ["a dog"]}'
        request = urllib.request.Request(f"{address}/v1/embed", body, {"content-type": "application/json"})
        urllib.request.urlopen(request, timeout=60).read()
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=60):
            return True
    except OSError:
        return False


@contextmanager
def _serving(light: Path, export: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    command = [str(light / "bin/diptych"), "serve", str(export), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = next(line for line in process.stdout if line.startswith("Open "))
        address = line.split()[1].rstrip("/")
        while not _is_ready(address):
            time.sleep(0.05)
        yield process, address
    finally:
        process.terminate()
        process.wait(60)


if __name__ == "__main__":
    main()
