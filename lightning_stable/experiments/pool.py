"""Jobs side by side, each in its own process, until all are done or a signal ends them."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from rich.console import Console

from lightning_stable.experiments.display import Display
from lightning_stable.experiments.timetable import Expected

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
        may_end_early: Whether it may end before the total it reports.
    """

    name: str
    seconds: float
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    may_end_early: bool = False


def run_all(
    jobs: Sequence[Job], processes: int, keep: Callable[[str, Any], str], console: Console, noun: str
) -> dict[str, Exception]:
    """Do jobs side by side, in their order. No process is left when this ends, in whatever way.

    Args:
        jobs: The jobs, of different names.
        processes: The number of jobs at the same time.
        keep: Called with the name and the result of every finished job; what it returns is printed.
        console: Shows the progress.
        noun: The word for the jobs, in the plural.

    Returns:
        The errors of the jobs that failed, by name.

    Raises:
        SystemExit: On SIGTERM or SIGHUP, with the exit status of a process that the signal ends.
    """
    failures: dict[str, Exception] = {}
    if not jobs:
        return failures
    context = multiprocessing.get_context("spawn")  # a process with threads must not be forked
    messages = context.Queue()
    processes = min(processes, len(jobs))
    expected = [Expected(job.name, job.seconds, job.may_end_early) for job in jobs]
    others = set(multiprocessing.active_children())
    with _exit_on_signals(), Display(expected, processes, console, noun) as display:
        executor = ProcessPoolExecutor(processes, context, _begin, (messages,))
        try:
            with _without_interrupts():
                pending = {executor.submit(_work, job): job for job in jobs}
            while pending:
                done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                _show(messages, display)
                for future in done:
                    job = pending.pop(future)
                    try:
                        result = future.result()
                    except Exception as error:  # the others go on
                        failures[job.name] = error
                        display.fail(job.name)
                    else:
                        display.finish(job.name, keep(job.name, result))
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise
        finally:
            executor.shutdown(cancel_futures=True)
    return failures


@contextmanager
def explained_stop(console: Console, text: str) -> Iterator[None]:
    """Print a text if Ctrl-C or a signal ends the block."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        console.print(text, highlight=False, soft_wrap=True)
        raise


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


def end_with_parent() -> None:
    """End this process when the one that started it is gone, however it went."""

    def wait_for_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()


# Inside the processes of the jobs -------------------------------------------------------------------------------------
_messages: Any = None  # a queue can be handed to a process only when it starts


def _begin(messages: Any) -> None:
    global _messages
    _messages = messages
    end_with_parent()


def _work(job: Job) -> Any:
    def report(done: int, total: int, text: str) -> None:
        _messages.put((job.name, done, total, text))

    report(0, 0, "starts")
    return job.function(*job.arguments, report)


# In the process that waits for them -----------------------------------------------------------------------------------
def _show(messages: Any, display: Display) -> None:
    while True:
        try:
            name, done, total, text = messages.get_nowait()
        except queue.Empty:
            break
        if total:
            display.report(name, done, total, text)
        else:
            display.begin(name)
    display.refresh()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes that Ctrl-C, which reaches all processes of a terminal, does not interrupt: this one ends them.

    They inherit what is blocked, and it holds before they run any code.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Let signals that would end the process at once raise SystemExit instead, the first time."""

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    taken = []
    if threading.current_thread() is threading.main_thread():  # which alone may set handlers
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        taken = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
