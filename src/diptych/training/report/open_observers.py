"""The observers of a run: its event log, its trackers, and those of the caller."""

from collections.abc import Sequence
from pathlib import Path

from diptych.core.address import without_secrets
from diptych.core.distributed import Ranks
from diptych.core.settings import to_plain
from diptych.training.config import TrainConfig
from diptych.training.report.events import EventLog, Observer, Observers
from diptych.training.report.trackers import Tracker


def open_observers(
    config: TrainConfig, run: Path, ranks: Ranks, *, first_step: int, more: Sequence[Observer]
) -> Observers:
    """The observers of rank 0; other ranks have none.

    Args:
        config: the run.
        run: its folder.
        ranks: the processes that train it.
        first_step: steps that were done before. Events of later steps are removed from the log.
        more: observers of the caller.

    Raises:
        ConfigError: a tracker cannot begin.
    """
    if ranks.rank != 0:
        return Observers([])
    log, plain = EventLog(run, batch_size=config.batch_size, first_step=first_step), without_secrets(to_plain(config))
    trackers = [Tracker(kind, run, project=config.logs.project, config=plain) for kind in config.logs.trackers]
    return Observers([log, *trackers, *more])
