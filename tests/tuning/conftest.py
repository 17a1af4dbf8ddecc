"""A training that is played."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from diptych.training.config import TrainConfig
from diptych.training.report.events import Observer
from diptych.tuning import tune as tune_module
from diptych.tuning.trial import Outcome
from tests.tuning.played import OUTCOME, Play


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Play], list[Path]]:
    """Replace training by a function of its settings; the folders that were trained in."""

    def use(action: Play) -> list[Path]:
        folders: list[Path] = []

        def played(
            config: TrainConfig,
            folder: Path,
            *,
            on_score: Callable[[int, float], None],
            observer: Observer | None = None,
        ) -> Outcome:
            del observer
            folders.append(folder)
            return replace(OUTCOME, score=action(config, on_score))

        monkeypatch.setattr(tune_module, "run_trial", played)
        monkeypatch.setattr(tune_module, "free_memory", lambda: None)  # What is played takes none, and it is slow.
        return folders

    return use
