"""Compare text and image encoding of a ViT-B/32 with open_clip and transformers, and time indexing a folder of JPEGs.

    python benchmarks/inference.py --flickr ../shared/data/flickr8k [--out FILE]

All sides have the same random weights and use float32, all cores and batches of 32. Captions and photos are those of Flickr8k,
with their original lengths and sizes. The outputs are compared before anything is timed.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from harness import Times, arguments, in_turn, machine, must_agree, product_ceiling, table, write
from PIL import Image
from sides import in_open_clip, in_transformers, own_bundle

from diptych.bundle.folder import require_bundle, save_bundle
from diptych.data.open_source import open_source
from diptych.images.decode import decode
from diptych.images.tensors import normalize
from diptych.images.transforms import evaluation_pixels
from diptych.inference.loaded import LoadedBundle, load
from diptych.models.size import model_size

BATCH = 32
ROUNDS = 5
NUM_TEXTS = 128
NUM_PHOTOS = 192
PHOTO_PX = (640, 480)
"""Size of the JPEGs in the folder: Flickr8k's photos are enlarged, because they are smaller than typical photos."""


def main() -> None:
    """Compare, measure, print, and write the table."""
    given = arguments(__doc__, flickr="../shared/data/flickr8k")
    source = open_source(f"flickr8k:{given.flickr}")
    bundle = own_bundle()
    clip = LoadedBundle(bundle, batch_size=BATCH)
    open_clip, (hugging_face, their_tokenizer) = in_open_clip(bundle), in_transformers(bundle)
    texts = [source.captions(i)[0] for i in range(NUM_TEXTS)]
    photos = [str(source[i].image) for i in range(NUM_PHOTOS)]

    text_sides = _text_sides(clip, open_clip, hugging_face, their_tokenizer, texts)
    text = in_turn(text_sides, rounds=ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "bundle"
        save_bundle(bundle, place)
        integer = load(place, device="cpu", precision="int8", progress=False)
        min_cosine = integer.min_cosine_to_fp32(photos[:BATCH])
        image, ceiling = _image_times(clip, integer, open_clip, photos[:BATCH])
        whole, alone = _folder_times(place, photos)

    num_ops = 2 * model_size(bundle.config).image_multiply_adds * BATCH
    share = num_ops / image.median("Diptych") / ceiling
    rows = [
        ["texts, natural length", "open_clip", *_row(text, "open_clip", "Diptych", NUM_TEXTS)],
        ["", "transformers, longest", *_row(text, "transformers", "Diptych", NUM_TEXTS)],
        ["images", "open_clip", *_row(image, "open_clip", "Diptych", BATCH)],
        ["images, int8", "open_clip, fp32", *_row(image, "open_clip", "int8", BATCH)],
        ["folder of JPEGs, command", "the tower alone", f"{whole:.1f}", f"{alone:.1f}", f"{whole / alone:.2f} x"],
    ]
    write(
        given.out,
        "# Encoding",
        f"`python benchmarks/inference.py`, {machine('open_clip_torch', 'transformers')}",
        f"`vit-b-32`, batches of {BATCH}; samples a second, medians of {ROUNDS} rounds; ratios are medians over rounds.",
        table(["what", "peer", "Diptych", "peer", "ratio"], rows),
        f"The image tower runs at {share:.0%} of a large float32 product on this machine ({ceiling / 1e9:.0f} GFLOP/s). The "
        f"smallest cosine of int8 with float32 over {BATCH} photos: {min_cosine:.5f}. The folder has {NUM_PHOTOS} photos of "
        f"{PHOTO_PX[0]} x {PHOTO_PX[1]}; of "
        "the command's seconds those of a run over one picture are taken off.",
    )


def _row(times: Times, peer: str, own: str, num: int) -> list[str]:
    return [f"{num / times.median(own):.1f}", f"{num / times.median(peer):.1f}", f"{times.ratio(peer, own):.2f} x"]


def _text_sides(
    clip: LoadedBundle, open_clip: Any, hugging_face: Any, tokenizer: Any, texts: list[str]
) -> dict[str, Callable[[], Any]]:
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]

    def theirs() -> Any:
        with torch.inference_mode():
            return [open_clip.model.encode_text(open_clip.tokenizer(batch), normalize=True) for batch in batches]

    def others() -> Any:
        with torch.inference_mode():
            given = [tokenizer(batch, padding="longest", return_tensors="pt") for batch in batches]
            found = [hugging_face.get_text_features(**batch) for batch in given]
            emb = [getattr(batch, "pooler_output", batch) for batch in found]
            return [torch.nn.functional.normalize(batch, dim=-1) for batch in emb]

    own = clip.encode_texts(texts)
    for name, side in (("open_clip", theirs), ("transformers", others)):
        must_agree(f"texts, {name}", float(np.abs(torch.cat(side()).numpy() - own).max()), at_most=1e-5)
    return {"Diptych": lambda: clip.encode_texts(texts), "open_clip": theirs, "transformers": others}


