"""All callbacks on a Trainer of ``pytorch_lightning``, whose classes are not those of ``lightning.pytorch``."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn

from lightning_stable import certify
from lightning_stable.callbacks import (
    FeedForwardShadowCallback,
    StabilityProjectionCallback,
    StableModelCheckpoint,
    StateGradientCallback,
    TruncationPenaltyCallback,
    TruncationProfileCallback,
)
from tests.callbacks.shadows import WHOLE
from tests.helpers import FEATURES, UNITS, equal, sequences, weights

ROOT = Path(__file__).parents[2]
HERE = "tests/callbacks"
SELECTIONS = {
    # What each callback does in a run, and what it asks of a Trainer.
    "core": [
        f"{HERE}/test_{name}.py" for name in ("layers_made_late", "portable", "stable_model_checkpoint", "tensorboard")
    ],
    "all": [
        HERE,
        f"--ignore={HERE}/test_two_processes.py",  # its processes import what they like
        f"--ignore={HERE}/test_pytorch_lightning.py",
        # With a model of this library, which is one of lightning.pytorch.
        f"--deselect={HERE}/test_state_gradient.py::test_metrics_and_carried_states_of_the_model_are_its_own",
    ],
}


@pytest.mark.parametrize("selection", ["core", pytest.param("all", marks=pytest.mark.slow)])
def test_the_tests_of_the_callbacks(selection: str, tmp_path: Path) -> None:
    """With the classes of ``pytorch_lightning`` in the place of those of ``lightning.pytorch``."""
    pytest.importorskip("pytorch_lightning")
    plugins = ["-p", "tests.other_package", "-p", "no:cacheprovider", "-p", "no:xdist"]
    options = ["-q", "-W", "ignore", "-m", "not slow and not gpu", f"--basetemp={tmp_path / 'runs'}"]
    command = [sys.executable, "-m", "pytest", *plugins, *options, *SELECTIONS[selection]]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_one_callback_without_a_list() -> None:
    for package in (L, pytest.importorskip("pytorch_lightning")):
        run = package.Trainer(callbacks=StabilityProjectionCallback(), logger=False)
        assert isinstance(run.callbacks[0], package.Callback)


def test_the_best_checkpoint_is_the_trainers(tmp_path: Path) -> None:
    for package in (L, pytest.importorskip("pytorch_lightning")):
        best = StableModelCheckpoint(dirpath=tmp_path)
        run = package.Trainer(callbacks=[best, TruncationProfileCallback()], logger=False, accelerator="cpu")
        assert run.checkpoint_callbacks == [run.checkpoint_callback] == [run.callbacks[-1]] == [best]


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
        callbacks=[StabilityProjectionCallback(0.9), TruncationPenaltyCallback(1), shadow, profile, gradients, best],
    )
    run.fit(model, sequences(), sequences(2))
    assert certify(model).rate <= 0.9
    assert equal(weights(model), weights(shadow.twin))
    assert run.callback_metrics["shadow/val_loss_gap"] == 0
    assert run.callback_metrics["penalty/core/loss"] > 0
    assert profile.profiles.keys() == gradients.reports.keys() == {"core"}
    assert Path(best.best_model_path).exists()
