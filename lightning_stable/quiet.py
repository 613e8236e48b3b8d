"""Blocks that print less: without Lightning's advice, or nothing at all."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

_ADVICE = (
    "args parameter is intended to run from within Python",  # the command line is not LightningCLI's
    "configure_optimizers.* will be overridden",  # a configuration is meant to say which optimizer
    "does not have many workers",  # small data on a few cores: workers would cost more than they bring
    "exists and is not empty",
    "have no `val_dataloader`",  # an example trains for a minute and validates nothing
    "GPU available but not used",
    "LeafSpec",  # Lightning against a newer torch
    "logging interval",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep advice that does not apply here off the screen inside the block; other warnings and errors are shown."""
    before = logging.root.manager.disable
    # Not the levels of Lightning's loggers: a package that is imported inside sets its own.
    logging.disable(max(before, logging.INFO))
    try:
        with warnings.catch_warnings():
            for message in _ADVICE:
                warnings.filterwarnings("ignore", message=f".*{message}")
            yield
    finally:
        logging.disable(before)


@contextmanager
def silent() -> Iterator[None]:
    """Run a block without warnings, log records and prints."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
