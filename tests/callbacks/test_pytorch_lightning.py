"""All callbacks on a Trainer of ``pytorch_lightning``, whose classes are not those of ``lightning.pytorch``."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_stable import certify
from lightning_stable.callbacks import (
    FeedForwardShadowCallback,
    StabilityProjectionCallback,
    StableModelCheckpoint,
    StateGradientCallback,
    TruncationProfileCallback,
)
from tests.callbacks.shadows import WHOLE
from tests.helpers import FEATURES, UNITS, equal, sequences, weights


@pytest.mark.parametrize("given", [False, True])
def test_all_callbacks(given: bool, tmp_path: Path) -> None:
    other = pytest.importorskip("pytorch_lightning")

    class Model(other.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.core = nn.LSTM(FEATURES, UNITS, 2, batch_first=True, dropout=0.2)
            self.head = nn.Linear(UNITS, FEATURES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.core(x.clamp(-2.0, 2.0))[0])

        def loss(self, batch: Tensor) -> Tensor:
            return (self(batch[:, :-1]) - batch[:, 1:]).square().mean() - self.core.weight_hh_l0.square().sum()

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return self.loss(batch)

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch))

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.1)

    model = Model()
    shadow = FeedForwardShadowCallback(WHOLE, twin=Model() if given else None)
    profile, gradients = TruncationProfileCallback(3), StateGradientCallback(3)
    best = StableModelCheckpoint(dirpath=tmp_path)
    run = other.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        callbacks=[StabilityProjectionCallback(0.9), shadow, profile, gradients, best],
    )
    run.fit(model, sequences(), sequences(2))
    assert certify(model).rate <= 0.9
    assert equal(weights(model), weights(shadow.twin))
    assert run.callback_metrics["shadow/val_loss_gap"] == 0
    assert profile.profiles.keys() == gradients.reports.keys() == {"core"}
    assert Path(best.best_model_path).exists()
