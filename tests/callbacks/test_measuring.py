"""A measurement that cannot be made ends no training."""

import math
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from lightning_stable.callbacks import StateGradientCallback, TruncationProfileCallback
from tests.helpers import Recurrent, Sequences, sequences, trainer


@pytest.mark.parametrize("kind", [StateGradientCallback, TruncationProfileCallback])
def test_inputs_that_are_no_numbers(kind: type, tmp_path: Path) -> None:
    broken = Sequences(4)
    broken.data[0, 0, 0] = math.nan
    run = trainer(tmp_path, kind(), num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match=rf"{kind.__name__} skips 'core' at this validation\. `inputs` must be finite"):
        run.fit(Recurrent("gru"), sequences(), DataLoader(broken, batch_size=2))
    assert run.global_step == 3
