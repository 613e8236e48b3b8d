"""Figures that cannot be written: known before a run, or a warning while it goes on."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_stable.callbacks import FeedForwardShadowCallback, StateGradientCallback, TruncationProfileCallback
from lightning_stable.tensorboard import Board
from tests.callbacks.shadows import warned
from tests.helpers import Recurrent, sequences, trainer


@pytest.mark.parametrize("make", [TruncationProfileCallback, StateGradientCallback])
@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_path_that_is_a_file_is_refused_before_the_run(make: Any, below: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = trainer(tmp_path, make(figures=tmp_path / "file" / below))
    for start in (run.fit, run.validate):
        with pytest.raises(ValueError, match=r"`figures` must be the path of a folder .*through a file\. Got .*file"):
            start(Recurrent("lstm"), sequences())
    assert not run.global_step


@pytest.mark.parametrize("make", [TruncationProfileCallback, StateGradientCallback])
def test_training_goes_on_without_figures(make: Any, tmp_path: Path) -> None:
    folder = tmp_path / "figures"

    class Spoils(L.Callback):
        def on_train_start(self, *_: Any) -> None:
            folder.touch()

    run = trainer(tmp_path, make(figures=folder), Spoils(), max_epochs=3, num_sanity_val_steps=0)
    with warned("cannot be written") as messages:
        run.fit(Recurrent("lstm"), sequences(), sequences())
    assert run.global_step == 9
    assert len(messages) == 1
    assert str(folder) in messages[0]


def test_training_goes_on_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs beside the logger's own are ours."""
    own = Board.run

    def full(self: Board, name: str) -> Any:
        if name:
            raise OSError(28, "No space left on device")
        return own(self, name)

    monkeypatch.setattr(Board, "run", full)
    run = trainer(tmp_path, FeedForwardShadowCallback(2), logger=TensorBoardLogger(tmp_path), max_epochs=2)
    with warned("cannot be written") as messages:
        run.fit(Recurrent("lstm"), sequences(), sequences())
    assert run.global_step == 6
    assert len(messages) == 1
    assert "No space left" in messages[0]
