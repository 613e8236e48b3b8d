import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_stable import project_, truncation_profile
from lightning_stable.callbacks import TruncationProfileCallback
from tests.helpers import FEATURES, TIME, UNITS, Recurrent, equal, sequences, trainer, weights


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_logs_what_the_profile_of_the_first_validation_batch_says(cell: str, tmp_path: Path) -> None:
    ours, model = TruncationProfileCallback(max_window=5, tolerance=0.05), Recurrent(cell, num_layers=2, dropout=0.5)
    run = trainer(tmp_path, ours, logger=CSVLogger(tmp_path))
    run.fit(model, sequences(), sequences(seed=1))
    batch = next(iter(sequences(seed=1)))[:, :-1].clamp(-2.0, 2.0)
    expected = truncation_profile(model.core, batch, 5)
    logged = run.callback_metrics
    assert logged["truncation/core/max_error"] == pytest.approx(expected.max_error[-1].item())
    assert logged["truncation/core/required_window"] == expected.required_window(0.05)
    assert logged.get("truncation/core/tube_window") == expected.tube_window(0.05)
    assert math.isnan(expected.rate) or logged["truncation/core/rate"] == pytest.approx(expected.rate)
    assert torch.equal(ours.profiles["core"].max_error, expected.max_error)
    assert model.core.training


def test_no_required_window_where_the_longest_is_not_enough(tmp_path: Path) -> None:
    run = trainer(tmp_path, TruncationProfileCallback(max_window=1, tolerance=1e-6))
    run.fit(Recurrent(), sequences(), sequences())
    assert "truncation/core/max_error" in run.callback_metrics
    assert "truncation/core/required_window" not in run.callback_metrics


def test_a_figure_for_tensorboard(tmp_path: Path) -> None:
    run = trainer(tmp_path, TruncationProfileCallback(4), logger=TensorBoardLogger(tmp_path))
    run.fit(Recurrent("lstm"), sequences(), sequences())
    events = EventAccumulator(run.log_dir, size_guidance={"images": 0}).Reload()
    (image,) = events.Images("truncation/core")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert events.Scalars("truncation/core/max_error")[0].value > 0


def test_training_is_what_it_would_be_without(tmp_path: Path) -> None:
    ends = []
    for callbacks in ([], [TruncationProfileCallback(3)]):
        L.seed_everything(1)
        model = Recurrent("lstm", num_layers=2, dropout=0.3)
        trainer(tmp_path, *callbacks, max_epochs=2).fit(model, sequences(), sequences())
        ends.append(weights(model))
    assert equal(*ends)


