"""The rules of the house that a linter does not know."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from cyclopts import App

import diptych
from diptych.cli.main import app
from diptych.presets import PRESETS
from diptych.recipes.recipe import RECIPES

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "diptych"
FILES = sorted(SOURCE.rglob("*.py"))


def _commands(of: App, prefix: str = "") -> Iterator[tuple[str, App]]:
    for name in of:
        if name.startswith("-"):
            continue
        command = of[name]
        yield f"{prefix}{name}", command
        yield from _commands(command, f"{prefix}{name} ")


COMMANDS = dict(_commands(app))


def test_files_are_there_and_short() -> None:
    assert len(FILES) > 50
    sizes = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {name: size for name, size in sizes.items() if size > 400} == {}


def test_folders_are_two_deep_at_most() -> None:
    assert [path for path in FILES if len(path.relative_to(SOURCE).parts) > 3] == []


def test_no_file_is_named_for_nothing() -> None:
    names = {path.stem for path in [*FILES, *(ROOT / "tests").rglob("*.py")]}
    assert names & {"utils", "helpers", "common", "misc", "util", "helper"} == set()


def test_public_names() -> None:
    assert len(diptych.__all__) <= 20
    assert sorted(set(diptych.__all__)) == sorted(diptych.__all__)
    assert set(diptych.__all__) <= set(dir(diptych))
    for name in diptych.__all__:
        assert (getattr(diptych, name).__doc__ or "").strip(), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = diptych.nothing


def test_every_module_says_what_it_is() -> None:
    bare = [path for path in FILES if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert bare == []


def test_every_setting_has_a_docstring() -> None:
    """A class under @settings: each field is followed by a string."""
    bare = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.ClassDef) or "settings" not in [ast.unparse(d) for d in node.decorator_list]:
                continue
            for field, following in zip(node.body, [*node.body[1:], ast.Pass()], strict=True):
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                if isinstance(field, ast.AnnAssign) and not documented:
                    bare.append(f"{path.name}: {ast.unparse(field.target)}")
    assert bare == []


def test_importing_has_no_effect_and_every_module_imports() -> None:
    for path in FILES:
        if path.name != "__main__.py":
            name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
            assert import_module(name)


def test_the_commands_are_found() -> None:
    assert {"demo", "train", "evaluate retrieval", "rank-images"} <= set(COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_and_option_has_help(name: str) -> None:
    command = COMMANDS[name]
    assert command.help.strip()
    if command.default_command is None:
        return
    for argument in command.assemble_argument_collection():
        if argument.parameter.name == ("*",):
            continue  # What its options are in, no option itself.
        assert (argument.parameter.help or "").strip(), f"{name}: {argument.name}"


_OF_A_TEST_MODULE = re.compile(
    r"\btests(\.\w+)*\.test_\w+|\bfrom\s+(tests(\.\w+)*|\.+[\w.]*)\s+import\s+[^\n]*\btest_\w+|\bfrom\s+\.+test_\w+"
)


def test_no_test_module_is_imported() -> None:
    """Nor in the code that a test gives to another process. What several of them need stands in a module of its own."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    found = {
        f"{path.relative_to(ROOT)}: {use[0]}"
        for path in files
        for use in _OF_A_TEST_MODULE.finditer(path.read_text("utf-8"))
    }
    assert found == set()


_CLOCKS = {f"time.{name}{unit}" for name in ("time", "monotonic", "perf_counter") for unit in ("", "_ns")}


def _is_duration(node: ast.AST, durations: set[str]) -> bool:
    """Whether an expression holds a difference of readings of a clock, or a name that one was given."""

    def reads(part: ast.AST) -> bool:
        return any(isinstance(one, ast.Call) and ast.unparse(one.func) in _CLOCKS for one in ast.walk(part))

    return any(
        (isinstance(part, ast.BinOp) and isinstance(part.op, ast.Sub) and reads(part))
        or (isinstance(part, ast.Name) and part.id in durations)
        for part in ast.walk(node)
    )


def _asserted_durations(code: str) -> list[str]:
    found = []
    for function in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)):
        durations: set[str] = set()
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and _is_duration(node.value, durations):
                durations |= {ast.unparse(target) for target in node.targets}
        asserted = (node for node in ast.walk(function) if isinstance(node, ast.Assert))
        found += [ast.unparse(node) for node in asserted if _is_duration(node.test, durations)]
    return found


def test_no_test_asserts_how_long_something_took() -> None:
    """A busy machine takes longer. The processor time of a start may be limited, and a hang ends at a generous deadline."""
    wrong = "def f():\n began = time.monotonic()\n took = time.monotonic() - began\n assert took < 1\n"
    assert _asserted_durations(wrong) == ["assert took < 1"]
    assert _asserted_durations(wrong.replace("took < 1", "time.monotonic() < began + 60")) == []
    files = sorted((ROOT / "tests").rglob("*.py"))
    found = {path.name: _asserted_durations(path.read_text("utf-8")) for path in files}
    assert {name: asserted for name, asserted in found.items() if asserted} == {}


def _documents() -> str:
    paths = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    return "\n".join(path.read_text("utf-8") for path in paths if path.is_file())


