"""Time the start: `import diptych` and `diptych --help`.

python benchmarks/start_up.py [--out FILE]
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from harness import arguments, in_turn, machine, table, write

ROUNDS = 15


def main() -> None:
    """Measure, print, and write the table."""
    given = arguments(__doc__, rounds=ROUNDS)
    program = str(Path(sys.executable).with_name("diptych"))
    times = in_turn(
        {
            "nothing": _running(sys.executable, "-c", ""),
            "import diptych": _running(sys.executable, "-c", "import diptych"),
            "diptych --help": _running(program, "--help"),
        },
        rounds=given.rounds,
    )
    bare = times.median("nothing")
    rows = [
        ["`import diptych`, beyond Python's own start", f"{times.median('import diptych') - bare:.3f}", "0.1"],
        ["`diptych --help`, the whole process", f"{times.median('diptych --help'):.3f}", "0.3"],
    ]
    write(
        given.out,
        "# Start-up",
        f"`python benchmarks/start_up.py`, {machine()}",
        f"Seconds, medians of {given.rounds} rounds in turn; Python's own start takes {bare:.3f}.",
        table(["what", "seconds", "at most"], rows),
    )


def _running(*command: str) -> Callable[[], object]:
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
