"""Blocks that print less: context managers that put everything back at their end."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

# What Lightning remarks about small runs on a CPU, and about a torch that is newer than itself.
_REMARKS = ("does not have many workers", "GPU available but not used", "LeafSpec")


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Run a block without warnings, log records and prints."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def without_remarks(*more: str) -> Iterator[None]:
    """Run a block without Lightning's remarks about the machine and the size of the run; other warnings are shown.

    Args:
        more: Parts of the messages of further warnings to leave out, as regular expressions.
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in (*_REMARKS, *more):
            warnings.filterwarnings("ignore", message=f".*{message}.*")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
