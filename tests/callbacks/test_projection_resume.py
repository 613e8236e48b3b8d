"""Checkpoints of stable weights with their certificate, and resumed runs."""

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
)
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_stable import certify
from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.stability import StabilityReport
from tests.callbacks.projections import RATE, Nest, adam, momentum, projection, rate
from tests.helpers import (
    FEATURES,
    TIME,
    AfterStep,
    Recurrent,
    Sequences,
    equal,
    sequences,
    trainer,
    weights,
)


@pytest.mark.parametrize(
    ("cell", "optimizer", "settings"),
    [
        ("rnn", adam, {}),
        ("lstm", momentum, {}),
        ("rnn", momentum, {"every_n_steps": 3}),
        ("lstm", adam, {"every_n_steps": 3}),
        ("lstm", momentum, {"bounded": False}),
        ("rnn", momentum, {"norm": "full"}),
        ("gru", adam, {"norm": "tight"}),
        pytest.param(
            *("lstm", adam, {"every_n_steps": 1000, "every_n_train_steps": 2}),
            marks=pytest.mark.skipif(
                L.__version__.startswith("2.4."), reason="Lightning 2.4 itself resumes such a checkpoint a step too far"
            ),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_resumed_equals_uninterrupted(cell: str, optimizer: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit, from a checkpoint at the end of an epoch, with validations and a sanity check before."""

    def fit(folder: str, ckpt_path: Path | None = None) -> tuple[StabilityProjectionCallback, Recurrent]:
        model = Recurrent(cell, bounded=settings.get("bounded", True), optimizer=optimizer, growth=0.3, num_layers=2)
        ours = projection(every_n_steps=settings.get("every_n_steps", 1), norm=settings.get("norm"))
        steps = settings.get("every_n_train_steps")
        save = ModelCheckpoint(
            tmp_path / folder, "{epoch}-{step}", save_top_k=-1, every_n_train_steps=steps, save_on_train_epoch_end=True
        )
        # Every epoch has its own data, as a shuffled loader would give it.
        data = [Sequences(8, scale=1 + epoch, seed=epoch) for epoch in range(4)]

        class Epochs(L.LightningDataModule):
            def train_dataloader(self) -> Any:
                return torch.utils.data.DataLoader(data[self.trainer.current_epoch], batch_size=2)

            def val_dataloader(self) -> Any:
                return sequences(2, scale=9.0)

        run = trainer(tmp_path, ours, save, max_epochs=4, reload_dataloaders_every_n_epochs=1)
        run.fit(model, datamodule=Epochs(), ckpt_path=ckpt_path)
        return ours, model

    whole, expected = fit("whole")
    resumed, model = fit("resumed", tmp_path / "whole" / "epoch=1-step=8.ckpt")
    assert equal(weights(model), weights(expected))
    assert resumed.report.to_dict() == whole.report.to_dict()
    assert resumed.num_projections == whole.num_projections == 16 // whole.every_n_steps
    assert resumed.state_dict().keys() == whole.state_dict().keys()
    assert str(resumed.state_dict()) == str(whole.state_dict())


@pytest.mark.parametrize(
    ("cell", "weights_only"),
    [("rnn", False), ("rnn", True), ("gru", True), ("lstm", False), ("ugrnn", True), ("intersection", False)],
)
def test_checkpoints_hold_stable_weights(cell: str, weights_only: bool, tmp_path: Path) -> None:
    """Also those in the middle of an epoch, long before the next projection, and those without callback states."""
    ours = projection(every_n_steps=1000)
    save = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2, save_weights_only=weights_only)
    trainer(tmp_path, save, ours).fit(Recurrent(cell), sequences(5))
    assert ours.num_projections == 0
    for step in (2, 4):
        content = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        model = Recurrent(cell)
        model.load_state_dict(content["state_dict"])
        assert 0.9 * RATE < rate(model) <= RATE
        assert ("callbacks" in content) != weights_only
        if not weights_only:
            state = content["callbacks"]["StabilityProjectionCallback(modules=None)"]
            assert state["report"] == certify(model).to_dict()
            assert state["steps"] == step
            assert state["constraint"]["rate"] == RATE


def test_the_certificate_in_a_checkpoint(tmp_path: Path) -> None:
    ours = projection(modules="core.encoder.*", norm="tight", method="shares")
    other = projection(modules=["core.decoder"], input_bound={"core.decoder": 1.0})
    run = trainer(tmp_path, ours, other)
    run.fit(Recurrent(Nest("lstm")), sequences())
    run.save_checkpoint(tmp_path / "model.ckpt")
    states = torch.load(tmp_path / "model.ckpt", weights_only=True)["callbacks"]
    first = states["StabilityProjectionCallback(modules=['core.encoder.*'])"]["report"]
    second = states["StabilityProjectionCallback(modules=['core.decoder'])"]["report"]
    assert first == ours.report.to_dict()
    (layer,) = first["layers"]
    assert layer["rate"] == first["rate"] <= RATE
    assert (layer["name"], layer["norm"], layer["guarantee"]) == ("core.encoder.core.l0", "tight", "derived")
    assert layer["input_bound"] == "clamp(-2, 2)"
    assert layer["recurrent_norm"].keys() == set("ifgo")
    assert first["version"]
    assert [layer["input_bound"] for layer in second["layers"]] == [
        *["|x| <= 1"] * 2,
        *["the layer below with dropout"] * 2,
    ]


def test_state_restored_after_the_start_of_the_fit(tmp_path: Path) -> None:
    """As strategies do that restore weights after set-up: they are projected then."""

    class Late(SingleDeviceStrategy):
        restore_checkpoint_after_setup = True

    model = Recurrent("lstm", bounded=False)
    run = trainer(tmp_path, projection())
    run.fit(model, sequences())
    run.save_checkpoint(tmp_path / "stable.ckpt")
    content = torch.load(tmp_path / "stable.ckpt", weights_only=True)
    content["state_dict"]["core.weight_hh_l0"] *= 100
    torch.save(content, tmp_path / "unstable.ckpt")

    ours, rates = projection(), []
    probe = L.pytorch.callbacks.LambdaCallback(on_train_start=lambda *_: rates.append(ours.report.rate))
    run = trainer(tmp_path, ours, probe, strategy=Late("cpu"), max_epochs=2)
    run.fit(Recurrent("lstm", bounded=False), sequences(), ckpt_path=tmp_path / "unstable.ckpt")
    assert 0 < rates[0] <= RATE
    assert ours.num_projections == 6


def test_copies_of_the_model_are_not_watched(tmp_path: Path) -> None:
    copies: list[Recurrent] = []

    class Copying(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            copies.extend((copy.deepcopy(pl_module), pickle.loads(pickle.dumps(pl_module))))
            for model in copies:
                model(torch.full((1, TIME, FEATURES), 1e6))
                model.state_dict()

        def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
            pl_module(torch.full((1, TIME, FEATURES), 1e6))  # nor is the model itself outside of batches

    ours, probe = projection(every_n_steps=1000), AfterStep(rate)
    model = Recurrent("lstm", bounded=False, optimizer=adam)
    trainer(tmp_path, ours, Copying(), probe).fit(model, sequences())
    assert len(copies) == 6
    assert ours.report.layers[0].input_bound.startswith("seen in data: -2")


def test_pickles_before_and_after_a_fit(tmp_path: Path) -> None:
    ours = projection(modules="c*", input_bound={"core": 2.0}, every_n_steps=2)
    again = pickle.loads(pickle.dumps(ours))
    assert again.__dict__ == ours.__dict__
    trainer(tmp_path, again, log_every_n_steps=1).fit(Recurrent("lstm"), sequences())
    for copied in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        assert copied.report == again.report
        assert isinstance(copied.report, StabilityReport)
