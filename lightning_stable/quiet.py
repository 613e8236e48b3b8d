"""Lightning without its advice."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("lightning.pytorch", "lightning.fabric")
_ADVICE = (
    "args parameter is intended to run from within Python",  # the command line is not LightningCLI's
    "configure_optimizers.* will be overridden",  # a configuration is meant to say which optimizer
    "does not have many workers",  # small data on a few cores: workers would cost more than they bring
    "exists and is not empty",
    "GPU available but not used",
    "LeafSpec",  # Lightning against a newer torch
    "logging interval",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep advice that does not apply here off the screen inside the block; other warnings and errors are shown."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _ADVICE:
                warnings.filterwarnings("ignore", message=f".*{message}")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
