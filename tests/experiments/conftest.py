"""Experiments without the start of other processes, each of which imports torch and Lightning first."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from lightning_stable.experiments.capacity import capacity
from lightning_stable.experiments.pool import Job
from lightning_stable.experiments.reproduce import reproduce


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do all jobs in this process, after the pickling that would take them to another one."""

    def run_all(
        jobs: list[Job], processes: int, keep: Callable[[str, Any], str], console: Console, noun: str
    ) -> dict[str, Exception]:
        failures: dict[str, Exception] = {}
        for job in jobs:
            function, arguments = pickle.loads(pickle.dumps((job.function, job.arguments)))
            try:
                console.print(keep(job.name, function(*arguments, lambda done, total, text: None)), highlight=False)
            except Exception as error:
                failures[job.name] = error
        return failures

    for module in (capacity, reproduce):
        monkeypatch.setattr(module, "run_all", run_all)
