"""The other rows of `gpu.py`: the command on packed images, the loss, copies of pixels, and indexing."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from gpu_steps import Bench, captions
from harness import must_agree
from PIL import Image
from sides import own_bundle
from tests import peers
from torch import Tensor
from torch.nn import functional

from diptych.bundle.folder import save_bundle
from diptych.core.sample import Sample
from diptych.data.batches.loader import DataConfig
from diptych.data.sources.protocol import Source
from diptych.data.tools.pack import pack
from diptych.images.transforms import height_width
from diptych.losses.tiled import tiled_clip_loss
from diptych.recipes.recipe import recipe
from diptych.training.config import write_config
from diptych.training.optim.schedule import ScheduleConfig
from diptych.training.validation import ValidationConfig

ROOT = Path(__file__).parents[1]


class _Noise(Source):
    """Square images of noise with drawn captions."""

    def __init__(self, num: int, px: int, texts: list[str]) -> None:
        self._num, self._px, self._texts = num, px, texts

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int, /) -> Sample:
        image = np.random.default_rng(index).integers(0, 256, (self._px, self._px, 3), dtype=np.uint8)
        return Sample(key=self.key(index), image=image, captions=self.captions(index))

    def captions(self, index: int) -> tuple[str, ...]:
        return (self._texts[index],)

    def key(self, index: int) -> str:
        return f"noise {index:06d}"


def command_rate(bench: Bench, name: str) -> list[str]:
    """Train with the real command on a packed source, and compare its speed with the bare step."""
    config, is_gpu = bench.configs[name], bench.device.type == "cuda"
    height, _ = height_width(config.image.image_px)
    num, steps = (8 * bench.batch + 512, 240) if is_gpu else (6 * bench.batch, 30)
    source = bench.folder / f"packed-{height}-{num}"
    if not source.exists():
        pack(
            _Noise(num, height, captions(num, flickr=bench.flickr)),
            source,
            image_px=height,
            workers=16 if is_gpu else 2,
        )
    settings = replace(
        recipe("paper-vit-b-32"),
        model=config,
        data=DataConfig(source=f"packed:{source}", val_fraction=0.05),
        validation=ValidationConfig(times=1, samples=64),
        schedule=ScheduleConfig(epochs=None, steps=steps, warmup_steps=10),
        batch_size=bench.batch,
        micro_batch=None,
        device=bench.device.type,
        precision="auto",
        compile=is_gpu,
    )
    file, out = bench.folder / f"{name}.yaml", bench.folder / f"run-{name}"
    write_config(settings, file)
    _run("train", "--config", file, "--out", out)
    events = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = [event for event in events if "pairs_per_s" in event]
    first, last = next(event for event in logged if event["step"] >= steps // 4), logged[-1]
    rate = bench.batch * (last["step"] - first["step"]) / (last["elapsed_s"] - first["elapsed_s"])
    bare = bench.rates.get(name)
    share = "" if bare is None else f"{rate / bare:.2f}"
    idle = last.get("data_wait")
    return [name, f"{bench.batch:,}", f"{rate:,.0f}", share, "" if idle is None else f"{idle:.0%}"]


def loss_row(num: int, device: torch.device) -> list[str]:
    """Time and memory of both losses. For up to 1,024 pairs, their values are compared first."""
    sides: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "Diptych": tiled_clip_loss,
        "open_clip": peers.open_clip.ClipLoss(),
    }
    with _tf32():
        if num <= 1024:
            image, text, scale = _embeddings(num, device)
            values = [float(loss_of(image, text, scale).detach()) for loss_of in sides.values()]
            must_agree(f"loss of {num} pairs", abs(values[0] - values[1]), at_most=1e-3)
        return [f"{num:,}", *(_loss_cell(loss_of, num, device) for loss_of in sides.values())]


def _embeddings(num: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    drawn = torch.randn(2, num, 512, generator=torch.Generator().manual_seed(0)).to(device)
    image, text = (functional.normalize(side, dim=1).requires_grad_() for side in drawn.unbind())
    return image, text, torch.tensor(14.3, device=device)


@contextmanager
def _tf32() -> Iterator[None]:
    """Within the block, a GPU multiplies float32 in TF32, as training in bf16 does."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _loss_cell(loss_of: Callable[[Tensor, Tensor, Tensor], Tensor], num: int, device: torch.device) -> str:
    """Milliseconds, and on a GPU also the peak memory in MiB beyond the embeddings."""
    image, text, scale = _embeddings(num, device)
    is_gpu = device.type == "cuda"

    def step() -> None:
        image.grad = text.grad = None
        loss_of(image, text, scale).backward()

    if is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if is_gpu else 0
    taken = []
    try:
        for _ in range(6):
            began = time.perf_counter()
            step()
            if is_gpu:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
    except torch.cuda.OutOfMemoryError:
        return "does not fit"
    milliseconds = f"{median(taken[1:]) * 1000:,.1f} ms"
    return f"{milliseconds}, {(torch.cuda.max_memory_allocated() - held) / 2**20:,.0f} MiB" if is_gpu else milliseconds


def copy_row(bench: Bench) -> list[str]:
    """Milliseconds that a copy of a batch's pixels to the device takes, from pinned and from pageable memory."""
    config = next(iter(bench.configs.values()))
    pixels = torch.zeros(bench.batch, 3, *height_width(config.image.image_px), dtype=torch.uint8)
    sides = {"pinned": pixels.pin_memory() if bench.device.type == "cuda" else pixels, "pageable": pixels}
    cells = []
    for side, tensor in sides.items():
        taken = []
        for _ in range(8):
            bench.wait()
            began = time.perf_counter()
            tensor.to(bench.device, non_blocking=side == "pinned")
            bench.wait()
            taken.append(time.perf_counter() - began)
        cells.append(f"{median(taken[1:]) * 1000:.2f} ms {side}")
    return [f"copy of {pixels.numel() / 1e6:.0f} MB of pixels", *cells]


def index_row(bench: Bench) -> list[str]:
    """Images per second of `index add` on JPEGs; the seconds of a run over one image are subtracted."""
    name, config = next(iter(bench.configs.items()))
    num = 2048 if bench.device.type == "cuda" else 24
    photos, bundle = bench.folder / "photos", bench.folder / "bundle"
    save_bundle(own_bundle(config), bundle)
    small = np.random.default_rng(0).integers(0, 256, (num, 12, 16, 3), dtype=np.uint8)
    for which, count in (("one", 1), ("all", num)):
        (photos / which).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(small[number]).resize((640, 480))
            image.save(photos / which / f"{number:05d}.jpg", quality=90)
    seconds = {}
    for which in ("one", "all"):
        began = time.monotonic()
        place, words = bench.folder / f"index-{which}", ("--bundle", bundle, "--device", bench.device.type)
        _run("index", "add", place, photos / which, *words)
        seconds[which] = time.monotonic() - began
    more = seconds["all"] - seconds["one"]
    rate = f"{(num - 1) / more:,.0f} images/s" if more > 0.1 * seconds["one"] else "too few images to measure"
    return [f"index add of {num:,} JPEGs, {name}", rate, f"{seconds['one']:.1f} s for one image"]


def _run(*words: object) -> None:
    """Run a command of Diptych.

    Raises:
        RuntimeError: the command failed; the message is the last line of its output.
    """
    command = [sys.executable, "-m", "diptych", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError((done.stdout.strip().splitlines() or ["no output"])[-1])
