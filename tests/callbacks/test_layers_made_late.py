"""Models whose layers are made in ``setup`` or ``configure_model``, as Lightning documents it."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_stable.callbacks import (
    FeedForwardShadowCallback,
    StabilityProjectionCallback,
    StableModelCheckpoint,
    StateGradientCallback,
    TruncationProfileCallback,
)
from tests.helpers import FEATURES, UNITS, sequences, trainer


class Late(L.LightningModule):
    def __init__(self, hook: str, kind: Any = nn.GRU) -> None:
        super().__init__()
        self.hook, self.kind, self.core = hook, kind, None

    def make(self, hook: str) -> None:
        if hook == self.hook and self.core is None:
            self.core = self.kind(FEATURES, UNITS)
            self.head = nn.Linear(UNITS, FEATURES)

    def setup(self, stage: str) -> None:
        self.make("setup")

    def configure_model(self) -> None:
        self.make("configure_model")

    def step(self, batch: Tensor, batch_idx: int) -> Any:
        output = self.core(batch.clamp(-2, 2))
        return self.head(output[0] if isinstance(output, tuple) else output).square().mean()

    training_step = test_step = predict_step = step

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


KINDS: dict[str, Any] = {
    "projection": StabilityProjectionCallback,
    "shadow": lambda: FeedForwardShadowCallback(2),
    "profile": lambda: TruncationProfileCallback(2),
    "gradients": lambda: StateGradientCallback(2),
    "best": StableModelCheckpoint,
}


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_every_stage(hook: str, stage: str, tmp_path: Path) -> None:
    ours = {name: make() for name, make in KINDS.items()}
    run, loaders = trainer(tmp_path, *ours.values()), [sequences(1)] * (2 if stage == "fit" else 1)
    getattr(run, stage)(Late(hook), *loaders)
    if stage in ("fit", "validate"):
        assert ours["profile"].profiles.keys() == ours["gradients"].reports.keys() == {"core"}
        assert ours["projection"].report.layers[0].name == "core.l0"


@pytest.mark.parametrize("name", KINDS)
def test_a_model_without_a_recurrence(name: str, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"(?i)recurren.*Got"):
        trainer(tmp_path, KINDS[name]()).fit(Late("setup", nn.Linear), sequences(1), sequences(1))
    if name in ("projection", "profile", "gradients"):
        with pytest.raises(MisconfigurationException, match=r"(?i)recurren.*Got"):
            trainer(tmp_path, KINDS[name]()).validate(Late("setup", nn.Linear), sequences(1))
