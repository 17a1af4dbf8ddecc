import math
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from diptych.core import bounded
from diptych.core.errors import ConfigError, unknown_name
from diptych.core.settings import from_plain, override, read_json, read_yaml, settings, to_plain
from diptych.recipes.recipe import RECIPES
from diptych.training.config import TrainConfig, read_config
from diptych.training.optim.schedule import ScheduleConfig


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


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("compile", "'compile' is 'foo': input should be a valid boolean or 'auto'$"),
        ("lock.image", "'lock.image' is 'foo': input should be a valid integer or 'all'$"),
        ("precision", "'precision' is 'foo': input should be 'auto', 'fp32', 'bf16' or 'fp16'$"),
    ],
)
def test_a_value_of_no_member_of_a_union_names_all_of_them(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(TrainConfig(), {path: "foo"})


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Outer().name = "y"  # type: ignore[misc]


def test_unknown_name_offers_nothing_that_is_not_near() -> None:
    assert unknown_name("recipe", "zzz", ["demo"]) == "unknown recipe 'zzz'. Known: demo"
    assert "did you mean 'demo'?" in unknown_name("recipe", "dmo", ["demo", "other"])


DEEP = 100_000
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * DEEP, "nested more than 64 deep"),
        ("a: " + "{b: " * 65 + "1" + "}" * 65, "nested more than 64 deep"),
        ("- " * DEEP, "nested more than 64 deep"),
        (LAUGHS, "more than 100,000 values"),
        ("a: &a [1, *a]", "an alias refers to the list or object that contains it"),
        ("a: " + "9" * 400, "an integer of more than 40 digits"),
        ("a: " + "9" * 5000, "is not YAML: Exceeds the limit"),
        ("a: -1" + ":00" * 23, "an integer of more than 40 digits"),
        ("a: !!int '1" + ":00" * 23 + "'", "an integer of more than 40 digits"),
        ("a: !!timestamp x", "is not YAML"),
        ("a: !!bool x", "is not YAML"),
        ("a: !!python/object:os.system x", "is not YAML: could not determine a constructor"),
        ("a: 2024-13-45", "is not YAML: month must be in 1..12"),
        ("{[1]: 2}", "is not YAML"),
        ("a" * (2**20 + 1), "has 1,048,577 bytes; at most 1,048,576 are read"),
        ("a: [", "is not YAML"),
        ("a: \udcff", "is not UTF-8 text"),
    ],
)
def test_yaml_beyond_a_bound_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=rf"config\.yaml: .*{message}") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "most"),
    [("[1, {a: [2, b]}, c]", 8), ("a: &a [1, 2]\nb: &b {c: *a}\nd: *b\n", 17), ("&a 1", 1), ("- &a x\n- *a", 3)],
)
def test_values_are_counted_with_those_that_aliases_repeat(
    monkeypatch: pytest.MonkeyPatch, content: str, most: int
) -> None:
    monkeypatch.setattr(bounded, "MAX_NODES", most)
    bounded.parse_yaml(content, what="it")
    monkeypatch.setattr(bounded, "MAX_NODES", most - 1)
    with pytest.raises(ConfigError, match="holds more than"):
        bounded.parse_yaml(content, what="it")


def test_yaml_is_as_deep_as_the_bound_at_most() -> None:
    bounded.parse_yaml("[" * 64 + "]" * 64, what="it")
    with pytest.raises(ConfigError, match="nested more than 64 deep"):
        bounded.parse_yaml("[" * 65 + "]" * 65, what="it")


def test_long_integers_of_base_60_are_refused_before_they_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_args: object, **_options: object) -> None:
        pytest.fail("the text is built")

    assert bounded.parse_yaml("[1" + ":00" * 22 + ", '1" + ":00" * 23 + "', 0" + ":1" * 23 + "]", what="it") == [
        60**22,
        "1" + ":00" * 23,
        "0" + ":1" * 23,
    ]
    monkeypatch.setattr(yaml, "load", load)
    for text in ("1" + ":00" * 23, "{1" + ":00" * 23 + ": a}", "!!int '0" + ":00" * 23 + "'"):
        with pytest.raises(ConfigError, match="an integer of more than 40 digits"):
            bounded.parse_yaml(text, what="it")


