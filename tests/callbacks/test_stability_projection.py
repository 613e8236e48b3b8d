"""The callback under everything a Trainer does; two processes have a file of their own."""

import copy
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as pl_callbacks
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from lightning_stable import certify
from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.stability import Box, StabilityReport
from lightning_stable.stability.projection import projector as projector_module
from tests.helpers import (
    CELLS,
    FEATURES,
    TIME,
    UNITS,
    AfterStep,
    Recurrent,
    Sequences,
    equal,
    on_gpu,
    sequences,
    sgd,
    trainer,
    weights,
)

RATE = 0.9


def averaging() -> L.Callback:
    """Lightning's averaged shadow, where this version has it."""
    if not hasattr(pl_callbacks, "WeightAveraging"):
        pytest.skip("this Lightning has no WeightAveraging")
    return pl_callbacks.WeightAveraging()


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.3)


def momentum(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def rate(model: nn.Module, **kwargs: Any) -> float:
    return certify(model, **kwargs).rate


def projection(**kwargs: Any) -> StabilityProjectionCallback:
    return StabilityProjectionCallback(**{"rate": RATE, **kwargs})


# Every real optimizer step --------------------------------------------------------------------------------------------


class Manual(Recurrent):
    """Two optimizers, the second in every second batch."""

    def __init__(self, *, raw: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization, self.raw = False, raw

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizers = self.optimizers(use_pl_optimizer=not self.raw)
        for optimizer in optimizers[: 1 + batch_idx % 2]:
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.core.parameters(), lr=0.3), torch.optim.Adam(self.parameters(), lr=0.3)]


class Sometimes(Recurrent):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("model", "settings", "batches", "steps"),
    [
        (Recurrent, {}, 3, 3),
        (Recurrent, {"accumulate_grad_batches": 3}, 7, 3),
        (Recurrent, {"gradient_clip_val": 0.1}, 3, 3),
        (Recurrent, {"precision": "bf16-mixed"}, 3, 3),
        (Recurrent, {"precision": "bf16-true"}, 3, 3),
        (Recurrent, {"precision": "64-true"}, 3, 3),
        (Recurrent, {"max_steps": 2}, 3, 2),
        (Recurrent, {"accumulate_grad_batches": 3, "max_epochs": 2}, 7, 6),
        (lambda: Recurrent(optimizer=lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4)), {}, 3, 3),
        (lambda: Recurrent(optimizer=momentum), {}, 3, 3),
        (lambda: Recurrent(optimizer=lambda p: torch.optim.Adam(p, lr=0.3, fused=True)), {}, 3, 3),
        (Sometimes, {}, 3, 3),
        (Manual, {}, 3, 4),
        (lambda: Manual(raw=True), {}, 3, 4),
        (Manual, {"precision": "bf16-mixed"}, 3, 4),
    ],
)
def test_projects_after_every_optimizer_step(
    model: Callable[[], Recurrent], settings: dict[str, Any], batches: int, steps: int, tmp_path: Path
) -> None:
    ours, probe = projection(), AfterStep(rate)
    trainer(tmp_path, ours, probe, **settings).fit(model(), sequences(batches))
    assert ours.num_projections == len(probe.results) == steps
    assert max(probe.results) <= RATE
    assert min(probe.results) > 0.97 * RATE  # pulled out by each step, moved back no further than needed


def test_without_the_callback_weights_leave_the_set(tmp_path: Path) -> None:
    probe = AfterStep(rate)
    trainer(tmp_path, probe).fit(Recurrent(), sequences())
    assert probe.results == sorted(probe.results)
    assert probe.results[-1] > 1


