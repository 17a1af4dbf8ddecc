"""What a trial costs beside its training does not grow with the trials before it. Operations are counted."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from diptych.tuning import standing as standing_module
from diptych.tuning import tune as tune_module
from diptych.tuning.standing import Standing
from diptych.tuning.storage import opened_storage, sqlite_url
from diptych.tuning.study import open_study, quiet_optuna, this_worker
from diptych.tuning.study_folder import create_study_folder
from tests.tuning.played import DIMENSIONS, SPACE, Play, scored, tuned


def _filled(folder: Path, *, num: int) -> None:
    """Make a study of `num` trials that are done, and the recipe's own that waits."""
    create_study_folder(folder, storage=None)
    lr, batch_size = DIMENSIONS
    distributions = {
        "lr": FloatDistribution(lr.low, lr.high, log=True),
        "batch_size": CategoricalDistribution(batch_size.choices),
    }
    with quiet_optuna(), opened_storage(sqlite_url(folder)) as storage:
        study = open_study(storage, folder.name, SPACE)
        for number in range(num):
            values = {"lr": 2e-3 + number * 1e-6, "batch_size": 8}
            attributes = {"settings": values, "worker": "elsewhere:1"}
            study.add_trial(create_trial(value=0.1, params=values, distributions=distributions, user_attrs=attributes))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls of what is done once for a trial."""
    counts: Counter[str] = Counter()

    def counting(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def counted_call(*args: object, **options: object) -> object:
            counts[name] += 1
            return call(*args, **options)

        return counted_call

    for module, name in ((standing_module, "row_of"), (tune_module, "drop_weights")):
        monkeypatch.setattr(module, name, counting(name, vars(module)[name]))
    return counts


def test_a_trial_converts_and_clears_what_is_new(
    tmp_path: Path, play: Callable[[Play], list[Path]], counted: Counter[str]
) -> None:
    play(scored)
    beyond_start = []
    for num in (3, 30):
        _filled(tmp_path / str(num) / "study", num=num)
        counted.clear()
        found = tuned(tmp_path / str(num) / "study", trials=num + 3, repeats=0, sampler="random")
        assert len(found) == num + 3
        beyond_start.append({name: count - num for name, count in counted.items()})
    assert beyond_start[0] == beyond_start[1]
    assert beyond_start[0]["drop_weights"] <= 3 + 2  # Of each new trial, and of those that were the best before.


def test_the_standing_is_that_of_a_new_look_at_every_moment(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    _filled(folder, num=2)
    with quiet_optuna(), opened_storage(sqlite_url(folder), heartbeat_s=60) as storage:
        study = open_study(storage, "study", SPACE)
        standing = Standing(study)

        def check(states: list[tuple[int, str]], num_ended: int) -> None:
            found = standing.refresh()
            assert found == Standing(study).refresh()
            assert [(row.number, row.state) for row in found] == states
            assert len(standing.pop_ended()) == num_ended

        done = [(1, "done"), (2, "done")]
        check([(0, "waiting"), *done], 2)
        first = study.ask()
        first.set_user_attr("worker", this_worker())
        check([(0, "running"), *done], 0)
        assert standing.has_running
        study.tell(first, state=TrialState.FAIL)
        check([(0, "failed"), *done], 1)
        standing.requeue_dead_trials()  # This process runs no trial, so the one that it left is queued again.
        check([(0, "waiting"), *done], 0)
        assert standing.has_waiting
        again = study.ask()
        assert standing.refresh()
        assert standing.first_start(again.number) == 0
        study.tell(again, 0.7)
        check([(0, "done"), *done], 1)
        assert standing.is_over
        assert standing.num_candidates == 3
        assert standing.best is not None
        assert (standing.best.number, standing.best.score) == (0, 0.7)
