"""Runs side by side in processes of their own, with their progress."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lightning_stable.reproduce.task import Run, Task
from lightning_stable.reproduce.train import Row, train


@dataclass(frozen=True)
class _Sender:
    """Sends the progress of a run to the process that shows it."""

    messages: Any
    name: str

    def __call__(self, epoch: int, epochs: int, value: float) -> None:
        self.messages.put((self.name, epoch, epochs, value))


def train_all(
    task: Task,
    runs: Sequence[tuple[Run, Path, Path]],
    jobs: int,
    keep: Callable[[Run, Row], None],
    console: Console,
) -> dict[str, Exception]:
    """Train runs side by side, the longest first.

    Args:
        task: Their task.
        runs: Each with its folder and its configuration.
        jobs: Runs at the same time.
        keep: Called with every finished run and its row.
        console: Shows the progress.

    Returns:
        The errors of the runs that failed, by name.
    """
    failures: dict[str, Exception] = {}
    if not runs:
        return failures
    context = multiprocessing.get_context("spawn")  # what a fork of a process with threads does is undefined
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[value]}"))
    progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
    with context.Manager() as manager, progress:
        messages = manager.Queue()
        whole = progress.add_task(f"{len(runs)} models", total=sum(run.seconds for run, _, _ in runs), value="")
        bars = {run.name: progress.add_task(run.name, visible=False, value="") for run, _, _ in runs}
        executor = ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_with_parent)
        try:
            pending = {
                executor.submit(train, task, run, folder, config, _Sender(messages, run.name)): run
                for run, folder, config in sorted(runs, key=lambda each: -each[0].seconds)
            }
            while pending:
                done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                _show(messages, progress, bars, task.metric.scale)
                for future in done:
                    run = pending.pop(future)
                    progress.update(bars[run.name], visible=False)
                    progress.advance(whole, run.seconds)
                    try:
                        row = future.result()
                    except Exception as error:  # the others go on
                        failures[run.name] = error
                    else:
                        keep(run, row)
                        progress.console.print(_line(run, row), highlight=False)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
    return failures


def _end_with_parent() -> None:
    """Let this process end when the one that started it is gone, however it went."""

    def wait_for_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()


def _show(messages: Any, progress: Progress, bars: dict[str, Any], scale: float) -> None:
    while True:
        try:
            name, epoch, epochs, value = messages.get_nowait()
        except queue.Empty:
            return
        shown = f"epoch {epoch} of {epochs}, validation {value * scale:.4g}"
        progress.update(bars[name], visible=True, completed=epoch, total=epochs, value=shown)


def _line(run: Run, row: Row) -> str:
    return f"{run.name}: {row['metric']} {row['test']:.4g} in {row['seconds']:.0f} s, {row['epochs']} epochs"