@pytest.mark.parametrize("fused", [False, True])
def test_steps_skipped_by_the_gradient_scaler(fused: bool, tmp_path: Path) -> None:
    class Overflow(Recurrent):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (float("inf") if batch_idx == 1 else 1.0)

    ours, probe = projection(), AfterStep(rate)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
    model = Overflow(optimizer=lambda p: torch.optim.Adam(p, lr=0.3, fused=fused))
    run = trainer(tmp_path, ours, probe, plugins=[plugin])
    run.fit(model, sequences())
    assert run.global_step == 3
    assert ours.num_projections == len(probe.results) == (3 if fused else 2)  # fused ones skip inside the step
    assert max(probe.results) <= RATE


@on_gpu
@pytest.mark.parametrize("cell", CELLS)
def test_mixed_precision_on_a_gpu(cell: str, tmp_path: Path) -> None:
    class Overflow(Recurrent):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (float("inf") if batch_idx == 1 else 1.0)

    ours, probe = projection(), AfterStep(rate)
    run = trainer(tmp_path, ours, probe, accelerator="gpu", precision="16-mixed")
    run.fit(Overflow(cell, num_layers=2, bidirectional=True), sequences())
    assert ours.num_projections == len(probe.results) == 2
    assert max(probe.results) <= RATE


@pytest.mark.parametrize("cell", CELLS)
def test_weights_rounded_by_autocast_are_stable_too(cell: str, tmp_path: Path) -> None:
    def rounded_rate(model: L.LightningModule) -> float:
        return rate(copy.deepcopy(model).bfloat16().double())

    probe = AfterStep(rounded_rate)
    trainer(tmp_path, projection(), probe, precision="bf16-mixed").fit(Recurrent(cell), sequences())
    assert max(probe.results) <= RATE


@pytest.mark.parametrize(("every", "expected"), [(1, 7), (2, 3), (3, 2), (1000, 0)])
def test_every_n_steps(every: int, expected: int, tmp_path: Path) -> None:
    ours, probe = projection(every_n_steps=every), AfterStep(rate)
    model = Recurrent()
    trainer(tmp_path, ours, probe, accumulate_grad_batches=3, max_epochs=1).fit(model, sequences(21))
    assert ours.num_projections == expected
    assert [r <= RATE for r in probe.results] == [step % every == 0 for step in range(1, 8)]
    assert rate(model) == ours.report.rate <= RATE


@pytest.mark.parametrize("every", [1, 3, 1000])
def test_logging_changes_nothing(every: int, tmp_path: Path) -> None:
    def fit(interval: int) -> dict[str, Tensor]:
        model = Recurrent("lstm")
        trainer(tmp_path, projection(every_n_steps=every), log_every_n_steps=interval).fit(model, sequences(7))
        return weights(model)

    assert equal(fit(0), fit(2))


# Stable after every step ----------------------------------------------------------------------------------------------