@pytest.mark.parametrize("name", [*PRESETS, *RECIPES])
def test_every_preset_and_recipe_is_documented(name: str) -> None:
    assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", _documents()), f"{name} is in no document"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_is_documented(name: str) -> None:
    assert f"diptych {name}" in _documents()


_ONE_WAY = {
    r"\bfcntl\b|\bFileLock\b": {"core/files.py"},
    r"\bos\.(rename|replace)\(|\.rename\(|tempfile\.(NamedTemporaryFile|mkstemp)": {
        "core/files.py",
    },
    r"\bhtml\.escape|from html import|<html|<td|<script": set(),
    r"\bjinja2\b(?!\")": {"core/html.py"},
    r"\bcsv\.(writer|DictWriter)\b|from csv import|\bto_csv\b": {"core/csv_file.py"},
    r"\bImage\.open\b|\bdecode_jpeg\(": {"images/opener.py", "images/jpeg.py", "images/decode.py"},
    r"(?<![\w.])print\(|\bsys\.(__)?(stdout|stderr)(__)?\.write\b": {"cli/output.py", "cli/timing.py"},
    r"(?<!Visible)\bConsole\(": {"core/terminal.py"},
    r"\bconsole\(\)\.(print|log|out|rule)\(": {"cli/output.py"},
}
"""What has one place: locks, replacing files, HTML, CSV, opening pictures, printing. By pattern, the files that may do it."""


@pytest.mark.parametrize("pattern", list(_ONE_WAY))
def test_what_has_one_place_is_done_there_alone(pattern: str) -> None:
    found = {str(path.relative_to(SOURCE)) for path in FILES if re.search(pattern, path.read_text("utf-8"))}
    assert found <= _ONE_WAY[pattern]


def test_every_picture_is_opened_with_a_list_of_formats() -> None:
    """Pillow opens whatever it knows otherwise, EPS by way of Ghostscript."""
    calls = [
        (path.name, [keyword.arg for keyword in node.keywords])
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open"
    ]
    assert calls == [("opener.py", ["formats"])]


def _telemetry_calls(code: str) -> list[tuple[str, bool]]:
    """The functions that import ONNX Runtime, and whether the statement before the import disables telemetry."""
    found = []
    for function in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)):
        lines = [ast.unparse(statement) for statement in function.body]
        imports = [i for i, line in enumerate(lines) if re.match(r"(from|import) onnxruntime\b", line)]
        if imports:
            found.append((function.name, "disable_telemetry()" in lines[: imports[0]]))
    return found


def test_onnx_runtime_is_imported_without_its_telemetry() -> None:
    """Imports are inside functions, because official builds read the environment variable at the first import."""
    assert _telemetry_calls("def f():\n import onnxruntime\ndef g():\n disable_telemetry()\n import onnxruntime\n") == [
        ("f", False),
        ("g", True),
    ]
    code = {str(path.relative_to(SOURCE)): path.read_text("utf-8") for path in FILES}
    calls = {name: _telemetry_calls(text) for name, text in code.items()}
    assert {name: found for name, found in calls.items() if not all(is_disabled for _, is_disabled in found)} == {}
    assert sum(map(len, calls.values())) >= 4


def test_the_readmes_tree_is_the_disks() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    trees = [
        found
        for block in re.findall(r"```[^\n]*\n(.*?)```", readme, flags=re.DOTALL)
        if "core" in (found := re.findall(r"^[\s│├└─]*([a-z_]+)/(?=\s|$)", block, flags=re.MULTILINE))
    ]
    assert len(trees) <= 1
    for tree in trees:
        assert set(tree) - {"diptych", "src"} == rooms


RETIRED = (
    *("asks", "asking", "heard", "heard_by_one", "Watcher", "Asking", "shared_beginnings", "worth_sharing"),
    *(
        "_without_some",
        "_filled_up",
        "can_share",
        "place_of",
        "mark_rows",
        "group_marked",
        "StepOrder",
        "_despite_deaths",
    ),
    *("let_go", "pages_of", "Keeper", "Watch", "Circumstances", "Pace", "Glimpse", "glimpse", "same_run", "_rooms"),
    *("_without_a_word", "settle", "by heart", "loose", "hold_back", "to_next", "from_first", "gather_few"),
    *("strangers", "told", "beside", "_recoloured", "FourUses", "_one_and_all", "_alone", "Stamp", "About", "Ranked"),
    *(
        "take_over",
        "leave_to_successor",
        "_warn_of_guests",
        "show_anything",
        "self_check",
        "what_it_does",
        "SideBySide",
    ),
)
"""Names and words of earlier versions, for which the field has terms. An alias for one release may name them."""


@pytest.mark.parametrize(
    "path", [*FILES, *sorted((ROOT / "docs" / "api").glob("*.md"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_retired_words_stay_retired(path: Path) -> None:
    words = re.compile(rf"(?<!\w)({'|'.join(RETIRED)})(?!\w)")
    is_alias = re.compile(r"[Rr]enamed|_OLD_NAMES|[Dd]eprecat|^    \"\w+\": \"\w+\",$")
    lines = [line for line in path.read_text("utf-8").splitlines() if not is_alias.search(line)]
    assert [line for line in lines if words.search(line)] == []
