"""Faults by the dozen: each run that is interrupted goes on to the same end as one that is not."""

import multiprocessing
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.faults.runs import FULL, PLACES, SIGNALS, VALIDATED, Fault, differences, forked, left_by, misses_validation

# The settings of a run: gradients accumulated or not, projected after every step or between, validated here and there.
# Strict projections of an LSTM take most of a run's time, so it is projected after every step.
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"core": nn.LSTM, "accumulate_grad_batches": 1, "every_n_steps": 1, "val_check_interval": 2},
    {"interval": "epoch", "accumulate_grad_batches": 3, "every_n_steps": 2, "val_check_interval": 2},
)


@dataclass(frozen=True)
class Case:
    """One fault: at a place, or from outside at a moment (a share of the time that a run takes)."""

    folder: Path
    settings: int
    fault: Fault | None = None
    moment: float | None = None
    signal: str = "SIGKILL"

    def __str__(self) -> str:
        where = f"at {self.fault.place}, {self.fault.visit}" if self.fault else f"at {self.moment:.2f} of the run"
        return f"{self.fault.signal if self.fault else self.signal} {where}, settings {self.settings}"


@dataclass
class Figures:
    """What became of the cases, by the kind of signal, and every case that did not end well."""

    exact: Counter[str] = field(default_factory=Counter)
    unvalidated: Counter[str] = field(default_factory=Counter)
    cases: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{name}: {self.exact[name]} of {count} resumed runs equal"
            + f", {self.unvalidated[name]} of them without the last validation" * (self.unvalidated[name] > 0)
            for name, count in self.cases.items()
        ]
        return "\n".join(lines)


def references(folder: Path) -> list[tuple[dict[str, Any], float]]:
    """Uninterrupted runs with all settings, and the seconds they take."""
    found = []
    for number, settings in enumerate(SETTINGS):
        begun = time.monotonic()
        code, result = forked(folder / f"reference-{number}", **settings)
        assert code == 0, (folder / f"reference-{number}" / "log.txt").read_text()[-2000:]
        assert result is not None
        found.append((result, time.monotonic() - begun))
    return found


def at_places(folder: Path, found: list[tuple[dict[str, Any], float]], visits: int) -> list[Case]:
    """Every signal at every place, at some of its visits by chance, the first and the last among them."""
    chance, cases = random.Random(0), []
    for number, (reference, _) in enumerate(found):
        for place in PLACES:
            count = reference["visits"][place]
            chosen = sorted({0, count - 1, *chance.choices(range(count), k=2)}) if count else []
            faults = (*SIGNALS, FULL) if place in ("on_save_checkpoint", "training_step") else SIGNALS
            for name in faults:
                visited = chance.sample(chosen, min(visits, len(chosen)))
                cases += [Case(folder, number, Fault(name, place, visit)) for visit in visited]
    return cases


def at_moments(folder: Path, found: list[tuple[dict[str, Any], float]], count: int) -> list[Case]:
    """Kills from outside, and every fourth time another signal, at moments by chance."""
    chance = random.Random(1)
    others = [name for name in SIGNALS if name != "SIGKILL"]
    kills = [Case(folder, n % len(found), None, chance.random()) for n in range(count)]
    return kills + [Case(folder, n % len(found), None, chance.random(), others[n % 3]) for n in range(count // 3)]


def run(cases: Iterable[Case], found: list[tuple[dict[str, Any], float]], workers: int = 2) -> Figures:
    """Run the cases in forks of this process."""
    global _REFERENCES
    _REFERENCES = found
    figures = Figures()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        for case, problem, unvalidated in pool.map(_outcome, list(enumerate(cases))):
            name = f"{case.fault.signal} at a place" if case.fault else f"{case.signal} at a moment"
            figures.cases[name] += 1
            figures.exact[name] += not problem
            figures.unvalidated[name] += unvalidated
            if problem:
                figures.failures.append(f"{case}: {problem}")
                print(figures.failures[-1], flush=True)
    return figures


_REFERENCES: list[tuple[dict[str, Any], float]] = []


def _outcome(numbered: tuple[int, Case]) -> tuple[Case, str, bool]:
    """The case; what is wrong with its end, nothing if it is well; and whether it misses the last validation."""
    number, case = numbered
    torch.set_num_threads(1)
    reference, seconds = _REFERENCES[case.settings]
    settings, folder = SETTINGS[case.settings], case.folder / str(number)
    try:
        moment = None if case.moment is None else case.moment * seconds
        sent = getattr(signal, case.signal)
        code, own = forked(folder, case.fault, kill_after=moment, number=sent, **settings)
        problems, unvalidated = [], False
        if own is not None and (parts := differences(reference, own)):
            problems.append(f"it went on to other {parts}")
        if case.fault is not None and case.fault.signal == FULL and code == 0:
            problems.append("nobody noticed the full disk")
        checkpoint = left_by(folder)
        again, resumed = forked(folder / "resumed", None, checkpoint, **settings)
        if resumed is None:
            problems.append(f"resumed, it ended with {again}: {(folder / 'resumed' / 'log.txt').read_text()[-500:]}")
        elif parts := differences(reference, resumed):
            unvalidated = set(parts) <= set(VALIDATED) and misses_validation(checkpoint)
            if not unvalidated:
                problems.append(f"resumed from {checkpoint}, it has other {parts}")
        return case, "; ".join(problems), unvalidated
    except TimeoutError as error:
        return case, str(error), False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
