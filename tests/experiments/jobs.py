"""Jobs for other processes, which import nothing that takes long."""

import os

from lightning_stable.experiments.pool import Report


def process(report: Report) -> int:
    report(1, 2, "half")
    return os.getpid()


def fail(reason: str, report: Report) -> int:
    raise ValueError(reason)
