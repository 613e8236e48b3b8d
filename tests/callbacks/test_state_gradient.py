import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader

from lightning_stable import project_, truncate
from lightning_stable.callbacks import StabilityProjectionCallback, StateGradientCallback, TruncationProfileCallback
from lightning_stable.diagnostics import measure_state_gradients
from lightning_stable.diagnostics.jacobians import gradient_norms
from lightning_stable.models import LanguageModel
from tests.callbacks.shadows import Noisy
from tests.helpers import FEATURES, TIME, UNITS, Recurrent, equal, sequences, trainer, weights


def output_gradients(model: Recurrent, batch: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Inputs of the core, and the gradient of the validation loss with respect to its output."""
    inputs = batch[:, :-1].clamp(-2.0, 2.0)
    with torch.no_grad():
        output, _ = model.core(inputs, state)
    output.requires_grad_()
    loss = (model.head(output) - batch[:, 1:]).square().mean()
    return inputs, torch.autograd.grad(loss, output)[0]


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_measures_the_gradient_of_the_validation_loss(cell: str, tmp_path: Path) -> None:
    ours, model = StateGradientCallback(2), Recurrent(cell, num_layers=2, dropout=0.5)
    run = trainer(tmp_path, ours, logger=CSVLogger(tmp_path))
    run.fit(model, sequences(), sequences(seed=1))
    inputs, gradients = output_gradients(model.eval(), next(iter(sequences(seed=1))))
    expected = measure_state_gradients(model.core, inputs, gradients, 2)
    report = ours.reports["core"]
    assert report.source == "loss"
    torch.testing.assert_close(report.norms, expected.norms, rtol=1e-4, atol=1e-8, equal_nan=True)
    logged = run.callback_metrics
    assert logged["state_gradient/core/decay"] == pytest.approx(expected.decay, rel=1e-3)
    assert logged["state_gradient/core/lyapunov"] == pytest.approx(expected.lyapunov, rel=1e-3)
    assert logged["state_gradient/core/rate_measured"] == pytest.approx(expected.rate, rel=1e-3)
    assert report.certified_rate == pytest.approx(expected.certified_rate)


def test_several_batches_of_the_first_loader(tmp_path: Path) -> None:
    class Two(Recurrent):
        def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)

    ours = StateGradientCallback(1, num_batches=2)
    trainer(tmp_path, ours).validate(Two(), [sequences(3), sequences(3)], verbose=False)
    report = ours.reports["core"]
    assert report.norms.shape == (2, 2 * 2 * (TIME - 1))
    assert report.exponents.shape == (4,)


def test_a_figure_for_tensorboard(tmp_path: Path) -> None:
    run = trainer(tmp_path, StateGradientCallback(3), logger=TensorBoardLogger(tmp_path))
    run.fit(Recurrent("lstm"), sequences(), sequences())
    events = EventAccumulator(run.log_dir, size_guidance={"images": 0}).Reload()
    (image,) = events.Images("state_gradient/core")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    for name in ("decay", "lyapunov", "rate_measured"):
        assert math.isfinite(events.Scalars(f"state_gradient/core/{name}")[0].value)
    assert not list(tmp_path.rglob("*.png"))


def test_figures_in_a_folder_if_asked(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "figures"
    trainer(tmp_path, StateGradientCallback(3, figures=folder)).fit(Recurrent(), sequences(), sequences())
    (file,) = folder.iterdir()
    assert file.name == "state-gradient-core-step-3.png"
    assert file.read_bytes().startswith(b"\x89PNG")


class Drawing(Noisy):
    """Draws in validation, too, and holds on to a tensor with a history."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        self.held = super().training_step(batch, batch_idx)
        return self.held

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch) * (1 + torch.rand(())))


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_the_run_is_what_it_would_be_without(stage: str, tmp_path: Path) -> None:
    ends = []
    for callbacks in ([], [StateGradientCallback(3, num_batches=2)]):
        L.seed_everything(1)
        model = Drawing("lstm")
        run = trainer(tmp_path, *callbacks, max_epochs=2, val_check_interval=1)
        if stage == "fit":
            run.fit(model, sequences(), sequences())
        else:
            run.validate(model, sequences(), verbose=False)
        metrics = {k: v for k, v in run.callback_metrics.items() if not k.startswith("state_gradient")}
        modes = torch.tensor([module.training for module in model.modules()])
        hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
        gradients = sum(value.grad is not None for value in model.parameters())
        state = {"rng": torch.get_rng_state(), "modes": modes, "hooks": torch.tensor([hooks, gradients])}
        ends.append(weights(model) | metrics | state)
    assert equal(*ends)


