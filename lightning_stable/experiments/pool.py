"""Jobs side by side, each in its own process, with their progress."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Called inside a job with how much is done, of how much, and a text to show.
Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        name: The name that is shown with its progress.
        seconds: About how long the job takes.
        function: Called with the arguments and a :data:`Report`; it and they must survive pickling.
        arguments: The arguments.
    """

    name: str
    seconds: float
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _Sender:
    """Sends the progress of a job to the process that shows it."""

    messages: Any
    name: str

    def __call__(self, done: int, total: int, text: str) -> None:
        self.messages.put((self.name, done, total, text))


def run_all(
    jobs: Sequence[Job], processes: int, keep: Callable[[str, Any], str], console: Console, noun: str
) -> dict[str, Exception]:
    """Do jobs side by side, the longest first.

    Args:
        jobs: The jobs, of different names.
        processes: The number of jobs at the same time.
        keep: Called with the name and the result of every finished job; what it returns is printed.
        console: Shows the progress.
        noun: The word for the jobs, in the plural.

    Returns:
        The errors of the jobs that failed, by name.
    """
    failures: dict[str, Exception] = {}
    if not jobs:
        return failures
    context = multiprocessing.get_context("spawn")  # a process with threads must not be forked
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[value]}"))
    progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
    with context.Manager() as manager, progress:
        messages = manager.Queue()
        whole = progress.add_task(f"{len(jobs)} {noun}", total=sum(job.seconds for job in jobs), value="")
        bars = {job.name: progress.add_task(job.name, visible=False, value="") for job in jobs}
        executor = ProcessPoolExecutor(processes, mp_context=context, initializer=end_with_parent)
        try:
            pending = {
                executor.submit(job.function, *job.arguments, _Sender(messages, job.name)): job
                for job in sorted(jobs, key=lambda job: -job.seconds)
            }
            while pending:
                done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                _show(messages, progress, bars)
                for future in done:
                    job = pending.pop(future)
                    progress.update(bars[job.name], visible=False)
                    progress.advance(whole, job.seconds)
                    try:
                        result = future.result()
                    except Exception as error:  # the others go on
                        failures[job.name] = error
                    else:
                        progress.console.print(keep(job.name, result), highlight=False)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
    return failures


def default_processes() -> int:
    """Return how many jobs run side by side: one per core; an accelerator takes one after the other."""
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return 1
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def one_thread() -> None:
    """Let torch use one thread unless the environment says how many: processes share the cores among themselves."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def duration(seconds: float) -> str:
    """Return a duration in words: ``12 minutes`` or ``40 seconds``."""
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def end_with_parent() -> None:
    """End this process when the one that started it is gone, however it went."""

    def wait_for_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()


def _show(messages: Any, progress: Progress, bars: dict[str, Any]) -> None:
    while True:
        try:
            name, done, total, text = messages.get_nowait()
        except queue.Empty:
            return
        progress.update(bars[name], visible=True, completed=done, total=total, value=text)
