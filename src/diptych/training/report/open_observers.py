"""Opens the observers of a run: its event log, its trackers, and those of the caller."""

from collections.abc import Sequence
from pathlib import Path

from diptych.core.address import without_secrets
from diptych.core.settings import to_plain
from diptych.device.distributed import Ranks
from diptych.training.config import TrainConfig
from diptych.training.report.events import EventLog, Observer, Observers
from diptych.training.report.trackers import Tracker


def open_observers(
    config: TrainConfig, run: Path, ranks: Ranks, *, first_step: int, more: Sequence[Observer]
) -> Observers:
    """Open the observers of a run on rank 0. Other ranks get an empty list of observers.

    Args:
        config: config of the run.
        run: the run folder.
        ranks: the ranks of the run.
        first_step: steps completed before. Events of later steps are removed from the log.
        more: observers of the caller.

    Raises:
        ConfigError: a tracker cannot be started.
    """
    if ranks.rank != 0:
        return Observers([])
    logs, plain = config.logs, without_secrets(to_plain(config))
    log = EventLog(run, batch_size=config.batch_size, first_step=first_step, every_steps=logs.every_steps)
    trackers = [
        Tracker(kind, run, project=logs.project, config=plain, every_steps=logs.every_steps) for kind in logs.trackers
    ]
    return Observers([log, *trackers, *more])
