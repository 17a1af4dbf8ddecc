"""Compare speed and memory of `diptych train` on Flickr8k with open_clip's own trainer, which reads the same pairs from a CSV.

    python benchmarks/train_command.py --flickr DIR [--out FILE]

A small model (image tower of 112 px in patches of 16, 6 layers of 256; text tower of 4 layers of 256, CLIP's vocabulary),
batches of 64, AdamW, one loading process, random crops. Speed is pairs per second from the first to the last logged step.
Memory is the peak of the command and its child processes, sampled ten times per second; a shared page is divided among the
processes that share it. It is measured in a separate run, because sampling takes a quarter of a core.
"""

import csv
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from harness import Times, arguments, machine, table, turns, write
from sides import own_bundle
from train_step import SMALL

from diptych.bundle.open_bundle import export_bundle
from diptych.data.batches.loader import DataConfig
from diptych.data.open_source import open_source
from diptych.recipes.recipe import recipe
from diptych.training.config import write_config
from diptych.training.validation import ValidationConfig

ROOT = Path(__file__).parents[1]
ROUNDS = 7
BATCH = 64
STEPS = 24

PEER = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from tests import peers
import json
peers.open_clip.factory.add_model_config(sys.argv.pop(1))
from open_clip_train.main import main
main(sys.argv[1:])
"""


def main() -> None:
    """Measure, print, and write the table."""
    given = arguments(__doc__, flickr="", rounds=ROUNDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder, given.flickr)
        sides = {"Diptych": _own, "open_clip": _peer}
        peaks = {side: run(folder, "weighed", is_weighed=True).peak_mib for side, run in sides.items()}
        taken: dict[str, list[float]] = {side: [] for side in sides}
        for number, side in enumerate(turns(sides, rounds=given.rounds)):
            rate = sides[side](folder, str(number)).rate
            taken[side].append(1 / rate)
            print(side, f"{rate:.1f}", file=sys.stderr)
    times = Times(taken)
    rows = [
        [
            "pairs per second",
            *(f"{1 / times.median(side):.1f}" for side in sides),
            f"{times.ratio('open_clip', 'Diptych'):.2f} x",
        ],
        [
            "peak memory, MiB",
            *(f"{peak:.0f}" for peak in peaks.values()),
            f"{peaks['Diptych'] / peaks['open_clip']:.2f} x",
        ],
    ]
    write(
        given.out,
        "# A whole training command",
        f"`python benchmarks/train_command.py`, {machine('open_clip_torch')}",
        f"{STEPS} steps of {BATCH} pairs on Flickr8k, the small model of `train_step.py`; pairs per second are medians of "
        f"{given.rounds} rounds in turn, their ratio round by round; memory is weighed in one run each beside them.",
        table(["what", "Diptych", "open_clip's trainer", "ratio"], rows),
    )


def _prepare(folder: Path, flickr: str) -> None:
    """Write the same pairs and the same model for both sides."""
    source = open_source(f"flickr8k:{flickr}")
    captions = [source.captions(row) for row in range(BATCH * STEPS)]
    pairs = [(str(source[row].image), texts[row % len(texts)]) for row, texts in enumerate(captions)]
    peer_files(folder, pairs)
    data = DataConfig(source=f"csv:{folder / 'pairs.csv'}", workers=1)
    once = ValidationConfig(times=1)  # At the end: the peer has none.
    run = replace(recipe("flickr30k-small"), model=SMALL, data=data, batch_size=BATCH, validation=once)
    write_config(run, folder / "run.yaml")


def peer_files(folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Write image paths and captions as a CSV file, and the small model as a config of open_clip."""
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(["filepath", "title"])
        rows.writerows(pairs)
    export_bundle(own_bundle(SMALL), "open-clip", folder / "model")
    exported = json.loads((folder / "model" / "open_clip_config.json").read_text(encoding="utf-8"))
    (folder / "small.json").write_text(json.dumps(exported["model_cfg"]), encoding="utf-8")


class Measured(NamedTuple):
    """Pairs per second and peak memory of one command; the peak is 0 if it was not measured."""

    rate: float
    peak_mib: float


def _own(folder: Path, name: str, *, is_weighed: bool = False) -> Measured:
    out = folder / f"own-{name}"
    words = ["train", "--config", str(folder / "run.yaml"), "--out", str(out), "--steps", str(STEPS)]
    output = _run([sys.executable, "-m", "diptych", *words], is_weighed=is_weighed)
    steps = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = [step for step in steps if "pairs_per_s" in step]
    first, last = logged[0], logged[-1]
    return Measured(BATCH * (last["step"] - first["step"]) / (last["elapsed_s"] - first["elapsed_s"]), output.peak_mib)


class ProcessOutput(NamedTuple):
    """The lines that a command printed, each with its time in seconds; and its peak memory, 0 if it was not measured."""

    lines: list[tuple[str, float]]
    peak_mib: float


def run_peer(folder: Path, name: str, words: Sequence[str], *, is_weighed: bool = False) -> ProcessOutput:
    """Run open_clip's trainer on the files that `peer_files` wrote."""
    words = [
        *("--model", "small", "--train-data", str(folder / "pairs.csv"), "--dataset-type", "csv"),
        *("--batch-size", str(BATCH), "--workers", "1", "--lr", "1e-3", "--device", "cpu", "--precision", "fp32"),
        *("--logs", str(folder / "theirs"), "--name", name),
        *words,
    ]
    command = [sys.executable, "-c", PEER, str(ROOT), str(folder / "small.json"), *words]
    return _run(command, is_weighed=is_weighed)


def _peer(folder: Path, name: str, *, is_weighed: bool = False) -> Measured:
    words = ["--epochs", "1", "--warmup", "10", "--log-every-n-steps", "1", "--save-frequency", "0"]
    output = run_peer(folder, name, words, is_weighed=is_weighed)
    found = ((re.search(r"Train Epoch: 0 \[ *(\d+)/", line), at) for line, at in output.lines)
    pairs = [(int(match[1]), at) for match, at in found if match]
    (first, began), (last, ended) = pairs[0], pairs[-1]
    return Measured((last - first) / (ended - began), output.peak_mib)


def _run(command: list[str], *, is_weighed: bool) -> ProcessOutput:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        peak, lines = 0.0, list[tuple[str, float]]()
        reader = threading.Thread(
            target=lambda: lines.extend((line, time.monotonic()) for line in process.stdout or ())
        )
        reader.start()
        while is_weighed and process.poll() is None:
            peak = max(peak, sum(map(_held_mib, _tree(process.pid))))
            time.sleep(0.1)
        reader.join()
    if process.returncode:
        sys.exit("".join(line for line, _ in lines[-20:]))
    return ProcessOutput(lines, peak)


def _tree(root: int) -> list[int]:
    """Return the ids of a process and all of its descendants."""
    found, waiting = [], [root]
    while waiting:
        process = waiting.pop()
        found.append(process)
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                waiting += map(int, task.read_text(encoding="utf-8").split())
            except OSError:
                continue
    return found


def _held_mib(process: int) -> float:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    held = re.search(r"^Pss: +(\d+) kB", text, flags=re.MULTILINE)
    return int(held[1]) / 1024 if held else 0.0


if __name__ == "__main__":
    main()
