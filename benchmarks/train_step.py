"""Compare one training step with open_clip and transformers, with the same weights and the same batch.

    python benchmarks/train_step.py --flickr DIR --cifar FILE [--out FILE]

DIR contains Flickr8k, whose captions have their natural lengths; FILE is the archive of CIFAR-10. A step is forward, loss,
backward and AdamW. Diptych's step is the one of `diptych train`, including gradient clipping, accuracies and heap settings.
Peers receive normalized pixels and token ids. Losses and gradients are compared before anything is timed. Each side runs in its
own process.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any

import torch
from harness import Times, apart, arguments, in_turn, machine, must_agree, product_ceiling, table, write
from sides import in_open_clip, in_transformers, own_bundle
from tests import peers
from torch import Tensor
from torch.nn import functional

from diptych.bundle.folder import Bundle
from diptych.bundle.hugging_face import hugging_face_names
from diptych.bundle.openai import openai_names
from diptych.bundle.renaming import Rename, to_theirs
from diptych.cpu import linear
from diptych.cpu.halves import ParallelHalves, can_halve
from diptych.cpu.memory import keep_freed_memory
from diptych.data.batches.batch import Batch
from diptych.data.open_source import open_source
from diptych.data.sources.protocol import Source
from diptych.images.decode import decode
from diptych.images.tensors import normalize
from diptych.images.transforms import evaluation_pixels
from diptych.losses.contrastive import clip_loss
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from diptych.models.flops import step_flops
from diptych.presets import preset
from diptych.tokenizers.protocol import Tokenizer
from diptych.training.loss import LossConfig
from diptych.training.optim.build import OptimizerConfig, build_optimizers
from diptych.training.step import TrainingStep

ROUNDS = 7
BATCHES = 4
SMALL = CLIPConfig(
    embed_dim=256,
    image=ViTConfig(image_px=112, patch_px=16, width=256, layers=6, heads=4),
    text=TextConfig(width=256, layers=4, heads=4, tokenizer="clip-bpe", vocab_size=49408, context_length=77),
)
SETTINGS = {"vit-b-32": (preset("vit-b-32"), 32, 1), "small": (SMALL, 64, 4)}
"""Model config, batch size, and steps per round; a round takes a few seconds."""
Step = Callable[[], float]


def main() -> None:
    """Compare, measure, print, and write the table."""
    given = arguments(__doc__, flickr="", cifar="", rounds=ROUNDS)
    ceiling = product_ceiling()
    rows, notes = [], []
    for name, (config, batch_size, steps) in SETTINGS.items():
        bundle, batches = _given(name, given.flickr)
        _compare(bundle, batches[0])
        makers = {side: partial(_turn_of, make, name, given.flickr) for side, make in SIDES.items()}
        with apart(makers) as sides:
            times = in_turn(sides, rounds=given.rounds)
        for peer in list(SIDES)[1:]:
            rows.append([f"{name}, batch {batch_size}", peer, *_row(times, peer, steps * batch_size)])
            print(*rows[-1], sep=", ", file=sys.stderr)
        notes.append(_share(name, config, batches, steps * batch_size / times.median("Diptych"), ceiling))
    rows.append(_repeated_captions(given.cifar, given.rounds))
    write(
        given.out,
        "# A training step",
        f"`python benchmarks/train_step.py`, {machine('open_clip_torch', 'transformers')}",
        f"Pairs a second, medians of {given.rounds} rounds in turn over {BATCHES} batches, each side in a process of its own; "
        "ratios are medians over rounds. `small` has an image tower of 112 px in patches of 16 with 6 layers of 256, a text "
        "tower of 4 layers of 256.",
        table(["what", "peer", "Diptych", "peer", "ratio"], rows),
        *notes,
    )


def _row(times: Times, peer: str, num: int) -> list[str]:
    return [
        f"{num / times.median('Diptych'):.1f}",
        f"{num / times.median(peer):.1f}",
        f"{times.ratio(peer, 'Diptych'):.2f} x",
    ]


def _share(name: str, config: CLIPConfig, batches: Sequence[Batch], rate: float, ceiling: float) -> str:
    """Return the share of the machine's peak FLOP/s."""
    tokens = _tokens(batches)
    share = operations_per_pair(config, batches) * rate / ceiling
    return f"`{name}`: {tokens:.1f} tokens a caption; {share:.0%} of a large float32 product ({ceiling / 1e9:.0f} GFLOP/s)."


