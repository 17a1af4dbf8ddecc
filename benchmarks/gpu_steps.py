"""Training steps of `gpu.py` from memory: Diptych's and open_clip's, with the same weights and batches."""

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from statistics import median

import torch
from harness import must_agree, turns
from sides import in_open_clip, own_bundle
from torch import Tensor
from train_step import batch_of, given_to_peers, open_clip_loss

from diptych.bundle.folder import Bundle
from diptych.data.batches.batch import Batch
from diptych.data.open_source import open_source
from diptych.device.peak import peak_flops
from diptych.images.transforms import height_width
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig
from diptych.models.flops import nominal_flops, step_flops
from diptych.models.packing import pack_texts
from diptych.training.compilation import compile_blocks
from diptych.training.loss import LossConfig
from diptych.training.optim.build import OptimizerConfig, build_optimizers
from diptych.training.step import TrainingStep
from diptych.training.step_result import StepResult

Step = Callable[[], "Tensor | StepResult"]
AT_ONCE = 5
"""Steps that are timed together, so that the host runs ahead of the GPU as in training."""
WORDS = (
    "a the man woman dog cat boy girl child people group in on with and of to at is are two three young old small large black "
    "white red blue green brown yellow running jumping sitting standing walking playing riding holding wearing looking grass "
    "water beach street snow field park mountain ball bike shirt hat car house tree road river air hand next front through over"
)


