"""What tuning shows: a live table on a terminal, a line a trial elsewhere, and the table of a study."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from rich import box
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from diptych.cli.output import console, print_table, say
from diptych.core.terminal import visible
from diptych.training.report.events import StepReport
from diptych.training.validation import Validation
from diptych.tuning.space import Space
from diptych.tuning.study import Row, best_of
from diptych.tuning.verdict import METRIC_NAMES, sentences, shown_score, verdict

_REFRESH_S = 0.5
_MAX_SHOWN = 20
_MAX_LISTED = 100
"""Longest table of a study in which all trials are listed."""


class TuneDisplay:
    """Trials as they come and go: done, pruned, the best so far, time left."""

    def __init__(self, space: Space, folder: Path, *, trials: int) -> None:
        self._space, self._folder, self._trials = space, folder, trials
        self._metric = space.base.validation.metric
        self._rows: list[Row] = []
        self._told: set[int] = set()
        self._progress, self._shown_at, self._has_warned = 0.0, 0.0, False
        self._live = Live(console=console(), auto_refresh=False, transient=True) if console().is_terminal else None
        if self._live:
            self._live.start()
        tried = ", ".join(dimension.name for dimension in space.dimensions)
        say(f"Tuning {space.base.recipe}: {tried}; {METRIC_NAMES[self._metric]} decides")

    @property
    def rows(self) -> list[Row]:
        """The trials as they stood last."""
        return self._rows

    def on_rows(self, found: list[Row]) -> None:
        """Show them; elsewhere than on a terminal, a line for each that is newly over."""
        self._rows, self._progress = found, 0.0
        self._say_if_too_short(found)
        if self._live:
            self._refresh()
            return
        for row in found:
            if row.is_over and row.number not in self._told:
                self._told.add(row.number)
                say(self._line(row))

    def _say_if_too_short(self, found: list[Row]) -> None:
        """A trial that ends in its warm-up says nothing about the learning rate."""
        warmup = self._space.base.schedule.warmup_steps
        shortest = min((row.results["steps"] for row in found if "steps" in row.results), default=warmup + 1)
        if shortest <= warmup and not self._has_warned:
            self._has_warned = True
            said = f"A trial has {shortest} steps, and the warm-up {warmup}: no learning rate is ever reached."
            say(f"{said} Make trials longer, or set --schedule.warmup-steps")

    def on_step(self, report: StepReport) -> None:
        """How far the trial under way is."""
        self._progress = report.progress
        if self._live and time.monotonic() - self._shown_at > _REFRESH_S:
            self._refresh()

    def on_validation(self, step: int, validation: Validation) -> None:
        """The trials' own events have it."""

    def on_message(self, text: str) -> None:
        """The trials' own events have it."""

    def close(self) -> None:
        """A trial's training is over, or all are."""

    def end(self) -> None:
        """Take the table away."""
        if self._live:
            self._live.stop()

    def _refresh(self) -> None:
        assert self._live is not None
        self._shown_at = time.monotonic()
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for number, heading in enumerate(_headings(self._space, self._metric)):
            table.add_column(Text(visible(heading)), justify="right" if number else "left", overflow="fold")
        for row in self._rows[-_MAX_SHOWN:]:
            running = f"{self._progress:.0%}" if row.state == "running" else row.state
            table.add_row(*(Text(visible(cell)) for cell in _cells(row, self._space, self._metric, state=running)))
        self._live.update(Group(table, Text(), Text(self._summary(), style="bold")), refresh=True)

    def _summary(self) -> str:
        counts = {state: sum(row.state == state for row in self._rows) for state in ("done", "pruned", "failed")}
        best = best_of(self._rows)
        over = [row for row in self._rows if row.is_over]
        so_far = "" if best is None else f"; best {shown_score(best.score, self._metric)} (trial {best.number})"
        numbers = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state == "done")
        return f"{numbers} of {self._trials}{so_far}{_time_left(over, self._trials - len(over))}"

    def _line(self, row: Row) -> str:
        settings = "  ".join(f"{name} {_short(value)}" for name, value in row.settings.items())
        score = f"{METRIC_NAMES[self._metric]} {shown_score(row.score, self._metric)}" if row.score is not None else ""
        took = "" if row.seconds is None else f"  {row.seconds:.0f} s"
        return f"trial {row.number:>3}  {_what(row):<8}  {row.reason or score}  {settings}{took}"


def print_study(space: Space, found: Sequence[Row]) -> None:
    """The trials as a table, and what follows from them.

    Of more than 100 trials the recipe's own, the 50 best, the 50 last and those that are not over are listed.
    """
    metric = space.base.validation.metric
    listed = _listed(found)
    cells = [_cells(row, space, metric, state=row.state) for row in listed]
    print_table(f"{len(found)} trials", _headings(space, metric), cells)
    if len(listed) < len(found):
        say(
            f"{len(found) - len(listed)} others, neither among the best nor among the last, are not listed; trials.csv has all"
        )
    for row in listed:
        if row.reason is not None:
            say(f"Trial {row.number} failed: {row.reason}")
    reached = verdict(found, seed=space.base.seed)
    for line in sentences(reached, metric) if reached is not None else ["No trial is done."]:
        say(line)


def _listed(found: Sequence[Row]) -> list[Row]:
    if len(found) <= _MAX_LISTED:
        return list(found)
    num = _MAX_LISTED // 2
    done = sorted((row for row in found if row.state == "done"), key=lambda row: row.score or 0, reverse=True)
    numbers = {row.number for row in (*done[:num], *found[-num:])}
    return [row for row in found if row.number in numbers or row.is_recipe or not row.is_over]


def _headings(space: Space, metric: str) -> list[str]:
    return ["trial", "", metric, *(dimension.name for dimension in space.dimensions)]


def _cells(row: Row, space: Space, metric: object, *, state: str) -> list[str]:
    settings: Mapping[str, object] = row.settings
    shown = [_short(settings[d.name]) if d.name in settings else "" for d in space.dimensions]
    return [f"{row.number} {_kind(row)}".rstrip(), state, shown_score(row.score, space.base.validation.metric), *shown]


def _kind(row: Row) -> str:
    if row.repeat_of is not None:
        return f"(= {row.repeat_of}, seed {row.seed})"
    return "(recipe)" if row.is_recipe else ""


def _what(row: Row) -> str:
    return f"{row.state} {_kind(row)}".rstrip()


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _time_left(over: Sequence[Row], left: int) -> str:
    seconds = [row.seconds for row in over if row.seconds is not None]
    if not seconds or left <= 0:
        return ""
    return f"; about {max(1, round(left * mean(seconds) / 60))} min left"
