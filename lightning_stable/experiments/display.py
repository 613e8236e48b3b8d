"""The progress of jobs: bars on a terminal, and now and then a line in a file."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from typing_extensions import Self

from lightning_stable.experiments.timetable import Expected, Timetable, duration

# Seconds until the first line where there is no terminal, and between lines.
_FIRST, _BETWEEN = 15.0, 60.0


class Display:
    """Shows jobs that run side by side; to be used as a context.

    Args:
        jobs: What is expected of the jobs.
        processes: How many run at a time.
        console: Where it is shown.
        noun: The word for the jobs, in the plural.
    """

    def __init__(self, jobs: Sequence[Expected], processes: int, console: Console, noun: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[value]}"))
        self._progress = Progress(
            *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self._whole = self._progress.add_task(f"{len(jobs)} {noun}", total=None, value="")
        self._bars: dict[str, Any] = {
            job.name: self._progress.add_task(job.name, visible=False, value="") for job in jobs
        }
        self._times = Timetable(jobs, processes)
        self._texts: dict[str, str] = {}  # of the jobs that run
        self._next = _FIRST

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, name: str) -> None:
        """Show that a job begins."""
        if name in self._bars:  # a message may come after the result
            self._times.begin(name)
            self._update(name, 0, 1, "starts")

    def report(self, name: str, done: int, total: int, text: str) -> None:
        """Show how much of a job is done."""
        if name in self._bars:
            self._times.report(name, done / total)
            self._update(name, done, total, text)

    def finish(self, name: str, line: str) -> None:
        """Show that a job is finished, and print a line about it."""
        self._times.finish(name)
        self._hide(name)
        self._progress.console.print(line, highlight=False)

    def fail(self, name: str) -> None:
        """Show that a job is over."""
        self._times.fail(name)
        self._hide(name)

    def refresh(self) -> None:
        """Show how long all of them still take; where there is no terminal, a line now and then."""
        elapsed, left = self._times.elapsed, self._times.left
        self._progress.update(
            self._whole, completed=elapsed, total=elapsed + left, value=f"about {duration(left)} left"
        )
        if not self._progress.console.is_terminal and elapsed >= self._next and self._texts:
            self._next = elapsed + _BETWEEN
            running = "; ".join(f"{name}: {text}" for name, text in self._texts.items())
            self._progress.console.print(f"{running}; about {duration(left)} left", highlight=False, soft_wrap=True)

    def _update(self, name: str, done: int, total: int, text: str) -> None:
        self._texts[name] = text
        self._progress.update(self._bars[name], visible=True, completed=done, total=total, value=text)

    def _hide(self, name: str) -> None:
        self._texts.pop(name, None)
        self._progress.update(self._bars.pop(name), visible=False)