class Nest(nn.Module):
    """An encoder and a decoder, deep inside."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"core": CELLS[cell](FEATURES, UNITS, batch_first=True)})
        self.decoder = CELLS[cell](UNITS, UNITS, num_layers=2, batch_first=True, bidirectional=True, dropout=0.3)

    def forward(self, x: Tensor) -> Any:
        return self.decoder(self.encoder["core"](x)[0])


# The outputs of an intersection RNN are as large as its weights make them: they bound no other layer for certain, and
# huge steps send them to infinity.
BOUNDED = [cell for cell in CELLS if cell != "intersection"]


@pytest.mark.parametrize("cell", BOUNDED)
@pytest.mark.parametrize("optimizer", [sgd, adam, momentum])
def test_stable_after_every_step(cell: str, optimizer: Any, tmp_path: Path) -> None:
    model = Recurrent(Nest(cell), optimizer=optimizer)
    ours, probe, start = projection(), AfterStep(rate), weights(model)
    trainer(tmp_path, ours, probe).fit(model, sequences(4))
    assert len(probe.results) == 4
    assert max(probe.results) <= RATE
    names = [certificate.name for certificate in ours.report.layers]
    assert names == [
        "core.encoder.core.l0",
        *(f"core.decoder.l{layer}{side}" for layer in (0, 1) for side in ("", "_reverse")),
    ]
    assert ours.report.layers[0].guarantee == "guaranteed"
    assert all(not torch.equal(start[name], value) for name, value in weights(model).items())


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("patterns", ["core.encoder.*", ["core.dec*"], ["*.core", "core.decoder"]])
def test_patterns_choose_and_leave_the_others_alone(cell: str, patterns: Any, tmp_path: Path) -> None:
    """What one projection changes: weights before it and after it, at every step."""
    before, ours, after = AfterStep(weights), projection(modules=patterns), AfterStep(weights)
    trainer(tmp_path, before, ours, after).fit(Recurrent(Nest(cell)), sequences(4))
    changed = {
        name
        for old, new in zip(before.results, after.results, strict=True)
        for name in old
        if not torch.equal(old[name], new[name])
    }
    chosen = {certificate.name.rpartition(".")[0] for certificate in ours.report.layers}
    assert {name.rpartition(".")[0] for name in changed} == chosen
    assert chosen <= {"core.encoder.core", "core.decoder"}
    assert len(chosen) == (2 if len(patterns) == 2 else 1)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_range_of_training_inputs_where_nothing_else_is_known(cell: str, tmp_path: Path) -> None:
    """Stable for all batches seen, from the first forward on; validation inputs are no part of it."""
    seen: list[Tensor] = []
    rates: list[float] = []

    class Watched(Recurrent):
        def loss(self, batch: Tensor) -> Tensor:
            loss = super().loss(batch)
            if self.trainer.training:
                seen.append(batch[:, :-1])
                rates.append(current_rate(self))
            return loss

    def current_rate(model: nn.Module) -> float:
        data = torch.cat(seen)
        return rate(model, input_bound=Box(data.amin((0, 1)), data.amax((0, 1))))

    def fit(**kwargs: Any) -> tuple[StabilityProjectionCallback, Recurrent]:
        seen.clear(), rates.clear()
        ours, probe = projection(), AfterStep(current_rate)
        model = Watched(cell, bounded=False)
        trainer(tmp_path, ours, probe, max_epochs=2, **kwargs).fit(model, sequences(), sequences(scale=50.0, seed=1))
        assert max(probe.results) <= RATE
        return ours, model

    ours, model = fit()
    # The first forward already used projected weights, later ones may meet wider inputs than the weights were made for.
    assert rates[0] <= RATE
    layer = ours.report.layers[0]
    assert layer.guarantee == "data"
    assert layer.rate == current_rate(model)
    assert equal(weights(model), weights(fit(num_sanity_val_steps=0, limit_val_batches=0)[1]))


def test_first_inputs_of_one_module_leave_modules_in_use_alone(tmp_path: Path) -> None:
    """The encoder sees wider inputs at its second call; projecting it then would break its gradient."""

    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.LSTM(FEATURES, UNITS, batch_first=True)
            self.other = nn.LSTM(FEATURES, UNITS, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.encoder(x)[0] + self.encoder(9 * x)[0] + self.other(x)[0], None

    probe = AfterStep(lambda model: model.trainer.callbacks[0].report)
    ours = projection()
    trainer(tmp_path, ours, probe).fit(Recurrent(Siamese(), bounded=False), sequences())
    assert ours.num_projections == 3
    assert ours.report.rate <= RATE


def test_recurrences_of_several_kinds_and_shared_ones(tmp_path: Path) -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.RNN(FEATURES, FEATURES, batch_first=True)
            self.again = self.first
            self.cell = nn.LSTMCell(FEATURES, FEATURES)
            self.last = nn.GRU(FEATURES, UNITS, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            x = self.again(self.first(x)[0])[0]
            states = [(x[:, 0], x[:, 0])]
            for inputs in x.unbind(1):
                states.append(self.cell(inputs, states[-1]))
            return self.last(torch.stack([hidden for hidden, _ in states], 1)[:, 1:])

    probe = AfterStep(lambda model: rate(model, input_bound=1.0))
    ours = projection(input_bound=1.0)
    model = Recurrent(Several(), growth=3.0)
    trainer(tmp_path, ours, probe).fit(model, sequences(5))
    assert [layer.name for layer in ours.report.layers] == ["core.first.l0", "core.cell", "core.last.l0"]
    assert all(0.9 * RATE < layer.rate <= RATE for layer in ours.report.layers)
    assert max(probe.results) <= RATE


# The run itself -------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_weights_keep_their_storage_and_the_checkpoint_its_keys(cell: str, tmp_path: Path) -> None:
    """The weights load where this library is unknown."""
    model = Recurrent(cell, num_layers=2)
    pointers = {name: value.data_ptr() for name, value in model.named_parameters()}
    run = trainer(tmp_path, projection(modules="core"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*contiguous.*")
        run.fit(model, sequences(), sequences())
    assert {name: value.data_ptr() for name, value in model.named_parameters()} == pointers
    run.save_checkpoint(tmp_path / "model.ckpt")
    script = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lightning_stable":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import torch
content = torch.load({str(tmp_path / "model.ckpt")!r}, weights_only=True)
model = torch.nn.ModuleDict({{
    "core": torch.nn.{CELLS[cell].__name__}({FEATURES}, {UNITS}, num_layers=2),
    "head": torch.nn.Linear({UNITS}, {FEATURES}),
}})
print(model.load_state_dict(content["state_dict"], strict=True))
assert not any(name.startswith("lightning_stable") for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "All keys matched" in done.stdout, done.stderr


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
    """The second run starts afresh, be its model the same or another one with the same names."""
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
    assert ours.report.layers[0].guarantee == "guaranteed"
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
    assert ours.num_projections == len(probe.results) == 12
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


# Kill and resume ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
@pytest.mark.parametrize("optimizer", [adam, momentum])
@pytest.mark.parametrize(
    "settings",
    [{}, {"every_n_steps": 3}, {"bounded": False}, {"every_n_steps": 1000, "every_n_train_steps": 2}],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_resumed_equals_uninterrupted(cell: str, optimizer: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit, from a checkpoint at the end of an epoch, with validations and a sanity check before."""

    def fit(folder: str, epochs: int, ckpt_path: Path | None = None) -> tuple[StabilityProjectionCallback, Recurrent]:
        model = Recurrent(cell, bounded=settings.get("bounded", True), optimizer=optimizer, growth=0.3, num_layers=2)
        ours = projection(every_n_steps=settings.get("every_n_steps", 1))
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

        run = trainer(tmp_path, ours, save, max_epochs=epochs, reload_dataloaders_every_n_epochs=1)
        run.fit(model, datamodule=Epochs(), ckpt_path=ckpt_path)
        return ours, model

    whole, expected = fit("whole", 4)
    fit("killed", 2)
    resumed, model = fit("resumed", 4, tmp_path / "killed" / "epoch=1-step=8.ckpt")
    assert equal(weights(model), weights(expected))
    assert resumed.report.to_dict() == whole.report.to_dict()
    assert resumed.num_projections == whole.num_projections == 16 // whole.every_n_steps
    assert resumed.state_dict().keys() == whole.state_dict().keys()
    assert str(resumed.state_dict()) == str(whole.state_dict())


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("cell", CELLS)
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
    assert (layer["name"], layer["norm"], layer["guarantee"]) == ("core.encoder.core.l0", "tight", "guaranteed")
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