@dataclass
class Bench:
    """What all rows share."""

    device: torch.device
    configs: Mapping[str, CLIPConfig]
    batch: int
    rounds: int
    flickr: str
    """Folder of Flickr8k; empty for drawn captions."""
    ceiling: float
    """Measured rate of a large product in FLOP/s."""
    folder: Path
    """Temporary files."""
    rates: dict[str, float] = field(default_factory=dict)
    """Pairs per second of the fastest bare step of each model."""

    @property
    def precision(self) -> str:
        """The precision of the steps."""
        return "bf16" if self.device.type == "cuda" else "fp32"

    @property
    def peak(self) -> float:
        """Peak rate of the card in FLOP/s; the measured rate for unknown cards."""
        if self.device.type != "cuda":
            return self.ceiling
        return peak_flops(torch.cuda.get_device_name(self.device), "bf16") or self.ceiling

    def clear(self) -> None:
        """Free the memory and the compiled code of a row."""
        gc.collect()
        if self.device.type == "cuda":
            torch.compiler.reset()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        """Wait until the device has completed all queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_gb(self) -> str:
        """Largest allocated memory since the last call, in GB; empty without a GPU."""
        if self.device.type != "cuda":
            return ""
        most = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return f"{most:.1f}"


def captions(num: int, *, flickr: str = "") -> list[str]:
    """Captions of Flickr8k, or drawn ones of similar lengths: 14 tokens on average, about 26 different lengths in 1,024."""
    if flickr:
        source = open_source(f"flickr8k:{flickr}")
        found = [caption for row in range(len(source)) for caption in source.captions(row)]
        return [found[i % len(found)] for i in range(num)]
    draw, words = random.Random(0), WORDS.split()
    lengths = [min(34, max(2, round(draw.gammavariate(6.5, 1.85)))) for _ in range(num)]
    return [" ".join(draw.choices(words, k=length)) for length in lengths]


def usage(config: CLIPConfig, lengths: Sequence[int], pairs: int, seconds: float, peak: float) -> tuple[str, str]:
    """Shares of the peak rate that a step uses: for texts of their real lengths, and nominally (77 tokens for each text)."""
    true = step_flops(config, num_images=pairs, text_lengths=lengths)
    return tuple(f"{count / seconds / peak:.0%}" for count in (true, nominal_flops(config, num_images=pairs)))  # type: ignore[return-value]


def step_row(bench: Bench, name: str, mode: str) -> list[str]:
    """Time the steps of both sides; a batch that does not fit is halved."""
    size = bench.batch
    while True:
        try:
            return _step_row(bench, name, mode, size)
        except torch.cuda.OutOfMemoryError:
            if size <= bench.batch // 8:
                raise
        bench.clear()
        size //= 2


def _step_row(bench: Bench, name: str, mode: str, size: int) -> list[str]:
    bundle = own_bundle(bench.configs[name])
    batches = _batches(bench, bundle, size)
    is_compiled, memory, sides = mode == "compiled", {}, dict[str, Step]()
    for side, make in {"Diptych": _own_step, "open_clip": _peer_step}.items():
        sides[side] = make(bench, bundle, batches, is_compiled=is_compiled)
    firsts = {}
    for side, step in sides.items():
        bench.peak_gb()
        firsts[side] = _value(step())
        for _ in range(3):
            step()
        bench.wait()
        memory[side] = bench.peak_gb()
    must_agree(f"first loss of {name}", abs(firsts["Diptych"] - firsts["open_clip"]), at_most=0.05)
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for side in turns(sides, rounds=bench.rounds):
        taken[side].append(_seconds(bench, sides[side]))
    own, peer = (median(taken[side]) for side in ("Diptych", "open_clip"))
    ratio = median(theirs / ours for theirs, ours in zip(taken["open_clip"], taken["Diptych"], strict=True))
    bench.rates[name] = max(bench.rates.get(name, 0.0), size / own)
    rates = f"{size / own:,.0f}", f"{size / peer:,.0f}", f"{ratio:.2f} x"
    shares = usage(bundle.config, _lengths(batches), size, own, bench.peak)
    return [name, f"{size:,}", mode, *rates, *shares, memory["Diptych"], memory["open_clip"]]


def largest_row(bench: Bench, name: str) -> list[str]:
    """Double the batch until it does not fit, and time the largest one that fits, eager."""
    bundle, size, best = own_bundle(bench.configs[name]), bench.batch // 4, list[str]()
    limit = 2**20 if bench.device.type == "cuda" else bench.batch
    while size <= limit:
        try:
            batches = _batches(bench, bundle, size, num=1)
            step = _own_step(bench, bundle, batches, is_compiled=False)
            bench.peak_gb()
            step()
            seconds = _seconds(bench, step, at_once=2)
        except torch.cuda.OutOfMemoryError:
            break
        share, _ = usage(bundle.config, _lengths(batches), size, seconds, bench.peak)
        best = [name, f"{size:,}", f"{size / seconds:,.0f}", share, bench.peak_gb()]
        size *= 2
        del step, batches
        bench.clear()
    return best or [name, f"below {size:,}", "", "", ""]


def _lengths(batches: Sequence[Batch]) -> list[int]:
    """Lengths of the texts of an average batch: those of the first one."""
    return batches[0].lengths.tolist()


def _value(result: "Tensor | StepResult") -> float:
    return float(result.loss if isinstance(result, StepResult) else result)


def _seconds(bench: Bench, step: Step, *, at_once: int = AT_ONCE) -> float:
    """Seconds per step of several steps, from an empty queue to an empty queue."""
    bench.wait()
    began = time.perf_counter()
    for _ in range(at_once):
        step()
    bench.wait()
    return (time.perf_counter() - began) / at_once


def _batches(bench: Bench, bundle: Bundle, size: int, *, num: int = 3) -> list[Batch]:
    """Batches on the device, with texts packed as the data workers pack them."""
    generator = torch.Generator().manual_seed(0)
    texts = captions(num * size, flickr=bench.flickr)
    shape = (size, 3, *height_width(bundle.config.image.image_px))
    batches = []
    for start in range(0, num * size, size):
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        batch = batch_of(pixels, tuple(texts[start : start + size]), bundle.tokenizer)
        if bench.device.type == "cuda":
            limit = bundle.config.text.context_length
            packed = pack_texts(batch.ids, batch.lengths, context_length=limit)
            batch = replace(batch, packed=(packed,)).to(bench.device)
        batches.append(batch)
    return batches


def _own_step(bench: Bench, bundle: Bundle, batches: list[Batch], *, is_compiled: bool) -> Step:
    model = CLIP(bundle.config)
    model.load_state_dict(bundle.model.state_dict())
    model.train().to(bench.device)
    if is_compiled:
        compile_blocks(model)
    step = TrainingStep(model, build_optimizers(model, OptimizerConfig()), loss=LossConfig(), precision=bench.precision)  # type: ignore[arg-type]
    turn = cycle(batches)
    return lambda: step(next(turn), lr=1e-5, seed=0)


def _peer_step(bench: Bench, bundle: Bundle, batches: list[Batch], *, is_compiled: bool) -> Step:
    model = in_open_clip(bundle).model.to(bench.device).train()
    called = torch.compile(model) if is_compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6, fused=True)
    turn = cycle(
        [
            given_to_peers(replace(batch, lengths=batch.lengths.to(bench.device)), bundle.config).to(bench.device)
            for batch in batches
        ]
    )

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.precision == "bf16"):
            loss = open_clip_loss(called, next(turn))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