def operations_per_pair(config: CLIPConfig, batches: Sequence[Batch]) -> float:
    """Return the operations of a step, forward and backward, per pair; texts have their real lengths (`models/flops.py`)."""
    total = sum(step_flops(config, num_images=len(batch.keys), text_lengths=batch.lengths) for batch in batches)
    return total / sum(len(batch.keys) for batch in batches)


def _tokens(batches: Sequence[Batch]) -> float:
    """Return the mean number of tokens per caption."""
    return float(torch.cat([batch.lengths for batch in batches]).float().mean())


def _given(name: str, flickr: str) -> tuple[Bundle, list[Batch]]:
    """Return the model of a setting, and its batches."""
    config, size, _ = SETTINGS[name]
    bundle, photos = own_bundle(config), open_source(f"flickr8k:{flickr}")
    return bundle, [_batch(bundle, photos, range(i * size, (i + 1) * size)) for i in range(BATCHES)]


def _batch(bundle: Bundle, source: Source, rows: Sequence[int]) -> Batch:
    config = bundle.config
    pixels = [
        torch.from_numpy(
            evaluation_pixels(decode(source[row].image), image_px=config.image.image_px, config=config.pixels)
        )
        for row in rows
    ]
    captions = tuple(source.captions(row)[row % len(source.captions(row))] for row in rows)
    return batch_of(torch.stack(pixels), captions, bundle.tokenizer)


def batch_of(pixels: Tensor, captions: tuple[str, ...], tokenizer: Tokenizer) -> Batch:
    """Return a batch with each distinct caption once, as the data loader returns it."""
    distinct = tuple(dict.fromkeys(captions))
    encoded = tokenizer.encode(distinct)
    lengths = torch.from_numpy(encoded.lengths)
    text_of_row = torch.tensor([distinct.index(caption) for caption in captions])
    return Batch(
        pixels=pixels,
        ids=torch.from_numpy(encoded.ids)[:, : int(lengths.max())],
        lengths=lengths,
        text_of_row=text_of_row,
        positive_groups=text_of_row,
        positive_keys=text_of_row[:, None],
        keys=tuple(map(str, range(len(captions)))),
        captions=distinct,
    )


def _own_step(model: CLIP, batches: Sequence[Batch]) -> Step:
    linear.optimize(model)
    optimizers, runner = build_optimizers(model, OptimizerConfig()), ParallelHalves() if can_halve(model) else None
    step = TrainingStep(model.train(), optimizers, loss=LossConfig(), runner=runner)
    turn = cycle(batches)
    return lambda: step(next(turn), lr=1e-5, seed=0).loss


@dataclass(frozen=True)
class Given:
    """A batch in the form that peers take."""

    pixels: Tensor
    ids: Tensor
    lengths: Tensor

    @property
    def full(self) -> Tensor:
        """Token ids padded to the context length, as open_clip's tokenizer returns them."""
        return functional.pad(self.ids, (0, 77 - self.ids.shape[1]))

    def to(self, device: torch.device) -> "Given":
        """Return the batch on a device."""
        return Given(self.pixels.to(device), self.ids.to(device), self.lengths.to(device))


def given_to_peers(batch: Batch, config: CLIPConfig) -> Given:
    """Return the batch with normalized images and one text per image."""
    rows = batch.text_of_row
    return Given(normalize(batch.pixels, config.pixels), batch.ids[rows], batch.lengths[rows])


def open_clip_loss(model: Any, given: Given) -> Tensor:
    """Return the loss of open_clip's `ClipLoss`."""
    image_emb, text_emb, scale = model(given.pixels, given.full)
    found: Tensor = peers.open_clip.ClipLoss()(image_emb, text_emb, scale)
    return found


def _transformers_loss(model: Any, given: Given) -> Tensor:
    mask = torch.arange(given.ids.shape[1]) < given.lengths[:, None]
    found: Tensor = model(
        input_ids=given.ids, attention_mask=mask.long(), pixel_values=given.pixels, return_loss=True
    ).loss
    return found