def _image_times(clip: LoadedBundle, integer: LoadedBundle, open_clip: Any, photos: list[str]) -> tuple[Times, float]:
    """Time the image tower on prepared pixels; also return the machine's peak FLOP/s, measured before and after."""
    config = clip.bundle.config
    pixels = normalize(
        torch.from_numpy(
            np.stack(
                [evaluation_pixels(decode(p), image_px=config.image.image_px, config=config.pixels) for p in photos]
            )
        ),
        config.pixels,
    )

    @torch.inference_mode()
    def encode(model: Any, **more: Any) -> torch.Tensor:
        return model.encode_image(pixels, **more)

    sides = {
        "Diptych": lambda: encode(require_bundle(clip.bundle).model),
        "open_clip": lambda: encode(open_clip.model, normalize=True),
        "int8": lambda: encode(require_bundle(integer.bundle).model),
    }
    must_agree("images", float((sides["Diptych"]() - sides["open_clip"]()).abs().max()), at_most=1e-5)
    before = product_ceiling()
    times = in_turn(sides, rounds=ROUNDS)
    return times, max(before, product_ceiling())


def _folder_times(bundle: Path, photos: list[str]) -> tuple[float, float]:
    """Return photos per second of `diptych index add` and of the image tower alone, each the median of three processes."""
    whole, alone = [], []
    with tempfile.TemporaryDirectory() as folder:
        many, one = Path(folder) / "many", Path(folder) / "one"
        for place, selected in ((many, photos), (one, photos[:1])):
            place.mkdir()
            for photo in selected:
                decode(photo).resize(PHOTO_PX, Image.Resampling.BICUBIC).save(place / Path(photo).name, quality=90)
        for number in range(3):
            taken = {}
            for place in (many, one):
                index = Path(folder) / f"index-{place.name}-{number}"
                began = time.perf_counter()
                words = ["index", "add", str(index), str(place), "--bundle", str(bundle)]
                subprocess.run([sys.executable, "-m", "diptych", *words], check=True, stdout=subprocess.DEVNULL)
                taken[place] = time.perf_counter() - began
            whole.append((len(photos) - 1) / (taken[many] - taken[one]))
            alone.append(float(subprocess.check_output([sys.executable, "-c", ALONE, str(bundle), str(len(photos))])))
    return median(whole), median(alone)


ALONE = """
import sys, time, torch
from diptych.inference.loaded import load
model = load(sys.argv[1], device="cpu").bundle.model
pixels = torch.randn(64, 3, 224, 224)
with torch.inference_mode():
    model.encode_image(pixels)
    began = time.perf_counter()
    for _ in range(int(sys.argv[2]) // 64):
        model.encode_image(pixels)
print(int(sys.argv[2]) // 64 * 64 / (time.perf_counter() - began))
"""


if __name__ == "__main__":
    main()
