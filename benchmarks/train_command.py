"""Times `diptych train` on Flickr8k against open_clip's own trainer reading the same pairs from a CSV: speed and memory.

    python benchmarks/train_command.py --flickr DIR [--out FILE]

A small model (image tower of 112 px in patches of 16, 6 layers of 256; text tower of 4 layers of 256, CLIP's vocabulary),
batches of 64, AdamW, one loading process, random crops. Speed is pairs a second from the first logged step to the last; memory
is the peak of what the command and its processes hold, asked ten times a second; a page that several share is counted in parts.
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
from datetime import datetime
from pathlib import Path
from statistics import median

from harness import arguments, machine, table, write
from sides import own_bundle
from train_step import SMALL

from diptych.bundle.choice import export_bundle
from diptych.data.loader import DataConfig
from diptych.data.sources.choice import open_source
from diptych.recipes.choice import recipe
from diptych.training.config import write_config
from diptych.training.validation import ValidationConfig

ROOT = Path(__file__).parents[1]
ROUNDS = 3
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
        rates: dict[str, list[float]] = {"Diptych": [], "open_clip": []}
        peaks: dict[str, list[float]] = {"Diptych": [], "open_clip": []}
        for number in range(given.rounds):
            for side, run in (("Diptych", _own), ("open_clip", _peer)):
                rate, peak = run(folder, number)
                rates[side].append(rate)
                peaks[side].append(peak)
    speed = median(own / peer for own, peer in zip(rates["Diptych"], rates["open_clip"], strict=True))
    memory = median(own / peer for own, peer in zip(peaks["Diptych"], peaks["open_clip"], strict=True))
    rows = [
        ["pairs a second", *(f"{median(rates[side]):.1f}" for side in rates), f"{speed:.2f} x"],
        ["peak memory, MiB", *(f"{median(peaks[side]):.0f}" for side in peaks), f"{memory:.2f} x"],
    ]
    write(
        given.out,
        "# A whole training command",
        f"`python benchmarks/train_command.py`, {machine('open_clip_torch')}",
        f"{STEPS} steps of {BATCH} pairs on Flickr8k, the small model of `train_step.py`; medians of {given.rounds} rounds in "
        "turn, ratios round by round.",
        table(["what", "Diptych", "open_clip's trainer", "ratio"], rows),
    )


def _prepare(folder: Path, flickr: str) -> None:
    """The same pairs and model for both, and the run."""
    source = open_source(f"flickr8k:{flickr}")
    captions = [source.captions(row) for row in range(BATCH * STEPS)]
    pairs = [(str(source[row].image), texts[row % len(texts)]) for row, texts in enumerate(captions)]
    peer_files(folder, pairs)
    data = DataConfig(source=f"csv:{folder / 'pairs.csv'}", workers=1)
    once = ValidationConfig(times=1)  # At the end: the peer has none.
    run = replace(recipe("flickr30k-small"), model=SMALL, data=data, batch_size=BATCH, validation=once)
    write_config(run, folder / "run.yaml")


def peer_files(folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Pictures and captions as a CSV, and the small model as open_clip's config."""
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(["filepath", "title"])
        rows.writerows(pairs)
    export_bundle(own_bundle(SMALL), "open-clip", folder / "model")
    exported = json.loads((folder / "model" / "open_clip_config.json").read_text(encoding="utf-8"))
    (folder / "small.json").write_text(json.dumps(exported["model_cfg"]), encoding="utf-8")


def _own(folder: Path, number: int) -> tuple[float, float]:
    out = folder / f"own-{number}"
    words = ["train", "--config", str(folder / "run.yaml"), "--out", str(out), "--steps", str(STEPS)]
    _, peak = _watched([sys.executable, "-m", "diptych", *words])
    steps = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = [step for step in steps if "pairs_per_s" in step]
    first, last = logged[0], logged[-1]
    return BATCH * (last["step"] - first["step"]) / (last["elapsed_s"] - first["elapsed_s"]), peak


def run_peer(folder: Path, name: str, words: Sequence[str]) -> tuple[str, float]:
    """open_clip's trainer on `peer_files`: what it said, and the most that it held, in MiB."""
    words = [
        *("--model", "small", "--train-data", str(folder / "pairs.csv"), "--dataset-type", "csv"),
        *("--batch-size", str(BATCH), "--workers", "1", "--lr", "1e-3", "--device", "cpu", "--precision", "fp32"),
        *("--logs", str(folder / "theirs"), "--name", name),
        *words,
    ]
    return _watched([sys.executable, "-c", PEER, str(ROOT), str(folder / "small.json"), *words])


def _peer(folder: Path, number: int) -> tuple[float, float]:
    words = ["--epochs", "1", "--warmup", "10", "--log-every-n-steps", "1", "--save-frequency", "0"]
    told, peak = run_peer(folder, str(number), words)
    steps = re.findall(
        r"^(\d{4}-\d\d-\d\d,\d\d:\d\d:\d\d) \| INFO \| Train Epoch: 0 \[ *(\d+)/", told, flags=re.MULTILINE
    )
    times = [datetime.strptime(stamp, "%Y-%m-%d,%H:%M:%S") for stamp, _ in steps]
    return (int(steps[-1][1]) - int(steps[0][1])) / (times[-1] - times[0]).total_seconds(), peak


def _watched(command: list[str]) -> tuple[str, float]:
    """What a command said, and the most that it and its processes held, in MiB."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        peak, told = 0.0, list[str]()
        reader = threading.Thread(target=lambda: told.extend(process.stdout or ()))
        reader.start()
        while process.poll() is None:
            peak = max(peak, sum(map(_held_mib, _tree(process.pid))))
            time.sleep(0.1)
        reader.join()
    if process.returncode:
        sys.exit("".join(told[-20:]))
    return "".join(told), peak


def _tree(root: int) -> list[int]:
    """A process and those that it started."""
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
