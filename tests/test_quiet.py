"""Blocks that print less, and put everything back."""

import contextlib
import logging
import warnings

import pytest

from lightning_stable.quiet import quiet, silent

LIGHTNING = logging.getLogger("lightning.pytorch")


def test_advice_is_not_shown_and_anything_else_is() -> None:
    logger = logging.getLogger("lightning.pytorch")
    before = logging.root.manager.disable
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn("The 'val_dataloader' does not have many workers which may be a bottleneck.", stacklevel=1)
            warnings.warn("The loss is not finite.", stacklevel=1)
            logger.setLevel(logging.INFO)  # as a package does that is imported inside
            assert not logger.isEnabledFor(logging.INFO)
            assert logger.isEnabledFor(logging.WARNING)
    assert [str(warning.message) for warning in shown] == ["The loss is not finite."]
    assert logging.root.manager.disable == before


def test_what_was_shown_before_is_shown_after_an_error() -> None:
    filters = list(warnings.filters)
    with pytest.raises(RuntimeError), quiet():
        raise RuntimeError
    assert warnings.filters == filters


def test_a_silent_block(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.suppress(KeyError), silent():
        print("out")
        warnings.warn("a warning", stacklevel=1)
        LIGHTNING.critical("a record")
        raise KeyError
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    with pytest.warns(UserWarning, match="later"):
        warnings.warn("later", stacklevel=1)
    LIGHTNING.critical("later")
    assert [record.message for record in caplog.records] == ["later"]
