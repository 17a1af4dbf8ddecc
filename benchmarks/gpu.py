"""Compare training on one GPU with open_clip: steps from memory, the command on packed images, the loss, copies and indexing.

    python benchmarks/gpu.py [--out FILE] [--budget-s 600] [--flickr DIR] [--device cuda]

The rows are measured in order of importance. Each is printed and written to FILE as soon as it is measured. A row whose
estimated time exceeds the remaining budget is listed as not run. If a row fails, the reason is listed, and the next row starts.

Images are noise; captions are random words with the lengths of Flickr8k's captions, or those captions (`--flickr`). Diptych and
open_clip start from the same weights and use the same batches, which are already on the GPU. Their first losses are compared;
then their steps are timed in turn, in one process. Both compute in bf16 and use fused AdamW. With `--device cpu`, a tiny model
tests the script without a GPU in about a minute.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from gpu_parts import command_rate, copy_row, index_row, loss_row
from gpu_steps import Bench, largest_row, step_row
from harness import arguments, machine, product_ceiling, table, write

from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from diptych.presets import preset

TOY = CLIPConfig(
    embed_dim=64,
    image=ViTConfig(image_px=64, patch_px=32, width=64, layers=2, heads=1),
    text=TextConfig(width=64, layers=2, heads=1, tokenizer="clip-bpe", vocab_size=49408, context_length=77),
)
STEPS = [
    "model",
    "batch",
    "towers",
    "Diptych, pairs/s",
    "open_clip, pairs/s",
    "ratio",
    "of peak",
    "nominal",
    "GB",
    "open_clip's GB",
]
LARGEST = ["model", "largest batch", "Diptych, pairs/s", "of peak", "GB"]
COMMAND = ["model", "batch", "command, pairs/s", "share of the bare step", "GPU waits"]
LOSSES = ["pairs", "Diptych", "open_clip"]
OTHER = ["what", "measured", "compared with"]


@dataclass(frozen=True)
class Row:
    """A row of a table that is not measured yet."""

    headings: list[str]
    """Headings of its table."""
    name: str
    estimate_s: float
    """Estimated duration in seconds on a GPU, compilation included."""
    measure: Callable[[], list[str]]


def main() -> None:
    """Measure row by row; print and write the tables after each."""
    given = arguments(__doc__, flickr="", device="cuda", budget_s=600.0, batch=0, pairs=0, rounds=6)
    began, device = time.monotonic(), torch.device(given.device)
    is_gpu = device.type == "cuda"
    configs = {name: preset(name) for name in ("vit-b-32", "vit-b-16", "vit-l-14")} if is_gpu else {"toy": TOY}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            device=device,
            configs=configs,
            batch=given.batch or (1024 if is_gpu else 16),
            rounds=given.rounds if is_gpu else 2,
            flickr=given.flickr,
            ceiling=product_ceiling(8192 if is_gpu else 512, bench_dtype(device), given.device),
            folder=Path(folder),
        )
        _run(
            list(_rows(bench, pairs=given.pairs or (65536 if is_gpu else 512))), bench, given.budget_s, began, given.out
        )


def bench_dtype(device: torch.device) -> torch.dtype:
    """The dtype of the compared products: bf16 on a GPU, float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _rows(bench: Bench, *, pairs: int) -> Iterator[Row]:
    """All rows in order of importance."""
    first, *others = bench.configs
    modes = ("compiled", "eager") if bench.device.type == "cuda" else ("eager",)
    yield Row(STEPS, f"{first}, {modes[0]}", 120, partial(step_row, bench, first, modes[0]))
    yield Row(COMMAND, f"{first}, command", 150, partial(command_rate, bench, first))
    for name in others:
        estimate_s = 200 if name == "vit-l-14" else 120  # It is measured again with half the batch if it does not fit.
        yield Row(STEPS, f"{name}, compiled", estimate_s, partial(step_row, bench, name, "compiled"))
    for num in sorted({min(1024, pairs), pairs}):
        yield Row(LOSSES, f"loss of {num:,} pairs", 10, partial(loss_row, num, bench.device))
    for name in bench.configs if len(modes) > 1 else ():
        yield Row(STEPS, f"{name}, eager", 40, partial(step_row, bench, name, "eager"))
    for name in bench.configs:
        yield Row(LARGEST, f"{name}, largest batch", 60, partial(largest_row, bench, name))
    yield Row(OTHER, "copies of pixels", 5, partial(copy_row, bench))
    yield Row(OTHER, "index add", 60, partial(index_row, bench))
    for name in others:
        yield Row(COMMAND, f"{name}, command", 200, partial(command_rate, bench, name))


def _run(rows: list[Row], bench: Bench, budget_s: float, began: float, out: Path | None) -> None:
    measured: list[tuple[Row, list[str]]] = []
    notes: list[str] = []
    for row in rows:
        scale = 1.0 if bench.device.type == "cuda" else 0.1
        if time.monotonic() - began + scale * row.estimate_s > budget_s:
            notes.append(f"{row.name}: not run: budget")
        else:
            try:
                measured.append((row, row.measure()))
                print(row.name, *measured[-1][1], sep=" | ", file=sys.stderr, flush=True)
            except (Exception, SystemExit) as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                notes.append(f"{row.name}: failed: {type(error).__name__}: {reason}")
        bench.clear()
        if notes and notes[-1].startswith(row.name):
            print(notes[-1], file=sys.stderr, flush=True)
        if out is not None:
            out.write_text(_text(measured, notes, bench), encoding="utf-8")
    write(out, _text(measured, notes, bench).rstrip("\n"))
    if any(": failed: " in note for note in notes):
        sys.exit(1)


def _text(measured: list[tuple[Row, list[str]]], notes: list[str], bench: Bench) -> str:
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else "no GPU: a trial of the script"
    parts = [
        "# On a GPU",
        f"`python benchmarks/gpu.py`, {name}, {machine('open_clip_torch')}",
        f"A product of two large matrices gives {bench.ceiling / 1e12:.3g} TFLOP/s; the assumed peak rate is "
        f"{bench.peak / 1e12:.3g} TFLOP/s. `of peak` counts the operations for the real lengths of the texts; `nominal` counts "
        "77 tokens for each text, as publications do. Losses: forward and backward, float32 tensors with TF32 products, "
        "embeddings of 512 numbers, logit scale 14.3.",
    ]
    for headings in (STEPS, COMMAND, LOSSES, LARGEST, OTHER):
        cells = [cells for row, cells in measured if row.headings is headings]
        if cells:
            parts.append(table(headings, cells))
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