class Cells(nn.Module):
    """Steps a cell through time."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(FEATURES, UNITS)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        hidden, outputs = None, []
        for step in x.unbind(1):
            hidden = self.cell(step, hidden)
            outputs.append(hidden)
        return torch.stack(outputs, 1), None


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(FEATURES, UNITS, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        lengths = [x.shape[1] - row % 2 for row in range(len(x))]
        output, _ = self.layer(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        return pad_packed_sequence(output, batch_first=True)[0], None


@pytest.mark.parametrize(("core", "name"), [(Cells, "core.cell"), (Packed, "core.layer")])
def test_cells_and_packed_sequences(core: Any, name: str, tmp_path: Path) -> None:
    ours = TruncationProfileCallback(TIME)
    run = trainer(tmp_path, ours)
    run.fit(Recurrent(core()), sequences(), sequences())
    errors = ours.profiles[name].max_error
    assert errors[0] > 0
    assert errors[-1] < 1e-6


def test_every_n_epochs_and_the_sanity_check(tmp_path: Path) -> None:
    class Count(TruncationProfileCallback):
        count = 0

        def _metrics(self, name: str, profile: Any) -> dict[str, float]:
            self.count += 1
            return super()._metrics(name, profile)

    ours = Count(2, every_n_epochs=2)
    trainer(tmp_path, ours, max_epochs=4, num_sanity_val_steps=2).fit(Recurrent(), sequences(), sequences())
    assert ours.count == 2


def test_a_value_to_monitor_and_a_stable_model(tmp_path: Path) -> None:
    model = Recurrent("lstm", growth=0.0)
    project_(model, 0.9)
    ours = TruncationProfileCallback(30)
    checkpoint = ModelCheckpoint(tmp_path, monitor="truncation/core/max_error")
    trainer(tmp_path, ours, checkpoint).fit(model, sequences(), sequences())
    assert checkpoint.best_model_score is not None
    profile = ours.profiles["core"]
    assert (profile.max_error <= profile.bound).all() or profile.bound.isnan().all()


def test_trainer_validate(tmp_path: Path) -> None:
    ours = TruncationProfileCallback(3)
    (metrics,) = trainer(tmp_path, ours).validate(Recurrent("gru"), sequences(), verbose=False)
    assert metrics["truncation/core/max_error"] == pytest.approx(ours.profiles["core"].max_error[-1].item())


def test_bfloat16_autocast(tmp_path: Path) -> None:
    ours = TruncationProfileCallback(3)
    trainer(tmp_path, ours, precision="bf16-mixed").fit(Recurrent("lstm"), sequences(), sequences())
    assert ours.profiles["core"].max_error.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_window": 0}, ValueError, "`max_window` must be a positive integer. Got 0"),
        ({"max_window": 2.5}, TypeError, "`max_window` must be a positive integer. Got 2.5"),
        ({"every_n_epochs": True}, TypeError, "`every_n_epochs` must be a positive integer. Got True"),
        ({"tolerance": 0}, ValueError, r"`tolerance` must be a number in \(0, inf\). Got 0"),
    ],
)
def test_wrong_argument(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TruncationProfileCallback(**arguments)


def test_model_without_recurrence(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="No recurrence found"):
        trainer(tmp_path, TruncationProfileCallback()).fit(BoringModel())


def test_a_bound_by_the_names_of_the_model(tmp_path: Path) -> None:
    """Of a module, and of one of its layers."""
    model = Recurrent("rnn")
    project_(model.core, 0.9)
    for bound in ({"core": 2.0}, {"core.l0": 2.0}):
        ours = TruncationProfileCallback(max_window=3, input_bound=bound)
        trainer(tmp_path, ours).validate(model, sequences(), verbose=False)
        assert ours.profiles["core"].guarantee == "guaranteed"


# Statistical window ---------------------------------------------------------------------------------------------------
def test_a_statistical_window_of_the_first_batches(tmp_path: Path) -> None:
    ours, model = TruncationProfileCallback(5, tolerance=0.05, num_batches=3, coverage=0.5, confidence=0.9), Recurrent()
    run = trainer(tmp_path, ours, logger=TensorBoardLogger(tmp_path))
    run.fit(model, sequences(), sequences(seed=1))
    batches = list(sequences(seed=1))[:3]
    joined = torch.cat([batch[:, :-1].clamp(-2.0, 2.0) for batch in batches])
    expected = truncation_profile(model.core, joined, 5)
    torch.testing.assert_close(ours.profiles["core"].sequence_error, expected.sequence_error)
    window = expected.required_window(0.05, coverage=0.5, confidence=0.9)
    assert run.callback_metrics["truncation/core/statistical_window"] == window
    events = EventAccumulator(f"{run.log_dir}/statistical").Reload()
    assert events.Scalars("truncation/core/required_window")[0].value == window


def test_too_few_sequences_are_a_warning(tmp_path: Path) -> None:
    run = trainer(tmp_path, TruncationProfileCallback(2, coverage=0.99))
    with pytest.warns(UserWarning, match=r"no statistical window of 'core'.*needs at least 299 sequences\. Got "):
        run.fit(Recurrent(), sequences(), sequences())
    assert "truncation/core/max_error" in run.callback_metrics
    assert "truncation/core/statistical_window" not in run.callback_metrics


@pytest.mark.parametrize("name", ["coverage", "confidence"])
def test_shares_are_inside_0_and_1(name: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` must be a number in \(0, 1\)\. Got 1\.5"):
        TruncationProfileCallback(**{name: 1.5})  # type: ignore[arg-type]