# Logging --------------------------------------------------------------------------------------------------------------


class Recorder(Logger):
    name, version = "recorder", "0"

    def __init__(self) -> None:
        super().__init__()
        self.values: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.values.append((step, {key: metrics[key] for key in metrics if key.startswith("stability/")}))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    @property
    def steps(self) -> list[int]:
        return [step for step, values in self.values if values]


def test_tags(tmp_path: Path) -> None:
    logger = Recorder()
    model = Recurrent("lstm", num_layers=2)
    ours = projection()
    trainer(tmp_path, ours, logger=logger, log_every_n_steps=1).fit(model, sequences(2))
    (_, values) = logger.values[0]
    layers = [f"stability/core.l{layer}" for layer in (0, 1)]
    assert values.keys() == {
        "stability/rate",
        "stability/projection_distance",
        *(f"{layer}/rate" for layer in layers),
        *(f"{layer}/recurrent_norm/{gate}" for layer in layers for gate in "ifgo"),
        *(f"{layer}/recurrent_norm_kept" for layer in layers),
    }
    _, values = logger.values[1]
    assert values["stability/rate"] == max(values[f"{layer}/rate"] for layer in layers) <= RATE
    first = model.core.weight_hh_l0.double().chunk(4)[0].norm().item()
    assert values[f"{layers[0]}/recurrent_norm/i"] == pytest.approx(first)
    start = Recurrent("lstm", num_layers=2).core.weight_hh_l1.norm().item()
    assert values[f"{layers[1]}/recurrent_norm_kept"] == pytest.approx(model.core.weight_hh_l1.norm().item() / start)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_logged_distance_is_that_of_the_last_projection(every: int, tmp_path: Path) -> None:
    logger, before, after = Recorder(), AfterStep(weights), AfterStep(weights)
    ours = projection(every_n_steps=every)
    run = trainer(tmp_path, before, ours, after, logger=logger, log_every_n_steps=4)
    run.fit(Recurrent(Nest("rnn")), sequences(9))
    pairs = zip(before.results, after.results, strict=True)
    moved = [sum((new[name] - old[name]).square().sum() for name in old).sqrt().item() for old, new in pairs]
    last = {4: {1: 4, 2: 4, 3: 3}[every], 8: {1: 8, 2: 8, 3: 6}[every]}
    assert logger.steps == [3, 7]
    for step, values in logger.values:
        assert values["stability/projection_distance"] == pytest.approx(moved[last[step + 1] - 1], rel=1e-4)
        assert values["stability/projection_distance"] > 0


