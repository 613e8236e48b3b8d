"""Tasks that a CPU learns in minutes."""

import pytest
from lightning.pytorch import Trainer

from lightning_stable.experiments.small_tasks import SmallTask


@pytest.mark.slow
def test_what_is_tested_is_what_was_validated() -> None:
    """A trainer that averages weights loads the other ones of its checkpoint."""
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging", reason="Since Lightning 2.6.")
    task = SmallTask.load("text")
    model = task.model(1, 8)
    fitted = task.fit(model, [averaging.EMAWeightAveraging(decay=0.99)], 1)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    (again,) = trainer.validate(model, datamodule=task.data, verbose=False)
    assert again["val_loss"] == pytest.approx(fitted.validation, rel=1e-6)
    assert fitted.epoch == 1
    assert fitted.logged["val_loss"] == pytest.approx(fitted.validation)
