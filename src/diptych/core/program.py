"""Build the commands that messages print, in the form in which the user started this program."""

import os
import shlex
import shutil
import sys
from pathlib import Path

_NAME = "diptych"


def command(*words: str | Path) -> str:
    """Return a command of this program that runs in the user's shell, with words quoted where necessary.

    The command begins with `diptych` if the shell finds this environment's script by that name. Otherwise it begins with the
    path of the script, relative to the working directory if that is shorter. It begins with `python -m diptych` if the program
    was started that way or has no script.

    Args:
        words: the name of the command, options and values, as separate words.
    """
    return f"{program()} {shlex.join(map(str, words))}"


def program() -> str:
    """Return the beginning of a printed command; see `command`."""
    started = Path(sys.argv[0] if sys.argv else "")
    script = None if started.parts[-2:] == (_NAME, "__main__.py") else _script(started)
    if script is None:
        return f"{_python()} -m {_NAME}"
    return _NAME if _is_found(_NAME, script) else shlex.quote(_shorter(script))


def _script(started: Path) -> Path | None:
    """Return the script that was started, or the script of this environment if another program imports this package."""
    if started.stem == _NAME and started.is_file():
        return started
    import sysconfig  # noqa: PLC0415  (takes 2 ms; most commands do not need it)

    name = f"{_NAME}.exe" if os.name == "nt" else _NAME
    installed = Path(sysconfig.get_path("scripts"), name)
    return installed if installed.is_file() else None


def _is_found(name: str, script: Path) -> bool:
    """Whether the shell runs this script under the given name."""
    found = shutil.which(name)
    return found is not None and Path(found).samefile(script)


def _python() -> str:
    """Return the name of the interpreter if the shell finds it, otherwise its path."""
    here = Path(sys.executable)
    for name in ("python", here.name):
        found = shutil.which(name)
        # Not `samefile`: a virtual environment's interpreter is a link to the system's, which lacks the packages.
        if found is not None and Path(found).parent.resolve() == here.parent.resolve():
            return name
    return shlex.quote(_shorter(here)) if sys.executable else "python"


def _shorter(path: Path) -> str:
    """Return the relative or the absolute path, whichever is shorter."""
    absolute = str(path.absolute())
    try:
        relative = os.path.relpath(absolute)
    except ValueError:  # The path is on another drive.
        return absolute
    relative = relative if os.sep in relative else os.path.join(os.curdir, relative)  # noqa: PTH118  (Path drops the dot)
    return min(absolute, relative, key=len)
