"""How much longer jobs take: what was expected of them, corrected by what was measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_stable.printing import counted

# From this share of a job on its speed says more than what was expected.
_ENOUGH = 0.02


@dataclass(frozen=True)
class Expected:
    """What is expected of a job.

    Attributes:
        name: Its name.
        seconds: About how long it takes.
        may_end_early: Whether it may end before the total it reports, so that its speed does not say when.
    """

    name: str
    seconds: float
    may_end_early: bool = False


@dataclass
class _Measured:
    start: float
    first: float | None = None  # the share done at the first report: more than 0 for a job that goes on
    first_time: float = 0.0
    share: float = 0.0
    seconds: float | None = None  # once it is finished


class Timetable:
    """Jobs side by side, and how much longer they take.

    Args:
        jobs: The jobs.
        processes: How many run at a time.
        clock: The time in seconds.
    """

    def __init__(self, jobs: Sequence[Expected], processes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._expected = {job.name: job for job in jobs}
        self._processes, self._clock = processes, clock
        self._measured: dict[str, _Measured] = {}
        self._failed: set[str] = set()
        self._start = clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def left(self) -> float:
        """Seconds until all jobs are finished."""
        running = [
            self._left(self._expected[name], measured)
            for name, measured in self._measured.items()
            if measured.seconds is None and name not in self._failed
        ]
        waiting = [job.seconds for name, job in self._expected.items() if name not in self._measured]
        together = (sum(running) + sum(waiting) * self._factor()) / self._processes
        return max([together, *running])

    def begin(self, name: str) -> None:
        """A job begins."""
        self._measured[name] = _Measured(self._clock())

    def report(self, name: str, share: float) -> None:
        """A share of a job is done."""
        measured = self._measured[name]
        measured.share = share
        if measured.first is None:
            measured.first, measured.first_time = share, self._clock()

    def finish(self, name: str) -> None:
        """A job is finished."""
        measured = self._measured.setdefault(name, _Measured(self._clock()))
        measured.seconds = self._clock() - measured.start

    def fail(self, name: str) -> None:
        """A job has failed, and says nothing about the others."""
        self._measured.setdefault(name, _Measured(self._clock()))
        self._failed.add(name)

    def _left(self, job: Expected, measured: _Measured) -> float:
        spent = self._clock() - measured.start
        expected = job.seconds * (1 - (measured.first or 0.0)) * self._factor() - spent
        by_speed = self._by_speed(measured)
        if by_speed is None:
            return max(expected, 0.1 * spent)
        # A job that has taken longer than was expected may as well go on to its end.
        return min(by_speed, expected) if job.may_end_early and expected > 0 else by_speed

    def _by_speed(self, measured: _Measured) -> float | None:
        """Seconds until the end of a job if it goes on as fast as it did; None if that is not known yet."""
        done = measured.share - (measured.first or 0.0)
        return (self._clock() - measured.first_time) * (1 - measured.share) / done if done >= _ENOUGH else None

    def _factor(self) -> float:
        """How much longer jobs take than was expected."""
        took = expected = 0.0
        for name, measured in self._measured.items():
            job, seconds = self._expected[name], measured.seconds
            if seconds is None and not job.may_end_early and (by_speed := self._by_speed(measured)) is not None:
                seconds = self._clock() - measured.start + by_speed
            if seconds is not None and name not in self._failed:
                took += seconds
                expected += job.seconds * (1 - (measured.first or 0.0))
        return took / expected if expected > 0 else 1.0


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: ``40 seconds``, ``5 hours 20 minutes``, ``236 days 3 hours``."""
    if seconds < 90:
        return counted(round(seconds), "second")
    hours, minutes = divmod(round(seconds / 60), 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "day"), (hours, "hour"), (minutes, "minute")]
    while not parts[0][0]:
        parts.pop(0)
    return " ".join(counted(count, unit) for count, unit in parts[:2] if count)
