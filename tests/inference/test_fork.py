"""A process that is forked after a model was used computes what its parent computes. It waited forever for OpenMP's threads."""

import os
import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import multiprocessing
import sys
from dataclasses import replace
from threading import Thread

import numpy as np
import torch

from diptych.bundle.folder import Bundle
from diptych.inference.explain import explain
from diptych.inference.loaded import LoadedBundle
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from diptych.tokenizers.hashing import HashingTokenizer

torch.set_num_threads(2)
torch.manual_seed(0)
config = CLIPConfig(
    embed_dim=16,
    image=ViTConfig(image_px=64, patch_px=8, width=128, layers=2, heads=2),
    text=TextConfig(vocab_size=300, context_length=24, width=128, layers=2, heads=2, tokenizer="hashing"),
)
clip = LoadedBundle(Bundle(model=CLIP(config).eval(), tokenizer=HashingTokenizer(vocab_size=300, context_length=24)))
generator = np.random.default_rng(0)
images = [generator.integers(0, 255, (70, 80, 3), dtype=np.uint8) for _ in range(64)]
texts = [f"number {number}" for number in range(200)]
uses = {
    "images": lambda: clip.encode_images(images),
    "texts": lambda: clip.encode_texts(texts),
    "similarity": lambda: clip.similarity(images, texts).cosine,
    "explain": lambda: explain(clip.embedder, images[0], texts[:2]).cosine,
}
expected = {name: use() for name, use in uses.items()}


def work(first, answers):
    order = [first, *(name for name in uses if name != first)]
    found = {name: uses[name]() for name in order}
    thread = Thread(target=lambda: found.update(again=uses[first]()))
    thread.start()
    thread.join()
    close = all(np.allclose(found[name], expected[name], atol=1e-6) for name in uses)
    answers.put((close and np.array_equal(found["again"], found[first]), torch.get_num_threads()))


context = multiprocessing.get_context("fork")
for first in uses:
    answers = context.SimpleQueue()
    process = context.Process(target=work, args=(first, answers), daemon=True)
    process.start()
    process.join(60)
    if process.exitcode != 0:
        process.kill()
        sys.exit(f"{first}: exit code {process.exitcode}")
    assert answers.get() == (True, 1), first
    assert np.array_equal(uses[first](), expected[first])
assert torch.get_num_threads() == 2
"""


def test_a_forked_process_computes_what_its_parent_computes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
