"""Displays the progress of tuning, and prints the results of a study."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from rich import box
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from diptych.cli.output import console, print_line, print_table
from diptych.core.terminal import visible
from diptych.training.report.events import StepReport
from diptych.training.validation import Validation
from diptych.tuning.space import Space
from diptych.tuning.study import Row, best_of
from diptych.tuning.verdict import METRIC_NAMES, sentences, shown_score, verdict

_REFRESH_S = 0.5
_MAX_SHOWN = 20
_MAX_LISTED = 100
"""Maximum number of trials for which `print_study` lists all of them."""


class TuneDisplay:
    """Shows the trials of a study: a live table on a terminal, or one line per trial elsewhere.

    Args:
        space: the search space.
        folder: folder of the study.
        trials: total number of trials.
    """

    def __init__(self, space: Space, folder: Path, *, trials: int) -> None:
        self._space, self._folder, self._trials = space, folder, trials
        self._metric = space.base.validation.metric
        self.rows: list[Row] = []
        """The trials at the last update."""
        self._printed: set[int] = set()
        self._progress, self._shown_at, self._has_warned = 0.0, 0.0, False
        self._live = Live(console=console(), auto_refresh=False, transient=True) if console().is_terminal else None
        if self._live:
            self._live.start()
        names = ", ".join(dimension.name for dimension in space.dimensions)
        print_line(f"Tuning {space.base.recipe}: {names}; metric: {METRIC_NAMES[self._metric]}")

    def on_rows(self, found: list[Row]) -> None:
        """Update the table with the current trials. Without a terminal, print a line for each trial that has ended."""
        self.rows, self._progress = found, 0.0
        self._warn_if_too_short(found)
        if self._live:
            self._refresh()
            return
        for row in found:
            if row.is_over and row.number not in self._printed:
                self._printed.add(row.number)
                print_line(self._line(row))

    def _warn_if_too_short(self, rows: list[Row]) -> None:
        """Warn once if a trial ended during its warm-up, because its result does not depend on the peak learning rate."""
        warmup = self._space.base.schedule.warmup_steps
        shortest = min((row.results["steps"] for row in rows if "steps" in row.results), default=warmup + 1)
        if shortest <= warmup and not self._has_warned:
            self._has_warned = True
            problem = f"A trial has {shortest} steps, and the warm-up {warmup}: no learning rate is ever reached."
            print_line(f"{problem} Make trials longer, or set --schedule.warmup-steps")

    def on_step(self, report: StepReport) -> None:
        """Update the progress of the current trial."""
        self._progress = report.progress
        if self._live and time.monotonic() - self._shown_at > _REFRESH_S:
            self._refresh()

    def on_validation(self, step: int, validation: Validation) -> None:
        """Do nothing: the events of the trial contain the validation."""

    def on_message(self, text: str) -> None:
        """Do nothing: the events of the trial contain the message."""

    def close(self) -> None:
        """Do nothing: the table stays until `end`, over all trials."""

    def end(self) -> None:
        """Remove the table from the terminal."""
        if self._live:
            self._live.stop()

    def _refresh(self) -> None:
        assert self._live is not None
        self._shown_at = time.monotonic()
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for number, heading in enumerate(_headings(self._space, self._metric)):
            table.add_column(Text(visible(heading)), justify="right" if number else "left", overflow="fold")
        for row in self.rows[-_MAX_SHOWN:]:
            state = f"{self._progress:.0%}" if row.state == "running" else row.state
            table.add_row(*(Text(visible(cell)) for cell in _cells(row, self._space, state=state)))
        self._live.update(Group(table, Text(), Text(self._summary(), style="bold")), refresh=True)

    def _summary(self) -> str:
        counts = {state: sum(row.state == state for row in self.rows) for state in ("done", "pruned", "failed")}
        best = best_of(self.rows)
        ended = [row for row in self.rows if row.is_over]
        so_far = "" if best is None else f"; best {shown_score(best.score, self._metric)} (trial {best.number})"
        numbers = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state == "done")
        return f"{numbers} of {self._trials}{so_far}{_time_left(ended, self._trials - len(ended))}"

    def _line(self, row: Row) -> str:
        settings = "  ".join(f"{name} {_short(value)}" for name, value in row.settings.items())
        score = f"{METRIC_NAMES[self._metric]} {shown_score(row.score, self._metric)}" if row.score is not None else ""
        seconds = "" if row.seconds is None else f"  {row.seconds:.0f} s"
        state = f"{row.state} {_kind(row)}".rstrip()
        return f"trial {row.number:>3}  {state:<8}  {row.reason or score}  {settings}{seconds}"


def print_study(space: Space, rows: Sequence[Row]) -> None:
    """Print the trials of a study as a table, and its conclusions.

    If there are more than 100 trials, only the recipe's own, the best 50, the last 50 and the unfinished ones are listed.

    Args:
        space: the search space.
        rows: the trials.
    """
    metric = space.base.validation.metric
    listed = _listed(rows)
    cells = [_cells(row, space, state=row.state) for row in listed]
    print_table(f"{len(rows)} trials", _headings(space, metric), cells)
    if len(listed) < len(rows):
        num = len(rows) - len(listed)
        print_line(f"{num} others, neither among the best nor among the last, are not listed; trials.csv has all")
    for row in listed:
        if row.reason is not None:
            print_line(f"Trial {row.number} failed: {row.reason}")
    conclusion = verdict(rows, seed=space.base.seed)
    for line in sentences(conclusion, metric) if conclusion is not None else ["No trial is done."]:
        print_line(line)


def _listed(rows: Sequence[Row]) -> list[Row]:
    if len(rows) <= _MAX_LISTED:
        return list(rows)
    num = _MAX_LISTED // 2
    done = sorted((row for row in rows if row.state == "done"), key=lambda row: row.score or 0, reverse=True)
    numbers = {row.number for row in (*done[:num], *rows[-num:])}
    return [row for row in rows if row.number in numbers or row.is_recipe or not row.is_over]


def _headings(space: Space, metric: str) -> list[str]:
    return ["trial", "", metric, *(dimension.name for dimension in space.dimensions)]


def _cells(row: Row, space: Space, *, state: str) -> list[str]:
    values = [_short(row.settings[d.name]) if d.name in row.settings else "" for d in space.dimensions]
    return [f"{row.number} {_kind(row)}".rstrip(), state, shown_score(row.score, space.base.validation.metric), *values]


def _kind(row: Row) -> str:
    if row.repeat_of is not None:
        return f"(= {row.repeat_of}, seed {row.seed})"
    return "(recipe)" if row.is_recipe else ""


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _time_left(ended: Sequence[Row], num_left: int) -> str:
    seconds = [row.seconds for row in ended if row.seconds is not None]
    if not seconds or num_left <= 0:
        return ""
    return f"; about {max(1, round(num_left * mean(seconds) / 60))} min left"
