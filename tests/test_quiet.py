import logging
import warnings

import pytest

from lightning_stable.quiet import quiet


def test_advice_is_not_shown_and_anything_else_is() -> None:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn("The 'val_dataloader' does not have many workers which may be a bottleneck.", stacklevel=1)
            warnings.warn("The loss is not finite.", stacklevel=1)
            assert not logger.isEnabledFor(logging.INFO)
            assert logger.isEnabledFor(logging.WARNING)
    assert [str(warning.message) for warning in shown] == ["The loss is not finite."]
    assert logger.level == level


def test_what_was_shown_before_is_shown_after_an_error() -> None:
    filters = list(warnings.filters)
    with pytest.raises(RuntimeError), quiet():
        raise RuntimeError
    assert warnings.filters == filters
