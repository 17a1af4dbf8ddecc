import pytest

from diptych.core.errors import ConfigError, unknown_name
from diptych.core.settings import from_plain, override, settings, to_plain
from diptych.recipes.choice import RECIPES
from diptych.training.config import TrainConfig
from diptych.training.schedule import ScheduleConfig


@settings
class Inner:
    rate: float = 0.5
    sizes: tuple[int, int] = (1, 2)


@settings
class Outer:
    inner: Inner = Inner()
    name: str = "x"
    limit: int | None = None
    on: bool = False


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipe_survives_the_way_through_plain_data(name: str) -> None:
    config = RECIPES[name]()
    assert from_plain(TrainConfig, to_plain(config)) == config


def test_override_reads_each_type_from_text() -> None:
    changed = override(
        Outer(), {"inner.rate": "1e-3", "inner.sizes": "[3, 4]", "name": "5", "limit": "7", "on": "true"}
    )
    assert changed == Outer(inner=Inner(rate=1e-3, sizes=(3, 4)), name="5", limit=7, on=True)
    assert override(changed, {"limit": "none"}).limit is None
    assert changed.limit == 7


def test_override_of_several_fields_is_validated_once_at_the_end() -> None:
    changed = override(ScheduleConfig(), {"epochs": None, "steps": 5})
    assert (changed.epochs, changed.steps) == (None, 5)


@pytest.mark.parametrize(
    ("plain", "near"), [({"inner": {"rte": 1.0}}, "inner.rate"), ({"innr": {}}, "inner"), ({"limt": 1}, "limit")]
)
def test_unknown_key_names_the_nearest(plain: dict[str, object], near: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown setting '[a-z.]+'; did you mean '{near}'\?"):
        from_plain(Outer, plain)


def test_override_of_an_unknown_path_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'optimiser.lr'; did you mean 'optimizer.lr'\?"):
        override(TrainConfig(), {"optimiser.lr": "1"})


@pytest.mark.parametrize("path", ["inner", "inner.rate.x", "", "inner."])
def test_override_of_what_is_no_leaf_is_refused(path: str) -> None:
    with pytest.raises(ConfigError):
        override(Outer(), {path: "1"})


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"inner": {"rate": "fast"}}, r"file.yaml: 'inner.rate' is 'fast': input should be a valid number"),
        ({"limit": 1.5}, r"file.yaml: 'limit.*' is 1.5"),
        ([1], r"file.yaml: the whole is \[1\]"),
        (None, r"file.yaml: the whole is None"),
    ],
)
def test_wrong_type_names_file_path_and_value(plain: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_plain(Outer, plain, what="file.yaml")


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Outer().name = "y"  # type: ignore[misc]


def test_unknown_name_offers_nothing_that_is_not_near() -> None:
    assert unknown_name("recipe", "zzz", ["demo"]) == "unknown recipe 'zzz'. Known: demo"
    assert "did you mean 'demo'?" in unknown_name("recipe", "dmo", ["demo", "other"])
