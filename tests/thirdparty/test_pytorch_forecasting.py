"""DeepAR: a subclass of torch's LSTM with more arguments, packed encoders of any length, and a decoder that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_stable import certify, truncate
from tests.thirdparty.runs import TRAINER, callbacks, check, check_reloaded, needs, waves

pd = pytest.importorskip("pandas")
pytestmark = needs("pytorch_forecasting")


def data(shortest: int) -> Any:
    from pytorch_forecasting import TimeSeriesDataSet

    rows = [{"time": t, "series": str(i), "value": v} for i, row in enumerate(waves()) for t, v in enumerate(row)]
    return TimeSeriesDataSet(
        pd.DataFrame(rows),
        time_idx="time",
        target="value",
        group_ids=["series"],
        min_encoder_length=shortest,
        max_encoder_length=12,
        max_prediction_length=5,
        time_varying_unknown_reals=["value"],
        static_categoricals=["series"],
        add_relative_time_idx=True,
    )


@pytest.mark.parametrize(("cell", "shortest"), [("LSTM", 1), ("GRU", 12)])
def test_deep_ar(cell: str, shortest: int, tmp_path: Path) -> None:
    from pytorch_forecasting import DeepAR

    seed_everything(0)
    dataset = data(shortest)
    training = dataset.to_dataloader(train=True, batch_size=32, num_workers=0)
    validation = dataset.to_dataloader(train=False, batch_size=32, num_workers=0)

    def model() -> Any:
        return DeepAR.from_dataset(dataset, cell_type=cell, hidden_size=10, rnn_layers=2, dropout=0.1)

    first, used = model(), callbacks(tmp_path, "val_loss")
    assert certify(first, input_bound=5.0).rate > 1
    limits = {"limit_train_batches": 4, "limit_val_batches": 2}
    trainer = Trainer(max_epochs=2, callbacks=used, logger=TensorBoardLogger(tmp_path), **limits, **TRAINER)
    trainer.fit(first, training, validation)
    check(tmp_path, used, trainer.callback_metrics)

    best = used[-1].best_model_path
    check_reloaded(best, DeepAR.load_from_checkpoint(best, weights_only=False))
    again = callbacks(tmp_path / "again", "val_loss")
    trainer = Trainer(max_epochs=3, callbacks=again, logger=TensorBoardLogger(tmp_path / "again"), **limits, **TRAINER)
    trainer.fit(model(), training, validation, ckpt_path=best, weights_only=False)
    check(tmp_path / "again", again, trainer.callback_metrics)


@pytest.mark.parametrize("window", [3, 40])
def test_sampled_forecasts_of_the_truncated_model(window: int) -> None:
    """The decoder runs step by step, from states that are repeated for every sample."""
    from pytorch_forecasting import DeepAR

    seed_everything(0)
    dataset = data(1)
    model = DeepAR.from_dataset(dataset, hidden_size=10, rnn_layers=2).eval()
    twin = truncate(model, window)
    inputs, _ = next(iter(dataset.to_dataloader(train=False, batch_size=1000, num_workers=0)))
    assert inputs["encoder_lengths"].unique().tolist() == list(range(1, 13))
    forecasts = []
    for module in (model, twin):
        torch.manual_seed(0)
        with torch.no_grad():
            forecasts.append(module(inputs, n_samples=3)["prediction"])
    assert torch.allclose(*forecasts, atol=1e-5) == (window == 40)