@pytest.mark.parametrize(
    ("model", "interval", "steps"),
    [
        (Recurrent, 3, [2, 5]),
        # Two optimizers make nine steps in six batches, and Lightning's axis are the batches.
        (Manual, 3, [1, 3, 5]),
        (Manual, 2, [1, 2, 3, 5]),
        (lambda: Manual(raw=True), 3, [1, 3, 5]),
    ],
)
def test_interval(model: Any, interval: int, steps: list[int], tmp_path: Path) -> None:
    """Nothing is computed in other steps."""
    logger, ours = Recorder(), projection()
    counts: list[int] = []
    with mock.patch.object(projector_module, "certify_recurrences", wraps=projector_module.certify_recurrences) as spy:
        probe = AfterStep(lambda _: counts.append(spy.call_count))
        trainer(tmp_path, ours, probe, logger=logger, log_every_n_steps=interval).fit(model(), sequences(6))
    assert logger.steps == steps
    assert counts[0] == counts[1] == counts[2] == counts[-1] - len(steps[:-1])  # the last one comes after the last step


def test_intervals_none(tmp_path: Path) -> None:
    logger, ours = Recorder(), projection()
    trainer(tmp_path, ours, logger=logger, log_every_n_steps=0).fit(Recurrent(), sequences(3), sequences(1))
    assert ours.num_projections == 3
    # Lightning itself logs the values of validations, also with this setting.
    assert len(logger.steps) == 1


def test_values_of_validations(tmp_path: Path) -> None:
    """Not of the sanity check, and those of two callbacks are combined."""
    logger, keys = Recorder(), []
    probe = L.pytorch.callbacks.LambdaCallback(on_sanity_check_end=lambda run, _: keys.extend(run.callback_metrics))
    first, second = projection(modules="core.encoder.*", rate=0.9), projection(modules="core.decoder", rate=0.5)
    run = trainer(tmp_path, probe, first, second, logger=logger)
    run.fit(Recurrent(Nest("rnn")), sequences(), sequences(2))
    assert not any(key.startswith("stability/") for key in keys)
    (values,) = (values for _, values in logger.values if values)
    assert values["stability/rate"] == run.callback_metrics["stability/rate"].item() == pytest.approx(0.9, abs=1e-4)
    assert run.callback_metrics["stability/core.decoder.l1_reverse/rate"].item() == pytest.approx(0.5, abs=1e-4)


