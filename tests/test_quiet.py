"""Blocks that print less, and put everything back."""

import contextlib
import logging
import warnings

import pytest

from lightning_stable.quiet import silent, without_remarks

LIGHTNING = logging.getLogger("lightning.pytorch")


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


def test_remarks_are_left_out_and_warnings_shown() -> None:
    level = LIGHTNING.level
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.suppress(KeyError), without_remarks("of my own"):
            assert LIGHTNING.level == logging.WARNING
            for message in ("The loader does not have many workers", "one of my own remarks", "serious"):
                warnings.warn(message, stacklevel=1)
            raise KeyError
        warnings.warn("one of my own remarks, later", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["serious", "one of my own remarks, later"]
    assert LIGHTNING.level == level
