"""Models that change while they train: their batches, what is frozen, and their parameters."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_stable.callbacks import FeedForwardShadowCallback
from tests.callbacks.shadows import WHOLE, Loader, Noisy, adam, data, fit, seed, state, warned
from tests.helpers import equal, trainer, weights


class InPlace(Noisy):
    """Masks inputs without a copy, and its own batch alone."""

    where = "training_step"

    def change(self, batch: Any, where: str) -> Tensor:
        if where == self.where:
            batch["x"].masked_fill_(torch.rand(batch["x"].shape) < 0.2, 0.0).mul_(0.9)
        return batch["x"]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return super().training_step(self.change(batch, "training_step"), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(self.change(batch, "validation_step"), batch_idx)


class InValidation(InPlace):
    where = "validation_step"


@pytest.mark.parametrize("make", [InPlace, InValidation])
def test_batches_changed_in_place(make: Any, tmp_path: Path) -> None:
    """One warning; the twin is right from the second batch on, and the model's data stay the model's."""

    def run(*shadows: L.Callback) -> tuple[dict[str, Tensor], dict[str, float]]:
        seed()
        # Kept between the epochs: a change by the twin would come back to the model.
        batches, others = ([{"x": batch.clone()} for batch in loader] for loader in data())
        model = make()
        fitting = trainer(tmp_path, *shadows, max_epochs=3, num_sanity_val_steps=0, log_every_n_steps=1)
        fitting.fit(model, DataLoader(batches, batch_size=None), DataLoader(others, batch_size=None))
        return state(model), fitting.callback_metrics

    alone, _ = run()
    shadow = FeedForwardShadowCallback(WHOLE)
    with warned("changes its batches in place") as messages:
        beside, metrics = run(shadow, FeedForwardShadowCallback(1))
    assert equal(alone, beside)
    assert len(messages) == 2
    assert all(message.endswith("Got a change in batch 0.") for message in messages)
    if make is InValidation:
        assert equal(beside, state(shadow.twin))
        assert metrics[f"shadow/k={WHOLE}/val_loss_gap"] == 0


def test_no_warning_without_a_reason(tmp_path: Path) -> None:
    with warned("") as messages:
        fit(Noisy(), tmp_path, FeedForwardShadowCallback(1))
    assert not [message for message in messages if "in place" in message or "FeedForwardShadow" in message]


class Freezing(Noisy):
    """Optimizes what is not frozen."""

    def configure_optimizers(self) -> Any:
        return adam([p for p in self.parameters() if p.requires_grad])


class Unfreeze(BaseFinetuning):
    def freeze_before_training(self, module: Any) -> None:
        self.freeze(module.head)

    def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(module.head, optimizer, lr=0.02)


class UnfreezeAlone(L.Callback):
    """What it unfreezes is in the optimizer from the start."""

    def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
        module.head.requires_grad_(False)

    def on_train_epoch_start(self, trainer: L.Trainer, module: Any) -> None:
        module.head.requires_grad_(trainer.current_epoch > 0)


@pytest.mark.parametrize(
    ("make", "first"),
    [(lambda: Freezing(optimizer=adam), True), (lambda: Freezing(optimizer=adam), False), (Noisy, True)],
)
def test_finetuning_is_followed(make: Any, first: bool, tmp_path: Path) -> None:
    model, whole, short = make(), FeedForwardShadowCallback(WHOLE), FeedForwardShadowCallback(1)
    tuning = Unfreeze() if isinstance(model, Freezing) else UnfreezeAlone()
    start = weights(model)
    fit(model, tmp_path, *((tuning, whole, short) if first else (whole, short, tuning)))
    assert not torch.equal(start["head.weight"], model.head.weight)
    assert equal(weights(model), weights(whole.twin))
    assert not equal(weights(model), weights(short.twin))


def test_finetuning_is_resumed(tmp_path: Path) -> None:
    """The twin's optimizer has the groups that the model's has then, whatever Lightning itself leaves frozen."""

    def run(epochs: int, ckpt: Path | None = None) -> tuple[L.Trainer, Any, Any]:
        model, whole = Freezing(optimizer=adam), FeedForwardShadowCallback(WHOLE)
        fitting = trainer(tmp_path, Unfreeze(), whole, max_epochs=epochs)
        fitting.fit(model, Loader(4), ckpt_path=ckpt)
        return fitting, model, whole.twin

    run(2)[0].save_checkpoint(tmp_path / "model.ckpt")
    resumed, model, twin = run(3, tmp_path / "model.ckpt")
    assert resumed.global_step == 12
    assert len(resumed.optimizers[0].param_groups) == 2
    assert equal(weights(model), weights(twin))


class Growing(Noisy):
    """Gets a layer in the second epoch."""

    def __init__(self, optimized: bool) -> None:
        super().__init__(optimizer=adam)
        self.optimized = optimized

    def on_train_epoch_start(self) -> None:
        if self.trainer.current_epoch == 1:
            self.late = nn.Linear(2, 2)
            if self.optimized:
                self.trainer.optimizers[0].add_param_group({"params": list(self.late.parameters())})


@pytest.mark.parametrize(("optimized", "steps"), [(True, 7), (False, 8)])
def test_parameters_that_come_later(optimized: bool, steps: int, tmp_path: Path) -> None:
    """Noticed at once by the optimizer, or where weights are compared."""
    model = Growing(optimized)
    with pytest.raises(MisconfigurationException, match=r"must not be added, .* Got a change of 'late\.weight'"):
        fit(model, tmp_path, FeedForwardShadowCallback(WHOLE), limit_val_batches=0)
    assert model.trainer.global_step == steps


def test_a_parameter_that_joins_a_group(tmp_path: Path) -> None:
    class Joining(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.optimizers[0].param_groups[0]["params"].extend(module.head.parameters())

    model = Freezing()
    model.head.requires_grad_(False)
    with pytest.raises(MisconfigurationException, match=r"in groups of their own\. Got groups of \[10\] .* \[8\] in"):
        fit(model, tmp_path, FeedForwardShadowCallback(WHOLE), Joining())
