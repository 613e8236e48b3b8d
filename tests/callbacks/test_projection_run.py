"""Runs with a projection: validations, averaged weights, several fits, other callbacks."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    LearningRateFinder,
    ModelCheckpoint,
)
from torch import Tensor, nn

from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.stability import Box
from lightning_stable.stability.projection import projector
from tests.callbacks.projections import BOUNDED, RATE, adam, averaging, projection, rate
from tests.helpers import (
    CELLS,
    FEATURES,
    TIME,
    UNITS,
    AfterStep,
    Recurrent,
    Sequences,
    equal,
    sequences,
    trainer,
    weights,
)


@pytest.mark.parametrize("cell", CELLS)
def test_weights_inside_the_set_train_as_without_the_callback(cell: str, tmp_path: Path) -> None:
    def run(*callbacks: L.Callback) -> tuple[list[Tensor], dict[str, Tensor]]:
        class Noisy(Recurrent):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x + 0.01 * torch.randn(TIME)[0])

        model, losses = Noisy(cell, growth=0.0), []
        with torch.no_grad():
            for value in model.core.parameters():
                value.mul_(0.1)
        torch.manual_seed(1)
        record = mock.Mock(side_effect=lambda *args: losses.append(args[2]["loss"].detach()))
        probe = L.pytorch.callbacks.LambdaCallback(on_train_batch_end=record)
        trainer(tmp_path, *callbacks, probe).fit(model, sequences(5), sequences(2))
        return losses, weights(model)

    (plain, end), (projected, projected_end) = run(), run(StabilityProjectionCallback(0.999))
    assert len(plain) == 5
    assert all(map(torch.equal, plain, projected))
    assert equal(end, projected_end)


def test_weights_keep_their_storage_and_the_checkpoint_its_keys(tmp_path: Path) -> None:
    """The weights load where this library is unknown."""
    cells = ("rnn", "gru", "lstm")
    for cell in cells:
        model = Recurrent(cell, num_layers=2)
        pointers = {name: value.data_ptr() for name, value in model.named_parameters()}
        run = trainer(tmp_path, projection(modules="core"))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*contiguous.*")
            run.fit(model, sequences(), sequences())
        assert {name: value.data_ptr() for name, value in model.named_parameters()} == pointers
        run.save_checkpoint(tmp_path / f"{cell}.ckpt")
    script = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lightning_stable":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import torch
for cell in {cells}:
    content = torch.load(f"{{cell}}.ckpt", weights_only=True)
    core = getattr(torch.nn, cell.upper())({FEATURES}, {UNITS}, num_layers=2)
    model = torch.nn.ModuleDict({{"core": core, "head": torch.nn.Linear({UNITS}, {FEATURES})}})
    print(model.load_state_dict(content["state_dict"], strict=True))
assert not any(name.startswith("lightning_stable") for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.count("All keys matched") == 3, done.stderr
    assert done.returncode == 0, done.stderr


def test_stable_before_the_first_step(tmp_path: Path) -> None:
    rates: list[float] = []

    class Before(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            rates.append(rate(pl_module))

    model = Recurrent("gru")
    with torch.no_grad():
        model.core.weight_hh_l0.mul_(100)
    trainer(tmp_path, Before(), projection(), limit_train_batches=1).fit(model, sequences())
    assert rates
    assert rates[0] <= RATE


@pytest.mark.parametrize("cell", CELLS)
def test_stable_in_validation_and_at_the_end(cell: str, tmp_path: Path) -> None:
    """Whatever happened between: the weights are projected for these, even if after no step."""
    rates: dict[str, list[float]] = {"start": [], "end": []}

    class Validation(L.Callback):
        def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            rates["start"].append(rate(pl_module))

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            rates["end"].append(trainer.callback_metrics["stability/rate"].item())

    ours, model = projection(every_n_steps=1000), Recurrent(cell)
    trainer(tmp_path, Validation(), ours, max_epochs=2, val_check_interval=2).fit(model, sequences(), sequences(1))
    assert len(rates["start"]) == 1 + 2
    assert max(rates["start"]) <= RATE
    assert max(rates["end"]) <= RATE + 1e-6  # float32
    assert ours.num_projections == 0
    assert ours.report.rate == rate(model) <= RATE


@pytest.mark.parametrize("cell", BOUNDED)
def test_averaged_weights_are_projected_for_validation_and_saved_so(cell: str, tmp_path: Path) -> None:
    """The average of stable weights need not be stable."""
    rates: list[float] = []

    class Validation(L.Callback):
        def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            rates.append(rate(pl_module))

    average, best = averaging(), ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1)
    # Weights that jump about: their mean lies outside unless the set is convex.
    model = Recurrent(cell, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=3.0, momentum=0.9))
    run = trainer(tmp_path, average, projection(), Validation(), best, max_epochs=3, enable_checkpointing=True)
    run.fit(model, sequences(), sequences(1))
    assert len(rates) == 1 + 3
    assert max(rates) <= RATE
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert len(saved) == 3
    for path in saved:
        model.load_state_dict(torch.load(path, weights_only=False)["state_dict"])
        assert rate(model) <= RATE


def test_weights_replaced_by_a_callback_before(tmp_path: Path) -> None:
    class Replace(L.Callback):
        @torch.no_grad()
        def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            pl_module.core.weight_hh_l0.mul_(100)

    ours, model = projection(), Recurrent("lstm")
    trainer(tmp_path, Replace(), averaging(), ours).fit(model, sequences(), sequences())
    assert ours.report.rate == rate(model) <= RATE


def test_validate_alone_certifies_and_changes_nothing(tmp_path: Path) -> None:
    model, ours = Recurrent("lstm"), projection()
    start, before = weights(model), rate(model.eval())
    run = trainer(tmp_path, ours)
    (values,) = run.validate(model, sequences(), verbose=False)
    assert equal(start, weights(model))
    assert ours.report.rate == before > RATE
    assert values["stability/rate"] == pytest.approx(before)
    run.test(model, sequences(), verbose=False)
    run.predict(model, sequences())
    assert equal(start, weights(model))
    assert not model.core._forward_pre_hooks


@pytest.mark.parametrize("inference_mode", [True, False])
def test_validate_alone_records_the_inputs(inference_mode: bool, tmp_path: Path) -> None:
    model, ours = Recurrent("lstm", bounded=False), projection()
    run = trainer(tmp_path, ours, inference_mode=inference_mode)
    start = weights(model)
    run.validate(model, sequences(), verbose=False)
    assert equal(start, weights(model))
    data = Sequences(6).data[:, :-1]
    assert ours.report.rate == rate(model.eval(), input_bound=Box(data.amin((0, 1)), data.amax((0, 1))))
    assert ours.report.layers[0].guarantee == "data"
    run.fit(model, sequences(seed=1), sequences())
    assert ours.report.rate <= RATE


def test_two_fits_with_one_callback(tmp_path: Path) -> None:
    """The second run forgets the first, whether its model is the same or another one with the same names."""
    ours = projection()
    model, other = Recurrent("lstm", bounded=False), Recurrent(nn.LSTM(FEATURES, 2 * UNITS, batch_first=True))
    run = trainer(tmp_path, ours)
    run.fit(model, sequences())
    first = ours.report
    run.fit_loop.max_epochs = 2
    norms = {"core.l0": model.core.weight_hh_l0.double().norm().item()}
    run.fit(model, sequences(5, scale=0.1))
    assert ours.num_projections == 5
    data = Sequences(10, scale=0.1).data[:, :-1]
    assert ours.report.rate == rate(model, input_bound=Box(data.amin((0, 1)), data.amax((0, 1)))) <= RATE
    assert ours.state_dict()["norms_before"] == pytest.approx(norms)
    trainer(tmp_path, ours).fit(other, sequences())
    assert ours.num_projections == 3
    assert ours.report.layers[0].guarantee == "derived"
    assert first.layers[0].guarantee == "data"
    assert not other.core._forward_pre_hooks
    assert not model._state_dict_pre_hooks


@pytest.mark.parametrize("settings", [{"fast_dev_run": True}, {"strategy": "auto"}, {"inference_mode": False}])
def test_a_trainer_of_ones_own_plus_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    model, ours = Recurrent("lstm"), projection()
    L.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, logger=False, callbacks=[ours], **settings
    ).fit(model, sequences(), sequences())
    assert ours.report.rate == rate(model) <= RATE


def test_learning_rate_schedulers(tmp_path: Path) -> None:
    class Scheduled(Recurrent):
        def configure_optimizers(self) -> Any:
            optimizer = adam(self.parameters())
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=6)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    ours, probe = projection(), AfterStep(rate)
    trainer(tmp_path, ours, probe, max_epochs=2).fit(Scheduled(), sequences())
    assert ours.num_projections == 6
    assert max(probe.results) <= RATE


@pytest.mark.parametrize("ours_first", [True, False])
def test_learning_rate_finder(ours_first: bool, tmp_path: Path) -> None:
    """It trains before the training and puts everything back."""

    class Tuned(Recurrent):
        def __init__(self) -> None:
            super().__init__("lstm")
            self.lr = 0.1

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    ours, probe = projection(), AfterStep(rate)
    finder = LearningRateFinder(num_training_steps=5, min_lr=0.1, max_lr=0.5)
    callbacks = [ours, probe, finder] if ours_first else [finder, ours, probe]
    trainer(tmp_path, *callbacks, max_epochs=2).fit(Tuned(), sequences(6))
    assert ours.num_projections == len(probe.results)
    assert len(probe.results) in (10, 12)  # Lightning 2.4 trains two steps less after the search
    assert max(probe.results) <= RATE


@pytest.mark.slow
def test_compiled_model(tmp_path: Path) -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(FEATURES, UNITS)

        def forward(self, x: Tensor) -> Any:
            state = self.cell(x[:, 0])
            return torch.stack([state[0], self.cell(x[:, 1], state)[0]], 1), None

    class Two(Recurrent):
        def loss(self, batch: Tensor) -> Tensor:
            return self(batch[:, :2]).square().mean() - sum(w.square().sum() for w in self.recurrent_weights().values())

    ours = projection()
    probe = AfterStep(lambda model: ours._projector.certify().rate)
    model = Two(Cells(), bounded=False)
    try:
        trainer(tmp_path, ours, probe).fit(torch.compile(model), sequences())
    except torch._dynamo.exc.BackendCompilerFailed as error:
        pytest.skip(f"no working compiler: {error}")
    assert ours.num_projections == 3
    assert max(probe.results) <= RATE
    assert ours.report.layers[0].guarantee == "data"


def test_an_epoch_asks_once_for_each_verdict(tmp_path: Path) -> None:
    """For its validation, its logs, its own end and two checkpoints."""
    path = "lightning_stable.stability.projection.projector"
    calls: list[str] = []

    def counted(name: str, counts: Any) -> Any:
        function = getattr(projector, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if counts(kwargs):
                calls.append(name)
            return function(*args, **kwargs)

        return mock.patch(f"{path}.{name}", call)

    class Clear(L.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            calls.clear()

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "more.ckpt")
            assert sorted(calls) == ["certify_recurrences", "propose_updates"]

    saving = ModelCheckpoint(tmp_path / "saved", monitor="stability/rate")
    strict = counted("propose_updates", lambda kwargs: kwargs["strict"])
    with strict, counted("certify_recurrences", lambda kwargs: not kwargs["leading_only"]):
        run = trainer(tmp_path, projection(), Clear(), saving, max_epochs=2)
        run.fit(Recurrent("lstm"), sequences(3), sequences(2))
    assert saving.best_model_score is not None