def test_csv_logger(tmp_path: Path) -> None:
    trainer(tmp_path, projection(), logger=CSVLogger(tmp_path, "log"), log_every_n_steps=1).fit(
        Recurrent(), sequences(3), sequences(1)
    )
    header, *rows = (tmp_path / "log" / "version_0" / "metrics.csv").read_text().splitlines()
    columns = header.split(",")
    values = [dict(zip(columns, row.split(","), strict=True)) for row in rows]
    assert [int(v["step"]) for v in values if v["stability/core.l0/rate"] and not v["val_loss"]] == [0, 1, 2]
    assert all(float(v["stability/rate"]) <= RATE + 1e-6 for v in values if v["stability/rate"])


@pytest.mark.parametrize("validate", [False, True])
def test_the_rate_as_monitored_value(validate: bool, tmp_path: Path) -> None:
    """Fewer steps than the logging interval are no problem."""
    save = ModelCheckpoint(tmp_path, monitor="stability/rate", filename="best")
    stop = EarlyStopping("stability/rate", patience=1, min_delta=1.0)
    run = trainer(tmp_path, save, stop, projection(), max_epochs=9)
    run.fit(Recurrent(), sequences(2), sequences(1) if validate else None)
    assert save.best_model_score.item() == pytest.approx(RATE, abs=1e-4)
    assert run.current_epoch == 2


# No waiting for the device --------------------------------------------------------------------------------------------


def test_only_logging_steps_look_at_inputs(tmp_path: Path) -> None:
    class Counting(Box):
        calls = 0

        def excess(self, inputs: Tensor) -> Tensor:
            Counting.calls += 1
            return super().excess(inputs)

    ours, calls = projection(input_bound=Counting(-9.0, 9.0)), []
    probe = AfterStep(lambda _: calls.append(Counting.calls))
    trainer(tmp_path, ours, probe, log_every_n_steps=4).fit(Recurrent("lstm"), sequences(9))
    assert calls == [1, 1, 1, 2, 2, 2, 2, 3, 3]


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l3"}, r"`norm` must be one of \('row', .*'core\.l0'\. Got 'l3'"),
        ({"method": "magic"}, r"`method` must be one of \('shares', .*'core\.l0'\. Got 'magic'"),
        ({"input_bound": {"cor": 1.0}}, r"`input_bound` names no recurrence\. Got key 'cor'.*'core'"),
        ({"gate_bound": 0.4, "bias": False}, r"has no bias.*above 0\.5\. Got .*gate_bound=0\.4"),
    ],
)
@pytest.mark.parametrize("bounded", [True, False])
def test_argument_that_does_not_fit_the_model(
    arguments: dict[str, Any], message: str, bounded: bool, tmp_path: Path
) -> None:
    """Refused before the first batch, inputs known or not, and nothing is left behind."""
    arguments = dict(arguments)
    model = Recurrent("lstm", bounded=bounded, bias=arguments.pop("bias", True))
    start = weights(model)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, projection(**arguments), num_sanity_val_steps=0).fit(model, sequences())
    assert equal(start, weights(model))
    assert not model.core._forward_pre_hooks


