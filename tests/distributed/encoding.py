"""What each rank of a test does to encode a source together with the others; the results go to a file."""

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from diptych.bundle.folder import load_bundle
from diptych.core.errors import DataError
from diptych.data.batches.loader import DataConfig
from diptych.data.open_source import open_source
from diptych.device.distributed import Ranks, all_ranks
from diptych.inference.embedder import Embedder
from diptych.training.loss import LossConfig
from diptych.training.validation import measure_split, validate

SOURCE = "shapes:50"


def results_of(bundle: Path, ranks: Ranks) -> dict[str, Any]:
    """Metrics of a validation and of a whole split."""
    embedder, source = Embedder(load_bundle(bundle), batch_size=8), open_source(SOURCE)
    validation = validate(embedder, source, config=DataConfig(), loss=LossConfig(), batch_size=10, seed=0, ranks=ranks)
    retrieval, zero_shot = measure_split(embedder, source, split="val", metric="zero_shot", ranks=ranks)
    return {"metrics": validation.metrics(), "retrieval": repr(retrieval), "zero_shot": repr(zero_shot)}


def _failing(ranks: Ranks) -> str:
    def fail_on_rank_1() -> int:
        if ranks.rank == 1:
            raise DataError("the cable was pulled")
        return ranks.rank

    try:
        ranks.run_on_all(fail_on_rank_1)
    except DataError as error:
        return str(error)
    return "no error"


def encode(rank: int, size: int, folder: Path, bundle: Path) -> None:
    """All that one rank does."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", meeting, timedelta(seconds=60), rank=rank, world_size=size)
    ranks = all_ranks()
    found = results_of(bundle, ranks)
    found |= {"all": ranks.run_on_all(lambda: ranks.rank), "error": _failing(ranks)}
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()
