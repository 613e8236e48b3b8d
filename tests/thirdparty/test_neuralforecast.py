"""Models that hold their trainer's arguments, callbacks too, as hyperparameters, and are copied before they train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_stable import certify
from tests.thirdparty.runs import RATE, TRAINER, callbacks, check, check_reloaded, needs, seen, waves

pd = pytest.importorskip("pandas")
pytestmark = needs("neuralforecast")
DAYS = pd.date_range("2020", periods=80, freq="D")


def frame() -> pd.DataFrame:
    rows = [
        {"unique_id": str(i), "ds": day, "y": v}
        for i, row in enumerate(waves())
        for day, v in zip(DAYS, row, strict=True)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("cell", "recurrent"), [("LSTM", False), ("GRU", False), ("LSTM", True)])
def test_forecasts(cell: str, recurrent: bool, tmp_path: Path) -> None:
    from neuralforecast import NeuralForecast, models

    kind = getattr(models, cell)
    given = callbacks(tmp_path, "ptl/val_loss")

    def untrained(**more: Any) -> Any:
        return kind(h=4, input_size=16, encoder_hidden_size=10, recurrent=recurrent, max_steps=12, **more)

    assert certify(untrained(), input_bound=50.0).rate > RATE
    model = untrained(
        val_check_steps=6,
        callbacks=given,
        logger=TensorBoardLogger(tmp_path),
        enable_checkpointing=True,
        **TRAINER,
    )
    forecast = NeuralForecast([model], freq="D")
    forecast.fit(frame(), val_size=8)
    trained = forecast.models[0]
    used = trained.trainer_kwargs["callbacks"]  # NeuralForecast trains a copy of the model and of its callbacks
    check(tmp_path, used, trained.metrics)
    assert len(forecast.predict()) == 4 * 4

    forecast.save(str(tmp_path / "saved"))
    loaded = NeuralForecast.load(str(tmp_path / "saved")).models[0]
    assert certify(loaded, input_bound=seen(used[0])).rate <= RATE
    best = used[-1].best_model_path
    check_reloaded(best, kind.load_from_checkpoint(best, weights_only=False))
