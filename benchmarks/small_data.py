"""Measure the recipe `small-data`: three seeds, CIFAR-10, fewer photos, and an hour of training compared with open_clip.

    python benchmarks/small_data.py PART --flickr DIR --cifar FILE --work DIR

Each part trains and evaluates with the commands that it prints, and saves the results in `results/small_data.json`. The tables
and the plot in `docs/` are made from that file (part `draw`). Training runs that are complete in `--work` are not repeated. On
an idle machine with two cores the parts take:

    seeds      40 min   photos, 750 s, seeds 0, 1, 2; also evaluated on training photos
    classes    20 min   CIFAR-10, 5 minutes, seeds 0, 1, 2, zero-shot on the test images
    pictures   40 min   1,000, 2,000 and 4,000 of the photos, 750 s each
    hour       65 min   one hour of training, evaluated along the way
    peer       60 min   open_clip's own trainer, five epochs over all captions, evaluated after each
"""

import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from harness import arguments, machine, table
from matplotlib.figure import Figure
from train_command import peer_files, run_peer

from diptych.core.formatting import percent
from diptych.data.open_source import open_source
from diptych.data.sources.splits import take_split

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "benchmarks" / "results" / "small_data.json"
PICTURE = ROOT / "docs" / "images" / "small-data.png"
SEEDS = (0, 1, 2)
BUDGET, CLASSES_BUDGET = 12.5, 5
"""Training time in minutes."""
PASSES = 5
"""Number of epochs of the peer; at 43 pairs per second they take 58 minutes."""
Metrics = dict[str, Any]
_SIDES = {"i2t": "image_to_text", "t2i": "text_to_image"}
_NAMES = ("i2t_r1", "t2i_r1", "i2t_r10", "t2i_r10")


def main() -> None:
    """Run one part, save its metrics, and draw the plot from all saved metrics."""
    parts = {"seeds": _seeds, "classes": _classes, "pictures": _pictures, "hour": _hour, "peer": _peer}
    name = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    given = arguments(__doc__, flickr="flickr8k", cifar="cifar10_jpeg.zip", work="runs/small-data-bench")
    if name not in (*parts, "draw"):
        sys.exit(f"name a part: {', '.join([*parts, 'draw'])}")
    kept: Metrics = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    if name != "draw":
        data = f"cifar10:{given.cifar}" if name == "classes" else f"flickr8k:{given.flickr}"
        Path(given.work).mkdir(parents=True, exist_ok=True)
        kept[name] = {"machine": machine().replace("\n", " "), "runs": parts[name](data, Path(given.work))}
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    text = "\n\n".join(["# Little data", *(_section(part, kept[part]) for part in parts if part in kept)]) + "\n"
    print(text)
    KEPT.with_suffix(".md").write_text(text, encoding="utf-8")
    if {"seeds", "hour", "peer", "pictures"} <= kept.keys():
        _draw(kept)


def _seeds(data: str, work: Path) -> list[Metrics]:
    runs = []
    for seed in SEEDS:
        bundle = _train(work / f"seed-{seed}", data, "--minutes", BUDGET, "--seed", seed) / "bundle"
        known = _evaluate("retrieval", bundle, data, "--split", "train", "--max-samples", 1000)
        runs.append({"seed": seed, **_recall(_evaluate("retrieval", bundle, data)), "known": _recall(known)})
    return runs


def _classes(data: str, work: Path) -> list[Metrics]:
    runs = []
    for seed in SEEDS:
        bundle = _train(work / f"classes-{seed}", data, "--minutes", CLASSES_BUDGET, "--seed", seed) / "bundle"
        report = _evaluate("zero-shot", bundle, data, "--split", "test")
        runs.append({"seed": seed, "top1": report["top1"], "images": report["protocol"]["images"]})
    return runs


