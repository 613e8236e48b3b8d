"""Names in `input_bound` are names of recurrences, in every callback that takes it."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_stable import callbacks
from lightning_stable.datamodules import LinearSystemDataModule
from lightning_stable.models import SequenceRegressor
from tests.helpers import trainer

TAKING = [
    kind
    for kind in (getattr(callbacks, name) for name in callbacks.__all__)
    if "input_bound" in inspect.signature(kind).parameters
]


@pytest.mark.parametrize("kind", TAKING)
def test_a_name_of_nobody_ends_the_run_at_its_start(kind: Any, tmp_path: Path) -> None:
    model = SequenceRegressor(4, 2, hidden_size=4)
    data = LinearSystemDataModule(train_size=4, valid_size=4, test_size=4, batch_size=2, length=5)
    with pytest.raises((MisconfigurationException, ValueError), match=r"`input_bound` names no .* Got key 'nobody'"):
        trainer(tmp_path, kind(input_bound={"nobody": 1.0}), max_epochs=1).fit(model, data)
    trainer(tmp_path, kind(input_bound={"core": 9.0, "core.l0": 9.0}), max_epochs=1).fit(model, data)
