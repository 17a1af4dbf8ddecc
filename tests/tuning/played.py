"""Studies whose trainings are played: functions of the settings."""

from collections.abc import Callable
from pathlib import Path

from diptych.evaluation.retrieval import PairScores, Recall, RetrievalReport
from diptych.training.config import TrainConfig
from diptych.tuning.space import Dimension, Space
from diptych.tuning.study import Row
from diptych.tuning.study_folder import create_study_folder
from diptych.tuning.trial import Outcome
from diptych.tuning.tune import PrunerName, SamplerName, TuneOptions, tune
from tests.conftest import TINY_RUN

DIMENSIONS = (
    Dimension(name="lr", fields=("optimizer.lr",), low=1e-4, high=1e-2, log=True),
    Dimension(name="batch_size", fields=("batch_size",), choices=(8, 32)),  # The run's own, 16, is not among them.
)


SPACE = Space(TINY_RUN, DIMENSIONS)


_RECALL = Recall(
    r1=0.1, r5=0.2, r10=0.3, median_rank=5, mean_rank=6.0, mean_average_precision=0.2, num_queries=9, num_candidates=9
)


OUTCOME = Outcome(
    score=0.5,
    retrieval=RetrievalReport(
        image_to_text=_RECALL,
        text_to_image=_RECALL,
        pairs=PairScores(own=0.3, others=0.1, threshold=0.2, wrong=0.1),
        protocol={},
    ),
    steps=9,
    seconds=1.0,
    micro_batch=None,
)


Play = Callable[[TrainConfig, Callable[[int, float], None]], float]


class Silent:
    """Remembers how the trials stood last, and every message."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.messages: list[str] = []

    def on_rows(self, found: list[Row]) -> None:
        """Remember them."""
        self.rows = found

    def on_step(self, report: object) -> None:
        """Nothing."""

    def on_validation(self, step: int, validation: object) -> None:
        """Nothing."""

    def on_message(self, text: str) -> None:
        """Remember it."""
        self.messages.append(text)

    def close(self) -> None:
        """Nothing."""


def scored(config: TrainConfig, on_score: Callable[[int, float], None]) -> float:
    """Best near lr 1e-3, a little worse with every seed."""
    score = 0.9 - abs(config.optimizer.lr - 1e-3) * 10 - 0.01 * config.seed
    for resource in (1, 2):
        on_score(resource, score * resource / 2)
    return score


def tuned(folder: Path, *, space: Space = SPACE, trials: int = 6, pruner: PrunerName = "none", sampler: SamplerName = "tpe",
          repeats: int = 2, observer: Silent | None = None) -> list[Row]:  # fmt: skip
    create_study_folder(folder, storage=None)
    options = TuneOptions(trials=trials, pruner=pruner, sampler=sampler, repeats=repeats)
    return tune(space, folder, options=options, observer=observer or Silent())
