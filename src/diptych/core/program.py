"""How a user runs this program: printed commands begin as the command that was typed did."""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

_NAME = "diptych"


def command(*words: str | Path) -> str:
    """A command of this program that runs in the user's shell, with the words quoted where the shell needs it.

    The program is `diptych` if the shell finds this environment's script by that name; otherwise the path of the script,
    relative to the working directory if that is shorter. It is `python -m diptych` if it was started so or has no script.

    Args:
        words: name of the command, options and values, one word each.
    """
    return f"{program()} {shlex.join(map(str, words))}"


def program() -> str:
    """What a printed command begins with, as in `command`."""
    started = Path(sys.argv[0] if sys.argv else "")
    script = None if started.parts[-2:] == (_NAME, "__main__.py") else _script(started)
    if script is None:
        return f"{_python()} -m {_NAME}"
    return _NAME if _is_found(_NAME, script) else shlex.quote(_shorter(script))


def _script(started: Path) -> Path | None:
    """The script that was started or, in a program that imports this package, the one of its environment."""
    if started.stem == _NAME and started.is_file():
        return started
    name = f"{_NAME}.exe" if os.name == "nt" else _NAME
    installed = Path(sysconfig.get_path("scripts"), name)
    return installed if installed.is_file() else None


def _is_found(name: str, script: Path) -> bool:
    """Whether the shell runs this script by the name."""
    found = shutil.which(name)
    return found is not None and Path(found).samefile(script)


def _python() -> str:
    """The interpreter by the name that the shell knows, or by its path."""
    here = Path(sys.executable)
    for name in ("python", here.name):
        found = shutil.which(name)
        # Not `samefile`: the interpreter of a virtual environment is a link to that of the system, which lacks its packages.
        if found is not None and Path(found).parent.resolve() == here.parent.resolve():
            return name
    return shlex.quote(_shorter(here)) if sys.executable else "python"


def _shorter(path: Path) -> str:
    """The path from the working directory or from the root, whichever is shorter."""
    whole = str(path.absolute())
    try:
        relative = os.path.relpath(whole)
    except ValueError:  # Another drive.
        return whole
    relative = relative if os.sep in relative else os.path.join(os.curdir, relative)  # noqa: PTH118  (Path drops the dot)
    return min(whole, relative, key=len)
