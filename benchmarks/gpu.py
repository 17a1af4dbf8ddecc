"""Compare the training step and the loss of a ViT-B/32 in bf16 on one GPU with open_clip, and find the largest batch.

    python benchmarks/gpu.py --flickr DIR [--out FILE] [--device cuda] [--sizes 256,1024,4096]

Captions are those of Flickr8k; images are noise, because only the step is timed. The share is the model's FLOP/s divided by
those of a large bf16 matrix product on the same GPU. Both sides start from the same weights and use the same batches;
open_clip's model is compiled, runs under autocast to bf16 and uses the fused AdamW. The losses alone are timed in float32 and
TF32; open_clip's also in bf16. Use `--device cpu` with small sizes to test the script without a GPU.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import cycle
from statistics import median

import torch
from harness import arguments, machine, must_agree, product_ceiling, table, write
from sides import in_open_clip, own_bundle
from tests import peers
from torch import Tensor
from torch.nn import functional
from train_step import batch_of, given_to_peers, multiply_adds, open_clip_loss

from diptych.bundle.folder import Bundle
from diptych.data.batches.batch import Batch
from diptych.data.open_source import open_source
from diptych.images.transforms import height_width
from diptych.losses.tiled import tiled_clip_loss
from diptych.presets import preset
from diptych.training.loss import LossConfig
from diptych.training.optim.build import OptimizerConfig, build_optimizers
from diptych.training.step import TrainingStep

Step = Callable[[], object]


def main() -> None:
    """Measure, print, and write the tables."""
    given = arguments(
        __doc__, flickr="", device="cuda", sizes="256,1024,4096", rounds=20, pairs=65536, preset="vit-b-32"
    )
    device = torch.device(given.device)
    texts = _captions(given.flickr)
    bundle = own_bundle(preset(given.preset))
    bundle.model.to(device)
    ceiling = product_ceiling(8192 if device.type == "cuda" else 512, torch.bfloat16, given.device)
    sizes = [int(size) for size in given.sizes.split(",")]
    rows = [_step_row(bundle, _batches(bundle, texts, size), rounds=given.rounds, ceiling=ceiling) for size in sizes]
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU: a trial of the script"
    write(
        given.out,
        "# On a GPU",
        f"`python benchmarks/gpu.py`, {name}, {machine('open_clip_torch')}",
        f"`{given.preset}`, bf16, texts packed; medians of {given.rounds} steps. A product of two large matrices in bf16 gives "
        f"{ceiling / 1e12:.1f} TFLOP/s; the share is of that.",
        table(["batch", "pairs/s", "share", "open_clip compiled, pairs/s", "ratio"], rows),
        "Losses of embeddings of 512 numbers at a logit scale of 14.3, forward and backward, and the memory that they take:",
        table(["pairs", "products in", "Diptych", "open_clip"], _loss_rows(sorted({1024, given.pairs}), device)),
        f"Largest batch that fits without gradient caching: {_largest(bundle, texts, device, sizes[0]):,} pairs.",
    )


def _captions(folder: str) -> list[str]:
    source = open_source(f"flickr8k:{folder}")
    return [caption for row in range(len(source)) for caption in source.captions(row)]


def _batches(bundle: Bundle, texts: list[str], size: int, num: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    shape = (size, 3, *height_width(bundle.config.image.image_px))
    return [
        batch_of(
            torch.randint(256, shape, dtype=torch.uint8, generator=generator),
            tuple(texts[(number * size + i) % len(texts)] for i in range(size)),
            bundle.tokenizer,
        )
        for number in range(num)
    ]


def _step_row(bundle: Bundle, batches: list[Batch], *, rounds: int, ceiling: float) -> list[str]:
    size, device = len(batches[0].pixels), bundle.model.log_logit_scale.device
    own, theirs = _own_step(bundle, batches), _peer_step(bundle, batches, device)
    losses = [float(step()) for step in (own, theirs)]  # type: ignore[arg-type]
    must_agree(f"loss at batch {size}, in bf16", abs(losses[0] - losses[1]), at_most=0.05)
    rate, peer_rate = (size / _seconds(step, rounds, device) for step in (own, theirs))
    operations = 6 * multiply_adds(bundle.config, batches)
    print(size, rate, peer_rate, file=sys.stderr)
    return [
        str(size),
        f"{rate:,.0f}",
        f"{rate * operations / ceiling:.0%}",
        f"{peer_rate:,.0f}",
        f"{rate / peer_rate:.2f} x",
    ]


def _own_step(bundle: Bundle, batches: list[Batch]) -> Step:
    model = deepcopy(bundle.model).train()
    step = TrainingStep(model, build_optimizers(model, OptimizerConfig()), loss=LossConfig(), precision="bf16")
    turn = cycle(batches)
    return lambda: step(next(turn), lr=1e-5, seed=0).loss


def _peer_step(bundle: Bundle, batches: list[Batch], device: torch.device) -> Step:
    model = (
        in_open_clip(Bundle(model=deepcopy(bundle.model).cpu(), tokenizer=bundle.tokenizer)).model.to(device).train()
    )
    compiled = torch.compile(model) if device.type == "cuda" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6, fused=True)
    turn = cycle([given_to_peers(batch, bundle.config).to(device) for batch in batches])

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = open_clip_loss(compiled, next(turn))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _seconds(step: Step, rounds: int, device: torch.device) -> float:
    """Return the median time of a step in seconds, measured with CUDA events on a GPU."""
    for _ in range(5):
        step()
    taken = []
    for _ in range(rounds):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            step()
            end.record()
            torch.cuda.synchronize()
            taken.append(begin.elapsed_time(end) / 1000)
        else:
            began = time.perf_counter()
            step()
            taken.append(time.perf_counter() - began)
    return median(taken)


def _loss_rows(sizes: list[int], device: torch.device) -> list[list[str]]:
    """Return the rows of the table of losses."""
    rows = []
    for num in sizes:
        for precision in ("float32", "TF32", "bf16"):
            with _products_in(precision, device):
                own = "" if precision == "bf16" else _loss_cell(tiled_clip_loss, num, device)
                rows.append([f"{num:,}", precision, own, _loss_cell(peers.open_clip.ClipLoss(), num, device)])
            print(*rows[-1], file=sys.stderr)
    return rows


@contextmanager
def _products_in(precision: str, device: torch.device) -> Iterator[None]:
    """Set the precision of matrix products: float32, TF32 (for float32 tensors) or bf16 (by autocast)."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "TF32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _loss_cell(loss_of: Callable[[Tensor, Tensor, Tensor], Tensor], num: int, device: torch.device) -> str:
    """Return milliseconds, and on a GPU also the peak memory in MiB beyond the embeddings."""
    image, text = (functional.normalize(side, dim=1) for side in torch.randn(2, num, 512, device=device).unbind())
    image.requires_grad_()
    text.requires_grad_()
    scale = torch.tensor(14.3, device=device)

    def step() -> None:
        image.grad = text.grad = None
        loss_of(image, text, scale).backward()

    if device.type != "cuda":
        return f"{_seconds(step, 3, device) * 1000:,.1f} ms"
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    try:
        taken = _seconds(step, 5, device)
    except torch.cuda.OutOfMemoryError:
        return "does not fit"
    return f"{taken * 1000:,.1f} ms, {(torch.cuda.max_memory_allocated() - held) / 2**20:,.0f} MiB"


def _largest(bundle: Bundle, texts: list[str], device: torch.device, start: int) -> int:
    """Return the largest batch found by doubling until the GPU is out of memory; without a GPU, the starting size."""
    size = start
    while device.type == "cuda":
        try:
            _own_step(bundle, _batches(bundle, texts, 2 * size, num=1))()
        except torch.cuda.OutOfMemoryError:
            break
        size *= 2
    return size


if __name__ == "__main__":
    main()
