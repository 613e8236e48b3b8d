"""Models inside a wrapper that makes the LightningModule when it is fitted, and pickles its trainer's arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_stable import certify
from lightning_stable.checkpoints import recorded_inputs
from tests.thirdparty.runs import RATE, TRAINER, callbacks, check, check_reloaded, needs, waves

pytestmark = needs("darts")


@pytest.mark.parametrize(("kind", "cell"), [("BlockRNNModel", "LSTM"), ("BlockRNNModel", "GRU"), ("RNNModel", "LSTM")])
def test_forecasts(kind: str, cell: str, tmp_path: Path) -> None:
    import torch
    from darts import TimeSeries, models

    series = [TimeSeries.from_values(row.astype("float32")) for row in waves()]
    used = callbacks(tmp_path, "val_loss")
    length = {"output_chunk_length": 4} if kind == "BlockRNNModel" else {"training_length": 20}
    trainer = {"callbacks": used, "logger": TensorBoardLogger(tmp_path), "enable_checkpointing": True, **TRAINER}
    model = getattr(models, kind)(
        input_chunk_length=16,
        model=cell,
        hidden_dim=10,
        n_rnn_layers=2,
        n_epochs=2,
        batch_size=32,
        random_state=0,
        pl_trainer_kwargs=trainer,
        **length,
    )
    model.fit([values[:60] for values in series], val_series=[values[40:] for values in series])
    check(tmp_path, used, model.trainer.callback_metrics)

    model.save(str(tmp_path / "model.pt"))  # the callbacks with it
    loaded = type(model).load(str(tmp_path / "model.pt"), trusted=True)
    forecasts = [each.predict(4, series=series[0]).values() for each in (model, loaded)]
    assert np.array_equal(*forecasts)
    best = used[-1].best_model_path
    inputs = recorded_inputs(torch.load(best, weights_only=False))
    assert certify(loaded.model, input_bound=inputs).rate <= RATE
    check_reloaded(best, type(model.model).load_from_checkpoint(best, weights_only=False))
