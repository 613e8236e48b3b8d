"""Jobs for other processes, which import nothing that takes long."""

import os
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

from lightning_stable.experiments.pool import Job, Report, explained_stop, run_all


def process(report: Report) -> int:
    report(1, 2, "half")
    return os.getpid()


def blocked(report: Report) -> set[int]:
    """Return the signals that this process does not see."""
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def fail(reason: str, report: Report) -> int:
    raise ValueError(reason)


def sleep(folder: Path, report: Report) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def main(folder: Path) -> None:
    """Run two jobs that do not end, each of which leaves a file of its process's name."""
    console = Console()
    jobs = [Job(name, 1.0, sleep, (folder,)) for name in ("a", "b")]
    with explained_stop(console, "Stopped."):
        run_all(jobs, 2, lambda name, result: name, console, "jobs")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except KeyboardInterrupt:  # as cli.main does
        sys.exit(130)