def _pictures(data: str, work: Path) -> list[Metrics]:
    runs = []
    for number in (1000, 2000, 4000):
        words = ("--minutes", BUDGET, "--seed", 0, "--data.max-samples", number)
        bundle = _train(work / f"pictures-{number}", data, *words) / "bundle"
        runs.append({"pictures": number, **_recall(_evaluate("retrieval", bundle, data))})
    return runs


def _hour(data: str, work: Path) -> list[Metrics]:
    words = ("--minutes", 60, "--seed", 0, "--validation.samples", 1000, "--validation.times", 20)
    run = _train(work / "hour", data, *words)
    curve, elapsed = [], 0.0
    for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        elapsed = event.get("elapsed_s", elapsed)
        if "val_loss" in event:
            report = {side: {f"r{k}": event[f"val_{side}_r{k}"] for k in (1, 10)} for side in _SIDES.values()}
            curve.append({"minutes": elapsed / 60, **_recall(report)})
    known = _evaluate("retrieval", run / "bundle", data, "--split", "train", "--max-samples", 1000)
    end = {"minutes": 60, **_recall(_evaluate("retrieval", run / "bundle", data)), "known": _recall(known)}
    return [*curve[:-1], end]


def _peer(data: str, work: Path) -> list[Metrics]:
    """Train with open_clip's trainer and defaults, except batch size (64), learning rate and warm-up, which fit a short run."""
    folder = work / "peer"
    if not (folder / "told.txt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        source = take_split(open_source(data), "train")
        peer_files(
            folder, [(str(source[row].image), text) for row in range(len(source)) for text in source.captions(row)]
        )
        words = ("--epochs", str(PASSES), "--warmup", "100", "--save-frequency", "1", "--log-every-n-steps", "20")
        output = run_peer(folder, "hour", words)
        (folder / "told.txt").write_text("".join(line for line, _ in output.lines), encoding="utf-8")
    lines = (folder / "told.txt").read_text(encoding="utf-8")
    stamps = re.findall(r"^(\d{4}-\d\d-\d\d,\d\d:\d\d:\d\d) \| INFO \| Train Epoch: (\d+) ", lines, flags=re.MULTILINE)
    times = [(datetime.strptime(stamp, "%Y-%m-%d,%H:%M:%S"), int(epoch)) for stamp, epoch in stamps]
    runs = []
    for epoch in range(PASSES):
        last = max(time for time, number in times if number == epoch)
        model = _in_a_folder(folder, folder / "theirs" / "hour" / "checkpoints" / f"epoch_{epoch + 1}.pt")
        recall = _recall(_evaluate("retrieval", model, data))
        runs.append({"minutes": (last - times[0][0]).total_seconds() / 60, **recall})
    return runs


def _in_a_folder(folder: Path, checkpoint: Path) -> Path:
    """Write a checkpoint of open_clip's trainer as a model folder that open_clip and Diptych can load."""
    place = folder / checkpoint.stem
    place.mkdir(exist_ok=True)
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    torch.save(weights, place / "open_clip_pytorch_model.bin")
    (place / "open_clip_config.json").write_bytes((folder / "model" / "open_clip_config.json").read_bytes())
    return place


def _train(run: Path, data: str, *words: object) -> Path:
    if not (run / "bundle").exists():
        _diptych("train", data, *words, "--out", run, "--overwrite")
    return run


def _evaluate(what: str, bundle: Path, data: str, *words: object) -> Metrics:
    metrics: Metrics = json.loads(_diptych("evaluate", what, bundle, "--data", data, *words, "--json"))
    return metrics


def _diptych(*words: object) -> str:
    words_of_command = list(map(str, words))
    print("$ diptych", *words_of_command, flush=True)
    command = [sys.executable, "-m", "diptych", *words_of_command]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def _recall(report: Metrics) -> Metrics:
    return {f"{short}_r{k}": report[side][f"r{k}"] for short, side in _SIDES.items() for k in (1, 10)}


_HEADINGS = {
    "seeds": f"Photos, {BUDGET} minutes, three seeds",
    "classes": f"CIFAR-10, {CLASSES_BUDGET} minutes, three seeds",
    "pictures": f"Fewer photos, {BUDGET} minutes",
    "hour": "An hour, measured as it goes",
    "peer": "open_clip's own trainer and recipe, measured after each of its passes",
}


def _section(part: str, kept: Metrics) -> str:
    runs = kept["runs"]
    if part == "classes":
        shares = [run["top1"] for run in runs]
        rows = [[run["seed"], percent(run["top1"])] for run in runs] + [["mean", _spread(shares)]]
        what = table(["seed", f"top 1 on {runs[0]['images']:,} test images"], rows)
    else:
        by = next(name for name in ("seed", "pictures", "minutes") if name in runs[0])
        rows = [[_number(run[by]), *_shares(run)] for run in runs]
        if part == "seeds":
            rows.append(["mean", *(_spread([run[name] for run in runs]) for name in _NAMES)])
        rows += [[f"{_number(run[by])}, training photos", *_shares(run["known"])] for run in runs if "known" in run]
        what = table([by, "R@1 to text", "R@1 to image", "R@10 to text", "R@10 to image"], rows)
    return f"## {_HEADINGS[part]}\n\n`python benchmarks/small_data.py {part}`, {kept['machine']}\n\n{what}"


def _number(value: float) -> str:
    return f"{value:.1f}" if isinstance(value, float) else f"{value:,}"


def _shares(run: Metrics) -> list[str]:
    return [percent(run[name]) for name in _NAMES]


def _spread(shares: list[float]) -> str:
    return f"{percent(mean(shares))} ({100 * min(shares):.1f} to {100 * max(shares):.1f})"


def _r10(run: Metrics) -> float:
    return 50 * float(run["i2t_r10"] + run["t2i_r10"])


def _draw(kept: Metrics) -> None:
    """Plot R@10 over time, compared with open_clip, and over the number of photos."""
    own, peer, ink = "#2a6fbb", "#d9772b", "#222222"
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    time, number = figure.subplots(1, 2)
    seeds, hour, theirs = kept["seeds"]["runs"], kept["hour"]["runs"], kept["peer"]["runs"]
    time.plot([run["minutes"] for run in hour], [_r10(run) for run in hour], color=own, marker="o", markersize=4,
              linewidth=1.6, label="small-data, a run of an hour")  # fmt: skip
    for run in seeds:
        time.plot(BUDGET, _r10(run), color=ink, marker="D", markersize=5, linestyle="none",
                  label=f"small-data, runs of {BUDGET} minutes" if run is seeds[0] else None)  # fmt: skip
    time.plot([run["minutes"] for run in theirs], [_r10(run) for run in theirs], color=peer, marker="s", markersize=4,
              linewidth=1.6, label="open_clip's trainer and recipe")  # fmt: skip
    time.set(title="Photos not seen, over time", xlabel="minutes on two cores", ylabel="R@10, both directions, %")
    counts = [*((run["pictures"], _r10(run)) for run in kept["pictures"]["runs"]), (6000, mean(map(_r10, seeds)))]
    number.plot(*zip(*counts, strict=True), color=own, marker="o", linewidth=1.6)
    number.set(title=f"After {BUDGET} minutes, over the photos to learn from", xlabel="photos", xscale="log")
    number.set_xticks([count for count, _ in counts], [f"{count:,}" for count, _ in counts])
    number.minorticks_off()
    for axes in (time, number):
        axes.axhline(1, color="#9a9a9a", linestyle=":", linewidth=1.2)
        axes.set_ylim(0, None)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#eeeeee")
        axes.set_axisbelow(True)
    time.annotate("chance", (1, 1), xytext=(0, 3), textcoords="offset points", color="#9a9a9a", fontsize=9)
    time.legend(frameon=False, fontsize=9)
    figure.savefig(PICTURE)


if __name__ == "__main__":
    main()