def test_a_path_that_is_not_utf8_survives_the_way_through_yaml(tmp_path: Path) -> None:
    content = {"data": {"source": os.fsdecode(b"folder:caf\xe9")}, "note": "\U0001f408 \\udce9"}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content), "utf-8")
    assert read_yaml(tmp_path / "a.yaml") == content
    assert bounded.parse_yaml('"\\U0000DCE9"', what="it") == "\udce9"


@pytest.mark.parametrize(
    "text", [r'["\udce9", ' + "[" * DEEP, r'["\udce9", 1' + ":00" * 23 + "]", r'&a ["\udce9", *a]']
)
def test_yaml_with_escapes_of_surrogates_is_bounded(text: str) -> None:
    with pytest.raises(ConfigError, match=r"nested more than 64|more than 40 digits|an alias refers to the list"):
        bounded.parse_yaml(text, what="it")


def test_yaml_is_parsed_by_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parser in Python takes ten times as long."""
    monkeypatch.setattr(yaml.reader.Reader, "__init__", lambda *_: pytest.fail("parsed by Python"))
    assert bounded.parse_yaml("a: [1, b]", what="it") == {"a": [1, "b"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * DEEP, "nested more than 64 deep"),
        ('{"a":' * DEEP + "1" + "}" * DEEP, "nested more than 64 deep"),
        ("[" * 66 + "]" * 66, "nested more than 64 deep"),
        ("[1" + "0" * 400 + "]", "an integer of more than 40 digits"),
        ("[1" + "0" * 5000 + "]", "is not JSON: Exceeds the limit"),
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ('"\udcff"', "is not UTF-8 text"),
        (" " * (2**24 + 1), "has 16,777,217 bytes; at most 16,777,216 are read"),
    ],
)
def test_json_beyond_a_bound_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=rf"config\.json: .*{message}") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_only_regular_files_are_read(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "fifo")  # Reading it would wait for a writer.
    (tmp_path / "link").symlink_to("fifo")
    for name, message in {"fifo": "not a regular file", "link": "not a regular file", "gone": "cannot be read"}.items():
        with pytest.raises(ConfigError, match=f"{name}: .*{message}"):
            read(tmp_path / name)
    with pytest.raises(ConfigError, match="/dev/zero: is not a regular file"):
        read(Path("/dev/zero"))


def test_what_is_within_the_bounds_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {b: [1, 2]}\nc: *a\nd: {<<: *a, e: 18446744073709551615}\n")
    assert read_yaml(tmp_path / "a.yaml") == {
        "a": {"b": [1, 2]},
        "c": {"b": [1, 2]},
        "d": {"b": [1, 2], "e": 2**64 - 1},
    }
    (tmp_path / "a.json").write_text("[" * 60 + "]" * 60)
    read_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["[" * DEEP, "[1", "[!!bool x]", "[&a [*a]]", "[" + "9" * 400 + "]"])
def test_override_bounds_what_it_parses(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^config: ") as caught:
        override(Outer(), {"inner.sizes": text})
    assert len(str(caught.value)) < 500


def test_a_message_shows_the_beginning_of_a_long_value() -> None:
    with pytest.raises(ConfigError) as caught:
        from_plain(Outer, {"limit": "x" * 10_000})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, "inf", "nan"])
@pytest.mark.parametrize(
    "path", ["optimizer.lr", "optimizer.max_grad_norm", "schedule.minutes", "data.max_skipped", "ema"]
)
def test_numbers_that_are_not_finite_are_refused(path: str, number: float | str) -> None:
    with pytest.raises(ConfigError, match=rf"'{path}' is .*: input should be a finite number"):
        override(TrainConfig(), {path: number})


def test_a_file_with_infinity_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("optimizer: {lr: .inf}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"'optimizer.lr' is inf: input should be a finite number"):
        read_config(tmp_path / "c.yaml")
