"""Bits flipped in stored files: each is detected, or changes no number."""

import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from diptych.bundle.folder import require_bundle
from diptych.core.errors import DiptychError
from diptych.index.open_index import open_index
from diptych.inference.loaded import load
from diptych.training.checkpoint.manifest import find_fault
from diptych.training.config import read_config
from diptych.training.run import train
from tests.attack.target import Outcome


def flip_bundle(num: int, bundle: Path, work: Path, *, seed: int) -> Outcome:
    """Load the bundle after each flip; its weights and the embedding of a text are compared."""

    def numbers() -> tuple[str, NDArray[np.float32], NDArray[np.float32]]:
        clip = load(work, device="cpu", progress=False)
        weights = torch.cat(
            [tensor.flatten().float() for tensor in require_bundle(clip.bundle).model.state_dict().values()]
        )
        return clip.identity, weights.numpy(), clip.encode_texts(["a small red circle"])

    return _flip_all("bundle", num, bundle, work, numbers, seed=seed)


def flip_index(num: int, index: Path, work: Path, *, seed: int) -> Outcome:
    """Verify the index after each flip; entries, vectors and what a search finds are compared."""
    queries = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)

    def numbers() -> tuple[str, NDArray[np.float32], NDArray[np.float32]]:
        with open_index(work) as opened:
            faults = opened.verify()
            if faults:
                raise DiptychError(str(faults[0]))
            entries = opened.entries()
            vectors = opened.vectors(sorted({entry.digest for entry in entries}))
            found = opened.search(queries, top=20)
            scores = [hit.score for hits in found for hit in hits]
            keys = [hit.entry.key for hits in found for hit in hits]
            return repr((entries, keys)), np.stack(list(vectors.values())), np.array(scores, dtype=np.float32)

    return _flip_all("index", num, index, work, numbers, seed=seed)


def flip_run(num: int, run: Path, work: Path, *, seed: int) -> Outcome:
    """Look for faults in the newest checkpoint after each flip in it; where there are none, resume and compare the weights."""
    newest = max((run / "checkpoints").glob("step-*"))
    kept = Path("checkpoints") / newest.name

    def numbers() -> tuple[str, NDArray[np.float32], NDArray[np.float32]]:
        fault = find_fault(work / kept)
        if fault is not None:
            raise DiptychError(fault)
        train(read_config(work / "config.yaml"), work, resume=True)
        clip = load(work / "bundle", device="cpu", progress=False)
        weights = torch.cat(
            [tensor.flatten().float() for tensor in require_bundle(clip.bundle).model.state_dict().values()]
        )
        return "", weights.numpy(), weights.numpy()

    return _flip_all("run folder", num, run, work, numbers, seed=seed, within=kept)


def _flip_all(
    what: str,
    num: int,
    source: Path,
    work: Path,
    numbers: Callable[[], tuple[str, NDArray[np.float32], NDArray[np.float32]]],
    *,
    seed: int,
    within: Path = Path(),
) -> Outcome:
    rng, outcome = random.Random(seed), Outcome()
    _copy(source, work)
    expected = numbers()
    files = [
        path.relative_to(source)
        for path in sorted((source / within).rglob("*"))
        if path.stat().st_size and path.is_file()
    ]
    num_detected = num_harmless = 0
    for number in range(num):
        _copy(source, work)
        # Every other flip in a file drawn at random, the others where most bytes are.
        weights = [1.0] * len(files) if number % 2 else [float((source / file).stat().st_size) for file in files]
        file = rng.choices(files, weights)[0]
        content = bytearray((work / file).read_bytes())
        place, bit = rng.randrange(len(content)), rng.randrange(8)
        content[place] ^= 1 << bit
        (work / file).write_bytes(content)
        where = f"{what}: bit {bit} of byte {place} of {file}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = numbers()
        except DiptychError:
            num_detected += 1
        except Exception as error:
            outcome.failures.append(f"{where}: {type(error).__name__}: {error}")
        else:
            is_same = found[0] == expected[0] and all(
                np.array_equal(a, b) for a, b in zip(found[1:], expected[1:], strict=True)
            )
            num_harmless += is_same
            if not is_same:
                outcome.failures.append(f"{where}: changed a number and was not detected")
    shutil.rmtree(work)
    outcome.summary = f"{what}: {num:,} flips, {num_detected:,} detected, {num_harmless:,} without effect"
    return outcome


def _copy(source: Path, work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(source, work)