def _peer_step(model: Any, loss_of: Callable[[Any, Given], Tensor], given: Sequence[Given], *, fused: bool) -> Step:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6, fused=fused or None)
    turn = cycle(given)

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(model, next(turn))
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _diptych(name: str, flickr: str) -> Step:
    keep_freed_memory()
    bundle, batches = _given(name, flickr)
    return _own_step(bundle.model, batches)


def _open_clip(name: str, flickr: str, *, fused: bool = False) -> Step:
    bundle, batches = _given(name, flickr)
    given = [given_to_peers(batch, bundle.config) for batch in batches]
    return _peer_step(in_open_clip(bundle).model, open_clip_loss, given, fused=fused)


def _transformers(name: str, flickr: str) -> Step:
    bundle, batches = _given(name, flickr)
    given = [given_to_peers(batch, bundle.config) for batch in batches]
    return _peer_step(in_transformers(bundle)[0], _transformers_loss, given, fused=False)


def _turn_of(make: Callable[[str, str], Step], name: str, flickr: str) -> Callable[[], object]:
    step = make(name, flickr)
    return lambda: [step() for _ in range(SETTINGS[name][2])]


SIDES: dict[str, Callable[[str, str], Step]] = {
    "Diptych": _diptych,
    "open_clip": _open_clip,
    "open_clip, fused AdamW": partial(_open_clip, fused=True),
    "transformers, longest": _transformers,
}


def _compare(bundle: Bundle, batch: Batch) -> None:
    """Exit with an error unless losses and gradients agree within 1e-5."""
    model, given = deepcopy(bundle.model).train(), given_to_peers(batch, bundle.config)
    out = model(normalize(batch.pixels, bundle.config.pixels), batch.ids, batch.lengths)
    loss = clip_loss(out.image_emb, out.text_emb[batch.text_of_row], out.logit_scale, groups=batch.positive_groups)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    sides = (
        ("open_clip", in_open_clip(bundle).model, open_clip_loss, openai_names(bundle.config)),
        ("transformers", in_transformers(bundle)[0], _transformers_loss, hugging_face_names(bundle.config)),
    )
    for name, peer, loss_of, names in sides:
        their_loss = loss_of(peer.train(), given)
        must_agree(f"loss, {name}", abs(loss.item() - their_loss.item()), at_most=1e-5)
        their_loss.backward()
        must_agree(f"gradients, {name}", _difference(gradients, peer, names), at_most=1e-5)


def _difference(gradients: Mapping[str, Tensor], peer: Any, names: list[Rename]) -> float:
    """Return the largest absolute difference of any two gradients."""
    known = [rename for rename in names if all(name in gradients for name in rename.ours)]
    mine = to_theirs(gradients, known)
    theirs = {name: parameter.grad for name, parameter in peer.named_parameters() if parameter.grad is not None}
    return max(float((mine[name] - grad).abs().max()) for name, grad in theirs.items() if name in mine)


def _repeated_captions(archive: str, rounds: int) -> list[str]:
    """Compare encoding each distinct caption of CIFAR-10 once, with shared prefixes, with encoding the caption of every row."""
    source, batch_size = open_source(f"cifar10:{archive}"), 256
    config = preset("cifar10-rn")
    bundle = own_bundle(config)
    batch = _batch(bundle, source, range(batch_size))
    rows = batch.text_of_row
    each = replace(batch, ids=batch.ids[rows], lengths=batch.lengths[rows], text_of_row=torch.arange(batch_size))
    every_row = deepcopy(bundle.model)
    every_row.text_tower.__class__ = type("EveryRow", (type(every_row.text_tower),), {"supports_prefix_sharing": False})
    times = in_turn(
        {"Diptych": _own_step(bundle.model, [batch]), "every row": _own_step(every_row, [each])}, rounds=rounds
    )
    what = f"cifar10-rn, batch {batch_size}, {len(batch.captions)} distinct captions"
    return [what, "the same, every row encoded", *_row(times, "every row", batch_size)]


if __name__ == "__main__":
    main()