def test_metrics_and_carried_states_of_the_model_are_its_own(tmp_path: Path) -> None:
    stream = torch.randint(7, (6, 2, 5), generator=torch.Generator().manual_seed(0))
    loader: Any = DataLoader([(tokens, tokens) for tokens in stream], batch_size=None)
    results = []
    for callbacks in ([], [StateGradientCallback(3, num_batches=3)]):
        torch.manual_seed(0)
        model = LanguageModel(7, hidden_size=6, embedding_size=5)
        run = trainer(tmp_path, *callbacks, max_epochs=2)
        run.fit(model, loader, loader)
        results.append({k: v for k, v in run.callback_metrics.items() if not k.startswith("state_gradient")})
    assert equal(*results)
    assert "val_loss" in results[0]
    (report,) = callbacks[0].reports.values()
    assert report.source == "loss"
    assert report.norms.shape[1] == 3 * 2 * 5


class Cells(nn.Module):
    """Steps a cell through time."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.cell, self.start = nn.GRUCell(FEATURES, UNITS), start

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        hidden, outputs = torch.full((len(x), UNITS), self.start), []
        for step in x.unbind(1):
            hidden = self.cell(step, hidden)
            outputs.append(hidden)
        return torch.stack(outputs, 1), None


class Chunks(nn.Module):
    """Hands the state from one call to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(FEATURES, UNITS, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        first, state = self.layer(x[:, :1])
        second, _ = self.layer(input=x[:, 1:], hx=state)
        return torch.cat((first, second), 1), None


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(FEATURES, UNITS, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        lengths = [x.shape[1] - row % 2 for row in range(len(x))]
        output, _ = self.layer(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        return pad_packed_sequence(output, batch_first=True)[0], None


def test_steps_of_a_cell_make_a_sequence_whose_losses_stay_apart(tmp_path: Path) -> None:
    ours, model = StateGradientCallback(2), Recurrent(Cells(start=2.0), growth=0.0)
    # Beside a callback whose hooks count the calls of the cell in the same batch.
    profile = TruncationProfileCallback(3)
    trainer(tmp_path, profile, ours).validate(model, sequences(), verbose=False)
    cell, batch = model.core.cell, next(iter(sequences()))
    layer = nn.GRU(FEATURES, UNITS, batch_first=True)
    layer.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    model.core = layer
    start = torch.full((1, 2, UNITS), 2.0)
    inputs, gradients = output_gradients(model, batch, start)
    expected = gradient_norms(layer, inputs, gradients, 2, state=start).flatten(1).double()
    torch.testing.assert_close(ours.reports["core.cell"].norms, expected, rtol=1e-4, atol=1e-8, equal_nan=True)
    assert profile.profiles["core.cell"].max_error[-1] < 1e-6  # as many steps as the model made


def test_packed_sequences_and_given_states(tmp_path: Path) -> None:
    for core, steps, positions in ((Packed(), TIME - 1, 2 * (TIME - 1) - 1), (Chunks(), TIME - 2, 2 * (TIME - 2))):
        ours = StateGradientCallback(1000)
        trainer(tmp_path, ours).fit(Recurrent(core), sequences(), sequences())
        report = ours.reports["core.layer"]
        assert report.norms.shape == (steps, positions)
        assert report.source == "loss"


def test_a_layer_starts_from_the_state_it_is_given(tmp_path: Path) -> None:
    ours, model = StateGradientCallback(2), Recurrent(Chunks(), bounded=False, growth=0.0)
    trainer(tmp_path, ours).validate(model, sequences(), verbose=False)
    batch, layer = next(iter(sequences())), model.core.layer
    with torch.no_grad():
        first, state = layer(batch[:, :1])
        second, _ = layer(batch[:, 1:-1], state)
    second.requires_grad_()
    loss = (model.head(torch.cat((first, second), 1)) - batch[:, 1:]).square().mean()
    (gradients,) = torch.autograd.grad(loss, second)
    expected = measure_state_gradients(layer, batch[:, 1:-1], gradients, 2, state=state)
    found = ours.reports["core.layer"]
    torch.testing.assert_close(found.norms, expected.norms, rtol=1e-4, atol=1e-8, equal_nan=True)
    torch.testing.assert_close(found.exponents, expected.exponents, rtol=1e-4, atol=1e-5)
    from_zero = measure_state_gradients(layer, batch[:, 1:-1], gradients, 2)
    assert not torch.allclose(found.exponents, from_zero.exponents, rtol=1e-4, atol=1e-5)


def test_a_classifier_that_reads_the_final_state(tmp_path: Path) -> None:
    class Classifier(Recurrent):
        def loss(self, batch: Tensor) -> Tensor:
            assert not batch.is_inference() or torch.is_inference_mode_enabled()
            _, (hidden, _) = self.core(batch)
            return hidden[-1].square().mean()

    ours = StateGradientCallback(3)
    trainer(tmp_path, ours).validate(Classifier("lstm"), sequences(), verbose=False)
    report = ours.reports["core"]
    assert report.norms.shape == (4, 2)  # one loss per sequence, at its end
    assert report.norms.isfinite().all()


class Silent(Recurrent):
    """Returns, logs, or says nothing."""

    def __init__(self, says: str) -> None:
        super().__init__("gru")
        self.says = says

    def validation_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = self.loss(batch)
        if self.says == "logs":
            self.log_dict({"val_other_loss": loss * 0, "val_error": loss})
        return {"returns": loss, "entry": {"loss": loss}}.get(self.says)


@pytest.mark.parametrize(
    ("says", "loss", "source"),
    [("returns", None, "loss"), ("entry", None, "loss"), ("logs", "val_error", "loss"), ("nothing", None, "random")],
)
def test_where_the_loss_is_found(says: str, loss: str | None, source: str, tmp_path: Path) -> None:
    ours = StateGradientCallback(2, loss=loss)
    run = trainer(tmp_path, ours)
    if source == "random":
        with pytest.warns(UserWarning, match="found no differentiable loss"):
            run.validate(Silent(says), sequences(), verbose=False)
    else:
        run.validate(Silent(says), sequences(), verbose=False)
    assert ours.reports["core"].source == source
    assert (ours.reports["core"].norms[0] > 0).all()


def test_a_loss_that_is_not_logged(tmp_path: Path) -> None:
    run = trainer(tmp_path, StateGradientCallback(loss="val_los"))
    with pytest.raises(MisconfigurationException, match=r"`loss` must name .* Got 'val_los'; .*\['val_loss'\]"):
        run.validate(Recurrent(), sequences(), verbose=False)


def test_a_stable_model_decays_at_least_as_fast_as_certified(tmp_path: Path) -> None:
    ours = StateGradientCallback(3, num_batches=3)
    trainer(tmp_path, StabilityProjectionCallback(0.8), ours).fit(Recurrent(), sequences(), sequences())
    report = ours.reports["core"]
    assert report.is_certified
    assert report.certified_rate <= 0.8
    assert report.decay <= 0.8 + 1e-6
    assert report.rate <= 0.8 + 1e-6
    assert report.in_stable_regime


def test_an_unstable_model_in_the_stable_regime(tmp_path: Path) -> None:
    model = Recurrent(growth=0.0)
    with torch.no_grad():
        model.core.weight_hh_l0.copy_(1.5 * torch.eye(UNITS))
        model.core.weight_ih_l0.fill_(20.0)
    ours = StateGradientCallback(2)
    trainer(tmp_path, ours).validate(model, sequences(), verbose=False)
    assert not ours.reports["core"].is_certified
    assert ours.reports["core"].in_stable_regime
    with torch.no_grad():
        model.core.weight_ih_l0.zero_()
        model.core.bias_ih_l0.zero_()
        model.core.bias_hh_l0.zero_()
    trainer(tmp_path, ours).validate(model, sequences(), verbose=False)
    assert not ours.reports["core"].in_stable_regime
    assert ours.reports["core"].rate == pytest.approx(1.5, rel=1e-4)


def test_every_n_epochs_and_the_sanity_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("lightning_stable.callbacks.state_gradient.draw", lambda *args: drawn.append(args))
    ours = StateGradientCallback(2, every_n_epochs=2)
    trainer(tmp_path, ours, max_epochs=4, num_sanity_val_steps=2).fit(Recurrent(), sequences(), sequences())
    assert len(drawn) == 2


def test_input_bounds_by_name_and_bfloat16_autocast(tmp_path: Path) -> None:
    model = Recurrent("gru", growth=0.0)
    project_(model, 0.9, input_bound=2.0)
    ours = StateGradientCallback(2, input_bound={"core": 2.0})
    trainer(tmp_path, ours, precision="bf16-mixed").validate(model, sequences(), verbose=False)
    report = ours.reports["core"]
    assert report.guarantee == "guaranteed"
    assert report.certified_rate <= 0.9
    assert report.norms.nan_to_num().isfinite().all()


def test_what_cannot_be_measured_is_skipped(tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = nn.GRU(FEATURES, UNITS, batch_first=True)
            self.windowed = truncate(nn.GRU(UNITS, UNITS, batch_first=True), 2)
            self.both = nn.LSTM(UNITS, UNITS, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.both(self.windowed(self.plain(x)[0])[0])

    ours = StateGradientCallback(2)
    with pytest.warns(UserWarning, match="StateGradientCallback skips") as record:
        trainer(tmp_path, ours).validate(Recurrent(Both()), sequences(), verbose=False)
    texts = " ".join(str(warning.message) for warning in record)
    assert "skips 'core.windowed': it is WindowedGRU" in texts
    assert "skips 'core.both': it is a bidirectional LSTM" in texts
    assert list(ours.reports) == ["core.plain"]
    assert ours.reports["core.plain"].source == "loss"
    with pytest.raises(MisconfigurationException, match=r"one direction and no window\. Got .*windowed"):
        trainer(tmp_path, StateGradientCallback(modules="core.windowed")).validate(Recurrent(Both()), sequences())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_lag": 0}, ValueError, "`max_lag` must be a positive integer. Got 0"),
        ({"num_batches": 1.5}, TypeError, "`num_batches` must be a positive integer. Got 1.5"),
        ({"every_n_epochs": True}, TypeError, "`every_n_epochs` must be a positive integer. Got True"),
        ({"loss": ""}, ValueError, "`loss` must not be empty. Got ''"),
        ({"figures": 3}, (TypeError, ValueError), "`figures` must be a path. Got 3"),
    ],
)
def test_wrong_argument(arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        StateGradientCallback(**arguments)


def test_models_that_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="No recurrence found"):
        trainer(tmp_path, StateGradientCallback()).fit(BoringModel())
    model = Recurrent()
    model.held = (value for value in [])  # type: ignore[assignment]
    with pytest.raises(MisconfigurationException, match=r"could not deep-copy Recurrent\. Got TypeError"):
        trainer(tmp_path, StateGradientCallback()).validate(model, sequences(), verbose=False)