class NoRecurrence(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


def normed() -> nn.Module:
    core = nn.LSTM(FEATURES, UNITS, batch_first=True)
    nn.utils.parametrizations.weight_norm(core, "weight_hh_l0")
    return core


@pytest.mark.parametrize(
    ("core", "modules", "message"),
    [
        (
            lambda: NoRecurrence(FEATURES, UNITS),
            None,
            r"No recurrence found in Recurrent\. Got modules of types \['Lin",
        ),
        (normed, None, r"must be plain parameters\. Got .*'weight_hh_l0'.*remove_parametrizations"),
        (lambda: "gru", "decoder.*", r"`modules` pattern matches no recurrent module\. Got 'decoder\.\*'.*\['core'\]"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_models_that_cannot_be_projected(core: Any, modules: Any, message: str, stage: str, tmp_path: Path) -> None:
    model = Recurrent(core())
    run = trainer(tmp_path, projection(modules=modules), num_sanity_val_steps=0)
    with pytest.raises(MisconfigurationException, match=message):
        run.fit(model, sequences()) if stage == "fit" else run.validate(model, sequences(), verbose=False)
    assert not model.core._forward_pre_hooks


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
def test_sharding_strategies(strategy: type) -> None:
    run = SimpleNamespace(strategy=strategy.__new__(strategy))
    for stage in ("fit", "validate"):
        with pytest.raises(MisconfigurationException, match=rf"Got strategy {strategy.__name__}; use 'ddp' or 'auto'"):
            projection().setup(run, Recurrent(), stage)
    projection().setup(run, Recurrent(), "test")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(cell: str, value: float, tmp_path: Path) -> None:
    """The run fails at that step, names the parameter, and no recurrence was projected by half."""

    class Spoiled(Recurrent):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.trainer.global_step == 1:
                self.core.decoder.weight_hh_l1.grad[0, 0] = value

    ours, probe = projection(), AfterStep(weights)
    model = Spoiled(Nest(cell))
    with pytest.raises(ValueError, match=r"must be finite\. Got NaN or Inf in 'core\.decoder\.weight_hh_l1'.* clip"):
        trainer(tmp_path, probe, ours, OnExceptionCheckpoint(tmp_path)).fit(model, sequences())
    left = probe.results[1]
    assert all(torch.equal(left[n].nan_to_num(), v.nan_to_num()) for n, v in weights(model).items())
    assert ours.num_projections == 1
    assert ours.report is None
    assert not model.core.decoder._forward_pre_hooks
    assert not model._state_dict_pre_hooks


def test_embedding_that_is_not_finite(tmp_path: Path) -> None:
    """Its table is the input set: NaN must not spread into the recurrent weights, nor be taken for theirs."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, FEATURES)
            self.cell = nn.GRU(FEATURES, UNITS, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.cell(self.table(x.sum(2).long() % 7))

    class Spoiled(Recurrent):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.trainer.global_step == 1:
                self.core.table.weight.grad[0, 0] = float("nan")

    model = Spoiled(Words(), bounded=False)
    with pytest.raises(ValueError, match=r"input set of the recurrence 'core\.cell\.l0' must be finite\. Got NaN"):
        trainer(tmp_path, projection()).fit(model, sequences())
    assert all(value.isfinite().all() for value in model.core.cell.parameters())


def test_exception_and_a_second_run(tmp_path: Path) -> None:
    class Failing(Recurrent):
        fails = True

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
            if self.fails and batch_idx == 1:
                raise RuntimeError("as planned")
            return super().training_step(batch, batch_idx)

    model, ours = Failing("lstm", bounded=False), projection()
    with pytest.raises(RuntimeError, match="as planned"):
        trainer(tmp_path, ours, OnExceptionCheckpoint(tmp_path)).fit(model, sequences())
    (saved,) = torch.load(tmp_path / "on_exception.ckpt", weights_only=True)["callbacks"].values()
    assert saved["report"] is None  # nobody certified these weights
    assert not model.core._forward_pre_hooks
    model.fails = False
    trainer(tmp_path, ours).fit(model, sequences())
    assert ours.num_projections == 3
    assert ours.report.rate <= RATE


@pytest.mark.parametrize("cell", CELLS)
def test_frozen_weights(cell: str, tmp_path: Path) -> None:
    model = Recurrent(Nest(cell))
    model.core.encoder["core"].requires_grad_(False)
    with torch.no_grad():
        model.core.encoder["core"].weight_hh_l0.mul_(100)
    before = weights(model.core.encoder)
    ours = projection()
    with pytest.warns(UserWarning, match=r"frozen recurrence 'core\.encoder\.core\.l0' has the certified rate .*0\.9"):
        trainer(tmp_path, ours).fit(model, sequences(), sequences())
    assert equal(before, weights(model.core.encoder))
    assert ours.report.rate > RATE
    assert all(layer.rate <= RATE for layer in ours.report.layers[1:])


def test_validation_inputs_outside_their_bound(tmp_path: Path) -> None:
    """Looked at in every validation, however long the logging interval."""
    run = trainer(tmp_path, projection(input_bound=9.0), num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match=r"Inputs of 'core' lie outside"):
        run.fit(Recurrent("lstm", bounded=False), sequences(), sequences(scale=99.0))


@pytest.mark.parametrize("bound", [0.5, {"core": 0.5}, {"core.l0": 0.5}], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_inputs_outside_their_bound(cell: str, bound: Any, tmp_path: Path) -> None:
    """One warning for the whole run, with the recurrence and by how much."""
    data = Sequences(6).data[:, :-1].abs()
    name = "core.l0" if isinstance(bound, dict) and "core.l0" in bound else "core"
    ours = projection(input_bound=bound)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = trainer(tmp_path, ours, log_every_n_steps=1, max_epochs=2)
        run.fit(Recurrent(cell, num_layers=2), sequences(), sequences())
    (message,) = [str(w.message) for w in caught if "Inputs of" in str(w.message)]
    first = Sequences(6).data[:4].abs().max().item() - 0.5  # the sanity check's two batches come first, with all steps
    assert message.startswith(f"Inputs of '{name}' lie outside its input set (|x| <= 0.5) by ")
    assert float(message.partition(" by ")[2].split(";")[0]) <= max(first, data.max().item())
    assert "Pass a larger `input_bound`, or clamp" in message
    assert ours.report.rate <= RATE


def test_inputs_of_large_magnitude_are_not_outside_for_their_rounding(tmp_path: Path) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, FEATURES)
            self.dropout = nn.Dropout(0.3)
            self.cell = nn.GRU(FEATURES, UNITS, batch_first=True)
            with torch.no_grad():
                self.table.weight.mul_(1e4)

        def forward(self, x: Tensor) -> Any:
            return self.cell(self.dropout(self.table(x.sum(2).long() % 7)))

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Inputs of")
        model = Recurrent(Words(), bounded=False, growth=0.0, optimizer=lambda p: torch.optim.SGD(p, lr=1e-6))
        trainer(tmp_path, projection(), log_every_n_steps=1).fit(model, sequences(20))


def test_recurrence_that_is_never_called(tmp_path: Path) -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.RNN(FEATURES, UNITS, batch_first=True)
            self.unused = nn.LSTM(FEATURES, UNITS, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.used(x)

    ours = projection()
    with pytest.warns(UserWarning, match=r"recurrences \['core\.unused\.l0'\] were not projected.* Pass `input_bound`"):
        trainer(tmp_path, ours).fit(Recurrent(Unused()), sequences())
    assert [layer.guarantee for layer in ours.report.layers] == ["guaranteed", "none"]


# The object -----------------------------------------------------------------------------------------------------------


def test_pickles_before_and_after_a_fit(tmp_path: Path) -> None:
    ours = projection(modules="c*", input_bound={"core": 2.0}, every_n_steps=2)
    again = pickle.loads(pickle.dumps(ours))
    assert again.__dict__ == ours.__dict__
    trainer(tmp_path, again, log_every_n_steps=1).fit(Recurrent("lstm"), sequences())
    for copied in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        assert copied.report == again.report
        assert isinstance(copied.report, StabilityReport)
