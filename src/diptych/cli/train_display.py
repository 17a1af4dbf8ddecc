"""Displays the progress of training: a live panel on a terminal, or a line every ten seconds elsewhere."""

import math
import time

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from diptych.core.formatting import percent
from diptych.core.terminal import visible
from diptych.training.report.events import StepReport
from diptych.training.validation import Metric, Validation

_PLAIN_LINE_S = 10.0
_REFRESH_S = 0.25


class Display:
    """Shows the loss and its chance level ln(N), the accuracies within the batch, the speed and the remaining time.

    Args:
        title: title of the panel.
        batch_size: number of pairs per step, N.
        metric: the validation metric to show.
        console: where to print.
    """

    def __init__(self, title: str, *, batch_size: int, metric: Metric, console: Console) -> None:
        self._title = Text(visible(title))
        self._metric = metric
        self._batch_size = batch_size
        self._console = console
        self._shown_at = -math.inf
        self._validation: tuple[int, Validation] | None = None
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=True) if self._console.is_terminal else None
        )
        if self._live:
            self._live.start()

    def on_step(self, report: StepReport) -> None:
        """Refresh the panel, or print a line if the last one is at least ten seconds old."""
        now = time.monotonic()
        if now - self._shown_at < (_REFRESH_S if self._live else _PLAIN_LINE_S):
            return
        self._shown_at = now
        if self._live:
            self._live.update(self._panel(report), refresh=True)
        else:
            self._console.print(self._line(report), soft_wrap=True, highlight=False)

    def on_validation(self, step: int, validation: Validation) -> None:
        """Show a validation in the panel, or print it as a line."""
        self._validation = (step, validation)
        if not self._live:
            self._console.print(f"step {step:>6}  {self._describe(validation)}", soft_wrap=True, highlight=False)

    def on_message(self, text: str) -> None:
        """Print a message above the panel."""
        self._console.print(visible(text, keep="\n"), highlight=False, markup=False, emoji=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the panel."""
        if self._live:
            self._live.stop()

    def _panel(self, report: StepReport) -> Panel:
        result = report.result
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column()
        chance = f"[dim](chance: ln {self._batch_size} = {math.log(self._batch_size):.2f})[/]"
        table.add_row("loss", f"[bold]{result.loss:.3f}[/]  {chance}")
        table.add_row(
            "batch accuracy", f"image to text {result.image_to_text:4.0%}   text to image {result.text_to_image:4.0%}"
        )
        table.add_row("speed", f"{report.pairs_per_s:,.0f} pairs/s   waiting for data {report.data_wait:.1%}")
        if use := _gpu_use(report):
            table.add_row("GPU", use)
        if self._validation:
            table.add_row("validation", self._describe(self._validation[1]) + f" [dim](step {self._validation[0]})[/]")
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column()
        bar.add_column(ratio=1)
        bar.add_column(justify="right")
        position = f"step {report.step:,}, epoch {report.epoch:.1f}"
        bar.add_row(position, ProgressBar(total=1.0, completed=report.progress), f"{_clock(report.seconds_left)} left")
        return Panel(Group(bar, Text(), table), title=self._title, title_align="left", border_style="dim", width=78)

    def _describe(self, validation: Validation) -> str:
        if self._metric == "zero_shot" and validation.zero_shot is not None:
            return f"loss {validation.loss:.3f}  zero-shot {percent(validation.zero_shot)}"
        image_to_text, text_to_image = validation.retrieval.image_to_text, validation.retrieval.text_to_image
        return (
            f"loss {validation.loss:.3f}  R@1 {100 * image_to_text.r1:.1f} / {100 * text_to_image.r1:.1f}"
            f"  R@10 {100 * image_to_text.r10:.1f} / {100 * text_to_image.r10:.1f}"
        )

    def _line(self, report: StepReport) -> str:
        result = report.result
        use = f"  {use}" if (use := _gpu_use(report)) else ""
        return (
            f"step {report.step:>6}  {report.progress:4.0%}  loss {result.loss:.3f} (ln N {math.log(self._batch_size):.2f})"
            f"  i2t {result.image_to_text:.0%}  t2i {result.text_to_image:.0%}  {report.pairs_per_s:,.0f} pairs/s{use}"
            f"  wait {report.data_wait:.1%}  {_clock(report.seconds_left)} left"
        )


def _gpu_use(report: StepReport) -> str:
    """Utilization and peak memory, as far as they are known."""
    uses = []
    if report.utilization is not None:
        uses.append(f"{report.utilization:.0%} of peak rate")
    if report.peak_memory_bytes is not None:
        uses.append(f"{report.peak_memory_bytes / 2**30:.1f} GiB")
    return ", ".join(uses)


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
